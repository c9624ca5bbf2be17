"""Engines replayed as CUDA graphs: what the CPU enqueued once is launched again in one call.

    enqueue(role, inputs, outputs) ─ seen rarely ─► engine ─► stream
                                   ─ seen often ──► captured once ─► graph ─► stream

A graph holds the addresses it was captured with. In steady state the pool hands out the same ones every second or third frame, so a few
graphs per engine and shape serve all frames. TensorRT-RTX does the same by itself, and later: it knows when the kernels for a shape are
compiled (`TensorRTEngines(cuda_graphs=True)`).
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError, expected, reason
from fastsam2.runtime.gpu.driver import Gpu
from fastsam2.runtime.gpu.engines import DeviceTensor, Engines

CAPTURE_AFTER = 8  # runs with the same addresses
MOST_GRAPHS = 64  # kept; those used least recently are forgotten first

_Key = tuple[GraphRole, tuple[tuple[str, int, tuple[int, ...]], ...]]


class Capture(Protocol):
    """What capturing needs of CUDA; `CudaCapture` is one."""

    def begin(self) -> None:
        """What is enqueued from now on is recorded instead of run."""
        ...

    def end(self) -> Any:
        """The recording, ready to be launched.

        Raises:
            BackendError: if it cannot be used; nothing of it has run, and recording has ended.
        """
        ...

    def launch(self, graph: Any) -> None:
        """Enqueue a recording."""
        ...

    def release(self, graph: Any) -> None:
        """Forget a recording that the stream is through with."""
        ...


class GraphEngines:
    """See `Engines`: those of `inner`, replayed where their addresses come back. Masks are the same; only the CPU has less to do.

    An engine that cannot be captured runs as before; `cuda_graphs` says which, and why.

    Args:
        inner: runs what is not captured.
        gpu: whose stream they use.
        capture: CUDA's own unless given.

    Raises:
        BackendError: if cuda.bindings is not installed.
    """

    def __init__(self, inner: Engines, gpu: Gpu, capture: Capture | None = None) -> None:
        self.inner, self.gpu = inner, gpu
        self.name, self.target = inner.name, inner.target
        self._capture: Capture = CudaCapture(gpu) if capture is None else capture
        self._seen: OrderedDict[_Key, int] = OrderedDict()
        self._graphs: OrderedDict[_Key, Any] = OrderedDict()
        self._refused: dict[GraphRole, str] = {}
        self._shapes: dict[GraphRole, tuple[tuple[int, ...], ...]] = {}  # of the last run of each engine
        self._launched = self._captured = self._activations = 0

    def max_objects(self, role: GraphRole) -> int | None:
        """See `Engines.max_objects`."""
        return self.inner.max_objects(role)

    def max_prompt_frames(self) -> int | None:
        """See `Engines.max_prompt_frames`."""
        return self.inner.max_prompt_frames()

    def has(self, role: GraphRole) -> bool:
        """See `Engines.has`."""
        return self.inner.has(role)

    def enqueue(self, role: GraphRole, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        """See `Engines.enqueue`."""
        if role in self._refused:
            self.inner.enqueue(role, inputs, outputs)
            return
        key = (role, tuple((name, t.address, t.shape) for name, t in (*inputs.items(), *outputs.items())))
        if self.inner.activation_bytes() != self._activations:  # the engines' shared memory moved: graphs point at the old one
            self._forget()
        graph = self._graphs.get(key)
        if graph is None:
            shapes = tuple(shape for _, _, shape in key[1])
            if self._often(key) and self._shapes.get(role) == shapes:  # a change of shapes cannot be captured
                graph = self._record(key, inputs, outputs)
            if graph is None:
                self._shapes.pop(role, None)  # until this went well
                self.inner.enqueue(role, inputs, outputs)
                self._shapes[role] = shapes
                return
        self._graphs.move_to_end(key)
        self._capture.launch(graph)
        self._launched += 1

    def activation_bytes(self) -> int:
        """See `Engines.activation_bytes`."""
        return self.inner.activation_bytes()

    def cuda_graphs(self) -> dict[str, Any]:
        """How many graphs were captured and launched, and why some engines were not captured."""
        return {"captured": self._captured, "launched": self._launched, "refused": {r.value: why for r, why in self._refused.items()}}

    def close(self) -> None:
        """See `Engines.close`."""
        self._forget()
        self.inner.close()

    def _often(self, key: _Key) -> bool:
        count = self._seen.pop(key, 0) + 1
        self._seen[key] = count
        if len(self._seen) > 4 * MOST_GRAPHS:
            self._seen.popitem(last=False)
        return count > CAPTURE_AFTER

    def _record(self, key: _Key, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> Any:
        """The graph of one run; None where it cannot be captured, which is then remembered."""
        self._capture.begin()
        failed: BackendError | None = None
        graph = None
        try:
            self.inner.enqueue(key[0], inputs, outputs)
        except BackendError as error:
            failed = error
        try:
            graph = self._capture.end()
        except BackendError as error:
            failed = failed or error
        if failed is not None:
            if graph is not None:
                self._capture.release(graph)
            self._refused[key[0]] = str(failed)
            return None
        del self._seen[key]
        self._graphs[key] = graph
        self._captured += 1
        if len(self._graphs) > MOST_GRAPHS:
            self.gpu.synchronize()
            self._capture.release(self._graphs.popitem(last=False)[1])
        return graph

    def _forget(self) -> None:
        if self._graphs:
            self.gpu.synchronize()
        while self._graphs:
            self._capture.release(self._graphs.popitem()[1])
        self._seen.clear()
        self._activations = self.inner.activation_bytes()


class CudaCapture:
    """Stream capture through cuda.bindings; see `Capture`.

    Args:
        gpu: whose stream is captured.

    Raises:
        BackendError: if cuda.bindings is not installed.
    """

    def __init__(self, gpu: Gpu) -> None:
        try:
            self._cuda = importlib.import_module("cuda.bindings.driver")
        except (ImportError, OSError, RuntimeError) as error:
            todo = "Run: pip install fastsam2[cuda], or leave CUDA graphs off"
            raise BackendError(expected("the Python package cuda.bindings", reason(error), todo)) from error
        self._gpu = gpu

    def begin(self) -> None:
        """See `Capture.begin`."""
        self._gpu.activate()
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._gpu.stream_handle, mode)

    def end(self) -> Any:
        """See `Capture.end`."""
        (graph,) = self._call("cuStreamEndCapture", self._gpu.stream_handle)
        try:
            (ready,) = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return ready

    def launch(self, graph: Any) -> None:
        """See `Capture.launch`."""
        self._gpu.activate()
        self._call("cuGraphLaunch", graph, self._gpu.stream_handle)

    def release(self, graph: Any) -> None:
        """See `Capture.release`."""
        self._call("cuGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        status, *values = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise BackendError(expected(f"CUDA graphs on {self._gpu.name}", f"{status.name} from {name}", "Leave CUDA graphs off"))
        return tuple(values)
