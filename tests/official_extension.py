"""A stand-in for sam2's CUDA extension, which its wheel does not contain: connected components over OpenCV."""

from __future__ import annotations

import sys
import types
from typing import Any

import cv2
import numpy as np
import pytest
import torch


def get_connected_componnets(masks: Any) -> tuple[Any, Any]:
    """Labels and areas of 8-connected components of uint8 [N, 1, H, W], each int32 of the same shape; spelled as in the extension."""
    labels, counts = torch.zeros(masks.shape, dtype=torch.int32), torch.zeros(masks.shape, dtype=torch.int32)
    for i, mask in enumerate(masks[:, 0].numpy()):
        _, label, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        labels[i, 0] = torch.from_numpy(label)
        counts[i, 0] = torch.from_numpy(np.where(label > 0, stats[label, cv2.CC_STAT_AREA], 0))
    return labels, counts


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `from sam2 import _C` find the stand-in."""
    stand_in = types.ModuleType("sam2._C")
    stand_in.get_connected_componnets = get_connected_componnets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sam2._C", stand_in)
    monkeypatch.setattr("sam2._C", stand_in, raising=False)
