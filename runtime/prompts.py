"""Prompts: what a caller gives -> checked points, labels or a mask -> what `mask_decoder` takes.

    box, points, labels, mask  ->  Prompt (video pixels)  ->  points, labels (pixels of the S x S input)
    box, points, labels of the official interface         ->  the same

A box becomes two points labelled 2 and 3 in front of the clicks, and coordinates are scaled in float32, both as in
facebookresearch/sam2 @2b90b9f `sam2/sam2_video_predictor.py`, `add_new_points_or_box`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.contracts import LABEL_BOX_MAX, LABEL_BOX_MIN, LABEL_NEGATIVE, LABEL_PADDING, LABEL_POSITIVE
from fastsam2.errors import PromptError, expected


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One checked prompt of one object on one frame: points, or a mask. Arrays are read-only copies of what was given.

    Attributes:
        points: float32 [n, 2], x and y in video pixels; box corners first; n = 0 with a mask.
        labels: int32 [n]: 0 negative, 1 positive, 2 and 3 box corners.
        mask: bool [H, W] at video resolution, or None. All False says that the object is absent.
    """

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for array in (self.points, self.labels, self.mask):
            if array is not None:
                array.flags.writeable = False


def check_object_id(object_id: object) -> int:
    """The id as an int.

    Raises:
        PromptError: if it is not a positive integer.
    """
    if isinstance(object_id, bool) or not isinstance(object_id, (int, np.integer)) or object_id < 1:
        raise PromptError(expected("an object id that is an integer >= 1", repr(object_id), "Number objects 1, 2, 3, ..."))
    return int(object_id)


def make_prompt(
    *,
    box: npt.ArrayLike | None = None,
    points: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    frame_size: tuple[int, int],
) -> Prompt:
    """Checks a prompt against the frame it is for.

    Args:
        box: numbers [4]: x0, y0, x1, y1 in video pixels.
        points: numbers [n, 2]: x, y in video pixels, 0 <= x <= W and 0 <= y <= H.
        labels: integers [n]: 1 on the object, 0 off it; all 1 when left out.
        mask: bool [H, W]; excludes the others. All False is legal.
        frame_size: (H, W) of the video, pixels.

    Raises:
        PromptError: if nothing is given, a mask comes with points, box or labels, or a value has another shape, dtype or range.
    """
    if mask is not None:
        if box is not None or points is not None or labels is not None:
            raise PromptError(expected("a mask alone, or points and box", "a mask with points, labels or a box", "Give one of the two"))
        return Prompt(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), _checked_mask(mask, frame_size))
    if points is None and labels is not None:
        raise PromptError(expected("points for the labels", "labels without points", "Give points [n, 2] with labels [n]"))
    clicks = np.zeros((0, 2), np.float32) if points is None else _numbers(points, "points", "[n, 2]", (None, 2))
    click_labels = _checked_labels(labels, len(clicks))
    corners, corner_labels = np.zeros((0, 2), np.float32), np.zeros(0, np.int32)
    if box is not None:
        corners = _numbers(box, "box", "[4]", (4,)).reshape(2, 2)
        corner_labels = np.array([LABEL_BOX_MIN, LABEL_BOX_MAX], np.int32)
        if not (corners[0] < corners[1]).all():
            raise PromptError(expected("a box with x0 < x1 and y0 < y1", corners.ravel().tolist(), "Give x0,y0,x1,y1"))
    all_points = np.concatenate([corners, clicks])
    if not len(all_points):
        raise PromptError(expected("a box, at least one point, or a mask", "nothing", "Give one of them"))
    height, width = frame_size
    outside = ((all_points < 0) | (all_points > np.array([width, height], np.float32))).any(axis=1)
    if outside.any():
        x, y = all_points[outside][0].tolist()
        raise PromptError(expected(f"0 <= x <= {width} and 0 <= y <= {height}", f"x={x:g}, y={y:g}", "Give pixels of the video frame"))
    return Prompt(all_points, np.concatenate([corner_labels, click_labels]))


def to_model_points(prompt: Prompt, frame_size: tuple[int, int], image_size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Points and labels of one object as `mask_decoder` takes them: float32 points / float32 [W, H] · S, in this order.

    Args:
        prompt: a prompt with points.
        frame_size: (H, W) of the video, pixels.
        image_size: S, side of the model's input, pixels.

    Returns:
        points: float32 [1, n, 2], pixels of the S x S input.
        labels: int32 [1, n].
    """
    height, width = frame_size
    points: npt.NDArray[np.float32] = np.divide(prompt.points, np.array([width, height], np.float32)) * image_size
    return points[None], prompt.labels[None].copy()


def official_points(
    points: npt.ArrayLike | None, labels: npt.ArrayLike | None, box: npt.ArrayLike | None, *, size: tuple[int, int], image_size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Points and labels of one object as `mask_decoder` takes them, from what the official interface accepts.

    Points may lie outside of the frame, labels may be those of box corners and padding, and a leading dimension of 1 is optional.

    Args:
        points: numbers [n, 2] or [1, n, 2]: x, y.
        labels: integers [n] or [1, n]: -1 to 3, see `contracts`.
        box: 4 numbers in any shape: x0, y0, x1, y1.
        size: (H, W) that coordinates refer to: of the video in pixels, or (1, 1).
        image_size: S, side of the model's input, pixels.

    Returns:
        points: float32 [1, n, 2], pixels of the S x S input.
        labels: int32 [1, n].

    Raises:
        PromptError: if nothing is given, points come without labels or the reverse, or a value has another shape, dtype or range.
    """
    if (points is None) != (labels is None):
        raise PromptError(expected("points and labels together", "one without the other", "Give a label for every point"))
    if points is None and box is None:
        raise PromptError(expected("points or a box", "neither", "Give at least one of them"))
    clicks, kinds = np.zeros((0, 2), np.float32), np.zeros(0, np.int32)
    if points is not None and labels is not None:
        given = _without_batch(points, "points", 3)
        clicks = _numbers(given if given.shape != (0,) else clicks, "points", "[n, 2]", (None, 2))
        kinds = _without_batch(labels, "labels", 2)
        if kinds.shape != (len(clicks),):
            raise PromptError(expected(f"labels [{len(clicks)}], one per point", f"shape {list(kinds.shape)}", "Give as many as points"))
        if len(clicks) and not np.isin(kinds, range(LABEL_PADDING, LABEL_BOX_MAX + 1)).all():
            raise PromptError(expected("labels 0 or 1", f"{kinds.dtype} {kinds.tolist()}", "1 marks the object, 0 its background"))
    if box is not None:
        corners = _numbers(_array(box, "box", "[4]").reshape(-1), "box", "[4]", (4,)).reshape(2, 2)
        clicks = np.concatenate([corners, clicks])
        kinds = np.concatenate([[LABEL_BOX_MIN, LABEL_BOX_MAX], kinds])
    if not len(clicks):
        raise PromptError(expected("at least one point", "none", "Give points [n, 2]"))
    return to_model_points(Prompt(clicks, kinds.astype(np.int32)), size, image_size)


def _without_batch(values: npt.ArrayLike, name: str, dimensions: int) -> npt.NDArray[Any]:
    array = _array(values, name, "with an optional leading dimension of 1")
    return array[0] if array.ndim == dimensions and len(array) == 1 else array


def _array(values: npt.ArrayLike, name: str, form: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise PromptError(expected(f"{name} {form}", "rows of different lengths", f"Give an array of shape {form}")) from error


def _numbers(values: npt.ArrayLike, name: str, form: str, shape: tuple[int | None, ...]) -> npt.NDArray[np.float32]:
    array = _array(values, name, form)
    if array.dtype.kind not in "iuf":
        raise PromptError(expected(f"{name} {form} of numbers", f"dtype {array.dtype}", "Give pixels of the video frame as int or float"))
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise PromptError(expected(f"{name} {form}", f"shape {list(array.shape)}", f"Give an array of shape {form}"))
    if not np.isfinite(array).all():
        raise PromptError(expected(f"finite {name}", array.tolist(), "Give pixels of the video frame"))
    largest = np.finfo(np.float32).max
    return np.array(np.clip(array, -largest, largest), np.float32)


def _checked_labels(labels: npt.ArrayLike | None, count: int) -> npt.NDArray[np.int32]:
    if labels is None:
        return np.full(count, LABEL_POSITIVE, np.int32)
    array = _array(labels, "labels", "[n]")
    if array.shape != (count,):
        raise PromptError(expected(f"labels [{count}], one per point", f"shape {list(array.shape)}", "Give as many labels as points"))
    if count and (array.dtype.kind not in "iu" or not np.isin(array, (LABEL_NEGATIVE, LABEL_POSITIVE)).all()):
        raise PromptError(expected("integer labels 0 or 1", f"{array.dtype} {array.tolist()}", "1 marks the object, 0 its background"))
    return array.astype(np.int32)


def _checked_mask(mask: npt.ArrayLike, frame_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    array = _array(mask, "mask", "[H, W]")
    if array.dtype != np.bool_:
        raise PromptError(expected("a bool mask [H, W]", f"dtype {array.dtype}", "Pass mask > 0"))
    if array.shape != tuple(frame_size):
        raise PromptError(
            expected(f"a mask of the frame's size {list(frame_size)}", f"shape {list(array.shape)}", "Give mask [H, W] in video pixels")
        )
    return np.array(array, np.bool_)
