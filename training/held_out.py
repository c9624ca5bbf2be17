"""Held-out clips. Their seeds were fixed before any training and never take part in it.

Training scenes have seeds that begin with `clips.TRAINING_SEED` (0); these begin with 1001 (plain), 1002 (hard) and 1003 (long). They use
no real silhouettes, so everybody can draw them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fastsam2.training.clips import tight_box, visible_scene
from fastsam2.training.scene import HARD, LONG, PLAIN, Difficulty

_SIZES = ((360, 480), (270, 480), (480, 360))
FPS = 15
STUDY_SEED = 3001
"""First number of the seeds of `study_clip`."""


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
    return _draw(f"{name}_{index:03d}", (chosen.seed, index), chosen, _SIZES[index % len(_SIZES)])


def study_clip(name: str, seed: int, index: int, *, frames: int | None = None) -> HeldOutClip:
    """Draw a clip like those of the set called `name`, of which there are as many as a study needs; none is in the set itself.

    Args:
        name: of the set.
        seed: any number from 0; each has clips of its own.
        index: any number from 0.
        frames: as many as the set's clips have when None.

    Raises:
        KeyError: if there is no such set.
    """
    chosen = SETS[name]
    chosen = replace(chosen, frames=frames or chosen.frames)
    return _draw(f"{name}_{seed}_{index:03d}", (STUDY_SEED, chosen.seed, seed, index), chosen, _SIZES[index % len(_SIZES)])


def _draw(name: str, seed: tuple[int, ...], chosen: ClipSet, size: tuple[int, int]) -> HeldOutClip:
    scene = visible_scene(seed, chosen.level, size)
    drawn = [scene.render(t) for t in range(chosen.frames)]
    truth = np.stack([np.where(ids <= scene.targets, ids, 0).astype(np.uint8) for _, ids in drawn])
    boxes = np.stack([tight_box(truth[0] == i + 1) for i in range(scene.targets)])
    return HeldOutClip(name, scene.seed, np.stack([f for f, _ in drawn]), truth, scene.captions, boxes)


def make_set(name: str) -> Iterator[HeldOutClip]:
    """Draw a set, clip by clip."""
    for index in range(SETS[name].clips):
        yield make_clip(name, index)
