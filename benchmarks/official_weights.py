"""Which config and weights the official predictor loads to be what a bundle was exported from.

manifest.origin ─► config, checkpoint ─ digest compared ─► build_model ─ sizes compared ─► the official module
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsam2.builtin import PACKAGE
from fastsam2.bundle import Manifest, Origin, sha256_of
from fastsam2.errors import BundleError, expected

NANO_CONFIG, NANO_CHECKPOINT = "nano.yaml", "nano.pt"  # in training/ of a clone; wheels lack the checkpoint
_ADDED_LATER = {"name", "text_dim", "crop_size"}  # fields of ModelSpec that exporting does not take from the config


@dataclass(frozen=True, slots=True)
class Weights:
    """What `export.checkpoints.build_model` takes.

    Attributes:
        model: name of an official model, or path of a config.
        checkpoint: path, "hub" or random:<seed>.
    """

    model: str
    checkpoint: str


def official_weights(manifest: Manifest, *, model: str | None = None, checkpoint: str | None = None) -> Weights:
    """The weights that a bundle was exported from. Needs neither torch nor sam2.

    Args:
        manifest: of the bundle.
        model: name or config in place of the one that the bundle names.
        checkpoint: as for `fastsam2 export`, in place of the one that the bundle names.

    Raises:
        BundleError: if the bundle does not say where they are, or those given are other ones.
        ExportError: if there is no such checkpoint, or it cannot be downloaded.
    """
    from fastsam2.export.checkpoints import checkpoint_source

    origin = manifest.origin
    weights = Weights(model or _model(origin), checkpoint or _checkpoint(origin))
    source = checkpoint_source(weights.model, weights.checkpoint)
    same = weights.checkpoint == origin.checkpoint if isinstance(source, int) else sha256_of(source) == origin.checkpoint_sha256
    if not same:
        todo = "Give the checkpoint that the bundle was exported from, or export a bundle from this one"
        raise BundleError(expected(f"the weights of the bundle ({origin.checkpoint})", f"others in {weights.checkpoint}", todo))
    return weights


def build_official(weights: Weights, manifest: Manifest) -> Any:
    """The official predictor, a torch module on the CPU in float32.

    Args:
        weights: from `official_weights`.
        manifest: of the bundle it is compared with.

    Raises:
        ExportError: if torch or sam2 is missing, or config and checkpoint do not fit.
        BundleError: if it is of other sizes than the bundle.
    """
    from fastsam2.export.checkpoints import build_model

    built = build_model(weights.model, weights.checkpoint, image_size=manifest.model.image_size)
    theirs, ours = (spec.model_dump(exclude=_ADDED_LATER) for spec in (built.spec, manifest.model))
    if theirs != ours:
        other = {k: v for k, v in theirs.items() if v != ours[k]}
        wanted = {k: ours[k] for k in other}
        raise BundleError(expected(f"a model with the bundle's {wanted}", other, "Give the config that the bundle was exported from"))
    return built.module


def _model(origin: Origin) -> str:
    from fastsam2.export.checkpoints import MODELS

    if origin.model in MODELS:
        return origin.model
    if origin.model == NANO_CONFIG and origin.checkpoint == NANO_CHECKPOINT:
        return str(PACKAGE / "training" / NANO_CONFIG)
    todo = "Give its path with --config"
    raise BundleError(expected("an official model to build the official predictor from", f"the config {origin.model}", todo))


def _checkpoint(origin: Origin) -> str:
    if origin.checkpoint_sha256 is None:
        return origin.checkpoint
    if "/" in origin.checkpoint:  # a hub id; file names have no slash
        return "hub"
    if origin.checkpoint == NANO_CHECKPOINT and origin.model == NANO_CONFIG:
        file = Path(PACKAGE / "training" / NANO_CHECKPOINT)
        if not file.is_file():
            todo = "Work in a clone of fastsam2, whose training/ has it, or give its path with --checkpoint"
            raise BundleError(expected(f"the weights of nano in {file}", "an installed fastsam2, which has only its bundle", todo))
        return str(file)
    todo = f"Give the file {origin.checkpoint} with --checkpoint"
    raise BundleError(expected("the weights that the bundle was exported from", "only their file name", todo))
