"""Promptable streaming video segmentation with SAM 2.1 on ONNX Runtime: Exporter -> Bundle -> Tracker.

`import fastsam2` loads no other package: public names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsam2.config import Prune
    from fastsam2.errors import FastSam2Error
    from fastsam2.runtime.loaded import load
    from fastsam2.runtime.result import Result
    from fastsam2.runtime.tracker import Tracker
    from fastsam2.video_predictor import SAM2VideoPredictor, build_sam2_video_predictor

__version__ = "0.1.0"

__all__ = ["FastSam2Error", "Prune", "Result", "SAM2VideoPredictor", "Tracker", "build_sam2_video_predictor", "load"]

_HOMES = {
    "FastSam2Error": "fastsam2.errors",
    "Prune": "fastsam2.config",
    "Result": "fastsam2.runtime.result",
    "SAM2VideoPredictor": "fastsam2.video_predictor",
    "Tracker": "fastsam2.runtime.tracker",
    "build_sam2_video_predictor": "fastsam2.video_predictor",
    "load": "fastsam2.runtime.loaded",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
