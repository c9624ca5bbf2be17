"""Executes the graphs of a bundle on device memory; the seam between the GPU loop and TensorRT or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fastsam2.contracts import GraphSpec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import InternalError

ALIGNMENT = 256  # of addresses, bytes: what TensorRT asks for (`setTensorAddress` in NvInferRuntime.h)


class DeviceTensor(Protocol):
    """A C-contiguous array in device memory, as engines see it."""

    @property
    def address(self) -> int:
        """Of the first byte."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...


class Engines(Protocol):
    """The graphs of one bundle on one GPU; everything happens on `Gpu.stream`."""

    name: str  # "tensorrt-rtx", "tensorrt", "onnxruntime-cuda": for records and messages
    target: ExportTarget  # which form of the graphs: `contracts.graph_spec(role, target)`

    def max_objects(self, role: GraphRole) -> int | None:
        """Most objects in one run; None for any number, and for graphs without objects."""
        ...

    def max_prompt_frames(self) -> int | None:
        """Most prompt frames of one object that there is room for, besides its latest frames; None for any number."""
        ...

    def has(self, role: GraphRole) -> bool:
        """Whether there is a graph of that role."""
        ...

    def enqueue(self, role: GraphRole, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        """Enqueue one run of a graph and return without waiting for it. The first run of a graph loads it.

        Args:
            role: which graph.
            inputs: every input of `contracts.graph_spec(role, target)`, dtypes as there; stay allocated until the stream has run it.
            outputs: every output, allocated with its dtype and shape; written in stream order.

        Raises:
            BackendError: if the graph does not load, has no room for these shapes, or cannot be enqueued.
            StateError: after `close`.
        """
        ...

    def cuda_graphs(self) -> dict[str, Any] | None:
        """For records: how graphs are replayed as CUDA graphs; None where they are not."""
        ...

    def activation_bytes(self) -> int:
        """Device memory held for activations so far, bytes; 0 where the library does not tell."""
        ...

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        ...


def check_tensors(table: GraphSpec, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
    """Engines take addresses on trust: a tensor that is forgotten or of another type would go unnoticed.

    Raises:
        InternalError: if names or dtypes are not those of the table.
    """
    for kind, given, wanted in (("inputs", inputs, table.inputs), ("outputs", outputs, table.outputs)):
        have = {name: tensor.dtype.name for name, tensor in given.items()}
        if have != {t.name: t.dtype for t in wanted}:
            raise InternalError(f"{kind} of {table.role.value} are {[(t.name, t.dtype) for t in wanted]}, got {have}")
