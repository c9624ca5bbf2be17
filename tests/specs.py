"""Model sizes for tests that need no model."""

from __future__ import annotations

from typing import Any

from fastsam2.config import ModelSpec

SIZES: dict[str, Any] = {  # of tests/data/micro.yaml
    "name": "micro",
    "image_size": 128,
    "hidden_dim": 64,
    "memory_dim": 16,
    "num_maskmem": 7,
    "max_object_pointers": 16,
    "multimask_min_points": 0,
    "multimask_max_points": 1,
    "multimask_for_tracking": True,
    "pointer_offsets": True,
    "signed_pointer_offsets": True,
}


def model_spec(**changes: Any) -> ModelSpec:
    """`SIZES` with changes."""
    return ModelSpec(**{**SIZES, **changes})
