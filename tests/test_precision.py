"""Typed variants of hand-made graphs, and of every graph of the micro model. Oracles: the float32 source in ONNX Runtime, onnx.checker,
and the types that shape inference finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference

from fastsam2.contracts import BASE_ROLES, graph_spec
from fastsam2.engines.precision import convert, mark_decomposable, rules
from fastsam2.enums import ExportTarget, GraphRole, Precision
from fastsam2.errors import BackendError

FLOAT, HALF_TYPES = TensorProto.FLOAT, {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}
HALVES = tuple(HALF_TYPES)
ROLE = GraphRole.MEMORY_ATTENTION  # of the hand-made graphs
WIDTH = 64

LAYER = """
<ir_version: 10, opset_import: ["" : 23]>
layer (float[1,N,64] x, int32[1,N] index, float[B,Q,2] points) => (float[1,N,64] y, float[B,Q,32] code)
{
  normed = LayerNormalization <axis=-1, epsilon=1e-6> (x, scale, shift)
  projected = MatMul (normed, w_q)
  q = Add (projected, b_q)
  a, b = Split <axis=-1, num_outputs=2> (q)
  c = Gather (cos, index)
  s = Gather (sin, index)
  ac = Mul (a, c)
  bs = Mul (b, s)
  left = Sub (ac, bs)
  bc = Mul (b, c)
  as = Mul (a, s)
  right = Add (bc, as)
  turned = Concat <axis=-1> (left, right)
  v = MatMul (normed, w_v)
  mixed = Attention <q_num_heads=1, kv_num_heads=1> (turned, turned, v)
  out = MatMul (mixed, w_o)
  y = Add (x, out)
  share = Div (points, side)
  angle = MatMul (share, gaussian)
  code = Sin (angle)
}
"""


def layer(path: Path, **changes: np.ndarray) -> Path:
    """One self-attention layer with rotations, and the code of prompt points."""
    rng = np.random.default_rng(0)
    angles = np.arange(1000)[:, None] * 0.5 ** np.arange(32)
    weights = {
        "scale": np.ones(WIDTH),
        "shift": np.zeros(WIDTH),
        **{name: rng.standard_normal((WIDTH, WIDTH)) / 8 for name in ("w_q", "w_v", "w_o")},
        "b_q": rng.standard_normal(WIDTH),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "side": np.array(1024.0),
        "gaussian": 2 * np.pi * rng.standard_normal((2, 32)),
        **changes,
    }
    return graph(path, LAYER, **weights)


def graph(path: Path, text: str, **weights: np.ndarray) -> Path:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items())
    onnx.save(model, path)
    return path


def layer_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((1, 40, WIDTH)).astype(np.float32),
        "index": rng.permutation(1000)[None, :40].astype(np.int32),
        "points": (rng.random((2, 3, 2)) * 1024).astype(np.float32),
    }


def run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs))


def typed(source: Path, precision: Precision, role: GraphRole = ROLE) -> Path:
    out = source.with_name(f"{source.stem}_{precision.value}.onnx")
    convert(source, out, role, precision)
    return out


def types_of(path: Path) -> dict[str, int]:
    """Element type of every tensor, as shape inference finds it."""
    found = shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*found.value_info, *found.input, *found.output)}
    return values | {i.name: i.data_type for i in found.initializer}


@pytest.mark.parametrize("precision", HALVES)
def test_products_are_half_and_the_rest_is_float(tmp_path: Path, precision: Precision) -> None:
    out = typed(layer(tmp_path / "g.onnx"), precision)
    types, nodes = types_of(out), list(onnx.load(out).graph.node)
    products = [n for n in nodes if n.op_type in ("MatMul", "Attention")]
    assert len(products) == 4
    assert {types[name] for n in products for name in (*n.input, *n.output)} == {HALF_TYPES[precision]}
    for name in ("normed", "ac", "left", "right", "turned", "share", "angle", "y", "code", "scale", "cos", "sin", "gaussian"):
        assert types[name] == FLOAT, name
    assert types["q"] == HALF_TYPES[precision]  # the bias belongs to the product
    assert {types[i.name] for i in onnx.load(out).graph.input} == {FLOAT, TensorProto.INT32}


def test_float16_layer_runs_close_to_float32(tmp_path: Path) -> None:
    source = layer(tmp_path / "g.onnx")
    (y, code), (got_y, got_code) = run(source, layer_inputs()), run(typed(source, Precision.FP16), layer_inputs())
    assert got_y.dtype == got_code.dtype == np.float32
    assert 1e-6 < np.abs(got_y - y).max() < 4e-3
    np.testing.assert_allclose(got_code, code, atol=3e-6)  # radians up to 60: float16 angles would be 0.03 off


@pytest.mark.parametrize("precision", HALVES)
def test_angles_take_no_product(tmp_path: Path, precision: Precision) -> None:
    nodes = {name: n for n in onnx.load(typed(layer(tmp_path / "g.onnx"), precision)).graph.node for name in n.output}
    assert nodes["angle"].op_type == "ReduceSum"  # TF32 products would round them, compute capability 7.5 has no float32 ones


@pytest.mark.parametrize("precision", HALVES)
def test_a_tensor_is_cast_once_however_many_read_it(tmp_path: Path, precision: Precision) -> None:
    out = onnx.load(typed(layer(tmp_path / "g.onnx"), precision))
    casts = [n.input[0] for n in out.graph.node if n.op_type == "Cast"]
    assert sorted(casts) == ["a", "b", "normed", "out", "turned"]
    names = [n.name for n in out.graph.node if n.name]
    assert len(names) == len(set(names))


def test_a_table_that_both_kinds_read_is_stored_twice(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = MatMul (x, table)  s = Sigmoid (table)  z = MatMul (x, s) }"""
    table = np.full((4, 4), 1 / 3)
    source = graph(tmp_path / "g.onnx", text, table=table)
    stored = {i.name: i for i in onnx.load(typed(source, Precision.FP16)).graph.initializer}
    assert {i.data_type for i in stored.values()} == {FLOAT, TensorProto.FLOAT16}
    np.testing.assert_array_equal(numpy_helper.to_array(stored["table"]), table.astype(np.float32))


def test_a_sum_with_a_table_is_float(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[4,4] x) => (float[4,4] y) { a = MatMul (x, w)  b = Add (a, table)  c = Relu (b)  d = Mul (c, two)  y = MatMul (d, w) }"""
    weights = {"w": np.eye(4), "table": np.full((4, 4), 1 / 3), "two": np.array(2.0)}
    types = types_of(typed(graph(tmp_path / "g.onnx", text, **weights), Precision.FP16))
    assert [types[name] for name in "abcd"] == [TensorProto.FLOAT16, FLOAT, FLOAT, FLOAT]


def test_an_output_that_nodes_read_too_keeps_its_type(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = MatMul (x, w)  z = MatMul (y, w) }"""
    out = typed(graph(tmp_path / "g.onnx", text, w=np.eye(4) / 3), Precision.FP16)
    y, z = run(out, {"x": np.ones((1, 4), np.float32)})
    assert y.dtype == z.dtype == np.float32
    assert sum(n.op_type == "Cast" for n in onnx.load(out).graph.node) == 3  # x to half, y and z to float; y goes on as half


@pytest.mark.parametrize("precision", HALVES)
def test_constants_of_the_official_model_survive(tmp_path: Path, precision: Precision) -> None:
    """-1024 where nothing is visible, masks times 20 minus 10, an epsilon of 1e-6, uint8 pixels normalised."""
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (uint8[4,4] pixels, bool[4,1] visible) => (float[4,4] logits, float[4,4] normed, float[4,4] mask, float[4,4] colours)
    {
      wide = Cast <to=1> (pixels)
      scaled = Div (wide, levels)
      centred = Sub (scaled, mean)
      colours = Div (centred, std)
      seen = MatMul (colours, w)
      logits = Where (visible, seen, hidden)
      normed = LayerNormalization <axis=-1, epsilon=1e-6> (seen, scale)
      p = Sigmoid (seen)
      p20 = Mul (p, twenty)
      mask = Sub (p20, ten)
    }"""
    values = {"levels": 255.0, "mean": 0.485, "std": 0.229, "hidden": -1024.0, "twenty": 20.0, "ten": 10.0}
    weights = {name: np.array(value) for name, value in values.items()} | {"w": np.diag([1e-4, 0.5, 1.0, 2.0]), "scale": np.ones(4)}
    source = graph(tmp_path / "g.onnx", text, **weights)
    out = typed(source, precision)
    types = types_of(out)
    assert all(types[name] == FLOAT for name in ("wide", "scaled", "centred", "colours", "normed", "p", "mask"))
    epsilons = [a.f for n in onnx.load(out).graph.node for a in n.attribute if a.name == "epsilon"]
    assert epsilons == [np.float32(1e-6)]
    if precision is Precision.FP16:
        inputs = {"pixels": np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4), "visible": np.array([[True], [False], [True], [False]])}
        got, want = run(out, inputs), run(source, inputs)
        np.testing.assert_array_equal(got[0][1::2], -1024.0)
        np.testing.assert_array_equal(got[3], want[3])
        for have, true in zip(got, want, strict=True):
            np.testing.assert_allclose(have, true, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize(("precision", "value"), [(Precision.FP16, 65520.0), (Precision.FP16, -1e9), (Precision.BF16, 3.4e38)])
def test_a_weight_beyond_the_range_is_refused(tmp_path: Path, precision: Precision, value: float) -> None:
    weight = np.eye(WIDTH)
    weight[3, 5] = value
    with pytest.raises(BackendError, match=rf"memory_attention that {precision.value} can hold, got w_v with magnitudes.*--precision"):
        typed(layer(tmp_path / "g.onnx", w_v=weight), precision)
    assert not (tmp_path / f"g_{precision.value}.onnx").exists()


def test_the_largest_float16_weight_is_taken(tmp_path: Path) -> None:
    weight = np.eye(WIDTH)
    weight[3, 5] = 65504.0
    out = onnx.load(typed(layer(tmp_path / "g.onnx", w_v=weight), Precision.FP16))
    (stored,) = (numpy_helper.to_array(i) for i in out.graph.initializer if i.name.startswith("w_v"))
    assert stored.max() == np.float16(65504)


def test_float32_only_unfolds_half_stored_weights(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[N,4] x) => (float[N,4] y) { w = Cast <to=1> (w_half)  y = MatMul (x, w) }"""
    model = onnx.parser.parse_model(text)
    weight = (np.arange(16) / 7).astype(np.float16).reshape(4, 4)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w_half"))
    source = tmp_path / "g.onnx"
    onnx.save(model, source)
    for precision, kind in ((Precision.FP32, FLOAT), (Precision.FP16, TensorProto.FLOAT16)):
        out = typed(source, precision)
        (stored,) = onnx.load(out).graph.initializer
        assert stored.data_type == kind
        np.testing.assert_array_equal(numpy_helper.to_array(stored).astype(np.float16), weight)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(typed(source, Precision.FP32), {"x": x})[0], run(source, {"x": x})[0])


@pytest.mark.parametrize("node", ["com.microsoft.FastGelu (x)", "If <then_branch = t () => (float[N] y) { y = Identity (x) }, "
                                  "else_branch = e () => (float[N] y) { y = Neg (x) }> (flag)"])  # fmt: skip
def test_graphs_that_cannot_be_typed_are_refused(tmp_path: Path, node: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[N] x, bool flag) => (float[N] y) {{ y = {node} }}"""
    with pytest.raises(BackendError, match=r"memory_attention of standard operators, without subgraphs, got .*--target tensorrt"):
        typed(graph(tmp_path / "g.onnx", text), Precision.FP16)


def test_decomposable_marks_each_attention_once(tmp_path: Path) -> None:
    model = onnx.load(layer(tmp_path / "g.onnx"))
    mark_decomposable(model)
    mark_decomposable(model)
    marks = {n.op_type: [a.i for a in n.attribute if a.name == "TRT_decomposable"] for n in model.graph.node}
    assert marks.pop("Attention") == [1]
    assert not any(marks.values())
    with pytest.raises(onnx.checker.ValidationError, match="TRT_decomposable"):  # why it comes last
        onnx.checker.check_model(model)


def test_every_exception_gives_its_reason() -> None:
    table = rules()
    assert not set(table["half"]) & set(table["widest"])
    assert all(len(rule["reason"]) > 20 for rule in (*table["except"], *table["keep"]))


def attention_inputs(model: ModelProto) -> list[str]:
    return [name for n in model.graph.node if n.op_type == "Attention" for name in n.input]


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("role", BASE_ROLES)
def test_graphs_of_a_bundle(bundle_micro: Path, tmp_path: Path, role: GraphRole, precision: Precision) -> None:
    source = next(f for f in (bundle_micro / "tensorrt" / f"{role.value}.onnx", bundle_micro / f"{role.value}.onnx") if f.exists())
    out = tmp_path / "g.onnx"
    convert(source, out, role, precision)
    model, types = onnx.load(out), types_of(out)
    table = graph_spec(role, ExportTarget.TENSORRT)
    for values, wanted in ((model.graph.input, table.inputs), (model.graph.output, table.outputs)):
        got = [(v.name, np.dtype(helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)).name) for v in values]
        assert got == [(t.name, t.dtype) for t in wanted]
    products = [n for n in model.graph.node if n.op_type in rules()["half"]]
    kind = HALF_TYPES.get(precision, FLOAT)
    transposed = {name for n in products if n.op_type == "ConvTranspose" for name in (*n.input, *n.output)}
    ours = {types[name] for n in products for name in (*n.input, *n.output) if name and name not in transposed}
    assert ours == {kind}
    if precision is Precision.FP32:
        assert not {TensorProto.FLOAT16, TensorProto.BFLOAT16} & set(types.values())
        return
    assert all(types[name] == FLOAT for n in model.graph.node if n.op_type == "LayerNormalization" for name in (*n.input, *n.output))
    stored = {k: sum(len(i.raw_data) for i in model.graph.initializer if i.data_type == k) for k in (FLOAT, kind)}
    if role is not GraphRole.MEMORY_ATTENTION:  # whose tables are larger than its weights at this width
        assert stored[FLOAT] < 0.5 * stored[kind]
    if precision is Precision.FP16:
        ort.InferenceSession(out, providers=["CPUExecutionProvider"])
