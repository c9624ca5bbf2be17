"""The router's graph, adding it to a bundle, and the uncertainty it reads. Bundles are copies of nano with routers of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch

from fastsam2.benchmarks.graph_work import work_of
from fastsam2.bundle import read_manifest
from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError, ExportError, InternalError
from fastsam2.export import router as export_router
from fastsam2.export.router import add_router, check_router
from fastsam2.export.to_onnx import example_inputs
from fastsam2.export.wrappers.router import RouterGraph, multiply_adds
from fastsam2.runtime.policies.mask import cell_coverage
from fastsam2.runtime.uncertainty import uncertainty
from fastsam2.spread import uniform_scores
from tests.bare_nano import bare_nano
from tests.specs import model_spec

NANO = bare_nano()
TINY_1024 = model_spec(name="tiny", image_size=1024, hidden_dim=256, memory_dim=64)
TINY_ENCODER = 129e9  # multiply-adds of the image encoder of SAM 2.1 tiny at 1024 px, from its config
TARGET = ExportTarget.ONNXRUNTIME

Inputs = dict[str, torch.Tensor]


def router(*, text: bool = True, seed: int = 0) -> RouterGraph:
    spec = read_manifest(NANO, verify=False).model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RouterGraph(spec, torch.randn(spec.text_dim, spec.hidden_dim) if text else None).eval()


def inputs_of(module: RouterGraph, count: int, seed: int = 0) -> Inputs:
    return example_inputs(module.spec, GraphRole.ROUTER, TARGET, {"B": count}, seed)


def outputs(module: RouterGraph, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
    with torch.inference_mode():
        values = module(*inputs.values())
    return {t.name: v.numpy() for t, v in zip(graph_spec(GraphRole.ROUTER, TARGET).outputs, values, strict=True)}


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with a random router that reads texts."""
    out = tmp_path_factory.mktemp("routed") / "bundle"
    return add_router(NANO, router(), data="random weights", steps=1, saw_text=False, out=out)


def test_outputs_have_the_shapes_of_the_contract_and_scores_sum_to_one() -> None:
    """Oracle: the table of the contract; softmax."""
    module = router()
    got = outputs(module, inputs_of(module, 3))
    sizes = {"B": 3}
    for tensor in graph_spec(GraphRole.ROUTER, TARGET).outputs:
        assert got[tensor.name].shape == tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape(module.spec))
        assert got[tensor.name].dtype == tensor.dtype
    np.testing.assert_allclose(got["scores"].sum(1), 1, rtol=1e-5)
    assert got["scores"].std(axis=1).min() > 0


@pytest.mark.parametrize("held", [float("nan"), float("inf"), 1e30, 3.0])
def test_without_has_text_the_text_has_no_influence(held: float) -> None:
    """Oracle: the same call with a text of zeros, bit for bit; with has_text the text does change the scores."""
    module = router()
    inputs = inputs_of(module, 2)
    inputs["has_text"] = torch.tensor([False, False])
    ignored = outputs(module, {**inputs, "text": torch.full_like(inputs["text"], held)})
    silent = outputs(module, {**inputs, "text": torch.zeros_like(inputs["text"])})
    for name in silent:
        np.testing.assert_array_equal(ignored[name], silent[name])
    assert not silent["relevance"].any()
    heard = outputs(module, {**inputs, "has_text": torch.tensor([True, False])})
    assert np.abs(heard["scores"][0] - silent["scores"][0]).max() > 1e-6
    np.testing.assert_array_equal(heard["scores"][1], silent["scores"][1])


def test_without_a_projection_a_text_changes_nothing() -> None:
    """Oracle: the call without texts."""
    module = router(text=False)
    inputs = inputs_of(module, 2)
    with_text = outputs(module, {**inputs, "has_text": torch.tensor([True, True])})
    without = outputs(module, {**inputs, "has_text": torch.tensor([False, False])})
    np.testing.assert_array_equal(with_text["scores"], without["scores"])


def test_relevance_is_the_cosine_with_the_difference_to_the_mean_token() -> None:
    """Oracle: the same in float64 numpy."""
    module = router()
    inputs = inputs_of(module, 2)
    inputs["has_text"] = torch.tensor([True, True])
    tokens, text = inputs["tokens"][0].double().numpy(), inputs["text"].double().numpy()
    apart, direction = tokens - tokens.mean(0), text @ module.text_projection.double().numpy()
    cosine = direction @ apart.T / np.linalg.norm(direction, axis=1)[:, None] / np.linalg.norm(apart, axis=1)
    np.testing.assert_allclose(outputs(module, inputs)["relevance"], cosine, atol=1e-5)


def test_context_is_the_distance_to_the_neighbourhood_in_mean_token_lengths() -> None:
    """Oracle: a loop over cells, at corners, edges and inside."""
    module = router()
    inputs = inputs_of(module, 1)
    g = module.spec.grid
    tokens = inputs["tokens"][0].numpy().reshape(g, g, -1)
    context = outputs(module, inputs)["context"].reshape(g, g)
    length = np.linalg.norm(tokens, axis=-1).mean()
    for y, x in ((0, 0), (0, 5), (g - 1, g - 1), (7, 0), (4, 9)):
        around = tokens[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].reshape(-1, tokens.shape[-1]).mean(0)
        assert context[y, x] == pytest.approx(np.linalg.norm(tokens[y, x] - around) / length, rel=1e-4)


def test_objects_do_not_influence_each_other() -> None:
    """Oracle: each object alone."""
    module = router()
    inputs = inputs_of(module, 3)
    together = outputs(module, inputs)["scores"]
    for i in range(3):
        alone = {k: v if k == "tokens" else v[i : i + 1] for k, v in inputs.items()}
        np.testing.assert_allclose(outputs(module, alone)["scores"][0], together[i], rtol=1e-5)


def test_frames_can_be_batched_in_training() -> None:
    """Oracle: `forward` on one frame at a time."""
    module = router()
    first, second = (inputs_of(module, 1, seed) for seed in (1, 2))
    with torch.inference_mode():
        logits, _, _ = module.rank(**{k: torch.cat([first[k], second[k]]) for k in first})
    for row, inputs in zip((logits + module.noise).softmax(1).squeeze(-1).numpy(), (first, second), strict=True):
        np.testing.assert_allclose(row, outputs(module, inputs)["scores"][0], rtol=1e-5)


def test_without_an_opinion_the_router_keeps_an_even_spread() -> None:
    """Oracle: the uniform order. Noise alone decides between rows that are worth the same."""
    module = router()
    with torch.no_grad():
        module.score.weight.zero_()
    scores = outputs(module, inputs_of(module, 1))["scores"][0]
    np.testing.assert_array_equal(np.argsort(scores), np.argsort(uniform_scores(module.spec.grid)))


@pytest.mark.parametrize("name", ["tokens", "low_res_logits", "uncertainty", "object_score", "iou"])
def test_every_input_reaches_the_scores(name: str) -> None:
    """Oracle: another value gives other scores."""
    module = router()
    inputs = inputs_of(module, 1)
    value = inputs[name]
    changed = {**inputs, name: value.flip(1) if value.ndim > 1 and name != "low_res_logits" else -value}
    assert np.abs(outputs(module, changed)["scores"] - outputs(module, inputs)["scores"]).max() > 1e-7


def test_dropout_scores_are_the_mean_over_patterns() -> None:
    """Oracle: the router without dropout, run once per pattern with those hidden values switched off by hand."""
    plain = router()
    sampled = RouterGraph(plain.spec, plain.text_projection, dropout_samples=5).eval()
    sampled.load_state_dict({**plain.state_dict(), "patterns": sampled.patterns})
    assert {0.0, 1.25} == set(sampled.patterns.unique().tolist())
    assert len({tuple(p) for p in sampled.patterns.tolist()}) == 5
    inputs = inputs_of(plain, 2)
    each = []
    for pattern in sampled.patterns:
        one = router()
        one.score.weight.data *= pattern
        each.append(outputs(one, inputs)["scores"])
    got = outputs(sampled, inputs)["scores"]
    np.testing.assert_allclose(got, np.mean(each, axis=0), rtol=1e-5)
    assert np.abs(got - outputs(plain, inputs)["scores"]).max() > 1e-6
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)


def test_dropout_is_on_in_training_only() -> None:
    module = RouterGraph(router().spec, dropout_samples=3)
    inputs = inputs_of(module, 1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        a, b = (module.train().rank(**inputs)[0] for _ in range(2))
        c, d = (module.eval().rank(**inputs)[0] for _ in range(2))
    assert (a != b).any() and torch.equal(c, d)


def test_a_bundle_takes_a_router_with_dropout(tmp_path: Path) -> None:
    """Oracle: the torch module, which `add_router` compares the graph with at 1e-4."""
    module = RouterGraph(read_manifest(NANO, verify=False).model, dropout_samples=4).eval()
    bundle = add_router(NANO, module, data="random weights", steps=1, saw_text=False, out=tmp_path / "bundle")
    entry = read_manifest(bundle).router
    assert entry is not None and entry.dropout_samples == 4
    with pytest.raises(ExportError, match="within"):
        module.patterns = module.patterns.flip(0).roll(7, 1)
        check_router(module, module.spec, bundle / "router.onnx")


def multiply_adds_of(bundle: Path, role: GraphRole) -> int:
    return work_of(bundle, read_manifest(bundle, verify=False), objects=1, rows=1, pointers=1)[role.value]["multiply_adds"]


def test_the_router_costs_a_hundredth_of_the_encoder_at_most() -> None:
    """Oracle: nano's encoder counted from its ONNX; tiny's figure."""
    nano = multiply_adds_of(NANO, GraphRole.IMAGE_ENCODER)
    assert 1e9 < nano < 1e10
    assert multiply_adds(read_manifest(NANO, verify=False).model) <= 0.01 * nano
    assert multiply_adds(TINY_1024) <= 0.001 * TINY_ENCODER
    assert multiply_adds(TINY_1024, objects=16) <= 0.01 * TINY_ENCODER


def test_the_count_covers_every_matrix_product_of_the_graph(routed: Path) -> None:
    """Oracle: the exported graph, counted from its shapes at B = 1."""
    counted, spec = multiply_adds_of(routed, GraphRole.ROUTER), read_manifest(routed).model
    assert 0.3 * multiply_adds(spec) < counted <= multiply_adds(spec)


def test_a_bundle_takes_a_router_for_every_target(routed: Path) -> None:
    """Oracle: the manifest read back, with hashes; a session of ONNX Runtime against torch at sizes the export did not see."""
    manifest, before = read_manifest(routed), read_manifest(NANO)
    entries = [g for g in manifest.graphs if g.role is GraphRole.ROUTER]
    assert [g.target for g in entries] == list(manifest.targets)
    assert {g.file.path for g in entries} == {"router.onnx"}
    assert manifest.router is not None
    assert {manifest.router.image_encoder} == manifest.digests(GraphRole.IMAGE_ENCODER)
    assert (manifest.router.text_encoder, manifest.router.data, manifest.router.steps) == (None, "random weights", 1)
    assert tuple(g for g in manifest.graphs if g.role is not GraphRole.ROUTER) == before.graphs
    module, session = router(), ort.InferenceSession(str(routed / "router.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        inputs = inputs_of(module, count, seed=count)
        got = session.run(None, {k: v.numpy() for k, v in inputs.items()})
        for have, want in zip(got, outputs(module, inputs).values(), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-6)


def test_a_router_replaces_the_one_before(routed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the manifest. The new router has the weights of the old one, so its file is copied instead of exported again."""
    bundle = tmp_path / "bundle"
    shutil.copytree(routed, bundle)
    monkeypatch.setattr(export_router, "export_graph", lambda *args: shutil.copyfile(routed / "router.onnx", args[-1]))
    assert add_router(bundle, router(), data="again", steps=7, saw_text=False) == bundle
    manifest = read_manifest(bundle)
    assert manifest.router is not None
    assert manifest.router.steps == 7
    assert sum(g.role is GraphRole.ROUTER for g in manifest.graphs) == len(manifest.targets)


def test_a_graph_that_is_not_the_module_is_refused(routed: Path) -> None:
    """Oracle: the same check passes for the module that was exported, and fails for other weights and for a file that is no graph."""
    spec = read_manifest(routed).model
    check_router(router(), spec, routed / "router.onnx")
    with pytest.raises(ExportError, match="router output scores within"):
        check_router(router(seed=1), spec, routed / "router.onnx")
    with pytest.raises(ExportError, match="the router to run in ONNX Runtime"):
        check_router(router(), spec, routed / "manifest.json")


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RouterGraph(TINY_1024), ExportError, "a router for a model of"),
        (router, BundleError, "a bundle with a text_encoder graph"),
    ],
)
def test_what_does_not_fit_leaves_the_bundle_as_it_was(
    tmp_path: Path, make: Callable[[], RouterGraph], error: type[Exception], message: str
) -> None:
    """Oracle: every byte before. The second router claims to have seen texts of a bundle without a text encoder."""
    bundle = tmp_path / "bundle"
    shutil.copytree(NANO, bundle)
    before = files_of(bundle)
    with pytest.raises(error, match=message):
        add_router(bundle, make(), data="x", steps=1, saw_text=True)
    assert files_of(bundle) == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_projection_of_another_width_is_refused() -> None:
    with pytest.raises(ExportError, match=r"a text projection \[512, 64\], got \[512, 65\]"):
        RouterGraph(model_spec(), torch.zeros(512, 65))


def test_uncertainty_is_the_mean_of_4p_1_minus_p() -> None:
    """Oracle: float64, cell by cell; known ends; batches as single objects."""
    logits = np.random.default_rng(0).normal(0, 6, (3, 16, 16)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    got = uncertainty(logits, 4)
    assert got.dtype == np.float32
    assert got.shape == (3, 16)
    for cell in range(16):
        y, x = 4 * (cell // 4), 4 * (cell % 4)
        np.testing.assert_allclose(got[:, cell], (4 * p * (1 - p))[:, y : y + 4, x : x + 4].mean((1, 2)), atol=1e-6)
    np.testing.assert_array_equal(uncertainty(logits[1], 4), got[1])
    np.testing.assert_array_equal(uncertainty(np.zeros((16, 16), np.float32), 4), np.ones(16))
    np.testing.assert_array_equal(uncertainty(np.full((16, 16), -1024, np.float32), 4), np.zeros(16))
    with pytest.raises(InternalError, match=r"logits \[\.\.\., 16, 16\]"):
        uncertainty(logits[:, :8], 4)


def test_the_graph_and_the_mask_policy_agree_on_coverage() -> None:
    """Oracle: `cell_coverage`. A router whose MLP passes coverage on ranks cells by it."""
    module = router()
    with torch.no_grad():
        module.shared.weight.zero_()
        module.shared.bias.zero_()
        module.own.weight.zero_()
        module.own.weight[0, 3] = 1.0
        module.score.weight.zero_()
        module.score.weight[0, 0] = 1.0
    inputs = inputs_of(module, 1)
    logits = inputs["low_res_logits"][0, 0].numpy()
    ranked = torch.nn.functional.gelu(torch.from_numpy(cell_coverage(logits, module.spec.grid).reshape(-1)))
    want = (ranked + module.noise.squeeze(1)).softmax(0).numpy()
    np.testing.assert_allclose(outputs(module, inputs)["scores"][0], want, rtol=1e-4)
