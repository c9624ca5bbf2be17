"""Saves of a run that may be interrupted at any time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def halved(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights rounded to float16, as they are shipped and evaluated; loading them gives float32 again."""
    return {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}


def save(path: Path, state: dict[str, Any]) -> None:
    """`torch.save` that never leaves half a file under the name."""
    partial = path.with_name(f".{path.name}.partial")
    torch.save(state, partial)
    os.replace(partial, path)
