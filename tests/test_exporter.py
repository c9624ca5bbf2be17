"""fastsam2.export.exporter, with the export and the check of a graph replaced by a recorder; the parity tests export real graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import fastsam2
from fastsam2.bundle import read_manifest
from fastsam2.config import ModelSpec
from fastsam2.contracts import BASE_ROLES, graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError, ExportError, InternalError
from fastsam2.export import export_bundle, to_onnx, validate

ROOT = Path(__file__).parents[1]
MICRO = str(ROOT / "tests" / "data" / "micro.yaml")
ORT, TRT = ExportTarget.ONNXRUNTIME, ExportTarget.TENSORRT


def write_onnx(path: Path, text: str) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], text, [value], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 23)]), path)


class Recorder:
    """Stands in for `to_onnx.export_graph` and `validate.check_graph`; depends_on_target says no for the memory encoder only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exported: list[tuple[GraphRole, ExportTarget]] = []
        self.checked: list[tuple[GraphRole, ExportTarget]] = []
        self.refuse: GraphRole | None = None
        self.extra = ""
        monkeypatch.setattr(to_onnx, "export_graph", create_autospec(to_onnx.export_graph, side_effect=self.export))
        monkeypatch.setattr(validate, "check_graph", create_autospec(validate.check_graph, side_effect=self.check))
        monkeypatch.setattr(to_onnx, "depends_on_target", lambda role: role is not GraphRole.MEMORY_ENCODER)

    def export(self, wrapper: torch.nn.Module, spec: ModelSpec, role: GraphRole, target: ExportTarget, path: Path) -> None:
        assert not any(module.training for module in wrapper.modules())
        assert (spec.hidden_dim, spec.memory_dim) == (64, 16)  # of micro.yaml
        self.exported.append((role, target))
        write_onnx(path, f"{role.value} {target.value}")
        if self.extra:
            path.with_name(self.extra).write_text("weights")

    def check(self, model: torch.nn.Module, spec: ModelSpec, role: GraphRole, target: ExportTarget, path: Path) -> dict[str, float]:
        assert onnx.load(path).graph.name == f"{role.value} {target.value}"
        self.checked.append((role, target))
        if role is self.refuse:
            raise ExportError("too far from torch")
        return {t.name: 1e-6 for t in graph_spec(role, target).outputs}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_both_targets(tmp_path: Path, recorder: Recorder) -> None:
    steps: list[str] = []
    out = export_bundle(MICRO, "random:0", tmp_path / "out", image_size=64, progress=steps.append)
    assert out == tmp_path / "out"
    manifest = read_manifest(out)
    assert manifest.fastsam2_version == fastsam2.__version__
    assert manifest.model.image_size == 64
    assert manifest.origin.checkpoint == "random:0"
    assert manifest.targets == (ORT, TRT)
    assert {(g.role, g.target) for g in manifest.graphs} == {(r, t) for r in BASE_ROLES for t in (ORT, TRT)}
    assert {g.opset for g in manifest.graphs} == {23}
    assert all(set(g.checks) == {t.name for t in g.outputs} for g in manifest.graphs)
    own = {r for r in BASE_ROLES if r is not GraphRole.MEMORY_ENCODER}
    assert {g.file.path for g in manifest.graphs if g.target is ORT} == {f"{r.value}.onnx" for r in BASE_ROLES}
    assert {g.file.path for g in manifest.graphs if g.target is TRT} == {f"tensorrt/{r.value}.onnx" for r in own} | {"memory_encoder.onnx"}
    assert recorder.exported == recorder.checked
    assert len(recorder.exported) == 9
    assert "exporting tensorrt/mask_decoder.onnx" in steps
    assert "checking memory_encoder.onnx against torch" in steps


def test_one_target(tmp_path: Path, recorder: Recorder) -> None:
    manifest = read_manifest(export_bundle(MICRO, "random:0", tmp_path / "out", targets=[TRT]))
    assert manifest.targets == (TRT,)
    assert recorder.exported == [(role, TRT) for role in BASE_ROLES]
    assert manifest.graph(GraphRole.MEMORY_ENCODER, TRT).file.path == "memory_encoder.onnx"
    with pytest.raises(BundleError, match="--target onnxruntime --target tensorrt"):
        manifest.graph(GraphRole.IMAGE_ENCODER, ORT)


def test_query_attention_on_request(tmp_path: Path, recorder: Recorder) -> None:
    manifest = read_manifest(export_bundle(MICRO, "random:0", tmp_path / "out", query_attention=True))
    assert {(g.role, g.target) for g in manifest.graphs} == {(r, t) for r in (*BASE_ROLES, GraphRole.QUERY_ATTENTION) for t in (ORT, TRT)}
    assert manifest.graph(GraphRole.QUERY_ATTENTION, TRT).file.path == "tensorrt/query_attention.onnx"
    without = manifest.model_copy(update={"graphs": tuple(g for g in manifest.graphs if g.role is not GraphRole.QUERY_ATTENTION)})
    with pytest.raises(BundleError, match=r"a query_attention graph .* fastsam2 export .* --query-attention --out"):
        without.graph(GraphRole.QUERY_ATTENTION, ORT)


def test_failed_check_leaves_nothing(tmp_path: Path, recorder: Recorder) -> None:
    recorder.refuse = GraphRole.MASK_DECODER
    with pytest.raises(ExportError, match="too far from torch"):
        export_bundle(MICRO, "random:0", tmp_path / "out")
    assert (GraphRole.MASK_PROMPT, ORT) not in recorder.exported
    assert list(tmp_path.iterdir()) == []


def test_failed_build_leaves_nothing(tmp_path: Path, recorder: Recorder) -> None:
    with pytest.raises(ExportError, match="no file"):
        export_bundle(MICRO, "nowhere.pt", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert recorder.exported == []


def test_files_outside_the_manifest_are_a_bug(tmp_path: Path, recorder: Recorder) -> None:
    recorder.extra = "image_encoder.onnx.data"
    with pytest.raises(InternalError, match=r"image_encoder\.onnx\.data"):
        export_bundle(MICRO, "random:0", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_existing_bundle_is_refused_before_any_work_and_replaced_on_request(tmp_path: Path, recorder: Recorder) -> None:
    out = export_bundle(MICRO, "random:0", tmp_path / "out", targets=[ORT])
    recorder.exported.clear()
    with pytest.raises(BundleError, match="--overwrite"):
        export_bundle(MICRO, "random:1", out)
    assert recorder.exported == []
    export_bundle(MICRO, "random:1", out, targets=[TRT], overwrite=True)
    manifest = read_manifest(out)
    assert (manifest.origin.checkpoint, manifest.targets) == ("random:1", (TRT,))
    assert not (out / "image_encoder.onnx").exists()


@pytest.mark.parametrize("targets", [[], [ORT, ORT]])
def test_targets_are_named_once(tmp_path: Path, targets: list[Any]) -> None:
    with pytest.raises(ExportError, match="different targets"):
        export_bundle(MICRO, "random:0", tmp_path / "out", targets=targets)


def test_importing_the_exporter_loads_no_heavy_package() -> None:
    code = "import sys, fastsam2.export; loaded = {'torch', 'sam2', 'onnx', 'hydra'} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
