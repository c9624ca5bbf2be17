"""What one call of a graph costs, from its ONNX file and the shapes of its inputs: multiply-adds and bytes. Nothing runs.

    graph.onnx, {"tokens": (1, 4096, 256), ...} ─► shape inference ─► per operator: products, bytes read and written ─► Work

Multiply-adds are those of matrix products, convolutions and attentions; what else an operator computes is not counted. Operators whose
inputs are all weights run once, when a graph is loaded, and cost nothing; the weights are what they leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsam2.bundle import Manifest
from fastsam2.config import ModelSpec
from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError, BundleError, expected, reason

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TypeProto

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

FRAME_ROLES = (
    GraphRole.IMAGE_ENCODER,
    GraphRole.MEMORY_ATTENTION,
    GraphRole.QUERY_ATTENTION,
    GraphRole.MASK_DECODER,
    GraphRole.MEMORY_ENCODER,
    GraphRole.ROUTER,
)
"""The graphs of a tracked frame."""

VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
"""Operators that move no data."""
PRODUCT_FREE = VIEWS | {
    *("Abs", "Add", "And", "ArgMax", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Cos", "Div", "Equal"),
    *("Erf", "Exp", "Expand", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "GlobalAveragePool", "Greater", "GreaterOrEqual"),
    *("LayerNormalization", "Less", "LessOrEqual", "Log", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "Range"),
    *("Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Resize", "RotaryEmbedding", "Round"),
    *("ScatterElements", "ScatterND", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Sub", "Tanh", "Tile", "TopK", "Transpose"),
    *("Trilu", "Where"),
}
"""Operators without a product of matrices; each touches a value a bounded number of times."""
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_SMALL = 64  # elements; larger weights are no shapes, and inference need not carry their values


@dataclass(frozen=True, slots=True)
class Work:
    """What one call of a graph costs.

    Attributes:
        multiply_adds: of matrix products, convolutions and attentions.
        weight_bytes: of the weights that operators read, each once, in the type they are read in; of a table that is only gathered from no
            more than the rows gathered.
        input_bytes: of the graph's inputs.
        output_bytes: of its outputs.
        activation_bytes: read and written by all operators together without any fusion, weights left out.
    """

    multiply_adds: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    activation_bytes: int

    @property
    def least_bytes(self) -> int:
        """The least that can move between memory and the processor: inputs, outputs and weights, once each."""
        return self.weight_bytes + self.input_bytes + self.output_bytes


def graph_work(file: Path, inputs: Mapping[str, Shape]) -> Work:
    """Counts one graph.

    Args:
        file: an ONNX file; weights stored beside it are not read.
        inputs: the shape of every input, by name.

    Raises:
        BackendError: if the package onnx is not installed.
        BundleError: if the file is no ONNX model or does not take these shapes, an operator is of an unknown kind, or a shape depends on
            data.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError(
            expected("the package onnx to count work", f"an import error ({error})", "Run `pip install fastsam2[export-tools]`")
        ) from error
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf has errors of its own
        raise BundleError(expected(f"an ONNX model in {file}", reason(error), "Export the bundle again")) from error
    for node in model.graph.node:
        if node.domain not in _DOMAINS or (node.op_type not in PRODUCT_FREE and node.op_type not in _COUNTED):
            raise _unknown(node, file)
    weights = {w.name for w in model.graph.initializer}
    _bind(model.graph, inputs, file)
    types = _types(model, file)
    shape_arithmetic = {w.name for w in model.graph.initializer} - weights
    shapes = {name: shape for name, (shape, _) in types.items()}
    nbytes = {name: _nbytes(shape, width) for name, (shape, width) in types.items()}
    operators = list(_operators(model.graph, weights))
    read = {name for node in operators for name in node.input if name in weights}
    gathered: dict[str, int] = {}
    for node in operators:
        for position, name in enumerate(node.input):
            if name in read:
                rows = nbytes[node.output[0]] if node.op_type == "Gather" and position == 0 else nbytes[name]
                gathered[name] = gathered.get(name, 0) + rows
    still = {"", *weights, *shape_arithmetic}
    moved = [n for node in operators if node.op_type not in VIEWS for n in (*node.input, *node.output) if n not in still]
    return Work(
        multiply_adds=sum(_multiply_adds(node, shapes, file) for node in operators),
        weight_bytes=sum(min(nbytes[name], gathered[name]) for name in read),
        input_bytes=sum(nbytes[i.name] for i in model.graph.input if i.name not in weights),
        output_bytes=sum(nbytes[o.name] for o in model.graph.output),
        activation_bytes=sum(nbytes[name] for name in moved),
    )


def work_of(
    bundle: Path,
    manifest: Manifest,
    *,
    objects: int,
    rows: int,
    pointers: int,
    points: int = 1,
    queries: int | None = None,
    target: ExportTarget = ExportTarget.ONNXRUNTIME,
) -> dict[str, dict[str, int]]:
    """Counts the graphs of a tracked frame, all objects in one batch.

    Args:
        bundle: the bundle's folder.
        manifest: of that bundle.
        objects: B.
        rows: M, memory rows of one object.
        pointers: P of one object.
        points: Q; a tracked frame has one, the padding.
        queries: K of query_attention, which replaces memory_attention when queries are pruned; None leaves that graph out.
        target: whose graphs.

    Returns:
        {graph: {"multiply_adds", "least_bytes" and the other fields of `Work`}} of those of `FRAME_ROLES` that the bundle has.

    Raises:
        BackendError, BundleError: as `graph_work`.
    """
    sizes = {"B": objects, "M": rows, "P": pointers, "Q": points, "R": rows + manifest.model.pointer_tokens * pointers}
    if queries is not None:
        sizes["K"] = queries
    attention = GraphRole.MEMORY_ATTENTION if queries is not None else GraphRole.QUERY_ATTENTION
    present = {g.role: g for g in manifest.graphs if g.target is target and g.role is not attention}
    counted = {}
    for role in FRAME_ROLES:
        if role in present:
            work = graph_work(Path(bundle) / present[role].file.path, input_shapes(role, manifest.model, sizes, target=target))
            counted[role.value] = {**asdict(work), "least_bytes": work.least_bytes}
    return counted


def timed_work(work: Mapping[str, Mapping[str, int]], ms: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What a roofline needs: {graph: {"multiply_adds", "least_bytes", "ms"}} of the graphs that were timed.

    Args:
        work: from `work_of`.
        ms: {stage: milliseconds a frame}; other stages may be among them.
    """
    return {
        graph: {"multiply_adds": own["multiply_adds"], "least_bytes": own["least_bytes"], "ms": ms[graph]}
        for graph, own in work.items()
        if graph in ms
    }


def input_shapes(
    role: GraphRole, spec: ModelSpec, sizes: Mapping[str, int], *, target: ExportTarget = ExportTarget.ONNXRUNTIME
) -> dict[str, Shape]:
    """Shapes of a graph's inputs where dynamic axes have these sizes, by symbol; `sizes` may name more axes than the graph has."""
    return {t.name: t.sized(spec, sizes) for t in graph_spec(role, target).inputs}


def _bind(graph: GraphProto, inputs: Mapping[str, Shape], file: Path) -> None:
    """Gives the graph's inputs their shapes."""
    weights = {w.name for w in graph.initializer}
    values = [v for v in graph.input if v.name not in weights]
    if {v.name for v in values} != inputs.keys():
        names = f"shapes of {[v.name for v in values]} of {file.name}"
        raise BundleError(expected(names, sorted(inputs), "Pass the shapes of this graph's inputs"))
    for value in values:
        own, given = value.type.tensor_type.shape.dim, inputs[value.name]
        axes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in own]
        if len(given) != len(axes) or any(isinstance(a, int) and a != g for a, g in zip(axes, given, strict=True)):
            raise BundleError(expected(f"a shape for {value.name} {axes} of {file.name}", given, "Pass the shapes of this graph's inputs"))
        for d, size in zip(own, given, strict=True):
            d.dim_value = size


def _operators(graph: GraphProto, weights: set[str]) -> Iterator[NodeProto]:
    """The nodes that run in a call; what the others leave joins `weights`."""
    for node in graph.node:
        if all(name in weights for name in node.input if name):
            weights.update(node.output)
        else:
            yield node


def _unknown(node: NodeProto, file: Path) -> BundleError:
    known = f"operators whose products are known in {file.name}"
    todo = "Add it to benchmarks/graph_work.py: with its multiply-adds, or to PRODUCT_FREE"
    return BundleError(expected(known, f"{node.domain or 'ai.onnx'}.{node.op_type} ({node.name or 'unnamed'})", todo))


def _types(model: ModelProto, file: Path) -> dict[str, tuple[Shape, int]]:
    """Shape and bytes of an element, of every tensor there is. Arithmetic on shapes leaves the graph: its results become constants."""
    import onnx

    graph = model.graph
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for weight in graph.initializer:
        if math.prod(weight.dims) > _SMALL:
            for content in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                weight.ClearField(content)
    _define_com_microsoft(model)
    folded = True
    while folded:
        try:
            inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise BundleError(expected(f"shapes that fit together in {file}", error, "Export the bundle again")) from error
        types = {w.name: (tuple(w.dims), _element_bytes(w.data_type)) for w in graph.initializer}
        types |= {v.name: kind for v in (*inferred.value_info, *inferred.input, *inferred.output) if (kind := _type_of(v.type))}
        folded = _fold_shapes(model, types)
    for name in (name for node in graph.node for name in node.output if name and name not in types):
        raise BundleError(expected(f"a shape of {name} in {file.name} that follows from the inputs'", "none", "It cannot be counted"))
    return types


def _type_of(kind: TypeProto) -> tuple[Shape, int] | None:
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return tuple(d.dim_value for d in tensor.shape.dim), _element_bytes(tensor.elem_type)


def _fold_shapes(model: ModelProto, types: Mapping[str, tuple[Shape, int]]) -> bool:
    """Computes what depends on nothing but shapes and small integers; whether there was any."""
    import numpy as np
    from onnx import TensorProto, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    integers = (TensorProto.INT32, TensorProto.INT64)
    known = {w.name: numpy_helper.to_array(w) for w in graph.initializer if w.data_type in integers and math.prod(w.dims) <= _SMALL}
    kept, values = [], list[Any]()
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in types:
            shape = types[node.input[0]][0]
            values = [np.array(shape[_attribute(node, "start", 0) : _attribute(node, "end", len(shape))], np.int64)]
        elif node.op_type not in ("Shape", "Cast", "Constant") and node.input and all(name in known for name in node.input if name):
            values = list(ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input if name}))
        else:
            kept.append(node)
            continue
        for name, value in zip(node.output, values, strict=True):
            known[name] = np.asarray(value)
            graph.initializer.append(numpy_helper.from_array(known[name], name))
    folded = len(kept) < len(graph.node)
    del graph.node[:]
    graph.node.extend(kept)
    return folded


def _element_bytes(kind: int) -> int:
    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _nbytes(shape: Shape, element_bytes: int) -> int:
    return math.prod(shape) * element_bytes


def _define_com_microsoft(model: ModelProto) -> None:
    """Defines the operators of com.microsoft by standard ones with the same output shapes, for shape inference only."""
    from onnx import helper

    used = {node.op_type for node in model.graph.node if node.domain == "com.microsoft"}
    opset = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    bodies: dict[str, tuple[list[str], list[NodeProto]]] = {
        "RotaryEmbedding": (["x", "position", "cos", "sin"], [helper.make_node("Identity", ["x"], ["y"])]),
        "MultiHeadAttention": (
            ["q", "k", "v", "bias", "key_padding_mask", "attention_bias"],
            [
                helper.make_node("Transpose", ["k"], ["turned"], perm=[0, 2, 1]),
                helper.make_node("MatMul", ["q", "turned"], ["scores"]),
                helper.make_node("MatMul", ["scores", "v"], ["y"]),
            ],
        ),
    }
    for name in sorted(used & bodies.keys()):
        inputs, nodes = bodies[name]
        model.functions.append(helper.make_function("com.microsoft", name, inputs, ["y"], nodes, opset))


def _matmul(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if _attribute(node, "transA", 0) else 1]


def _conv(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _conv_transpose(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _attention(node: NodeProto, shapes: Shapes) -> int:
    """Scores and weighted sum of ai.onnx Attention and com.microsoft MultiHeadAttention, [B, N, heads·d] or [B, heads, N, d] each."""
    q, k, v = (shapes[name] for name in node.input[:3])
    if len(q) == 4:
        return math.prod(q[:3]) * k[2] * (q[3] + v[3])
    if node.op_type == "MultiHeadAttention":
        return math.prod(q[:2]) * k[1] * (q[2] + v[2])
    heads = _attribute(node, "q_num_heads", 0)
    return math.prod(q[:2]) * k[1] * (q[2] + v[2] // _attribute(node, "kv_num_heads", heads) * heads)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _multiply_adds(node: NodeProto, shapes: Shapes, file: Path) -> int:
    count = _COUNTED.get(node.op_type)
    if count is None:
        return 0
    if count is _attention and not _is_plain_attention(node, shapes):
        raise _unknown(node, file)
    return count(node, shapes)


def _is_plain_attention(node: NodeProto, shapes: Shapes) -> bool:
    """Queries, keys and values are tensors of their own, and no cache lengthens the keys."""
    names = list(node.input)
    past = names[6:] if node.op_type == "MultiHeadAttention" else names[4:]
    ranks = [len(shapes[name]) if name else 0 for name in names[:3]]
    return ranks in ([3, 3, 3], [4, 4, 4]) and not any(past)


_COUNTED: Mapping[str, Callable[[Any, Shapes], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
}
