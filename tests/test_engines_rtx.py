"""Engines that TensorRT-RTX really builds, without a GPU; none is run. Oracles: the builder's listing; onnx.reference for the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, save
from onnx.reference import ReferenceEvaluator

from fastsam2.bundle import read_manifest
from fastsam2.engines import trt_compat
from fastsam2.engines.build import build_engines
from fastsam2.engines.builder import Built, build_engine
from fastsam2.engines.fusion import check_fusion, expect
from fastsam2.engines.layers import parse_listing
from fastsam2.engines.network_form import broadcast_masks, builder_form
from fastsam2.engines.precision import convert
from fastsam2.engines.profiles import Limits, profiles
from fastsam2.engines.records import inspect_engines, load_engines
from fastsam2.enums import ExportTarget, Flavor, GraphRole, Precision
from fastsam2.errors import BackendError
from tests.engine_bundle import SPEC, attention_model
from tests.specs import model_spec

RTX = Flavor.TENSORRT_RTX
ROLE = GraphRole.MEMORY_ATTENTION
SCORES_BYTES = 1024 * 7232 * 2  # of one object in float16


@pytest.fixture(scope="module")
def trt() -> Any:
    if RTX not in trt_compat.available():
        pytest.skip("the package tensorrt_rtx is not installed")
    return trt_compat.load(RTX)


def built(trt: Any, folder: Path, model: ModelProto, precision: Precision, limits: Limits, target: str = "portable") -> Built:
    """The engine of a memory attention."""
    save(model, folder / "source.onnx")
    convert(folder / "source.onnx", folder / "typed.onnx", ROLE, precision)
    form = builder_form(folder / "typed.onnx")
    return build_engine(form, ROLE.value, profiles(SPEC, ROLE, limits), trt=trt, flavor=RTX, target=target)


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("precision", "objects", "target", "fused"),
    [
        (Precision.FP16, 4, "portable", 1),
        (Precision.FP16, 3, "8.9", 1),
        (Precision.FP16, 2, "8.9", 0),
        (Precision.BF16, 4, "8.9", 1),
        (Precision.FP32, 4, "8.9", 0),
    ],
)
def test_attention_fuses_as_the_rule_says(trt: Any, tmp_path: Path, precision: Precision, objects: int, target: str, fused: int) -> None:
    limits, model = Limits(max_objects=objects), attention_model()
    listing = parse_listing(built(trt, tmp_path, model, precision, limits, target).listing)
    expectation = expect(model, SPEC, ROLE, precision, profiles(SPEC, ROLE, limits)[0])
    assert len(listing.fused()) == expectation.fused == fused
    check_fusion(listing, expectation, ROLE, precision)
    (activation,) = listing.activation_bytes
    assert (activation < objects * SCORES_BYTES) == bool(fused)


@pytest.mark.rtx
def test_each_profile_is_counted_by_itself(trt: Any, tmp_path: Path) -> None:
    made = built(trt, tmp_path, attention_model(), Precision.FP16, Limits(keep_buckets=(0.05,)))
    listing = parse_listing(made.listing)
    assert len(listing.fused(0)) == 1 and listing.fused(1) == ()  # 4 x 1024 x 2372 scores
    assert len(listing.activation_bytes) == 2 and listing.activation_bytes[0] < 4 * SCORES_BYTES
    assert made.seconds > 0 and len(made.engine) > 100_000


def test_a_broadcast_mask_computes_the_same() -> None:
    spec = model_spec(image_size=64)
    model = attention_model(spec)
    random = np.random.default_rng(0)
    rows, pointers, keys = 5, 2, 5 + 4 * 2
    inputs = {
        "tokens": random.normal(size=(1, spec.tokens, 64)).astype(np.float32),
        "memory": random.normal(size=(2, rows, 16)).astype(np.float32),
        "position": np.zeros((2, rows), np.int32),
        "age": np.ones((2, rows), np.int32),
        "pointers": random.normal(size=(2, pointers, 64)).astype(np.float32),
        "pointer_offset": np.zeros((2, pointers), np.float32),
        "memory_bias": np.where(random.random((2, keys)) < 0.4, -1e4, 0).astype(np.float32),
    }

    (before,) = ReferenceEvaluator(model).run(None, inputs)
    broadcast_masks(model)
    (attention,) = (n for n in model.graph.node if n.op_type == "Attention")
    assert attention.input[3] == "mask_1"
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, inputs)[0], before)
    inputs["memory_bias"][:] = 0
    assert np.abs(ReferenceEvaluator(model).run(None, inputs)[0] - before).max() > 0.1


def test_a_mask_of_fewer_dimensions_stays() -> None:
    model = attention_model()
    for node in model.graph.node:
        if node.name == "node_mask_1":
            node.op_type = "Identity"
            del node.input[1]
    broadcast_masks(model)
    (attention,) = (n for n in model.graph.node if n.op_type == "Attention")
    assert attention.input[3] == "mask"


def one_node(op: str, shape: list[int], **attributes: Any) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    outputs = ["values", "indices"] if op == "TopK" else ["y"]
    ys = [helper.make_tensor_value_info(outputs[0], TensorProto.INT64 if op == "NonZero" else TensorProto.FLOAT, None)]
    constants = [helper.make_tensor("k", TensorProto.INT64, [1], [3841])] if op == "TopK" else []
    node = helper.make_node(op, ["x", *(c.name for c in constants)], outputs, name="culprit", **attributes)
    return bytes(
        helper.make_model(
            helper.make_graph([node], "g", [x], ys, constants), opset_imports=[helper.make_opsetid("", 23)]
        ).SerializeToString()
    )


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (one_node("NonZero", [4, 4]), r"expected router to parse with tensorrt-rtx .*, got NonZero culprit: .*NonZero"),
        (one_node("TopK", [1, 5000]), r"expected router to build for 8.9 with tensorrt-rtx .*, got .*3840"),
        (b"not onnx", r"expected router to parse with tensorrt-rtx"),
    ],
)
def test_a_graph_that_does_not_build_quotes_the_builder(trt: Any, model: bytes, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        build_engine(model, "router", (), trt=trt, flavor=RTX, target="8.9")


@pytest.mark.rtx
def test_a_model_from_export_to_inspection(trt: Any, bundle_micro: Path, tmp_path: Path) -> None:
    (folder,) = build_engines(bundle_micro, flavor=RTX, out=tmp_path / "micro", limits=Limits(max_objects=2))
    manifest = read_manifest(tmp_path / "micro")
    at, engines = load_engines(tmp_path / "micro", manifest, RTX, version=trt.__version__, target="portable")
    assert at == folder and {e.graph for e in engines.engines} == {g.role for g in manifest.graphs}
    shown = {e["graph"]: e for e in inspect_engines(tmp_path / "micro", manifest)}
    assert shown["image_encoder"]["fused_attention"] == shown["image_encoder"]["expected_attention"] == 5
    assert shown["mask_decoder"]["expected_attention"] == 0 and shown["mask_decoder"]["attention"] == 7  # heads of width 4 and 8
    for entry in engines.engines:
        assert entry.fused_attention >= entry.expected_attention and entry.activation_bytes > 0 and entry.file.bytes > 100_000
        assert 0 < max(entry.drift.values()) < 0.1


NANO = {"image_encoder": (7, 7), "memory_attention": (3, 4), "mask_decoder": (2, 7), "mask_prompt": (2, 7), "memory_encoder": (0, 0)}
TINY = {"image_encoder": (12, 12), "memory_attention": (8, 8), "mask_decoder": (7, 7), "mask_prompt": (7, 7), "memory_encoder": (0, 0)}


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("name", "model", "checkpoint", "counts"),
    [("nano_tensorrt", "training/nano.yaml", "training/nano.pt", NANO), ("tiny_tensorrt", "sam2.1_hiera_tiny", "random:0", TINY)],
)
def test_nano_and_tiny(
    trt: Any, exported: Any, tmp_path: Path, name: str, model: str, checkpoint: str, counts: dict[str, tuple[int, int]]
) -> None:
    """Every graph at its own size for two targets; fused attentions counted from the listings."""
    root = Path(__file__).parents[1]
    files = [str(root / x) if (root / x).is_file() else x for x in (model, checkpoint)]
    bundle = exported(name, *files, targets=(ExportTarget.TENSORRT,))
    build_engines(bundle, flavor=RTX, out=tmp_path / name, targets=["portable", "8.9"])
    shown = inspect_engines(tmp_path / name, read_manifest(tmp_path / name))
    assert [e["target"] for e in shown] == ["8.9"] * 5 + ["portable"] * 5
    assert all((e["fused_attention"], e["attention"]) == counts[e["graph"]] for e in shown)
    assert all(e["fused_attention"] == e["expected_attention"] for e in shown)
    if counts is TINY:
        assert all(e["activation_bytes"] <= 1200e6 for e in shown if e["graph"] == "memory_attention")
