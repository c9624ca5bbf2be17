"""The top-k gather as a TensorRT layer in Python (`tensorrt.IPluginV3`, TensorRT 10 and 11): no compiler needed.

    scores float32|float16 [B,N], rows [B,N,D] (, k int32|int64 shape input) ─ TopKGather ─► rows [B,k,D], index int32 [B,k]

Name, version, namespace, attribute and behaviour are those of `top_k_gather_plugin.h`. The kernel is launched on TensorRT's own stream
through cuda.bindings, because pycuda cannot wrap a stream it did not make. An engine built with this layer needs it registered again
wherever it is loaded. TensorRT-RTX offers the same base classes but no plugins: its parser ends the process when it meets one.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from fastsam2.errors import BackendError, expected
from fastsam2.kernels.drivers import CudaBindingsDriver
from fastsam2.kernels.launch import TopKGatherKernel
from fastsam2.kernels.onnx_op import NAMESPACE, OP_TYPE, VERSION
from fastsam2.kernels.top_k_gather import CHUNK_BYTES, MAX_BATCH, MAX_ROW_BYTES, MAX_ROWS, TopKGather

SHAPE_INPUT = -1  # k of a plugin whose k is a shape input
_SCORES, _ROWS, _TENSOR_INPUTS = 0, 1, 2
_KEPT, _INDEX = 0, 1


def register(trt: ModuleType) -> None:
    """Makes the ONNX operator known to the parser and to deserialisation in this process; a second call changes nothing.

    Args:
        trt: the module `tensorrt`, as `fastsam2.engines.trt_compat.load` gives it.

    Raises:
        BackendError: if `trt` is TensorRT-RTX, which has no plugins, or TensorRT refuses the creator.
    """
    if trt.__name__ == "tensorrt_rtx":
        todo = "Launch fastsam2.kernels.launch.TopKGatherKernel between engines instead"
        raise BackendError(expected("a TensorRT with plugins", "TensorRT-RTX, which has none", todo))
    registry = trt.get_plugin_registry()
    known = {(one.name, one.plugin_version, one.plugin_namespace) for one in registry.all_creators}  # get_creator logs an error for None
    if (OP_TYPE, VERSION, NAMESPACE) not in known and not registry.register_creator(_creator(trt), NAMESPACE):
        raise BackendError(expected(f"TensorRT to register {NAMESPACE}::{OP_TYPE}", "a refusal", "See TensorRT's own log for the reason"))


@cache
def _creator(trt: ModuleType) -> Any:
    """The one creator of this process: TensorRT keeps a reference without owning it."""
    return plugin_classes(trt)[1]()


@cache
def plugin_classes(trt: ModuleType) -> tuple[type[Any], type[Any]]:
    """The plugin and its creator over the base classes of `trt`, which are only known at run time."""

    def row_bytes(description: Any) -> int:
        return int(description.dims[2]) * int(trt.DataType(description.type).itemsize)

    def check(scores: Any, rows: Any, rows_type: Any) -> None:
        """Refuses sizes that the kernel does not take; -1 is unknown.

        Raises:
            BackendError: with the shapes.
        """
        pairs = [] if (len(scores), len(rows)) != (2, 3) else [(scores[0], rows[0]), (scores[1], rows[1])]
        size = rows[2] * trt.DataType(rows_type).itemsize if pairs else 0
        if (
            not pairs
            or any(a != b and a >= 0 and b >= 0 for a, b in pairs)
            or scores[0] > MAX_BATCH
            or scores[1] > MAX_ROWS
            or (rows[2] >= 0 and not (CHUNK_BYTES <= size <= MAX_ROW_BYTES and size % CHUNK_BYTES == 0))
        ):
            what = f"scores [B,N] and rows [B,N,D] with B <= {MAX_BATCH}, N <= {MAX_ROWS} and rows of a multiple of {CHUNK_BYTES} bytes"
            raise BackendError(expected(what, f"{list(scores)} and {list(rows)} of {rows_type}", "Change the graph around TopKGather"))

    class TopKGatherPlugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc, name-defined]
        """One layer.

        Args:
            k: rows to keep, or `SHAPE_INPUT`.
        """

        def __init__(self, k: int) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.k = k
            self.plugin_name, self.plugin_version, self.plugin_namespace = OP_TYPE, VERSION, NAMESPACE
            self.num_outputs = 2
            self._kernel: TopKGatherKernel | None = None
            # TensorRT reads the fields after get_fields_to_serialize has returned, and holds neither array nor field.
            self._k = np.array([k], np.int32)
            self._field = trt.PluginField("k", self._k, trt.PluginFieldType.INT32)
            self._fields = trt.PluginFieldCollection([self._field])

        def get_capability_interface(self, type: Any) -> Any:
            return self

        def get_output_data_types(self, input_types: Any) -> list[Any]:
            return [input_types[_ROWS], trt.DataType.INT32]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expr_builder: Any) -> list[Any]:
            if (self.k == SHAPE_INPUT) != (len(shape_inputs) == 1):
                got = f"k={self.k} and {len(shape_inputs)} shape inputs"
                raise BackendError(expected("k as an attribute or as one shape input", got, "Give one of the two"))
            k = shape_inputs[0][0] if self.k == SHAPE_INPUT else expr_builder.constant(self.k)
            kept, index = trt.DimsExprs(3), trt.DimsExprs(2)
            kept[0], kept[1], kept[2] = inputs[_ROWS][0], k, inputs[_ROWS][2]
            index[0], index[1] = inputs[_SCORES][0], k
            return [kept, index]

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            # A shape input lies behind the tensor inputs, counted among num_inputs or not; both are taken.
            description, types = in_out[pos].desc, trt.DataType
            if description.format != trt.TensorFormat.LINEAR:
                return False
            if pos == _SCORES:
                return description.type in (types.FLOAT, types.HALF)
            if pos == _ROWS:
                return description.type in (types.FLOAT, types.HALF, types.BF16, types.INT32, types.INT8)
            if pos < num_inputs:
                return description.type in (types.INT32, types.INT64)
            return bool(description.type == (in_out[_ROWS].desc.type if pos - num_inputs == _KEPT else types.INT32))

        def configure_plugin(self, inp: Any, out: Any) -> None:
            check(inp[_SCORES].desc.dims, inp[_ROWS].desc.dims, inp[_ROWS].desc.type)
            check(inp[_SCORES].max, inp[_ROWS].max, inp[_ROWS].desc.type)
            if self.k > inp[_SCORES].min[1] >= 0:
                raise BackendError(
                    expected(f"k at most the profile's smallest N, {inp[_SCORES].min[1]}", self.k, "Change k or the profile")
                )

        def on_shape_change(self, inp: Any, out: Any) -> None:
            check(inp[_SCORES].dims, inp[_ROWS].dims, inp[_ROWS].type)

        def get_workspace_size(self, inp: Any, out: Any) -> int:
            return 0

        def set_tactic(self, tactic: int) -> None:
            """There is one tactic."""

        def enqueue(self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int) -> None:
            rows = input_desc[_ROWS]
            if self._kernel is None:  # a plugin belongs to one execution context, and so to one CUDA context
                self._kernel = _kernel(_driver().context())
            call = TopKGather(
                scores=inputs[_SCORES],
                rows=inputs[_ROWS],
                kept=outputs[_KEPT],
                index=outputs[_INDEX],
                batch=rows.dims[0],
                n=rows.dims[1],
                k=output_desc[_KEPT].dims[1],
                row_bytes=row_bytes(rows),
                score_dtype="float16" if input_desc[_SCORES].type == trt.DataType.HALF else "float32",
            )
            self._kernel.launch(call, stream)

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            return self._fields

        def clone(self) -> Any:
            return TopKGatherPlugin(self.k)

    class TopKGatherCreator(trt.IPluginCreatorV3One):  # type: ignore[misc, name-defined]
        """Makes layers from ONNX attributes or from the fields of a serialized engine."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = OP_TYPE, VERSION, NAMESPACE
            self.field_names = trt.PluginFieldCollection([trt.PluginField("k", np.array([], np.int32), trt.PluginFieldType.INT32)])

        def create_plugin(self, name: str, field_collection: Any, phase: Any) -> Any:
            values = [field.data for field in field_collection if field.name == "k"]
            k = SHAPE_INPUT if not values else int(values[0][0])
            least = SHAPE_INPUT if phase == trt.TensorRTPhase.RUNTIME else 0
            if values and not least <= k <= MAX_ROWS:
                raise BackendError(expected(f"the attribute k in 0..{MAX_ROWS}", k, "Leave it out where k is a shape input"))
            return TopKGatherPlugin(k)

    return TopKGatherPlugin, TopKGatherCreator


@cache
def _driver() -> CudaBindingsDriver:
    return CudaBindingsDriver()


@cache
def _kernel(context: int) -> TopKGatherKernel:
    """Loaded into the current CUDA context, whose handle is `context`: TensorRT's, the primary one of the engine's GPU."""
    return TopKGatherKernel(_driver())
