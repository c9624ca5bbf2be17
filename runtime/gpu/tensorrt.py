"""Engines of TensorRT and TensorRT-RTX on the stream of the GPU loop.

    engines/<flavor>-<version>-<target>/ ─ load_engines ─► engine ─ smallest profile with room, shapes, addresses ─► execute_async_v3

Engines run one after the other on one stream, so they share one block of activation memory.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fastsam2.bundle import Manifest
from fastsam2.contracts import GraphSpec, TensorSpec, graph_spec
from fastsam2.engines import trt_compat
from fastsam2.engines.records import EngineEntry, build_command, load_engines, targets_for
from fastsam2.engines.targets import PORTABLE
from fastsam2.engines.trt_log import logger_of
from fastsam2.enums import ExportTarget, Flavor, GraphRole
from fastsam2.errors import BackendError, BundleError, InternalError, StateError, expected, reason
from fastsam2.files import write_whole
from fastsam2.runtime.gpu.driver import Gpu
from fastsam2.runtime.gpu.engines import DeviceTensor, check_tensors

DTYPES: Mapping[str, str] = {"FLOAT": "float32", "INT32": "int32", "BOOL": "bool", "UINT8": "uint8"}  # DataType -> numpy
_RAISES = {  # axis -> what gives it more room
    "B": "Build the engines with a larger --max-objects",
    "M": "Build the engines with a larger --max-prompt-frames",
    "P": "Build the engines with a larger --max-prompt-frames",
    "R": "Build the engines with a larger --max-prompt-frames",
    "Q": "Give fewer points for one object",
    "T": "Encode fewer descriptions at once",
}

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Loaded:
    """One engine on the GPU; shapes and profile are those of the last run."""

    engine: Any
    context: Any
    entry: EngineEntry
    profile: int
    shapes: tuple[tuple[int, ...], ...] = ()


class TensorRTEngines:
    """One engine and one execution context per graph, loaded at first use; see `Engines`.

    Args:
        bundle: folder of the bundle.
        manifest: its manifest.
        gpu: whose stream and memory are used.
        flavor: which TensorRT.
        cuda_graphs: TensorRT-RTX captures each engine into a CUDA graph and replays it.
        specialize_at_once: TensorRT-RTX compiles its kernels for new shapes before it runs them, instead of beside stand-ins that it runs
            meanwhile: each new shape waits, and times are those of the final kernels.
        cache_folder: where TensorRT-RTX keeps the kernels that it compiled for this GPU; None compiles them again in every process.

    Raises:
        BackendError: if the flavor's package is missing, or has no CUDA graphs of its own.
        BundleError: if there are no engines for this GPU, or they are damaged or out of date; says how to build them.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        gpu: Gpu,
        flavor: Flavor,
        *,
        cuda_graphs: bool = False,
        specialize_at_once: bool = False,
        cache_folder: Path | None = None,
    ) -> None:
        if cuda_graphs and flavor is Flavor.TENSORRT:
            todo = "Leave CUDA graphs off, or use tensorrt-rtx"
            raise BackendError(expected("a flavor that captures its engines into CUDA graphs", flavor.value, todo))
        self.name, self.target = flavor.value, ExportTarget.TENSORRT
        self._trt = _module(flavor, Path(bundle), gpu.capability)
        self._flavor, self._gpu, self._bundle, self._manifest = flavor, gpu, Path(bundle), manifest
        self._cuda_graphs, self._specialize_at_once = cuda_graphs, specialize_at_once
        version = str(self._trt.__version__)
        there = targets_for(self._bundle, flavor, version=version, capability=gpu.capability)
        wanted = there[0] if there else _default_target(flavor, gpu.capability)
        self._folder, self._set = load_engines(self._bundle, manifest, flavor, version=version, target=wanted)
        self._cache = _RuntimeCache(cache_folder, gpu.name) if flavor is Flavor.TENSORRT_RTX and cache_folder is not None else None
        self._log = logger_of(self._trt)
        self._runtime: Any = None
        self._loaded: dict[GraphRole, _Loaded] = {}
        self._activations, self._activation_bytes = 0, 0  # address, size
        self._lock = threading.Lock()
        self._closed = False

    def max_objects(self, role: GraphRole) -> int | None:
        """See `Engines.max_objects`."""
        batched = any("B" in tensor.axes for tensor in graph_spec(role, self.target).inputs)
        return self._set.limits.max_objects if batched else None

    def max_prompt_frames(self) -> int:
        """See `Engines.max_prompt_frames`."""
        return self._set.limits.max_prompt_frames

    def has(self, role: GraphRole) -> bool:
        """See `Engines.has`."""
        return self._set.engine(role) is not None

    def cuda_graphs(self) -> dict[str, Any] | None:
        """See `Engines.cuda_graphs`."""
        return {"captured_by": self.name} if self._cuda_graphs else None

    def activation_bytes(self) -> int:
        """See `Engines.activation_bytes`."""
        return self._activation_bytes

    def enqueue(self, role: GraphRole, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        """See `Engines.enqueue`.

        Raises:
            BackendError: if the engine does not load or run here, or no profile has room for the shapes.
            BundleError: if there is no engine of that role.
            StateError: after `close`.
        """
        table = graph_spec(role, self.target)
        check_tensors(table, inputs, outputs)
        with self._lock:
            if self._closed:
                raise StateError(expected("open engines", "closed ones", "Load the bundle again"))
            self._gpu.activate()
            self._log.clear()
            loaded = self._loaded.get(role) or self._load(role, table)
            self._set_shapes(loaded, table, inputs, outputs)
            for name, tensor in (*inputs.items(), *outputs.items()):
                self._check(loaded.context.set_tensor_address(name, tensor.address), f"{role.value} to take the address of {name}")
            self._check(loaded.context.execute_async_v3(self._gpu.stream_handle), f"{role.value} to run on {self._gpu.name}")

    def close(self) -> None:
        """See `Engines.close`; keeps the kernels that TensorRT-RTX compiled."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with suppress(BackendError, StateError):  # lost or closed: nothing runs any more
                self._gpu.synchronize()
            self._loaded.clear()  # a context keeps its engine, and that the runtime, until it is gone
            if self._cache is not None:
                self._cache.close()
            self._runtime = None
            if self._activations:
                with suppress(BackendError, StateError):
                    self._gpu.release(self._activations)
            self._activations, self._activation_bytes = 0, 0

    def _load(self, role: GraphRole, table: GraphSpec) -> _Loaded:
        entry = self._set.engine(role)
        if entry is None:
            raise BundleError(expected(f"an engine of {role.value} in {self._folder}", "none", f"Build it: {self._command()}"))
        engine = self._deserialize(entry)
        self._check_tensors(engine, entry, table)
        self._reserve(self._need(engine))
        context = self._context(engine, role)
        if self._activations:
            context.set_device_memory(self._activations, self._activation_bytes)
        loaded = self._loaded[role] = _Loaded(engine, context, entry, int(context.active_optimization_profile))
        return loaded

    def _deserialize(self, entry: EngineEntry) -> Any:
        path = self._folder / entry.file.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(expected(f"a readable {path}", reason(error), f"Build again: {self._command(entry)}")) from error
        if self._runtime is None:
            self._runtime = self._trt.Runtime(self._log)
        if hasattr(self._runtime, "get_engine_validity"):
            self._check_validity(data, entry, path)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            todo = f"If memory ran out, track fewer objects; else build again: {self._command(entry)}"
            raise BackendError(expected(f"{path} to load on {self._gpu.name}", self._log.said(), todo))
        return engine

    def _check_validity(self, data: bytes, entry: EngineEntry, path: Path) -> None:
        validity, bits = self._runtime.get_engine_validity(data)
        if validity == self._trt.EngineValidity.INVALID:
            why = invalid_because(self._trt, bits)
            gpu = f"{self._gpu.name} (compute capability {self._gpu.capability})"
            got = f"one built for {self._set.target}: {', '.join(why) or 'no diagnosis'}; {self._log.said()}"
            todo = f"Build for this GPU: {self._command(entry, self._gpu.capability)}, or use the backend onnxruntime-cuda"
            raise BackendError(expected(f"an engine in {path} that {self.name} {self._trt.__version__} runs on {gpu}", got, todo))
        if validity == self._trt.EngineValidity.SUBOPTIMAL:
            logger.warning("%s was built for %s and may be slower on %s than one built for it", path, self._set.target, self._gpu.name)

    def _check_tensors(self, engine: Any, entry: EngineEntry, table: GraphSpec) -> None:
        """Names, modes, types, sizes of inputs and profiles, before an address is given away; sizes of outputs follow in each run."""
        given = self._trt.TensorIOMode.INPUT
        have = {"profiles": str(engine.num_optimization_profiles)}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            is_input = engine.get_tensor_mode(name) == given
            sizes = f"input {_sizes(engine.get_tensor_shape(name))}" if is_input else "output"
            dtype, where = engine.get_tensor_dtype(name).name, engine.get_tensor_location(name).name
            have[name] = f"{sizes} {DTYPES.get(dtype, dtype)} {where}"
        want = {"profiles": str(max(1, len(entry.profiles)))}
        for t in table.inputs:
            want[t.name] = f"input {_sizes([-1 if isinstance(d, str) else d for d in t.shape(self._manifest.model)])} {t.dtype} DEVICE"
        want |= {t.name: f"output {t.dtype} DEVICE" for t in table.outputs}
        wrong = sorted(n for n in {*have, *want} if have.get(n) != want.get(n))
        if wrong:
            what, got = ({n: found.get(n, "none") for n in wrong} for found in (want, have))
            raise BackendError(expected(f"an engine of {table.role.value} with {what}", got, f"Build again: {self._command(entry)}"))

    def _need(self, engine: Any) -> int:
        return max(int(engine.get_device_memory_size_for_profile_v2(index)) for index in range(engine.num_optimization_profiles))

    def _reserve(self, nbytes: int) -> None:
        """Makes the shared block large enough: at once for all engines, as far as their records tell."""
        if nbytes <= self._activation_bytes:
            return
        nbytes = max(nbytes, *(e.activation_bytes for e in self._set.engines))
        fresh = self._gpu.allocate(nbytes)
        before, self._activations, self._activation_bytes = self._activations, fresh, nbytes
        for loaded in self._loaded.values():
            loaded.context.set_device_memory(fresh, nbytes)
        if before:
            self._gpu.release(before)

    def _context(self, engine: Any, role: GraphRole) -> Any:
        """With memory from outside."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._flavor is Flavor.TENSORRT:
            context = engine.create_execution_context(strategy)
        else:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            if self._cuda_graphs:
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if self._specialize_at_once:
                config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            if self._cache is not None:
                self._check(config.set_runtime_cache(self._cache.of(config)), "a runtime cache to be taken")
            context = engine.create_execution_context(runtime_config=config)
        self._check(context is not None, f"an execution context of {role.value} on {self._gpu.name}")
        return context

    def _set_shapes(
        self, loaded: _Loaded, table: GraphSpec, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]
    ) -> None:
        """Profile and shapes, where they differ from those of the run before."""
        shapes = tuple(inputs[t.name].shape for t in table.inputs) + tuple(outputs[t.name].shape for t in table.outputs)
        if shapes == loaded.shapes:
            return
        role, context = table.role.value, loaded.context
        index = self._choose(loaded.entry, table, inputs)
        loaded.shapes = ()  # until all of this went well
        if index != loaded.profile:
            switched = context.set_optimization_profile_async(index, self._gpu.stream_handle)
            self._check(switched, f"{role} to switch to profile {index}")
            loaded.profile = index
        for tensor in table.inputs:
            shape = inputs[tensor.name].shape
            self._check(context.set_input_shape(tensor.name, shape), f"{role} to take {tensor.name} {_sizes(shape)}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self._failed(f"{role} to take shapes that fit each other", f"{reason(error)}; {self._log.said()}") from error
        self._check(not missing, f"{role} to know the shapes of {missing}")
        for tensor in table.outputs:
            given, made = outputs[tensor.name].shape, tuple(context.get_tensor_shape(tensor.name))
            if given != made:
                raise InternalError(f"{role} writes {tensor.name} {_sizes(made)}, got room for {_sizes(given)}")
        loaded.shapes = shapes

    def _choose(self, entry: EngineEntry, table: GraphSpec, inputs: Mapping[str, DeviceTensor]) -> int:
        """The smallest profile with room for the inputs."""
        shapes = {t: inputs[t.name].shape for t in table.inputs}
        for tensor, shape in shapes.items():
            static = tensor.shape(self._manifest.model)
            if len(shape) != len(static) or any(isinstance(d, int) and d != s for d, s in zip(static, shape, strict=True)):
                raise InternalError(f"{tensor.name} of {table.role.value} is {list(static)}, got {_sizes(shape)}")
        if not entry.profiles:
            return 0
        order = sorted(range(len(entry.profiles)), key=lambda i: sum(prod(high) for _, _, high in entry.profiles[i].shapes.values()))
        for index in order:
            if next(_outside(shapes, entry.profiles[index].sizes), None) is None:
                return index
        sizes = entry.profiles[order[-1]].sizes
        tensor, axis, size = next(_outside(shapes, sizes))
        low, _, high = sizes[axis]
        todo = _RAISES.get(axis, "Use the sizes that the engines were built for") if size > high else "Pad it to the smallest size"
        what = f"{tensor.name} of {table.role.value} with {axis} from {low} to {high}, which the engines in {self._folder} have room for"
        raise BackendError(expected(what, f"{axis} = {size} in {_sizes(shapes[tensor])}", todo))

    def _check(self, worked: object, what: str) -> None:
        if not worked:
            raise self._failed(what, self._log.said())

    def _failed(self, what: str, got: str) -> BackendError:
        return BackendError(
            expected(f"{what} with {self.name}", got, "If an earlier step failed on this GPU its context is lost: start again")
        )

    def _command(self, entry: EngineEntry | None = None, target: str | None = None) -> str:
        precision = None if entry is None else entry.precision
        return build_command(self._bundle, self._flavor, target or self._set.target, precision, self._set.limits)


class _RuntimeCache:
    """Kernels that TensorRT-RTX compiled for one GPU, from process to process; outlives the contexts that use it."""

    def __init__(self, folder: Path, gpu: str) -> None:
        self._path = folder / f"runtime_cache-{re.sub('[^A-Za-z0-9]+', '-', gpu).strip('-')}.bin"
        self._cache: Any = None
        self._stored = b""

    def of(self, config: Any) -> Any:
        """The cache, made by the first runtime configuration and filled from the file."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._path.is_file():
                self._read()
        return self._cache

    def close(self) -> None:
        """Writes the file, in one step, if there is anything new."""
        if self._cache is None:
            return
        data, self._cache = bytes(self._cache.serialize() or b""), None
        if data in (b"", self._stored):
            return
        try:
            write_whole(self._path, data)
        except OSError as error:
            logger.warning("compiled kernels were not kept in %s: %s", self._path, error)

    def _read(self) -> None:
        try:
            data = self._path.read_bytes()
        except OSError as error:
            logger.warning("%s cannot be read, kernels are compiled again: %s", self._path, error)
            return
        if self._cache.deserialize(data):
            self._stored = data
        else:
            logger.warning("%s is of another GPU, driver or version, kernels are compiled again", self._path)


def invalid_because(trt: Any, bits: Any) -> list[str]:
    """Names of the diagnostic bits that `get_engine_validity` set."""
    return [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if int(bits) & int(bit.value)]


def _module(flavor: Flavor, bundle: Path, capability: str) -> Any:
    """The package of a flavor; where there is only the other one, the error says how to use that."""
    there = trt_compat.available()
    if flavor not in there and there:
        other, wanted = there[0], trt_compat.PACKAGES[flavor]
        command = build_command(bundle, other, _default_target(other, capability))
        todo = f"Run: pip install {wanted.pip}, or build for what is there: {command}, and use the backend {other.value}"
        raise BackendError(expected(f"the Python package {wanted.module}", f"only {trt_compat.PACKAGES[other].module}", todo))
    return trt_compat.load(flavor)


def _default_target(flavor: Flavor, capability: str) -> str:
    """What to build where there is nothing."""
    runs_portable = tuple(map(int, capability.split("."))) >= (8, 0)
    return PORTABLE if flavor is Flavor.TENSORRT_RTX and runs_portable else capability


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _outside(
    shapes: Mapping[TensorSpec, tuple[int, ...]], sizes: Mapping[str, tuple[int, int, int]]
) -> Iterator[tuple[TensorSpec, str, int]]:
    """Every (input, axis, size) that a profile has no room for."""
    for tensor, shape in shapes.items():
        for position, axis in tensor.dynamic().items():
            low, _, high = sizes[axis]
            if not low <= shape[position] <= high:
                yield tensor, axis, shape[position]
