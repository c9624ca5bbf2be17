"""The graph that scores and gathers: what it computes, and adding it to a bundle. Bundles are copies of nano."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fastsam2.builtin import bundle_path
from fastsam2.bundle import Manifest, read_manifest, write_manifest
from fastsam2.config import ModelSpec, Prune
from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole, PrunePolicy
from fastsam2.errors import BundleError, ExportError
from fastsam2.export import router as export_router
from fastsam2.export.gather import add_gather
from fastsam2.export.router import add_router
from fastsam2.export.text import _merged
from fastsam2.export.to_onnx import example_inputs, export_graph
from fastsam2.export.wrappers.router import RouterGraph
from fastsam2.export.wrappers.router_gather import router_gather
from fastsam2.kernels.onnx_op import detach_top_k_gathers
from fastsam2.kernels.reference import top_k_gather
from fastsam2.runtime.bfloat16 import from_bfloat16, to_bfloat16
from fastsam2.runtime.pruning import Pruner
from tests.specs import model_spec

SPEC = model_spec(image_size=128)
TENSORRT = ExportTarget.TENSORRT
FILE = "tensorrt/router_gather.onnx"


class TopKGather(OpRun):
    """The operator, as numpy defines it."""

    op_domain = "fastsam2"

    def _run(
        self, scores: npt.NDArray[Any], rows: npt.NDArray[Any], k: npt.NDArray[Any], **_: Any
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        return top_k_gather(scores, rows, int(k[0]))


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a router of random weights, of 64 rows a frame; without noise, which would leave no ties to decide."""
    file = tmp_path_factory.mktemp("router") / "router.onnx"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = RouterGraph(SPEC, torch.randn(SPEC.text_dim, SPEC.hidden_dim)).eval()
    module.noise.zero_()
    export_graph(module, SPEC, GraphRole.ROUTER, TENSORRT, file)
    return file


def inputs_of(objects: int, k: int, *, same: bool = False) -> dict[str, npt.NDArray[Any]]:
    """Random legal inputs; with `same` every cell of the frame looks alike, so that most scores are equal."""
    inputs = {name: value.numpy() for name, value in example_inputs(SPEC, GraphRole.ROUTER, TENSORRT, {"B": objects}, objects).items()}
    if same:
        for name in ("tokens", "uncertainty", "low_res_logits"):
            inputs[name] = np.full_like(inputs[name], 0.5)
    rows = np.random.default_rng(objects).standard_normal((objects, SPEC.tokens, SPEC.memory_dim)).astype(np.float32)
    return {**inputs, "rows": rows, "k": np.array([k], np.int32)}


@pytest.mark.parametrize(("objects", "k", "same"), [(1, 13, False), (3, 1, False), (2, 64, False), (2, 33, True)])
def test_it_keeps_what_the_tracker_keeps(router: Path, objects: int, k: int, same: bool) -> None:
    """Oracles: ONNX Runtime for the router's outputs; `Pruner` for rows and index, of the same scores, in every bit."""
    model = router_gather(onnx.load(router), SPEC)
    inputs = inputs_of(objects, k, same=same)
    bits = to_bfloat16(inputs["rows"])
    inputs["rows"] = from_bfloat16(bits)
    table = graph_spec(GraphRole.ROUTER_GATHER, TENSORRT)
    names = [t.name for t in table.outputs]
    got = dict(zip(names, ReferenceEvaluator(model, new_ops=[TopKGather]).run(names, inputs), strict=True))
    session = ort.InferenceSession(str(router), providers=["CPUExecutionProvider"])
    plain = session.run(names[:3], {name: value for name, value in inputs.items() if name not in ("rows", "k")})
    for name, want in zip(names[:3], plain, strict=True):
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-6)
    sizes = {"B": objects, "K": k}
    for tensor in table.outputs:
        assert got[tensor.name].shape == tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape(SPEC))
        assert got[tensor.name].dtype == tensor.dtype
    pruner = Pruner(Prune(policy=PrunePolicy.ROUTER, tokens=k, buckets=(k / SPEC.tokens, 1.0) if k < SPEC.tokens else (1.0,)), SPEC)
    for one in range(objects):
        if same:
            assert len(np.unique(got["scores"][one])) < SPEC.tokens // 2, "ties decide"
        rows, position = pruner.compact(bits[one], got["scores"][one])
        np.testing.assert_array_equal(got["index"][one], position)
        np.testing.assert_array_equal(to_bfloat16(got["kept"][one]), rows)


def test_the_router_in_it_is_the_router(router: Path) -> None:
    plain = onnx.load(router)
    before = plain.SerializeToString(deterministic=True)
    model = router_gather(plain, SPEC)
    assert plain.SerializeToString(deterministic=True) == before
    assert [t.name for t in model.graph.input] == [t.name for t in graph_spec(GraphRole.ROUTER_GATHER, TENSORRT).inputs]
    assert [t.name for t in model.graph.output] == [t.name for t in graph_spec(GraphRole.ROUTER_GATHER, TENSORRT).outputs]
    detach_top_k_gathers(model)
    assert model.SerializeToString(deterministic=True) == before


def test_rows_the_operator_does_not_copy_are_refused(router: Path) -> None:
    with pytest.raises(ExportError, match=r"a fixed D whose elements are a multiple of 16 bytes, got 6"):
        router_gather(onnx.load(router), SPEC.model_copy(update={"memory_dim": 6}))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """nano, whose router serves TensorRT too."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_path("nano"), folder)
    manifest = read_manifest(folder)
    router = manifest.graph(GraphRole.ROUTER, ExportTarget.ONNXRUNTIME).model_copy(update={"target": TENSORRT})
    write_manifest(folder, manifest.model_copy(update={"graphs": (*manifest.graphs, router)}))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_takes_the_graph_beside_its_others(bundle: Path, tmp_path: Path) -> None:
    before, manifest = files_of(bundle), read_manifest(bundle)
    out = add_gather(bundle, out=tmp_path / "out")
    assert files_of(bundle) == before and out == tmp_path / "out"
    after, changed = files_of(out), read_manifest(out)
    assert {name: after[name] for name in before if name != "manifest.json"} == {n: b for n, b in before.items() if n != "manifest.json"}
    assert set(after) - set(before) == {FILE}
    assert changed.graphs[:-1] == manifest.graphs and changed.model_copy(update={"graphs": manifest.graphs}) == manifest
    entry = changed.graphs[-1]
    assert (entry.role, entry.target, entry.file.path) == (GraphRole.ROUTER_GATHER, TENSORRT, FILE)
    assert entry.checks == changed.graph(GraphRole.ROUTER, TENSORRT).checks
    assert add_gather(out) == out and files_of(out) == after, "made again"


def test_a_new_router_makes_it_again(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The new router is the old one with another text in it."""
    add_gather(bundle)
    model = onnx.load(bundle / "router.onnx")
    model.doc_string = "another"
    monkeypatch.setattr(export_router, "export_graph", lambda *args: onnx.save(model, args[-1]))
    monkeypatch.setattr(export_router, "check_router", lambda *args: {"scores": 0.5})
    add_router(bundle, RouterGraph(read_manifest(bundle).model), data="again", steps=7, saw_text=False)
    entry = read_manifest(bundle).graph(GraphRole.ROUTER_GATHER, TENSORRT)
    assert entry.checks == {"scores": 0.5}
    assert onnx.load(bundle / FILE).doc_string == "another"


def test_without_a_router_for_tensorrt_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"a router graph for target tensorrt"):
        add_gather("nano", out=tmp_path / "out")
    with pytest.raises(BundleError, match=r"--out for a built-in bundle"):
        add_gather("nano")
    assert list(tmp_path.iterdir()) == []


def test_it_goes_with_its_router(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(add_gather(bundle, out=tmp_path / "out"))
    said: list[str] = []
    spec: ModelSpec = manifest.model.model_copy(update={"text_dim": manifest.model.text_dim + 1})
    text = [g.model_copy(update={"file": manifest.graphs[0].file}) for g in manifest.graphs if g.role is GraphRole.TEXT_ENCODER][:1]
    assert manifest.text is not None
    merged = _merged(manifest, spec, text, manifest.text.model_copy(update={"vocabulary": None}), said.append)
    assert merged.router is None and not merged.digests(GraphRole.ROUTER_GATHER) and any("dropped the router" in line for line in said)
    alone = {**dict(manifest), "graphs": tuple(g for g in manifest.graphs if g.role is not GraphRole.ROUTER), "router": None}
    with pytest.raises(ValueError, match=r"a router_gather graph goes with the router graph that it was made from"):
        Manifest(**alone)
