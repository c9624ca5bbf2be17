"""What a result becomes for the package supervision. Oracle: that package's own box and area arithmetic."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastsam2.errors import BackendError
from fastsam2.runtime.result import Result

SIZE = (12, 20)


def result(*, ids: tuple[int, ...] = (7, 3, 5, 9)) -> Result:
    """Object 7 is a rectangle, 3 is not visible, 5 visible without a pixel, 9 a single pixel in the corner."""
    masks = np.zeros((4, *SIZE), np.bool_)
    masks[0, 2:6, 3:10] = True
    masks[1, 4:8] = True
    masks[3, -1, -1] = True
    visible = np.array([True, False, True, True])
    numbers = np.arange(4, dtype=np.float32) / 4
    n = len(ids)
    return Result(0, ids, masks[:n], visible[:n], numbers[:n], numbers[:n], np.zeros((n, 4, 4), np.float32))


def test_visible_objects_become_detections() -> None:
    sv = pytest.importorskip("supervision", reason="the package supervision is not installed")
    detections = result().to_supervision()
    assert isinstance(detections, sv.Detections)
    assert detections.xyxy.tolist() == [[3, 2, 10, 6], [19, 11, 20, 12]]
    assert detections.class_id.tolist() == detections.tracker_id.tolist() == [7, 9]
    assert detections.confidence.tolist() == [0, 0.75]
    assert detections.mask.dtype == np.bool_ and detections.mask.sum(axis=(1, 2)).tolist() == [28, 1]
    assert detections.box_area.tolist() == [28, 1]
    frame = np.zeros((*SIZE, 3), np.uint8)
    assert sv.MaskAnnotator().annotate(frame.copy(), detections).any()
    assert len(detections[detections.tracker_id == 9]) == 1


def test_nothing_visible() -> None:
    sv = pytest.importorskip("supervision", reason="the package supervision is not installed")
    for nothing in (result(ids=()), replace(result(), visible=np.zeros(4, np.bool_))):
        detections = nothing.to_supervision()
        assert isinstance(detections, sv.Detections) and len(detections) == 0 and detections.xyxy.shape == (0, 4)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "supervision":
            raise ImportError("No module named 'supervision'")
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "supervision", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendError, match="pip install supervision"):
        result().to_supervision()
