"""fastsam2.export.checkpoints. Oracle where one is needed: facebookresearch/sam2 `build_sam2_video_predictor`."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2_video_predictor

from fastsam2.errors import ExportError
from fastsam2.export import checkpoints
from fastsam2.export.checkpoints import MODELS, KnownModel, build_model

MICRO = Path(__file__).parent / "data" / "micro.yaml"
LAYER = "memory_attention.layer"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the micro model in the official form."""
    file = tmp_path_factory.mktemp("checkpoint") / "micro.pt"
    torch.save({"model": build_model(str(MICRO), "random:5").module.state_dict()}, file)
    return file


def micro_with(folder: Path, **options: object) -> str:
    """The micro config with options under `model` replaced; dots in a name are written `__`."""
    config = OmegaConf.load(MICRO)
    for name, value in options.items():
        OmegaConf.update(config, f"model.{name.replace('__', '.')}", value, force_add=True)
    file = folder / "changed.yaml"
    OmegaConf.save(config, file)
    return str(file)


def scalars(module: torch.nn.Module) -> dict[str, object]:
    return {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}


def test_models_are_the_official_ones() -> None:
    assert {m.hub_id: (m.config, m.checkpoint) for m in MODELS.values()} == HF_MODEL_ID_TO_FILENAMES


@pytest.mark.parametrize("name", ["sam2.1_hiera_tiny", "sam2_hiera_tiny"])
def test_same_model_as_the_official_builder(name: str) -> None:
    """Oracle: build_sam2_video_predictor with apply_postprocessing=True; only hole filling, left to the runtime, differs."""
    official = build_sam2_video_predictor(MODELS[name].config, None, device="cpu", hydra_overrides_extra=["++model.image_size=256"])
    loaded = build_model(name, "random:0", image_size=256)
    assert type(loaded.module) is type(official)
    assert scalars(loaded.module) == {**scalars(official), "fill_hole_area": 0}
    assert official.binarize_mask_from_pts_for_mem_enc
    assert scalars(loaded.module.sam_mask_decoder) == scalars(official.sam_mask_decoder)
    assert official.sam_mask_decoder.dynamic_multimask_via_stability
    shapes = {k: v.shape for k, v in official.state_dict().items()}
    assert {k: v.shape for k, v in loaded.module.state_dict().items()} == shapes
    offsets = name.startswith("sam2.1")
    assert (loaded.spec.pointer_offsets, loaded.spec.signed_pointer_offsets) == (offsets, offsets)
    assert (loaded.spec.image_size, loaded.spec.hidden_dim, loaded.spec.memory_dim) == (256, 256, 64)
    assert (loaded.spec.num_maskmem, loaded.spec.max_object_pointers) == (7, 16)
    assert (loaded.spec.multimask_min_points, loaded.spec.multimask_max_points, loaded.spec.multimask_for_tracking) == (0, 1, True)


def test_random_weights_are_seeded_and_leave_the_global_state() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_model(str(MICRO), f"random:{seed}") for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    same = [torch.equal(a, b) for a, b in zip(first.module.state_dict().values(), again.module.state_dict().values(), strict=True)]
    assert all(same)
    assert not torch.equal(first.module.no_mem_embed, other.module.no_mem_embed)
    assert (first.origin.checkpoint, first.origin.checkpoint_sha256) == ("random:1", None)


def test_module_is_ready_for_export() -> None:
    module = build_model(str(MICRO), "random:0").module
    assert not any(m.training for m in module.modules())
    assert {(p.dtype, p.device.type, p.requires_grad) for p in module.parameters()} == {(torch.float32, "cpu", False)}


def test_checkpoint_file(weights: Path) -> None:
    loaded = build_model(str(MICRO), str(weights))
    saved = torch.load(weights, weights_only=True)["model"]
    assert saved.keys() == loaded.module.state_dict().keys()
    assert all(torch.equal(saved[k], v) for k, v in loaded.module.state_dict().items())
    assert loaded.origin.checkpoint == "micro.pt"
    assert loaded.origin.checkpoint_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (loaded.origin.model, loaded.origin.config, loaded.spec.name) == ("micro.yaml", "micro.yaml", "micro.yaml")
    assert loaded.origin.torch == torch.__version__


def test_checkpoint_of_a_training_on_several_gpus(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)["model"]
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "parallel.pt")
    module = build_model(str(MICRO), str(tmp_path / "parallel.pt")).module
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())


def test_object_score_of_one_layer(tmp_path: Path) -> None:
    assert build_model(micro_with(tmp_path, pred_obj_scores_mlp=False), "random:0").spec.image_size == 128


def test_half_precision_checkpoint_becomes_float32(weights: Path, tmp_path: Path) -> None:
    state = {k: v.half() for k, v in torch.load(weights, weights_only=True)["model"].items()}
    torch.save({"model": state}, tmp_path / "half.pt")
    module = build_model(str(MICRO), str(tmp_path / "half.pt")).module
    assert torch.equal(module.no_mem_embed, state["no_mem_embed"].float())
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_missing_unexpected_and_reshaped_tensors_are_named(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)["model"]
    del state["no_mem_embed"]
    state["stranger"] = torch.zeros(1)
    state["maskmem_tpos_enc"] = torch.zeros(9, 1, 1, 16)
    torch.save({"model": state}, tmp_path / "bad.pt")
    with pytest.raises(ExportError) as caught:
        build_model(str(MICRO), str(tmp_path / "bad.pt"))
    message = str(caught.value)
    assert "1 missing (no_mem_embed)" in message
    assert "1 unexpected (stranger)" in message
    assert "1 of another shape (maskmem_tpos_enc [9, 1, 1, 16] instead of [7, 1, 1, 16])" in message


def test_checkpoint_of_another_official_model_is_recognised(tmp_path: Path) -> None:
    keys = [f"image_encoder.trunk.blocks.{i}.norm1.weight" for i in range(16)] + ["no_obj_embed_spatial"]
    torch.save({"model": {k: torch.zeros(1) for k in keys}}, tmp_path / "small.pt")
    with pytest.raises(ExportError, match=r"missing \([^)]*, \.\.\.\).*use --model sam2\.1_hiera_small"):
        build_model(str(MICRO), str(tmp_path / "small.pt"))


class _Attack:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return os.mkdir, (str(self.file),)


def test_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": _Attack(tmp_path / "executed")}, tmp_path / "attack.pt")
    with pytest.raises(ExportError, match="more than tensors are refused"):
        build_model(str(MICRO), str(tmp_path / "attack.pt"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_unreadable_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(ExportError, match=r"a torch checkpoint in .*broken\.pt"):
        build_model(str(MICRO), str(tmp_path / "broken.pt"))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"weight": torch.zeros(1)}, r"a dict with keys \['weight'\]"),
        ([1, 2], "a list"),
        ({"model": 3}, r"a dict with keys \['model'\]"),
        ({"model": {"a": 1}}, r"a dict with keys \['model'\]"),
    ],
)
def test_checkpoint_without_model(tmp_path: Path, content: object, got: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ExportError, match=f"tensors under 'model' in .*got {got}"):
        build_model(str(MICRO), str(tmp_path / "other.pt"))


@pytest.mark.parametrize("checkpoint", ["nowhere.pt", "random", "random:", "random:-1", "random:x"])
def test_checkpoint_names(checkpoint: str) -> None:
    with pytest.raises(ExportError, match="random:<seed>"):
        build_model(str(MICRO), checkpoint)


def test_hub_downloads_the_official_checkpoint(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(*, repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        return str(weights)

    monkeypatch.setitem(MODELS, "micro", KnownModel(str(MICRO), "micro.pt", "facebook/micro"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    origin = build_model("micro", "hub").origin
    assert asked == [("facebook/micro", "micro.pt")]
    assert (origin.checkpoint, origin.checkpoint_sha256) == ("facebook/micro", hashlib.sha256(weights.read_bytes()).hexdigest())


def test_hub_offline_says_how_to_download_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(**_: str) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    url = r"https://huggingface\.co/facebook/sam2\.1-hiera-tiny/resolve/main/sam2\.1_hiera_tiny\.pt"
    with pytest.raises(ExportError, match=f"ConnectionError: no route.*{url}"):
        build_model("sam2.1_hiera_tiny", "hub")


def test_hub_needs_an_official_name() -> None:
    with pytest.raises(ExportError, match="with checkpoint `hub`"):
        build_model(str(MICRO), "hub")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_maskmem", 1),
        ("max_obj_ptrs_in_encoder", 1),
        ("directly_add_no_mem_embed", False),
        ("use_high_res_features_in_sam", False),
        ("soft_no_obj_ptr", True),
        ("non_overlap_masks_for_mem_enc", True),
        ("memory_temporal_stride_for_eval", 2),
        ("max_cond_frames_in_attn", 4),
        ("only_obj_ptrs_in_the_past_for_eval", False),
        ("use_mask_input_as_output_without_sam", False),
        ("non_overlap_masks", True),
        ("clear_non_cond_mem_around_input", True),
        ("add_all_frames_to_correct_as_cond", True),
        ("backbone_stride", 8),
        ("proj_tpos_enc_in_obj_ptrs", False),
        (f"{LAYER}.pos_enc_at_attn", True),
        (f"{LAYER}.pos_enc_at_cross_attn_queries", True),
        (f"{LAYER}.pos_enc_at_cross_attn_keys", False),
        (f"{LAYER}.activation", "gelu"),
        (f"{LAYER}.self_attention.num_heads", 2),
        (f"{LAYER}.cross_attention.num_heads", 2),
        (f"{LAYER}.self_attention.downsample_rate", 2),
        ("memory_encoder.position_encoding.normalize", False),
        ("image_encoder.neck.position_encoding.normalize", False),
    ],
)
def test_options_the_graphs_lack_are_refused_by_name(tmp_path: Path, option: str, value: object) -> None:
    config = micro_with(tmp_path, **{option.replace(".", "__"): value})
    with pytest.raises(ExportError, match=rf"the graphs implement.*{option.replace('.', chr(92) + '.')}={value}"):
        build_model(config, "random:0")


def test_all_refused_options_are_named_at_once(tmp_path: Path) -> None:
    config = micro_with(tmp_path, soft_no_obj_ptr=True, non_overlap_masks=True)
    with pytest.raises(ExportError, match=r"soft_no_obj_ptr=True.*non_overlap_masks=True"):
        build_model(config, "random:0")


@pytest.mark.parametrize("option", ["pred_obj_scores", "use_obj_ptrs_in_encoder"])
def test_options_others_depend_on(tmp_path: Path, option: str) -> None:
    config = micro_with(tmp_path, fixed_no_obj_ptr=False, **{option: False})
    with pytest.raises(ExportError, match=f"{option}=False"):
        build_model(config, "random:0")


@pytest.mark.parametrize("width", [64, 24])
def test_memory_width_is_a_proper_divisor_of_the_hidden_width(tmp_path: Path, width: int) -> None:
    config = micro_with(tmp_path, memory_encoder__out_dim=width, memory_attention__layer__cross_attention__kv_in_dim=width)
    with pytest.raises(ExportError, match=f"out_dim={width} .*d_model=64"):
        build_model(config, "random:0")


def test_attentions_must_share_their_theta(tmp_path: Path) -> None:
    config = micro_with(tmp_path, memory_attention__layer__self_attention__rope_theta=100.0)
    with pytest.raises(ExportError, match=r"rope_theta=.*only equal ones"):
        build_model(config, "random:0")


def test_attention_without_rotation(tmp_path: Path) -> None:
    plain = {"_target_": "sam2.modeling.sam.transformer.Attention", "embedding_dim": 64, "num_heads": 1}
    config: Any = OmegaConf.load(MICRO)
    config.model.memory_attention.layer.self_attention = plain
    OmegaConf.save(config, tmp_path / "plain.yaml")
    with pytest.raises(ExportError, match="self_attention=Attention"):
        build_model(str(tmp_path / "plain.yaml"), "random:0")


def test_compiled_encoder_is_refused_before_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="compile_image_encoder false"):
        build_model(micro_with(tmp_path, compile_image_encoder=True), "random:0")


@pytest.mark.parametrize(
    "target", ["os.mkdir", "sam2.build_sam.os.mkdir", "sam2.modeling.sam2_utils.get_activation_fn", "sam2.benchmark.x", 3]
)
def test_config_that_would_run_other_code_is_refused(tmp_path: Path, target: object) -> None:
    attack = {"_target_": target, "path": str(tmp_path / "executed")}
    config = micro_with(tmp_path, sam_mask_decoder_extra_args__list=[attack])
    with pytest.raises(ExportError, match=r"only _target_ classes of sam2\.modeling"):
        build_model(config, "random:0")
    assert not (tmp_path / "executed").exists()
    assert "sam2.benchmark" not in sys.modules


def test_config_that_would_read_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no weights_path"):
        build_model(micro_with(tmp_path, image_encoder__trunk__weights_path="other.pt"), "random:0")


@pytest.mark.parametrize("size", [0, -32, 100, 1000])
def test_image_size_is_a_multiple_of_32(size: int) -> None:
    with pytest.raises(ExportError, match=r"image_size in micro\.yaml, a multiple of 32"):
        build_model(str(MICRO), "random:0", image_size=size)


def test_image_size_overrides_the_config() -> None:
    assert build_model(str(MICRO), "random:0").spec.image_size == 128
    assert build_model(str(MICRO), "random:0", image_size=64).spec.image_size == 64


def test_single_mask_configs_never_qualify_for_multimask(tmp_path: Path) -> None:
    spec = build_model(micro_with(tmp_path, multimask_output_in_sam=False), "random:0").spec
    assert not any(spec.multimask_min_points <= points <= spec.multimask_max_points for points in range(5))


def test_training_configs_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "finetune.yaml").write_text("trainer: {model: {image_size: 1024}}", encoding="utf-8")
    with pytest.raises(ExportError, match=r"got a training config\. .*use --model sam2\.1_hiera_tiny"):
        build_model(str(tmp_path / "finetune.yaml"), "random:0")


def test_options_that_the_official_class_does_not_know_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="prob_to_use_pt_input_for_train"):
        build_model(micro_with(tmp_path, prob_to_use_pt_input_for_train=0.5), "random:0")


@pytest.mark.parametrize(("model", "reason"), [("sam3_giant", "a model of .*sam2.1_hiera_tiny"), ("nowhere.yaml", "no such file")])
def test_unknown_models(model: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        build_model(model, "random:0")


@pytest.mark.parametrize(
    "text", ["model: [", "a: 1", "model: 3", "model: {image_size: '${nowhere}'}", "model: {_target_: x, image_size: 64}"]
)
def test_broken_configs(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ExportError, match=r"broken\.yaml"):
        build_model(str(tmp_path / "broken.yaml"), "random:0")


@pytest.mark.parametrize("package", ["torch", "hydra", "sam2", "onnx"])
def test_missing_packages_name_the_install_commands(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError) as caught:
        build_model(str(MICRO), "random:0")
    assert f"the package {package} " in str(caught.value)
    assert checkpoints.INSTALL in str(caught.value)
    assert "--no-deps sam2==1.1.0" in checkpoints.INSTALL


def test_names_of_official_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, known in MODELS.items():
        config = Path(known.config)
        for said in (name, known.config, known.config.removesuffix(".yaml"), config.name, config.stem, known.hub_id):
            assert checkpoints.model_name(said) == name
    assert checkpoints.model_name("my/config.yaml") == "my/config.yaml"
    monkeypatch.chdir(tmp_path)
    Path("sam2.1_hiera_t.yaml").write_text("model: {}")
    assert checkpoints.model_name("sam2.1_hiera_t.yaml") == "sam2.1_hiera_t.yaml"
    assert checkpoints.model_name("configs/sam2.1/sam2.1_hiera_t.yaml") == "sam2.1_hiera_tiny"


def test_without_postprocessing_the_model_is_the_official_one_without_it() -> None:
    """Oracle: build_sam2_video_predictor with apply_postprocessing=False."""
    size = ["++model.image_size=256"]
    name = MODELS["sam2.1_hiera_tiny"].config
    official = build_sam2_video_predictor(name, None, device="cpu", hydra_overrides_extra=size, apply_postprocessing=False)
    plain = build_model(name, "random:0", image_size=256, postprocessing=False).module
    assert scalars(plain) == scalars(official)
    assert not official.binarize_mask_from_pts_for_mem_enc
    assert scalars(plain.sam_mask_decoder) == scalars(official.sam_mask_decoder)
    assert not official.sam_mask_decoder.dynamic_multimask_via_stability
