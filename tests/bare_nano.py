"""nano as `fastsam2 export` writes it: without text encoder, crop encoder and router."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from fastsam2.builtin import MODELS
from fastsam2.bundle import read_manifest, write_manifest
from fastsam2.contracts import BASE_ROLES


@cache
def bare_nano() -> Path:
    """A copy in a temporary folder that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="fastsam2-nano-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    full = read_manifest(MODELS / "nano", verify=False)
    fields = type(full.model).model_fields
    model = full.model.model_copy(update={name: fields[name].default for name in ("text_dim", "crop_size")})
    graphs = tuple(g for g in full.graphs if g.role in BASE_ROLES)
    manifest = full.model_copy(update={"graphs": graphs, "text": None, "router": None, "model": model})
    for file in manifest.files:
        shutil.copyfile(MODELS / "nano" / file.path, folder / file.path)
    write_manifest(folder, manifest)
    return folder
