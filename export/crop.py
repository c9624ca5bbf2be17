"""The image half of a CLIP checkpoint -> crop_encoder.onnx, with the normalisation of its image processor inside.

    CLIPModel + preprocessor_config.json -> CropEncoderGraph -> crop_encoder.onnx, ModelSpec.crop_size

Part of `fastsam2 add-text` (`export/text.py`). The graph does not depend on the target.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastsam2.bundle import FileEntry, GraphEntry, VocabularyEntry
from fastsam2.config import ModelSpec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import ExportError, expected, reason
from fastsam2.export.exporter import graph_entry
from fastsam2.export.rewrites.half_storage import store_half

if TYPE_CHECKING:
    from fastsam2.export.wrappers.crop_encoder import Normalisation

CROP_ENCODER_FILE, VOCABULARY_FILE = PurePosixPath("crop_encoder.onnx"), PurePosixPath("vocabulary.txt")
LARGEST_BYTES = 2**31 - 2**20  # of one protobuf file, less what is not weights
_IMAGE_HALF = ("vision_model.", "visual_projection.")
_CONFIGS = ("preprocessor_config.json", "processor_config.json")  # where transformers looks for the image processor
_TEXT_ONLY = "or pass --text-only and describe objects by hand"


@dataclass(frozen=True, slots=True)
class ClipImage:
    """The image half of a CLIP checkpoint.

    Attributes:
        model: `CLIPModel`, on the CPU, float32, eval.
        normalisation: of its image processor.
    """

    model: Any
    normalisation: Normalisation


def load_clip_image(model: Any, missing: Collection[str], clip: str) -> ClipImage | None:
    """The image half of a checkpoint whose model is loaded.

    Args:
        model: `CLIPModel` or `CLIPTextModelWithProjection`.
        missing: names of weights that the checkpoint lacks.
        clip: hub id or folder, where the image processor's config is looked for; a folder without one means CLIP's own constants.

    Returns:
        None if the checkpoint has no image half at all.

    Raises:
        ExportError: if it has only a part of one, one too large for an ONNX file, or a config that is no normalisation of RGB.
    """
    if not hasattr(model, "vision_model"):
        return None
    wanted = [name for name in model.state_dict() if name.startswith(_IMAGE_HALF)]
    absent = sorted(name for name in wanted if name in set(missing))
    if len(absent) == len(wanted):
        return None
    if absent:
        got = f"none for {absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
        raise ExportError(expected(f"all weights of the image half in {clip}", got, f"Name a whole checkpoint, {_TEXT_ONLY}"))
    size = sum(4 * p.numel() for part in (model.vision_model, model.visual_projection) for p in part.parameters())
    if size > LARGEST_BYTES:
        got = f"{size / 2**30:.1f} GiB in float32"
        raise ExportError(expected(f"an image half of less than 2 GiB in {clip}", got, f"Name a smaller CLIP checkpoint, {_TEXT_ONLY}"))
    return ClipImage(model, _normalisation(clip))


def export_crop_encoder(image: ClipImage, spec: ModelSpec, folder: Path, say: Callable[[str], None]) -> GraphEntry:
    """Write crop_encoder.onnx and compare it with torch.

    Args:
        image: the model.
        spec: of the bundle, with the sizes of this CLIP.
        folder: of the bundle.
        say: called with one line per step.

    Returns:
        The manifest's entry, for the ONNX Runtime target.

    Raises:
        ExportError: if the graph differs from torch beyond `validate.TOLERANCE`.
    """
    from fastsam2.export.to_onnx import export_graph
    from fastsam2.export.validate import check_samples
    from fastsam2.export.wrappers.crop_encoder import CropEncoderGraph

    wrapper, role, target = CropEncoderGraph(image.model, image.normalisation), GraphRole.CROP_ENCODER, ExportTarget.ONNXRUNTIME
    file = folder / CROP_ENCODER_FILE
    say(f"exporting {CROP_ENCODER_FILE}")
    export_graph(wrapper, spec, role, target, file)
    store_half(file)
    say(f"checking {CROP_ENCODER_FILE} against torch")
    checks = {"crop_embedding": check_samples(wrapper, role, _pictures(spec.crop_size), file)}
    return graph_entry(role, target, folder, CROP_ENCODER_FILE, checks)


def write_vocabulary(phrases: tuple[str, ...], templates: tuple[str, ...], folder: Path) -> VocabularyEntry:
    """Write vocabulary.txt into a bundle's folder.

    Args:
        phrases: checked, see `fastsam2.vocabulary`.
        templates: the same.
        folder: of the bundle.
    """
    (folder / VOCABULARY_FILE).write_text("".join(f"{phrase}\n" for phrase in phrases), encoding="utf-8")
    return VocabularyEntry(file=FileEntry.of(folder, VOCABULARY_FILE), phrases=len(phrases), templates=templates)


def _pictures(size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 [1, 3, size, size]: black, noise, and a ramp of each colour in another direction."""
    yield np.zeros((1, 3, size, size), np.uint8)
    yield np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8)
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    yield np.ascontiguousarray(np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], ramp[None, ::-1]))[None])


def _normalisation(clip: str) -> Normalisation:
    from fastsam2.export.wrappers.crop_encoder import MEAN, SCALE, STD, Normalisation

    if Path(clip).is_dir() and not any((Path(clip) / name).is_file() for name in _CONFIGS):
        return Normalisation()
    todo = f"Copy the preprocessor_config.json of the checkpoint, {_TEXT_ONLY}"
    try:
        processor = importlib.import_module("transformers.image_processing_base").ImageProcessingMixin
        config, _ = processor.get_image_processor_dict(clip)
    except Exception as error:  # the hub's client and transformers raise many unrelated families
        raise ExportError(expected(f"the config of an image processor in {clip}", reason(error), todo)) from error
    scale = config.get("rescale_factor", SCALE) if config.get("do_rescale", True) else 1.0
    normalises = config.get("do_normalize", True)
    mean, std = (config.get("image_mean", MEAN), config.get("image_std", STD)) if normalises else ((0.0,) * 3, (1.0,) * 3)
    found: Normalisation | None = None
    with suppress(TypeError, ValueError):
        found = Normalisation(float(scale), _of_rgb(mean), _of_rgb(std))
    if found is None or not all(map(math.isfinite, (found.scale, *found.mean, *found.std))) or not all(found.std):
        got = f"rescale_factor {scale}, image_mean {mean}, image_std {std}"
        raise ExportError(expected(f"a scale, and mean and deviation of red, green and blue in {clip}", got, todo))
    return found


def _of_rgb(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
