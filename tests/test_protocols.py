"""Masks that may not overlap. Oracle: what the official `tools/vos_inference.py` does with the same logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base

from fastsam2.benchmarks.protocols import exclusive_ids
from fastsam2.runtime.postprocess import masks_from_logits
from fastsam2.runtime.result import Result

SIZE = (90, 130)


def result(logits: npt.NDArray[np.float32], ids: tuple[int, ...], size: tuple[int, int] = SIZE) -> Result:
    numbers = np.ones(len(ids), np.float32)
    return Result(0, ids, masks_from_logits(logits, size), numbers > 0, numbers, numbers, logits)


def official(logits: npt.NDArray[np.float32], ids: tuple[int, ...], size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """`vos_inference` with `non_overlap_masks`, then `put_per_obj_mask`: objects in the order of their ids."""
    order = np.argsort(ids)
    wide = torch.nn.functional.interpolate(torch.from_numpy(logits[order])[:, None], size, mode="bilinear", align_corners=False)
    kept = (SAM2Base._apply_non_overlapping_constraints(None, wide) > 0.0)[:, 0].numpy()
    merged = np.zeros(size, np.uint8)
    for object_id, mask in sorted(zip(np.array(ids)[order].tolist(), kept, strict=True), key=lambda pair: -pair[0]):
        merged[mask] = object_id
    return merged


def smooth(seed: int, count: int, side: int = 32) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(0, 4, (count, 1, 6, 6)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[:, 0].numpy()


@pytest.mark.parametrize("ids", [(1,), (1, 2), (7, 2, 255), (3, 1, 2, 9, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_overlaps_go_to_the_highest_logit_as_officially(ids: tuple[int, ...], seed: int) -> None:
    logits = smooth(seed, len(ids))
    mine = exclusive_ids(result(logits, ids))
    np.testing.assert_array_equal(mine, official(logits, ids))
    masks = masks_from_logits(logits, SIZE)
    assert set(np.unique(mine)) - {0} <= set(ids)
    if len(ids) > 2:
        assert (masks.sum(axis=0) > 1).mean() > 0.05, "the case is about overlaps"


def test_of_equal_logits_the_lowest_id_has_the_pixel() -> None:
    logits = np.broadcast_to(smooth(3, 1), (2, 32, 32)).copy()
    mine = exclusive_ids(result(logits, (5, 2)))
    np.testing.assert_array_equal(mine, np.where(masks_from_logits(logits[:1], SIZE)[0], 2, 0))
    np.testing.assert_array_equal(mine, official(logits, (5, 2)))


def test_objects_that_are_not_there_leave_the_others_alone() -> None:
    logits = smooth(4, 3)
    logits[1] = -1024
    mine = exclusive_ids(result(logits, (1, 2, 3)))
    np.testing.assert_array_equal(mine, official(logits, (1, 2, 3)))
    assert not (mine == 2).any()


def test_a_frame_without_objects() -> None:
    empty = np.zeros((0, 32, 32), np.float32)
    assert not exclusive_ids(result(empty, ())).any()
