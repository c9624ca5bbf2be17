"""Oracles: torch's interpolate for resizing, sam2's fill_holes_in_mask_scores for holes."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sam2.utils import misc

from fastsam2.errors import BackendError
from fastsam2.runtime.postprocess import HOLE_LOGIT, fill_holes, masks_from_logits, resize_logits
from tests import official_extension

FillHoles = Callable[[npt.NDArray[np.float32], int], npt.NDArray[np.float32]]

SIZES = [
    ((256, 256), (720, 1280)),
    ((256, 256), (100, 90)),
    ((256, 256), (256, 700)),
    ((64, 64), (97, 131)),
    ((24, 24), (10, 3)),
    ((16, 16), (17, 16)),
    ((16, 16), (32, 32)),
    ((5, 7), (5, 90)),
    ((1, 1), (4, 5)),
]


def object_logits(height: int, width: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Discs that move along x, on noise, as float32 [count, height, width]; the last one is not visible."""
    y, x = np.mgrid[:height, :width]
    discs = [
        height / 5 - np.hypot(y - height * 0.4, x - width * (0.2 + 0.3 * i)) + rng.standard_normal((height, width)) for i in range(count)
    ]
    discs[-1][:] = -1024.0
    return np.stack(discs).astype(np.float32)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resize_equals_torch(source: tuple[int, int], target: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for logits in (object_logits(*source, 3, rng), (rng.standard_normal((2, *source)) * 10).astype(np.float32)):
        expected = torch.nn.functional.interpolate(torch.from_numpy(logits)[:, None], size=target, mode="bilinear", align_corners=False)
        resized = resize_logits(logits, target)
        assert resized.dtype == np.float32
        # Rounding only: measured 2e-7 of the largest magnitude.
        for one, other in zip(resized, expected[:, 0].numpy(), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-7 * np.abs(other).max())


@pytest.mark.parametrize(("source", "target"), [*SIZES, ((64, 64), (64, 64))])
def test_masks_are_the_sign_of_the_resized_logits(source: tuple[int, int], target: tuple[int, int]) -> None:
    logits = object_logits(*source, 4, np.random.default_rng(1))
    masks = masks_from_logits(logits, target)
    assert masks.dtype == np.bool_ and masks.shape == (4, *target)
    np.testing.assert_array_equal(masks, resize_logits(logits, target) > 0)
    assert not masks[-1].any()
    if min(source) > 1:
        assert 0.01 < masks[0].mean() < 0.95


def test_single_positive_logits_at_every_place() -> None:
    logits = np.full((49, 7, 7), -1.0, np.float32)
    logits.reshape(49, 49)[np.arange(49), np.arange(49)] = 5.0
    for size in ((23, 30), (3, 3), (2, 13)):
        np.testing.assert_array_equal(masks_from_logits(logits, size), resize_logits(logits, size) > 0)


def test_resize_to_the_same_size_is_the_input() -> None:
    logits = np.zeros((2, 8, 9), np.float32)
    assert resize_logits(logits, (8, 9)) is logits


def test_no_objects() -> None:
    none = np.empty((0, 16, 16), np.float32)
    assert resize_logits(none, (20, 30)).shape == masks_from_logits(none, (20, 30)).shape == (0, 20, 30)
    assert fill_holes(none, 8).shape == (0, 16, 16)


@pytest.fixture
def official_fill_holes(monkeypatch: pytest.MonkeyPatch) -> FillHoles:
    """sam2's function, over OpenCV in place of its CUDA extension."""
    official_extension.install(monkeypatch)
    return lambda logits, area: misc.fill_holes_in_mask_scores(torch.from_numpy(logits)[:, None], area)[:, 0].numpy()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("area", [1, 2, 8, 100])
def test_fill_holes_equals_the_official_function(area: int, official_fill_holes: FillHoles) -> None:
    rng = np.random.default_rng(2)
    logits = np.concatenate([rng.standard_normal((2, 40, 50)) + 0.7, object_logits(40, 50, 2, rng), np.zeros((1, 40, 50))]).astype(
        np.float32
    )
    logits[0, 0, :3] = [0.0, -0.0, 1.0]
    before = logits.copy()
    filled = fill_holes(logits, area)
    np.testing.assert_array_equal(filled, official_fill_holes(logits, area))
    np.testing.assert_array_equal(logits, before)
    assert (filled != logits).sum() > 20


def test_fill_holes_joins_diagonals_and_counts_area() -> None:
    logits = np.ones((1, 8, 8), np.float32)
    logits[0, 1, 1] = logits[0, 2, 2] = logits[0, 3, 3] = -1.0
    assert fill_holes(logits, 2) is not logits
    np.testing.assert_array_equal(fill_holes(logits, 2), logits)
    assert fill_holes(logits, 3)[0, 2, 2] == np.float32(HOLE_LOGIT)
    assert fill_holes(logits, 0) is logits


def test_fill_holes_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_cv2(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cv2":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_cv2)
    logits = np.ones((1, 8, 8), np.float32)
    assert fill_holes(logits, 0) is logits
    with pytest.raises(BackendError, match=r"pip install 'fastsam2\[holes\]'"):
        fill_holes(logits, 8)
