"""Graphs of every official size and of the TensorRT target against torch, and proof that the comparison can fail."""

from pathlib import Path

import onnx
import pytest
import torch

from fastsam2.bundle import read_manifest
from fastsam2.contracts import BASE_ROLES, graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import ExportError
from fastsam2.export.checkpoints import LoadedModel, build_model
from fastsam2.export.to_onnx import build_wrapper, depends_on_target, export_graph
from fastsam2.export.validate import TOLERANCE, check_graph

ORT, TRT = ExportTarget.ONNXRUNTIME, ExportTarget.TENSORRT


@pytest.fixture(scope="module")
def micro(micro_config: Path) -> LoadedModel:
    return build_model(str(micro_config), "random:2")


def test_every_graph_of_both_targets_was_checked_against_torch(bundle_micro: Path) -> None:
    manifest = read_manifest(bundle_micro)
    assert {(g.role, g.target) for g in manifest.graphs} == {(role, target) for role in BASE_ROLES for target in ExportTarget}
    for graph in manifest.graphs:
        assert graph.checks.keys() == {t.name for t in graph_spec(graph.role, graph.target).outputs}
        assert max(graph.checks.values()) < TOLERANCE
        same_file = graph.file == manifest.graph(graph.role, ORT).file
        assert same_file == (graph.target is ORT or not depends_on_target(graph.role))


def test_tensorrt_graphs_use_standard_operators_only(micro: LoadedModel, bundle_micro: Path) -> None:
    manifest = read_manifest(bundle_micro)
    for role in BASE_ROLES:
        model = onnx.load(bundle_micro / manifest.graph(role, TRT).file.path)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}, role
        if role is GraphRole.MEMORY_ATTENTION:
            assert sum(node.op_type == "Attention" for node in model.graph.node) == 2 * len(micro.module.memory_attention.layers)


# Only the encoder differs between sizes; large (a 900 MB file) takes minutes: `pytest -m slow`.
@pytest.mark.parametrize(
    "model", ["sam2.1_hiera_small", "sam2.1_hiera_base_plus", pytest.param("sam2.1_hiera_large", marks=pytest.mark.slow)]
)
def test_encoders_of_the_other_sizes(model: str, tmp_path: Path) -> None:
    loaded = build_model(model, "random:0", image_size=256)
    path = tmp_path / "image_encoder.onnx"
    wrapper = build_wrapper(loaded.module, loaded.spec, GraphRole.IMAGE_ENCODER, ORT)
    export_graph(wrapper, loaded.spec, GraphRole.IMAGE_ENCODER, ORT, path)
    assert max(check_graph(loaded.module, loaded.spec, GraphRole.IMAGE_ENCODER, ORT, path).values()) < TOLERANCE


@pytest.fixture(scope="module")
def memory_attention(bundle_micro: Path) -> Path:
    return bundle_micro / read_manifest(bundle_micro).graph(GraphRole.MEMORY_ATTENTION, ORT).file.path


def _swap_last_channels(model: torch.nn.Module) -> None:
    weight = model.memory_attention.layers[-1].cross_attn_image.k_proj.weight
    weight[[0, 1]] = weight[[1, 0]]


def _shift_temporal_table(model: torch.nn.Module) -> None:
    model.maskmem_tpos_enc.copy_(model.maskmem_tpos_enc.roll(1, dims=0))


def _forget_pointer_offsets(model: torch.nn.Module) -> None:
    model.obj_ptr_tpos_proj.weight.zero_()


@pytest.mark.parametrize("damage", [_swap_last_channels, _shift_temporal_table, _forget_pointer_offsets])
def test_a_graph_of_other_weights_is_refused(damage: object, micro_config: Path, memory_attention: Path) -> None:
    other = build_model(str(micro_config), "random:2")
    with torch.no_grad():
        damage(other.module)  # type: ignore[operator]
    with pytest.raises(ExportError, match=r"memory_attention .* output conditioned within"):
        check_graph(other.module, other.spec, GraphRole.MEMORY_ATTENTION, ORT, memory_attention)


def test_a_file_that_does_not_load_is_refused(micro: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="to run in ONNX Runtime"):
        check_graph(micro.module, micro.spec, GraphRole.MEMORY_ENCODER, ORT, path)
