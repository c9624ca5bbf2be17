"""Prompts; the oracle of the scaling is torch computing what the official predictor writes down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastsam2.errors import PromptError
from fastsam2.runtime.prompts import check_object_id, make_prompt, to_model_points

SIZE = (540, 960)


def test_box_comes_before_the_clicks() -> None:
    prompt = make_prompt(box=[10, 20, 30.5, 40], points=[[1, 2], [3, 4]], labels=[0, 1], frame_size=SIZE)
    assert prompt.points.dtype == np.float32 and prompt.labels.dtype == np.int32
    np.testing.assert_array_equal(prompt.points, [[10, 20], [30.5, 40], [1, 2], [3, 4]])
    np.testing.assert_array_equal(prompt.labels, [2, 3, 0, 1])
    assert prompt.mask is None


def test_labels_default_to_positive() -> None:
    np.testing.assert_array_equal(make_prompt(points=[[1, 2], [3, 4]], frame_size=SIZE).labels, [1, 1])


def test_frame_edges_are_inside() -> None:
    np.testing.assert_array_equal(make_prompt(box=[0, 0, 960, 540], frame_size=SIZE).points, [[0, 0], [960, 540]])


def test_arrays_are_read_only_copies() -> None:
    points, mask = np.ones((1, 2), np.float32), np.ones(SIZE, np.bool_)
    clicked, masked = make_prompt(points=points, frame_size=SIZE), make_prompt(mask=mask, frame_size=SIZE)
    points[:], mask[:] = 7, False
    np.testing.assert_array_equal(clicked.points, [[1, 1]])
    assert masked.mask is not None and masked.mask.all()
    for array in (clicked.points, clicked.labels, masked.mask):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_mask_of_an_absent_object_is_legal() -> None:
    prompt = make_prompt(mask=np.zeros(SIZE, np.bool_), frame_size=SIZE)
    assert prompt.mask is not None and not prompt.mask.any() and prompt.points.shape == (0, 2) and prompt.labels.shape == (0,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one point"),
        ({"points": np.zeros((0, 2))}, "at least one point"),
        ({"labels": [1]}, "points for the labels"),
        ({"mask": np.ones(SIZE, np.bool_), "points": [[1, 1]]}, "mask alone"),
        ({"mask": np.ones(SIZE, np.bool_), "box": [0, 0, 1, 1]}, "mask alone"),
        ({"mask": np.ones(SIZE, np.bool_), "labels": [1]}, "mask alone"),
        ({"mask": np.ones(SIZE[::-1], np.bool_)}, r"size \[540, 960\], got shape \[960, 540\]"),
        ({"mask": np.ones(SIZE, np.uint8)}, "bool mask"),
        ({"points": [1, 2]}, r"points \[n, 2\], got shape \[2\]"),
        ({"points": [[1, 2, 3]]}, r"points \[n, 2\], got shape \[1, 3\]"),
        ({"points": [[1, 2], [3]]}, "different lengths"),
        ({"points": [["1", "2"]]}, "numbers"),
        ({"points": [[True, False]]}, "numbers"),
        ({"points": [[1j, 2]]}, "numbers"),
        ({"points": [[np.nan, 2]]}, "finite points"),
        ({"points": [[1, np.inf]]}, "finite points"),
        ({"points": [[1e300, 1]]}, "0 <= x <= 960"),
        ({"points": [[960.5, 1]]}, "0 <= x <= 960 and 0 <= y <= 540, got x=960.5, y=1"),
        ({"points": [[1, 540.5]]}, "y=540.5"),
        ({"points": [[1, 1], [-1, 1]]}, "x=-1"),
        ({"points": [[1, 1]], "labels": [1, 1]}, r"labels \[1\]"),
        ({"points": [[1, 1]], "labels": [2]}, "labels 0 or 1"),
        ({"points": [[1, 1]], "labels": [-1]}, "labels 0 or 1"),
        ({"points": [[1, 1]], "labels": [1.0]}, "integer labels"),
        ({"box": [10, 20, 10, 40]}, "x0 < x1"),
        ({"box": [10, 20, 30, 10]}, "y0 < y1"),
        ({"box": [0, 0, 961, 10]}, "x=961"),
        ({"box": [[0, 0], [1, 1]]}, r"box \[4\]"),
        ({"box": [0, 0, 1, np.nan]}, "finite box"),
    ],
)
def test_illegal_prompts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make_prompt(**given, frame_size=SIZE)


@pytest.mark.parametrize("object_id", [0, -1, True, 1.0, "1", None, np.bool_(True)])
def test_illegal_ids(object_id: object) -> None:
    with pytest.raises(PromptError, match="integer >= 1"):
        check_object_id(object_id)


def test_ids_become_plain_ints() -> None:
    assert type(check_object_id(np.int64(3))) is int and check_object_id(70000) == 70000


@pytest.mark.parametrize("size", [(540, 960), (479, 853), (1, 7)])
def test_scaling_is_the_official_one_bit_by_bit(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    height, width = size
    points = np.random.default_rng(0).uniform(0, 1, (500, 2)) * [width, height]
    official = torch.tensor(points, dtype=torch.float32) / torch.tensor([width, height]) * 1024
    scaled, labels = to_model_points(make_prompt(points=points, frame_size=size), size, 1024)
    assert scaled.dtype == np.float32 and scaled.shape == (1, 500, 2)
    np.testing.assert_array_equal(scaled[0], official.numpy())
    assert labels.dtype == np.int32 and labels.shape == (1, 500)
    multiplied_first = (points.astype(np.float32) * np.float32(1000) / np.array([width, height], np.float32))[None]
    divided_first, _ = to_model_points(make_prompt(points=points, frame_size=size), size, 1000)
    assert (multiplied_first != divided_first).any()
