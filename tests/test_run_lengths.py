"""COCO run lengths. Oracle: strings made by hand from the format's definition, and SA-V's own annotations where they are available."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastsam2.errors import PromptError
from fastsam2.runtime.outputs import counts_from_mask, mask_from_counts


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        (["000", "000"], "6"),  # one run of 6 outside: chr(48 + 6)
        (["111", "111"], "06"),  # none outside, 6 inside
        (["010", "010"], "222"),  # columns first: 2 outside, 2 inside, 2 outside
        (["100", "001"], "0140"),  # runs 0 1 4 1; the fourth is stored as 1 - 1
        # runs 40 5 15 2 38: 40 = 8 + 1·32 -> 8 continued, 1; 2 - 5 = -3 -> 29; 38 - 15 = 23 -> 23 continued (its bit 16 would be a sign), 0
        (["0"] * 40 + ["1"] * 5 + ["0"] * 15 + ["1"] * 2 + ["0"] * 38, "X15?Mg0"),
    ],
)
def test_run_lengths_made_by_hand(rows: list[str], counts: str) -> None:
    mask = np.array([[pixel == "1" for pixel in row] for row in rows])
    assert counts_from_mask(mask) == counts
    np.testing.assert_array_equal(mask_from_counts(counts, mask.shape), mask)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (13, 17), (480, 848)])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.5, 1.0])
def test_run_lengths_round_trip(size: tuple[int, int], density: float) -> None:
    mask = np.random.default_rng(3).random(size) < density
    np.testing.assert_array_equal(mask_from_counts(counts_from_mask(mask), size), mask)


@pytest.mark.parametrize("counts", ["", "5", "X", "06 ", "7", "24N", "6p"])
def test_malformed_run_lengths_are_refused(counts: str) -> None:
    with pytest.raises(PromptError, match=r"run lengths of a mask of \[2, 3\] pixels"):
        mask_from_counts(counts, (2, 3))


@pytest.mark.skipif("FASTSAM2_TEST_DATA" not in os.environ, reason="FASTSAM2_TEST_DATA names no folder with sav_000001_manual.json")
def test_run_lengths_of_sa_v() -> None:
    data = json.loads((Path(os.environ["FASTSAM2_TEST_DATA"]) / "sav_000001_manual.json").read_text())
    areas: list[list[int]] = [[] for _ in data["masklet_id"]]
    for frame in data["masklet"]:
        for i, rle in enumerate(frame):
            mask = mask_from_counts(rle["counts"], tuple(rle["size"]))
            assert counts_from_mask(mask) == rle["counts"]
            areas[i].append(int(mask.sum()))
    means = [np.mean([area for area in of_object if area]) for of_object in areas]
    np.testing.assert_allclose(means, data["masklet_size_abs"], rtol=1e-9)  # SA-V's own mean areas, over the frames that show the object
