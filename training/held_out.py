"""Held-out clips. Their seeds were fixed before any training and never take part in it.

Training scenes have seeds that begin with `clips.TRAINING_SEED` (0); these begin with 1001 (plain), 1002 (hard) and 1003 (long). They use
no real silhouettes, so everybody can draw them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastsam2.training.clips import tight_box, visible_scene
from fastsam2.training.scene import HARD, LONG, PLAIN, Difficulty

_SIZES = ((360, 480), (270, 480), (480, 360))
FPS = 15


@dataclass(frozen=True, slots=True)
class ClipSet:
    """A set of clips: first number of their seeds, how many, frames in each."""

    seed: int
    clips: int
    frames: int
    level: Difficulty


SETS = {
    "plain": ClipSet(1001, 12, 60, PLAIN),
    "hard": ClipSet(1002, 12, 60, HARD),
    "long": ClipSet(1003, 3, 300, LONG),
}


@dataclass(frozen=True, slots=True)
class HeldOutClip:
    """A clip with its truth.

    Attributes:
        name: for example `hard_000`.
        seed: of the scene.
        frames: uint8 [T, H, W, 3] RGB.
        truth: uint8 [T, H, W], object id (1..) of what is visible, 0 elsewhere.
        captions: of objects 1...
        boxes: float32 [objects, 4], x0, y0, x1, y1 on the first frame, where every object is visible.
    """

    name: str
    seed: tuple[int, ...]
    frames: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]
    captions: list[str]
    boxes: npt.NDArray[np.float32]

    @property
    def ids(self) -> range:
        """Object ids."""
        return range(1, len(self.captions) + 1)


def make_clip(name: str, index: int) -> HeldOutClip:
    """Draw clip `index` of the set called `name`.

    Raises:
        KeyError: if there is no such set.
        IndexError: if the set has fewer clips.
    """
    chosen = SETS[name]
    if not 0 <= index < chosen.clips:
        raise IndexError(f"expected a clip of 0..{chosen.clips - 1} of {name}; got {index}")
    size = _SIZES[index % len(_SIZES)]
    scene = visible_scene((chosen.seed, index), chosen.level, size)
    drawn = [scene.render(t) for t in range(chosen.frames)]
    truth = np.stack([np.where(ids <= scene.targets, ids, 0).astype(np.uint8) for _, ids in drawn])
    boxes = np.stack([tight_box(truth[0] == i + 1) for i in range(scene.targets)])
    return HeldOutClip(f"{name}_{index:03d}", scene.seed, np.stack([f for f, _ in drawn]), truth, scene.captions, boxes)


def make_set(name: str) -> Iterator[HeldOutClip]:
    """Draw a set, clip by clip."""
    for index in range(SETS[name].clips):
        yield make_clip(name, index)
