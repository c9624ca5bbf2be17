"""The ONNX operator: its place in a graph, its shapes, what it refuses."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from fastsam2.errors import ExportError
from fastsam2.kernels.onnx_op import append_top_k_gather, attach_top_k_gathers, detach_top_k_gathers

F32, F16, BF16, I32, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT32, TensorProto.INT64


def model(scores: list[Any], rows: list[Any], *, score_type: int = F32, row_type: int = BF16, k_type: int = I64) -> onnx.ModelProto:
    """raw ─ Relu ─ scores; rows; k; two initializers."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["raw"], ["scores"])],
        "pruning",
        [
            helper.make_tensor_value_info("raw", score_type, scores),
            helper.make_tensor_value_info("rows", row_type, rows),
            helper.make_tensor_value_info("k", k_type, [1]),
        ],
        [helper.make_tensor_value_info("scores", score_type, scores)],
        [helper.make_tensor("k_constant", I32, [1], [9]), helper.make_tensor("k_scalar", I32, [], [9])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def append(made: onnx.ModelProto, **change: Any) -> onnx.ModelProto:
    append_top_k_gather(made, **{"scores": "scores", "rows": "rows", "k": 205, "kept": "kept", "index": "index", **change})
    return made


def shape(made: onnx.ModelProto, name: str) -> tuple[int, list[Any]]:
    (value,) = [value for value in made.graph.output if value.name == name]
    tensor = value.type.tensor_type
    return tensor.elem_type, [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]


def attributes(made: onnx.ModelProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in made.graph.node[-1].attribute}


PLUGIN = {"plugin_version": b"1", "plugin_namespace": b"fastsam2"}


def test_k_as_an_attribute() -> None:
    made = append(model(["B", 4096], ["B", 4096, 64]))
    onnx.checker.check_model(made, full_check=True)
    node = made.graph.node[-1]
    assert (node.op_type, node.domain, list(node.input), list(node.output)) == (
        "TopKGather",
        "fastsam2",
        ["scores", "rows"],
        ["kept", "index"],
    )
    assert attributes(made) == {"k": 205, **PLUGIN}
    assert shape(made, "kept") == (BF16, ["B", 205, 64]) and shape(made, "index") == (I32, ["B", 205])
    assert [(one.domain, one.version) for one in made.opset_import] == [("", 20), ("fastsam2", 1)]


@pytest.mark.parametrize("k", ["k", "k_constant"])
def test_k_as_a_shape_input(k: str) -> None:
    made = append(model([2, 50], [2, 50, 8], row_type=F16), k=k)
    onnx.checker.check_model(made, full_check=True)
    assert list(made.graph.node[-1].input) == ["scores", "rows", k]
    assert attributes(made) == {"tensorrt_plugin_shape_input_indices": [2], **PLUGIN}
    assert shape(made, "kept") == (F16, [2, None, 8]) and shape(made, "index") == (I32, [2, None])


def test_two_operators_share_the_opset() -> None:
    made = append(append(model([1, 50], [1, 50, 8]), k=5), kept="kept_2", index="index_2", k=0)
    onnx.checker.check_model(made, full_check=True)
    assert len(made.opset_import) == 2 and shape(made, "kept_2") == (BF16, [1, 0, 8])
    assert len({node.name for node in made.graph.node}) == 3


@pytest.mark.parametrize(("made", "change", "message"), [
    (model([1, 50], [1, 50, 8]), {"scores": "nowhere"}, r"a tensor nowhere of known type"),
    (model([1, 50], [1, 50, 8]), {"k": 51}, r"k in 0..50, got 51"),
    (model([1, 50], [1, 50, 8]), {"k": -1}, r"k in 0..50, got -1"),
    (model([1, "N"], [1, "N", 8]), {"k": 16385}, r"k in 0..N, got 16385"),
    (model([1, 50], [1, 50, 8]), {"k": "raw"}, r"raw int32 or int64 \[1\]"),
    (model([1, 50], [1, 50, 8]), {"k": "k_scalar"}, r"k_scalar int32 or int64 \[1\]"),
    (model([1, 50], [1, 50, 8], score_type=BF16), {}, r"scores float32 or float16"),
    (model([1, 50], [1, 50, 8], row_type=I64), {}, r"rows float32, float16"),
    (model([1, 50], [1, 50]), {}, r"rows float32, float16"),
    (model([1, 50], [1, 49, 8]), {}, r"rows \[B,N,D\] of the scores' B and N"),
    (model([1, 16385], [1, 16385, 8]), {}, r"N in 1..16384"),
    (model([1, 50], [1, 50, 4]), {"k": 5}, r"a multiple of 16 bytes, got 4"),
    (model([1, 50], [1, 50, "D"]), {"k": 5}, r"a fixed D .* got D"),
    (model([1, 50], [1, 50, 8]), {"k": 5, "kept": "raw"}, r"two new names"),
    (model([1, 50], [1, 50, 8]), {"k": 5, "kept": "index"}, r"two new names"),
])  # fmt: skip
def test_refused_and_unchanged(made: onnx.ModelProto, change: dict[str, Any], message: str) -> None:
    before = made.SerializeToString()
    with pytest.raises(ExportError, match=message):
        append(made, **change)
    assert made.SerializeToString() == before


def test_taken_out_and_put_back() -> None:
    before, made = model(["B", 4096], ["B", 4096, 64]), append(model(["B", 4096], ["B", 4096, 64]), k="k")
    whole = made.SerializeToString(deterministic=True)
    gathers = detach_top_k_gathers(made)
    assert [node.op_type for node in gathers.nodes] == ["TopKGather"]
    assert [value.name for value in gathers.inputs] == ["rows", "k"] and [value.name for value in gathers.outputs] == ["kept", "index"]
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.input] == ["raw"] and [value.name for value in made.graph.output] == ["scores"]
    assert made.graph.node == before.graph.node and made.opset_import == before.opset_import
    attach_top_k_gathers(made, gathers)
    assert made.SerializeToString(deterministic=True) == whole


def test_a_graph_without_it_stays() -> None:
    made = model([1, 50], [1, 50, 8])
    before = made.SerializeToString()
    gathers = detach_top_k_gathers(made)
    assert (gathers.nodes, gathers.inputs, gathers.outputs) == ((), (), ())
    attach_top_k_gathers(made, gathers)
    assert made.SerializeToString() == before


def test_inputs_that_others_read_stay() -> None:
    made = append(model([1, 50], [1, 50, 8]), scores="raw", k=5)
    gathers = detach_top_k_gathers(made)
    assert [value.name for value in gathers.inputs] == ["rows"]
    assert [value.name for value in made.graph.input] == ["raw", "k"]
    onnx.checker.check_model(made, full_check=True)


def test_what_others_read_is_not_taken_out() -> None:
    made = append(model([1, 50], [1, 50, 8]), k=5)
    made.graph.node.append(helper.make_node("Identity", ["kept"], ["more"]))
    before = made.SerializeToString()
    with pytest.raises(ExportError, match=r"write outputs of the graph alone, got readers of \['kept'\]"):
        detach_top_k_gathers(made)
    assert made.SerializeToString() == before
