"""The ONNX operator that stands for the top-k gather in a graph for full TensorRT.

    scores [B,N], rows [B,N,D] ─ fastsam2::TopKGather(k) ─► rows [B,k,D], index int32 [B,k]

ONNX Runtime and TensorRT-RTX do not know it; TensorRT finds the plugin by name, version and namespace (`kernels/plugin/`). Messages of
ONNX are protobuf messages that make their own parts, so nothing here imports onnx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastsam2.errors import ExportError, expected
from fastsam2.kernels.top_k_gather import CHUNK_BYTES, MAX_ROWS

OP_TYPE = "TopKGather"
NAMESPACE = "fastsam2"  # domain of the operator, namespace of the plugin
VERSION = "1"
# Attributes of TensorRT's ONNX parser (onnx-tensorrt, importer of plugins): which inputs are shape tensors, and which plugin is meant.
SHAPE_INPUT_INDICES = "tensorrt_plugin_shape_input_indices"
PLUGIN_ATTRIBUTES = {"plugin_version": VERSION, "plugin_namespace": NAMESPACE}

_INT, _STRING, _INTS = 2, 3, 7  # AttributeProto.AttributeType
_INT32, _INT64 = 6, 7  # TensorProto.DataType
_SCORE_TYPES = {1: 4, 10: 2}  # float32, float16
_ROW_TYPES = {**_SCORE_TYPES, 16: 2, 6: 4, 3: 1}  # and bfloat16, int32, int8: bytes of an element

Dim = int | str | None  # a size, a symbol, or unknown


def append_top_k_gather(model: Any, *, scores: str, rows: str, k: int | str, kept: str, index: str) -> None:
    """Adds the operator at the end of a graph and makes its outputs outputs of the graph; changes `model` in place.

    Args:
        model: an onnx.ModelProto whose graph states the types and shapes of `scores` and `rows` among its inputs, outputs or value_info.
        scores: a tensor float32 or float16 [B,N].
        rows: a tensor [B,N,D] of float32, float16, bfloat16, int32 or int8, whose D elements are a multiple of 16 bytes.
        k: rows to keep, or the name of a tensor int32 or int64 [1] that holds their number when the engine runs.
        kept: name of the new output [B,k,D], of the type of `rows`.
        index: name of the new output int32 [B,k].

    Raises:
        ExportError: if a tensor is missing or does not fit, or a name is taken; the model is unchanged.
    """
    graph = model.graph
    score_type, score_shape = _tensor(graph, scores)
    row_type, row_shape = _tensor(graph, rows)
    kept_shape, index_shape = infer_shapes(score_type, score_shape, row_type, row_shape, k)
    inputs = [scores, rows]
    if isinstance(k, str):
        k_type, k_shape = _tensor(graph, k)
        if k_type not in (_INT32, _INT64) or k_shape != [1]:
            raise ExportError(expected(f"{k} int32 or int64 [1]", f"type {k_type} {k_shape}", "Give k as one integer of rank 1"))
        inputs.append(k)
    taken = {value.name for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer)}
    taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    if kept == index or taken & {kept, index}:
        raise ExportError(expected("two new names for the outputs", f"{kept} and {index}", "Choose names the graph does not use"))

    node = graph.node.add(op_type=OP_TYPE, domain=NAMESPACE, name=f"{OP_TYPE}_{kept}", input=inputs, output=[kept, index])
    for name, value in PLUGIN_ATTRIBUTES.items():
        node.attribute.add(name=name, type=_STRING, s=value.encode())
    if isinstance(k, str):
        node.attribute.add(name=SHAPE_INPUT_INDICES, type=_INTS, ints=[2])
    else:
        node.attribute.add(name="k", type=_INT, i=k)
    for name, kind, shape in ((kept, row_type, kept_shape), (index, _INT32, index_shape)):
        tensor = graph.output.add(name=name).type.tensor_type
        tensor.elem_type = kind
        for size in shape:
            dim = tensor.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
    if all(opset.domain != NAMESPACE for opset in model.opset_import):
        model.opset_import.add(domain=NAMESPACE, version=int(VERSION))


@dataclass(frozen=True, slots=True)
class DetachedGathers:
    """Operators taken out of a graph, with the graph inputs that only they read and the outputs that they write: protobuf messages."""

    nodes: tuple[Any, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def detach_top_k_gathers(model: Any) -> DetachedGathers:
    """Takes out what `append_top_k_gather` put in, so that tools which know standard operators alone can work on the rest.

    Args:
        model: an onnx.ModelProto; changed in place.

    Returns:
        What was taken out, for `attach_top_k_gathers`; empty where there is no such operator.

    Raises:
        ExportError: if another operator reads what one of them writes; the model is unchanged.
    """
    graph = model.graph
    nodes = tuple(node for node in graph.node if (node.domain, node.op_type) == (NAMESPACE, OP_TYPE))
    written = {name for node in nodes for name in node.output}
    read = {name for node in graph.node if node not in nodes for name in node.input}
    if written & read:
        todo = "Place the operator at the end of the graph, as append_top_k_gather does"
        raise ExportError(expected(f"{OP_TYPE} to write outputs of the graph alone", f"readers of {sorted(written & read)}", todo))
    own = {name for node in nodes for name in node.input} - read
    found = DetachedGathers(nodes, tuple(v for v in graph.input if v.name in own), tuple(v for v in graph.output if v.name in written))
    for held, taken in ((graph.node, nodes), (graph.input, found.inputs), (graph.output, found.outputs)):
        for message in taken:
            held.remove(message)
    for opset in [opset for opset in model.opset_import if opset.domain == NAMESPACE]:
        model.opset_import.remove(opset)
    return found


def attach_top_k_gathers(model: Any, gathers: DetachedGathers) -> None:
    """Puts back what `detach_top_k_gathers` took out, behind everything else; changes `model` in place."""
    model.graph.node.extend(gathers.nodes)
    model.graph.input.extend(gathers.inputs)
    model.graph.output.extend(gathers.outputs)
    if gathers.nodes:
        model.opset_import.add(domain=NAMESPACE, version=int(VERSION))


def infer_shapes(score_type: int, scores: Sequence[Dim], row_type: int, rows: Sequence[Dim], k: int | str) -> tuple[list[Dim], list[Dim]]:
    """Shapes of the kept rows and of the index.

    Args:
        score_type: TensorProto.DataType.
        scores: [B,N].
        row_type: TensorProto.DataType.
        rows: [B,N,D].
        k: rows to keep; the name of a shape input gives an unknown size.

    Raises:
        ExportError: if the operator does not take such tensors.
    """
    todo = "See fastsam2/kernels/onnx_op.py for what the operator takes"
    if score_type not in _SCORE_TYPES or len(scores) != 2:
        raise ExportError(expected("scores float32 or float16 [B,N]", f"type {score_type} {list(scores)}", todo))
    if row_type not in _ROW_TYPES or len(rows) != 3:
        raise ExportError(expected("rows float32, float16, bfloat16, int32 or int8 [B,N,D]", f"type {row_type} {list(rows)}", todo))
    if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(scores, rows, strict=False)):
        raise ExportError(expected("rows [B,N,D] of the scores' B and N", f"{list(rows)} beside {list(scores)}", todo))
    n, width = scores[1], rows[2]
    if isinstance(n, int) and not 1 <= n <= MAX_ROWS:
        raise ExportError(expected(f"N in 1..{MAX_ROWS}", n, todo))
    if not isinstance(width, int) or width < 1 or width * _ROW_TYPES[row_type] % CHUNK_BYTES:
        raise ExportError(expected(f"a fixed D whose elements are a multiple of {CHUNK_BYTES} bytes", width, todo))
    if isinstance(k, int) and not 0 <= k <= (n if isinstance(n, int) else MAX_ROWS):
        raise ExportError(expected(f"k in 0..{n}", k, "There are no more rows to keep"))
    kept: Dim = k if isinstance(k, int) else None
    return [rows[0], kept, width], [scores[0], kept]


def _tensor(graph: Any, name: str) -> tuple[int, list[Dim]]:
    """Type and shape that a graph states of a tensor."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name == name and value.type.tensor_type.HasField("shape"):
            tensor = value.type.tensor_type
            return int(tensor.elem_type), [_dim(dim) for dim in tensor.shape.dim]
    for constant in graph.initializer:
        if constant.name == name:
            return int(constant.data_type), [int(size) for size in constant.dims]
    todo = "Run onnx.shape_inference.infer_shapes first, or name another tensor"
    raise ExportError(expected(f"a tensor {name} of known type and shape in the graph", "none", todo))


def _dim(dim: Any) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None
