"""Checkpoint -> bundle in the user's cache, exported once.

    (config, checkpoint, image size, postprocessing) ─► CACHE/<model>-<image size>-<key>/

The key is a digest of the checkpoint's and the config's content, the image size, postprocessing, this release and its bundle format.
Official configs go by name, so that a cached bundle is found where sam2 is not installed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import fastsam2
from fastsam2.bundle import MANIFEST_NAME, read_manifest, sha256_of
from fastsam2.cache import cache_folder
from fastsam2.contracts import MANIFEST_VERSION
from fastsam2.enums import ExportTarget
from fastsam2.errors import BundleError, ExportError, expected

_KEY_DIGITS = 20

logger = logging.getLogger(__name__)


def is_bundle(path: str | os.PathLike[str] | None) -> bool:
    """Whether a path is a folder with a manifest."""
    return path is not None and (Path(path) / MANIFEST_NAME).is_file()


def cached_bundle(model: str, checkpoint: str, *, image_size: int | None = None, postprocessing: bool = True) -> Path:
    """The bundle of a checkpoint; exported on the first call, found on later ones. Only exporting needs torch and sam2.

    A cached bundle that is damaged or incomplete is replaced.

    Args:
        model: see `fastsam2.export.checkpoints.build_model`.
        checkpoint: see there.
        image_size: see there.
        postprocessing: see there.

    Raises:
        ExportError: if the model cannot be built or exported.
        BundleError: if the cache cannot be written.
    """
    from fastsam2.export.checkpoints import MODELS, checkpoint_source, model_name

    model = model_name(model)
    source = checkpoint_source(model, checkpoint)
    if model not in MODELS and not Path(model).is_file():
        raise ExportError(expected(f"a config file or a model of {sorted(MODELS)}", repr(model), "Check the config's name or path"))
    identity = {
        "fastsam2": fastsam2.__version__,
        "manifest": MANIFEST_VERSION,
        "config": model if model in MODELS else sha256_of(Path(model)),
        "checkpoint": checkpoint if isinstance(source, int) else sha256_of(source),
        "image_size": image_size,
        "postprocessing": postprocessing,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]
    size = "" if image_size is None else f"-{image_size}"
    entry = cache_folder() / f"{Path(model).stem if model not in MODELS else model}{size}-{key}"
    if _usable(entry):
        return entry
    logger.warning("exporting %s from %s once; the bundle is kept in %s", model, checkpoint, entry)
    from fastsam2.export import exporter

    try:
        exporter.export_bundle(
            model,
            checkpoint if isinstance(source, int) else str(source),
            entry,
            image_size=image_size,
            postprocessing=postprocessing,
            targets=(ExportTarget.ONNXRUNTIME,),
        )
    except BundleError:
        if not is_bundle(entry):  # else another process exported the same meanwhile
            raise
    return entry


def _usable(entry: Path) -> bool:
    """Whether a cached bundle is there and whole; one that is not is removed."""
    if not entry.exists():
        return False
    try:
        read_manifest(entry)
    except BundleError as error:
        logger.warning("the cached bundle cannot be used and is removed: %s", error)
        shutil.rmtree(entry, ignore_errors=True)
        return False
    return True
