"""float32 graph -> typed graph: products in float16 or bfloat16, the rest float32, a Cast on every edge between the two.

    x ─ LayerNormalization ─►h─ MatMul ─►f─ rotation ─►h─ Attention ─►h─ MatMul ─►f─ Add x        ►h, ►f: Cast to half, to float32

TensorRT-RTX and TensorRT 11 are strongly typed: the precision of an engine is the types of its ONNX. `engines/precision.toml` decides which
operator computes in what; weights are stored as they are used; inputs and outputs of the graph keep the types of `fastsam2.contracts`. So
statistics, tables of positions, rotations and the angles of prompt coordinates are float32, and the q, k, v of an Attention, whose softmax
accumulates in float32 inside the fused kernel, are half.

`onnxruntime.transformers.float16` (1.31) is not used: it rounds between neighbouring float32 operators, stores a table that a float32 and a
half operator share as half, makes two Casts of one name where two float32 operators read one tensor, and clips weights beyond 65504.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam2.enums import GraphRole, Precision
from fastsam2.errors import BackendError, InternalError, expected, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16  # onnx.TensorProto.DataType
HALF: Mapping[Precision, int] = {Precision.FP16: FLOAT16, Precision.BF16: BFLOAT16}
_FLOAT_BY_DEFINITION = {"Resize": (1, 2)}  # inputs that are float32 whatever the data are
_ANY_INPUT = ("Cast", "Shape", "Size")  # read every type, and make one that does not depend on it


@cache
def rules() -> dict[str, Any]:
    """The content of `precision.toml`."""
    content: dict[str, Any] = tomllib.loads(Path(__file__).with_name("precision.toml").read_text(encoding="utf-8"))
    return content


def convert(source: Path, out: Path, role: GraphRole, precision: Precision) -> None:
    """Write the typed variant of one graph.

    Args:
        source: float32 ONNX shaped for the target `tensorrt`; weights may be stored as float16 behind a Cast.
        out: file to write.
        role: which graph.
        precision: of the products. FP32 only stores all weights as float32.

    Raises:
        BackendError: if the graph has subgraphs or operators beyond the ONNX standard, or a weight is beyond the range of its new type.
    """
    import onnx

    model = onnx.load(source, load_external_data=False)
    _unfold_weights(model.graph)
    if precision is not Precision.FP32:
        _Typing(model, role, precision).apply()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(f"the {precision.value} variant of {role.value} is not valid ONNX: {reason(error)}") from error
    onnx.save(model, out)


def mark_decomposable(model: ModelProto) -> None:
    """Let TensorRT decompose the Attention nodes for which it has no fused kernel: float32 ones, and some small ones.

    Only for the last file before the builder, because onnx.checker and ONNX Runtime refuse the attribute.

    Args:
        model: changed in place.
    """
    from onnx import helper

    for node in model.graph.node:
        if node.op_type == "Attention" and all(a.name != "TRT_decomposable" for a in node.attribute):
            node.attribute.append(helper.make_attribute("TRT_decomposable", 1))


def _unfold_weights(graph: GraphProto) -> None:
    """float16 initializer -> Cast -> float32 becomes a float32 initializer of the Cast's name."""
    from onnx import numpy_helper

    stored = {i.name: i for i in graph.initializer if i.data_type == FLOAT16}
    casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in stored]
    for node in casts:
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(stored[node.input[0]]).astype(np.float32), node.output[0]))
        graph.node.remove(node)
    for weight in stored.values():
        graph.initializer.remove(weight)


def _ancestors(graph: GraphProto, wanted: Iterable[str]) -> set[int]:
    """Indices of the nodes that the tensors `wanted` depend on."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    found: set[int] = set()
    queue = [makers[name] for name in wanted if name in makers]
    while queue:
        if (index := queue.pop()) not in found:
            found.add(index)
            queue += [makers[name] for name in graph.node[index].input if name in makers]
    return found


class _Typing:
    """One pass over the nodes in topological order.

    Args:
        model: float32, without half-stored weights; changed by `apply`.
        role: which graph.
        precision: FP16 or BF16.

    Raises:
        BackendError: if the graph has subgraphs or operators that are not of the ONNX standard.
    """

    def __init__(self, model: ModelProto, role: GraphRole, precision: Precision) -> None:
        from onnx import shape_inference

        self.graph, self.role, self.precision, self.half = model.graph, role, precision, HALF[precision]
        for node in self.graph.node:
            if node.domain not in ("", "ai.onnx") or any(a.HasField("g") or a.graphs for a in node.attribute):
                todo = "Export the bundle again with --target tensorrt"
                raise BackendError(
                    expected(f"{role.value} of standard operators, without subgraphs", f"{node.domain} {node.op_type}", todo)
                )
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        infos = (*inferred.value_info, *inferred.input, *inferred.output)
        self.constants = {i.name: i for i in self.graph.initializer}
        self.types: dict[str, int] = {v.name: v.type.tensor_type.elem_type for v in infos}
        self.types |= {name: weight.data_type for name, weight in self.constants.items()}
        self.outputs = {o.name for o in self.graph.output}
        self.half_ops = set(rules()["half"]).difference(*(r["ops"] for r in rules()["except"] if r["precision"] == precision.value))
        self.kept = self._kept()
        self.products: set[str] = set()  # outputs of half MatMul nodes
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []

    def apply(self) -> None:
        """Types every node, then the graph.

        Raises:
            BackendError: if a weight is beyond the range of its new type.
        """
        for index, node in enumerate(list(self.graph.node)):
            if index in self.kept and node.op_type == "MatMul" and node.input[1] in self.constants:
                self._sum_products(node)
            else:
                self._type_node(node, self._type_of(index, node))
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input} | self.outputs
        self.graph.initializer.extend(i for i in self.constants.values() if i.name in read)

    def _kept(self) -> set[int]:
        """Indices of the nodes that the `keep` rules pin to float32."""
        ends = {op for rule in rules()["keep"] for op in rule["before"]}
        return _ancestors(self.graph, [name for node in self.graph.node if node.op_type in ends for name in node.input])

    def _typed_inputs(self, node: NodeProto) -> Iterator[tuple[int, str]]:
        """Position and name of the inputs that have to be of the node's type."""
        for position, name in enumerate(node.input):
            if name and self.types[name] in (FLOAT, self.half) and position not in _FLOAT_BY_DEFINITION.get(node.op_type, ()):
                yield position, name

    def _type_of(self, index: int, node: NodeProto) -> int:
        if index in self.kept:
            return FLOAT
        if node.op_type in self.half_ops:
            return self.half
        if node.op_type not in rules()["widest"]:
            return FLOAT
        asked = {self._asked_type(node, name) for _, name in self._typed_inputs(node)}
        return self.half if self.half in asked and FLOAT not in asked else FLOAT

    def _asked_type(self, node: NodeProto, name: str) -> int | None:
        """What an input wants its node to be: a tensor its type, a table float32; scalars and the bias of a half product do not mind."""
        if name not in self.constants:
            return self.types[name]
        rank = len(self.constants[name].dims)
        is_bias = rank == 1 and node.op_type == "Add" and not self.products.isdisjoint(node.input)
        return None if rank == 0 or is_bias else FLOAT

    def _type_node(self, node: NodeProto, kind: int) -> None:
        if node.op_type in _ANY_INPUT:
            self.nodes.append(node)
            return
        for position, name in self._typed_inputs(node):
            node.input[position] = self._as_type(name, kind)
        self.nodes.append(node)
        for position, name in enumerate(node.output):
            if kind == FLOAT or self.types[name] != FLOAT:
                continue
            if node.op_type == "MatMul":
                self.products.add(name)
            if name not in self.outputs:
                self.types[name] = kind
                continue
            node.output[position] = self.casts[name, kind] = copy = f"{name}_{self.precision.value}"
            self.types[copy] = kind
            self._emit("Cast", [copy], name, to=FLOAT)

    def _sum_products(self, node: NodeProto) -> None:
        """Emits x [.., K] @ w [K, n] as the sum over K of x [.., K, 1] · w [K, n].

        Float32 even where a builder would take TF32 for a product, and on compute capability 7.5, which has no float32 product.
        """
        from onnx import numpy_helper

        x, weight, out = node.input[0], node.input[1], node.output[0]
        last, second_last = f"{out}_last", f"{out}_second_last"
        for name, axis in ((last, -1), (second_last, -2)):
            self.constants[name] = numpy_helper.from_array(np.array([axis], np.int64), name)
        self._emit("Unsqueeze", [x, last], f"{out}_column")
        self._emit("Mul", [f"{out}_column", weight], f"{out}_products")
        self._emit("ReduceSum", [f"{out}_products", second_last], out, keepdims=0)

    def _emit(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}_{operator.lower()}", **attributes))

    def _as_type(self, name: str, kind: int) -> str:
        """The name under which the tensor `name` is there as `kind`; at most one Cast, or one stored copy, makes it."""
        if self.types[name] == kind:
            return name
        if (name, kind) not in self.casts:
            suffix = Precision.FP32.value if kind == FLOAT else self.precision.value
            self.casts[name, kind] = copy = f"{name}_{suffix}"
            self.types[copy] = kind
            if name in self.constants:
                self.constants[copy] = self._as_half(self.constants[name], copy)
            else:
                self._emit("Cast", [name], copy, to=kind)
        return self.casts[name, kind]

    def _as_half(self, weight: TensorProto, name: str) -> TensorProto:
        from onnx import helper, numpy_helper

        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            half = values.astype(helper.tensor_dtype_to_np_dtype(self.half))
        if not np.isfinite(half.astype(np.float32)).all():
            raise BackendError(
                expected(
                    f"weights of {self.role.value} that {self.precision.value} can hold",
                    f"{weight.name} with magnitudes up to {np.abs(values).max():g}",
                    f"Build with --precision {'bf16' if self.precision is Precision.FP16 else 'fp32'}, or correct the checkpoint",
                )
            )
        return numpy_helper.from_array(half, name)
