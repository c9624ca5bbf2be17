"""A model name or config, and a checkpoint -> the official model, its `ModelSpec` and its `Origin`.

    (config.yaml, checkpoint.pt) -> SAM2VideoPredictor on the CPU, float32, eval

Mirrors facebookresearch/sam2 @2b90b9f `sam2/build_sam.py` (build_sam2_video_predictor and its table of models), except that hole filling
stays 0 (the runtime has its own option) and that a config can neither run code nor read other files.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsam2.bundle import Origin, sha256_of
from fastsam2.config import IMAGE_SIZE_MULTIPLE, IMAGE_STRIDE, POSTPROCESSING, ModelSpec
from fastsam2.errors import ExportError, expected

if TYPE_CHECKING:
    import torch

INSTALL = (
    "Install torch first (`pip install torch`), then `pip install --no-deps sam2==1.1.0` and "
    "`pip install hydra-core iopath tqdm pillow onnx onnxscript`"
)
HUB, RANDOM = "hub", "random:"
_PREDICTOR = "sam2.sam2_video_predictor.SAM2VideoPredictor"
_PARALLEL = "module."  # before every name, where a model was trained on several GPUs
_NAMED = 5  # keys named in an error; the rest are counted


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An official model.

    Attributes:
        config: path inside the sam2 package.
        checkpoint: file name of the official checkpoint.
        hub_id: repository on the Hugging Face hub.
    """

    config: str
    checkpoint: str
    hub_id: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An official model ready for export.

    Attributes:
        module: SAM2VideoPredictor on the CPU, float32, eval, no gradients.
        spec: what the runtime must know of it.
        origin: where it came from.
    """

    module: Any  # the sam2 package is untyped
    spec: ModelSpec
    origin: Origin


def _known() -> Iterator[tuple[str, KnownModel]]:
    for family in ("sam2.1", "sam2"):
        for size, short in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l")):
            name = f"{family}_hiera_{size}"
            hub_id = f"facebook/{family}-hiera-{size.replace('_', '-')}"
            yield name, KnownModel(f"configs/{family}/{family}_hiera_{short}.yaml", f"{name}.pt", hub_id)


MODELS: dict[str, KnownModel] = dict(_known())
_SIZE_OF_DEPTH = {12: "tiny", 16: "small", 24: "base_plus", 48: "large"}  # Hiera blocks

# What the graphs and the runtime implement, by the official option's name.
_MODEL_OPTIONS = {
    "backbone_stride": IMAGE_STRIDE,
    "directly_add_no_mem_embed": True,
    "use_high_res_features_in_sam": True,
    "use_mask_input_as_output_without_sam": True,
    "pred_obj_scores": True,
    "soft_no_obj_ptr": False,
    "use_obj_ptrs_in_encoder": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "non_overlap_masks_for_mem_enc": False,
    "memory_temporal_stride_for_eval": 1,
    "max_cond_frames_in_attn": -1,
    "non_overlap_masks": False,
    "clear_non_cond_mem_around_input": False,
    "add_all_frames_to_correct_as_cond": False,
}
_LEAST = {"num_maskmem": 2, "max_obj_ptrs_in_encoder": 2}
_LAYER_OPTIONS = {
    "pos_enc_at_attn": False,
    "pos_enc_at_cross_attn_queries": False,
    "pos_enc_at_cross_attn_keys": True,
    "activation_str": "relu",
}


def model_name(model: str) -> str:
    """The key of `MODELS` that a name means; anything else is taken for the path of a config and answered as it is.

    Args:
        model: a key, an official config with or without its folder and suffix (`configs/sam2.1/sam2.1_hiera_t.yaml`, `sam2.1_hiera_t`), or
            a hub id. A file that exists is itself, unless it has the full name of an official config.
    """
    for name, known in MODELS.items():
        if model in (name, known.config, known.config.removesuffix(".yaml")):
            return name
    if not Path(model).is_file():
        for name, known in MODELS.items():
            if model in (known.hub_id, Path(known.config).name, Path(known.config).stem):
                return name
    return model


def build_model(model: str, checkpoint: str, *, image_size: int | None = None, postprocessing: bool = True) -> LoadedModel:
    """Build the official model and load its weights.

    Args:
        model: a key of `MODELS` or another name of it (see `model_name`), or the path of a config (`.yaml`).
        checkpoint: path of an official checkpoint, `hub` (downloads the official one), or `random:<seed>`
            (see `fastsam2.export.random_weights`).
        image_size: side of the square input in pixels, instead of the config's.
        postprocessing: official `apply_postprocessing`: prefer another mask to an unstable one, binarise the masks of prompted frames.

    Raises:
        ExportError: if a package is missing, the config cannot be read, names foreign code or asks for what the graphs do not
            implement, or the checkpoint is missing, unreadable or of another model.
    """
    _require_packages()
    model = model_name(model)
    config_name, options = _options(model, image_size, postprocessing)
    source = checkpoint_source(model, checkpoint)
    if isinstance(source, int):
        from fastsam2.export.random_weights import seeded

        module: Any = seeded(lambda: _instantiate(config_name, options), source)
        digest = None
    else:
        module = _instantiate(config_name, options)
        _load_weights(module, source, model)
        digest = sha256_of(source)
    module = module.float().eval().requires_grad_(False)
    name = model if model in MODELS else Path(model).name
    origin = Origin(
        model=name,
        checkpoint=checkpoint if isinstance(source, int) else MODELS[model].hub_id if checkpoint == HUB else source.name,
        checkpoint_sha256=digest,
        config=config_name,
        torch=_version("torch"),
        sam2=_version("sam2", "SAM-2"),
        onnx=_version("onnx"),
        created=datetime.now(timezone.utc).replace(microsecond=0),
    )
    return LoadedModel(module, _spec(name, module), origin)


def _require_packages() -> None:
    for package in ("torch", "hydra", "sam2", "onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(expected(f"the package {package} for exporting", f"an import error ({error})", INSTALL)) from error


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _options(model: str, image_size: int | None, postprocessing: bool) -> tuple[str, dict[str, Any]]:
    """Name of the config, and the constructor options under its `model` key with the overrides applied."""
    from omegaconf import OmegaConf

    if model in MODELS:
        name = MODELS[model].config
        file = Path(next(iter(importlib.import_module("sam2").__path__))) / name
    else:
        file = Path(model)
        name = file.name
        if file.suffix not in (".yaml", ".yml"):
            raise ExportError(expected(f"a model of {sorted(MODELS)} or a config.yaml", repr(model), "Pick a name or give a config's path"))
    if not file.is_file():
        raise ExportError(expected(f"the config {file}", "no such file", "Check the path" if model not in MODELS else INSTALL))
    try:
        config: Any = OmegaConf.load(file)
        if "trainer" in config and "model" not in config:
            todo = "Its weights fit the config they began with: use --model sam2.1_hiera_tiny, _small, _base_plus or _large"
            raise ExportError(expected(f"a SAM 2 config with a `model` section in {file}", "a training config", todo))
        if not OmegaConf.is_dict(config.model):
            raise TypeError("`model` is no mapping")
        OmegaConf.update(config, "model._target_", _PREDICTOR, force_add=True)
        for option, value in POSTPROCESSING.items() if postprocessing else ():
            OmegaConf.update(config, f"model.{option}", value, force_add=True)
        OmegaConf.update(config, "model.fill_hole_area", 0, force_add=True)
        if image_size is not None:
            OmegaConf.update(config, "model.image_size", image_size, force_add=True)
        options: Any = OmegaConf.to_container(config.model, resolve=True, throw_on_missing=True)
    except ExportError:
        raise
    except Exception as error:  # yaml and omegaconf share no root
        what = f"a SAM 2 config with a `model` section in {file}"
        raise ExportError(expected(what, _reason(error), "Start from an official config")) from error
    _check_options(name, options)
    return name, dict(options)


def _check_options(name: str, options: dict[str, Any]) -> None:
    for node in _mappings(options):
        if "_target_" in node:
            _check_target(name, node["_target_"])
        if node.get("weights_path"):
            raise ExportError(expected(f"no weights_path in {name}", node["weights_path"], "Remove it: all weights come from --checkpoint"))
    if options.get("compile_image_encoder"):
        todo = "A compiled encoder cannot be exported: set it to false"
        raise ExportError(expected(f"compile_image_encoder false in {name}", True, todo))
    size = options.get("image_size")
    if not isinstance(size, int) or size <= 0 or size % IMAGE_SIZE_MULTIPLE:
        raise ExportError(expected(f"image_size in {name}, a multiple of {IMAGE_SIZE_MULTIPLE}", repr(size), "Use 1024, 512 or 256"))


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for child in value:
            yield from _mappings(child)


def _check_target(name: str, target: object) -> None:
    """Accept only module classes defined in sam2's model code: hydra would follow `sam2.x.os.system` just as well."""
    import torch

    found: object = None
    if isinstance(target, str) and (target.startswith("sam2.modeling.") or target == _PREDICTOR):
        module, _, attribute = target.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError:
            found = None
        if isinstance(found, type) and issubclass(found, torch.nn.Module) and found.__module__ == module:
            return
    raise ExportError(expected(f"only _target_ classes of sam2.modeling in {name}", repr(target), "Use the official model classes"))


def _instantiate(name: str, options: dict[str, Any]) -> torch.nn.Module:
    hydra_utils = importlib.import_module("hydra.utils")
    try:
        module: torch.nn.Module = hydra_utils.instantiate(options, _recursive_=True)
    except Exception as error:  # whatever the official constructors raise, wrapped by hydra
        why = _reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)  # hydra only says where
        raise ExportError(expected(f"a config that sam2 can build ({name})", why, "Start from an official config")) from error
    problems = list(_unsupported(module))
    if problems:
        todo = "Change these options or use an official config"
        raise ExportError(expected(f"a config that the graphs implement ({name})", "; ".join(problems), todo))
    return module


def _unsupported(model: Any) -> Iterator[str]:
    """One text per option of the official `model` that the graphs or the runtime do not implement."""
    for option, wanted in _MODEL_OPTIONS.items():
        if (value := getattr(model, option)) != wanted:
            yield f"{option}={value} (only {wanted})"
    for option, least in _LEAST.items():
        if (value := getattr(model, option)) < least:
            yield f"{option}={value} (at least {least})"
    if model.mem_dim >= model.hidden_dim or model.hidden_dim % model.mem_dim:
        yield f"memory_encoder.out_dim={model.mem_dim} (a proper divisor of d_model={model.hidden_dim})"
    if model.add_tpos_enc_to_obj_ptrs and not model.proj_tpos_enc_in_obj_ptrs:
        yield "proj_tpos_enc_in_obj_ptrs=False with add_tpos_enc_to_obj_ptrs=True (both or neither)"
    for part in ("image_encoder.neck", "memory_encoder"):
        if not model.get_submodule(part).position_encoding.normalize:
            yield f"{part}.position_encoding.normalize=False (only True)"
    yield from _unsupported_attention(model)


def _unsupported_attention(model: Any) -> Iterator[str]:
    layer = model.memory_attention.layers[0]  # the others are copies
    for option, wanted in _LAYER_OPTIONS.items():
        if (value := getattr(layer, option)) != wanted:
            yield f"memory_attention.layer.{option.removesuffix('_str')}={value} (only {wanted})"
    attentions = {"self_attention": layer.self_attn, "cross_attention": layer.cross_attn_image}
    for name, attention in attentions.items():
        where = f"memory_attention.layer.{name}"
        if type(attention).__name__ != "RoPEAttention":
            yield f"{where}={type(attention).__name__} (only RoPEAttention)"
            return
        if attention.num_heads != 1:
            yield f"{where}.num_heads={attention.num_heads} (only 1)"
        if attention.internal_dim != model.hidden_dim:
            yield f"{where}.downsample_rate={attention.embedding_dim // attention.internal_dim} (only 1)"
    thetas = {name: attention.compute_cis.keywords["theta"] for name, attention in attentions.items()}
    if len(set(thetas.values())) > 1:
        yield f"memory_attention.layer rope_theta={thetas} (only equal ones)"


def _spec(name: str, model: Any) -> ModelSpec:
    return ModelSpec(
        name=name,
        image_size=model.image_size,
        hidden_dim=model.hidden_dim,
        memory_dim=model.mem_dim,
        num_maskmem=model.num_maskmem,
        max_object_pointers=model.max_obj_ptrs_in_encoder,
        multimask_min_points=model.multimask_min_pt_num,
        multimask_max_points=model.multimask_max_pt_num if model.multimask_output_in_sam else -1,  # -1: no count qualifies
        multimask_for_tracking=model.multimask_output_for_tracking,
        pointer_offsets=model.add_tpos_enc_to_obj_ptrs,
        signed_pointer_offsets=model.use_signed_tpos_enc_to_obj_ptrs,
    )


def checkpoint_source(model: str, checkpoint: str) -> int | Path:
    """The seed of random weights, or the checkpoint's file, downloaded if `checkpoint` is `hub`. Needs neither torch nor sam2.

    Raises:
        ExportError: if there is no such file, or it cannot be downloaded.
    """
    if checkpoint.startswith(RANDOM):
        seed = checkpoint.removeprefix(RANDOM)
        if not re.fullmatch(r"[0-9]{1,18}", seed):
            raise ExportError(expected("random:<seed> with a whole number", repr(checkpoint), "Use random:0"))
        return int(seed)
    file = _download(model) if checkpoint == HUB else Path(checkpoint)
    if not file.is_file():
        todo = "Check the path, or use `hub` to download the official one"
        raise ExportError(expected("a checkpoint file, `hub` or random:<seed>", f"{checkpoint}, which is no file", todo))
    return file


def _download(model: str) -> Path:
    if model not in MODELS:
        raise ExportError(expected(f"a model of {sorted(MODELS)} with checkpoint `hub`", repr(model), "Give the checkpoint's path instead"))
    known = MODELS[model]
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        todo = "Run `pip install huggingface_hub`, or download the checkpoint and give its path"
        raise ExportError(expected("the package huggingface_hub for checkpoint `hub`", f"an import error ({error})", todo)) from error
    try:
        return Path(hub.hf_hub_download(repo_id=known.hub_id, filename=known.checkpoint))
    except Exception as error:  # the hub's client raises many unrelated families; all of them mean the same here
        todo = f"Download https://huggingface.co/{known.hub_id}/resolve/main/{known.checkpoint} by hand and give its path as checkpoint"
        raise ExportError(expected(f"{known.checkpoint} from {known.hub_id}", _reason(error), todo)) from error


def _load_weights(module: torch.nn.Module, file: Path, model: str) -> None:
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors share no root
        todo = "Use an official checkpoint; files that hold more than tensors are refused because loading them would run their code"
        raise ExportError(expected(f"a torch checkpoint in {file}", _reason(error), todo)) from error
    given = content.get("model") if isinstance(content, dict) else None
    if not isinstance(given, dict) or not all(isinstance(value, torch.Tensor) for value in given.values()):
        todo = "Save yours as torch.save({'model': model.state_dict()}, path)"
        raise ExportError(expected(f"a dict with tensors under 'model' in {file}", _described(content), todo))
    if given and all(str(key).startswith(_PARALLEL) for key in given):
        given = {str(key)[len(_PARALLEL) :]: value for key, value in given.items()}
    wanted = module.state_dict()
    reshaped = [k for k in wanted if k in given and given[k].shape != wanted[k].shape]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:_NAMED])}{', ...' if len(keys) > _NAMED else ''})"
        for kind, keys in (
            ("missing", [k for k in wanted if k not in given]),
            ("unexpected", [str(k) for k in given if k not in wanted]),
            ("of another shape", [f"{k} {list(given[k].shape)} instead of {list(wanted[k].shape)}" for k in reshaped]),
        )
        if keys
    ]
    if problems:
        looks = _looks_like(given)
        todo = f"It looks like {looks}: use --model {looks}" if looks not in (None, model) else "Use the config it was trained with"
        raise ExportError(expected(f"the tensors of {model} in {file.name}", "; ".join(problems), todo))
    module.load_state_dict(given)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _described(content: object) -> str:
    return f"a dict with keys {list(content)[:_NAMED]}" if isinstance(content, dict) else f"a {type(content).__name__}"


def _looks_like(given: dict[str, Any]) -> str | None:
    """The official model with this many backbone blocks, if there is one."""
    blocks = {m.group(1) for key in given if (m := re.match(r"image_encoder\.trunk\.blocks\.(\d+)\.", str(key)))}
    size = _SIZE_OF_DEPTH.get(len(blocks))
    family = "sam2.1" if "no_obj_embed_spatial" in given else "sam2"
    return f"{family}_hiera_{size}" if size else None
