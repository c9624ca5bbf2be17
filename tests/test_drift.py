"""Drift of typed graphs. Oracles: numpy with ml_dtypes where every product is rounded by hand, ONNX Runtime's own float16 kernels, and
budgets that a damaged variant has to break."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from fastsam2.bundle import Manifest, read_manifest
from fastsam2.contracts import BASE_ROLES, graph_spec
from fastsam2.engines import drift, precision_samples
from fastsam2.engines.precision import convert
from fastsam2.engines.precision_samples import Sample, draw, samples
from fastsam2.enums import ExportTarget, GraphRole, Precision
from fastsam2.errors import BackendError
from tests.specs import model_spec

ROLE = GraphRole.MEMORY_ENCODER  # of the hand-made graphs
HALF_NUMPY = {Precision.FP16: np.dtype(np.float16), Precision.BF16: np.dtype(ml_dtypes.bfloat16)}
CHAIN = """<ir_version: 10, opset_import: ["" : 23]>
g (float[N,32] x) => (float[N,32] rows) { h = MatMul (x, w)  r = Relu (h)  rows = MatMul (r, u) }"""


def chain(folder: Path, scale: float = 1.0) -> tuple[Path, Sample, list[np.ndarray]]:
    """A graph of two products, one call of it, and its weights."""
    rng = np.random.default_rng(0)
    w, u = (rng.standard_normal((2, 32, 32)) / 4 * [[[scale]], [[1 / scale]]]).astype(np.float32)
    model = onnx.parser.parse_model(CHAIN)
    model.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(u, "u")])
    source = folder / "g.onnx"
    onnx.save(model, source)
    x = rng.standard_normal((50, 32)).astype(np.float32)
    (rows,) = ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return source, Sample({"x": x}, {"rows": rows}), [w, u]


def typed(source: Path, precision: Precision, role: GraphRole = ROLE) -> Path:
    out = source.with_name(f"{source.stem}_{precision.value}.onnx")
    convert(source, out, role, precision)
    return out


@pytest.mark.parametrize("precision", HALF_NUMPY)
def test_rounded_graph_rounds_every_half_tensor(tmp_path: Path, precision: Precision) -> None:
    source, sample, (w, u) = chain(tmp_path)
    half = HALF_NUMPY[precision]

    def narrow(values: np.ndarray) -> np.ndarray:
        return values.astype(half).astype(np.float32)

    model = drift.rounded(onnx.load(typed(source, precision)))
    (got,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, dict(sample.inputs))
    want = narrow(np.maximum(narrow(narrow(sample.inputs["x"]) @ narrow(w)), 0) @ narrow(u))
    step = np.abs(want) * float(ml_dtypes.finfo(half).eps)
    assert (np.abs(got - want) <= step).all()  # products summed in another order may fall on the other side
    assert (got == want).mean() > 0.95
    assert {i.data_type for i in model.graph.initializer} == {onnx.TensorProto.FLOAT}


def test_float16_drift_is_at_least_that_of_float16_kernels(tmp_path: Path) -> None:
    source, sample, _ = chain(tmp_path)
    variant = typed(source, Precision.FP16)
    (direct,) = ort.InferenceSession(variant, providers=["CPUExecutionProvider"]).run(None, dict(sample.inputs))
    want = sample.outputs["rows"]
    ours = drift.measure(variant, ROLE, [sample])["rows"]
    theirs = float(np.sqrt(np.mean(np.square(direct - want))) / want.std())
    assert theirs < ours < 2.5 * theirs  # those on a CPU round less often
    assert 4 < drift.measure(typed(source, Precision.BF16), ROLE, [sample])["rows"] / ours < 16  # three bits fewer


def test_the_worst_sample_counts_and_float32_has_no_drift(tmp_path: Path) -> None:
    source, sample, _ = chain(tmp_path)
    off = Sample(sample.inputs, {"rows": sample.outputs["rows"] * np.float32(1.5)})
    variant = typed(source, Precision.FP32)
    assert drift.measure(variant, ROLE, [sample]) == {"rows": 0.0}
    assert drift.measure(variant, ROLE, [sample, off, sample])["rows"] == pytest.approx(1 / 3, rel=0.01)


@pytest.mark.parametrize(("want", "have", "drift_of_it"), [([0.25, 0.4], [0.25, 0.5], 0.05), ([100.0, 40.0], [100.0, 50.0], 0.05)])
def test_few_values_are_measured_by_their_magnitude(tmp_path: Path, want: list[float], have: list[float], drift_of_it: float) -> None:
    source = tmp_path / "g.onnx"
    onnx.save(onnx.parser.parse_model(CHAIN.split("{", maxsplit=1)[0].replace("32", "2") + "{ rows = Identity (x) }"), source)
    sample = Sample({"x": np.array([have, have], np.float32)}, {"rows": np.array([want, have], np.float32)})
    assert drift.measure(typed(source, Precision.FP32), ROLE, [sample])["rows"] == pytest.approx(drift_of_it, rel=1e-3)


def test_an_overflow_between_operators_is_refused(tmp_path: Path) -> None:
    source, sample, _ = chain(tmp_path, scale=2e4)  # weights fit, products do not
    found = drift.measure(typed(source, Precision.FP16), ROLE, [sample])
    assert found == {"rows": math.inf}
    with pytest.raises(BackendError, match=r"memory_encoder in fp16 within .*got rows inf\. .*bf16"):
        drift.check(found, ROLE, Precision.FP16)
    drift.check(drift.measure(typed(source, Precision.BF16), ROLE, [sample]), ROLE, Precision.BF16)


@pytest.mark.parametrize("value", [1.01, 1e3, math.nan, math.inf])
def test_drift_beyond_the_budget_is_refused_by_name(value: float) -> None:
    budget = drift.budgets()[ROLE.value]["fp16"]
    drift.check({"rows": budget}, ROLE, Precision.FP16)
    with pytest.raises(BackendError, match=rf"memory_encoder in fp16 within {budget:g} .*, got second .*--force") as caught:
        drift.check({"rows": budget, "second": budget * value}, ROLE, Precision.FP16)
    assert "rows" not in str(caught.value)


def test_every_role_has_budgets_and_a_reason() -> None:
    table = drift.budgets()
    assert set(table) == {role.value for role in GraphRole}
    for role, entry in table.items():
        assert 0 < entry["fp32"] < entry["fp16"] < entry["bf16"] < 0.2, role
        assert len(entry["reason"]) > 20, role


def test_drawn_objects_move_and_do_not_touch() -> None:
    first, last = draw(128, 0), draw(128, precision_samples.FRAMES - 1)
    for pixels, masks in (first, last):
        assert pixels.shape == (1, 3, 128, 128)
        assert pixels.dtype == np.uint8
        assert not masks.all(axis=0).any()
        assert ((masks.mean(axis=(1, 2, 3)) > 0.05) & (masks.mean(axis=(1, 2, 3)) < 0.2)).all()
    assert (first[1] != last[1]).mean() > 0.01


@pytest.fixture(scope="module")
def micro(bundle_micro: Path) -> tuple[Path, Manifest, dict[GraphRole, list[Sample]]]:
    manifest = read_manifest(bundle_micro, verify=False)
    return bundle_micro, manifest, samples(bundle_micro, manifest)


def test_samples_are_legal_calls(micro: tuple[Path, Manifest, dict[GraphRole, list[Sample]]]) -> None:
    _, manifest, calls = micro
    spec = manifest.model
    assert set(calls) == set(BASE_ROLES)
    for role, made in calls.items():
        table = graph_spec(role, ExportTarget.TENSORRT)
        for sample in made:
            sizes: dict[str, int] = {}
            for tensors, tables in ((sample.inputs, table.inputs), (sample.outputs, table.outputs)):
                assert list(tensors) == [t.name for t in tables]
                for tensor in tables:
                    value = tensors[tensor.name]
                    assert value.dtype == tensor.dtype
                    for axis, size in zip(tensor.shape(spec), value.shape, strict=True):
                        assert (sizes.setdefault(axis, size) if isinstance(axis, str) else axis) == size, (role, tensor.name)
    prompted, last = calls[GraphRole.MASK_DECODER]
    assert prompted.inputs["first_frame"].all()
    assert not last.inputs["first_frame"].any()
    (memory,) = (sample.inputs for sample in calls[GraphRole.MEMORY_ATTENTION])
    n = spec.tokens
    assert memory["memory"].shape[1] == 2 * n
    np.testing.assert_array_equal(memory["age"][0, ::n], [spec.num_maskmem - 1, 0])
    np.testing.assert_allclose(memory["pointer_offset"][0] * (spec.max_object_pointers - 1), [2, 1])
    np.testing.assert_array_equal(memory["memory"].astype(ml_dtypes.bfloat16).astype(np.float32), memory["memory"])
    written = calls[GraphRole.MEMORY_ENCODER][0].outputs["rows"]  # of the prompted frame
    np.testing.assert_allclose(memory["memory"][:, :n], written, rtol=2**-8)
    assert memory["memory"].std() > 0.1


def test_calls_of_graphs_that_few_bundles_have(tmp_path: Path) -> None:
    """Made by the helpers of `precision_samples`; no bundle of the tests has these graphs for the target tensorrt."""
    spec = model_spec(image_size=64)
    n = spec.tokens
    queries = precision_samples._half_the_queries(spec)
    np.testing.assert_array_equal(queries["query_position"][1], np.arange(0, n, 2))
    np.testing.assert_array_equal(queries["source"][0, ::2], np.arange(n // 2))
    assert (queries["source"][:, 1::2] == -1).all()
    logits = np.stack([np.full((1, 16, 16), -1024.0), np.zeros((1, 16, 16))]).astype(np.float32)
    router = precision_samples._for_router(spec, logits)
    np.testing.assert_array_equal(router["uncertainty"], [[0.0] * n, [1.0] * n])
    np.testing.assert_allclose(np.linalg.norm(router["text"], axis=1), 1, rtol=1e-6)
    for inputs, role in ((queries, GraphRole.QUERY_ATTENTION), (router, GraphRole.ROUTER)):
        for name, value in inputs.items():
            tensor = graph_spec(role, ExportTarget.TENSORRT).input(name)
            assert (value.dtype, value.ndim) == (tensor.dtype, len(tensor.axes))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps({"model": {"vocab": {"a": 0, "b</w>": 1, "ab</w>": 2, "<begin>": 3, "<end>": 4}}}))
    ids = precision_samples._ids(tokenizer)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal((ids == 4).sum(axis=1), [73, 70])
    assert (ids[:, 0] == 3).all()
    assert (ids[0, 1:4] < 3).all()


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("role", BASE_ROLES)
def test_micro_stays_within_budget_and_a_damaged_one_does_not(
    micro: tuple[Path, Manifest, dict[GraphRole, list[Sample]]], tmp_path: Path, role: GraphRole, precision: Precision
) -> None:
    folder, manifest, calls = micro
    out = tmp_path / "g.onnx"
    convert(folder / manifest.graph(role, ExportTarget.TENSORRT).file.path, out, role, precision)
    found = drift.measure(out, role, calls[role])
    assert set(found) == {t.name for t in graph_spec(role, ExportTarget.TENSORRT).outputs}
    drift.check(found, role, precision)
    if precision is not Precision.FP32:
        assert max(found.values()) > 1e-5

    model = onnx.load(out)
    largest = max(model.graph.initializer, key=lambda i: int(np.prod(i.dims)) if len(i.dims) in (2, 4) else 0)
    values = numpy_helper.to_array(largest)
    largest.CopyFrom(numpy_helper.from_array((values * values.dtype.type(0.5)).astype(values.dtype), largest.name))
    onnx.save(model, out)
    with pytest.raises(BackendError, match=role.value):
        drift.check(drift.measure(out, role, calls[role]), role, precision)
