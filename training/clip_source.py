"""Where the router and the text projection get their clips: a data set's folder, or the word "procedural".

    procedural ─► scenes drawn from seeds ─┐
    data set   ─► videos in seeded order ──┴─► (clips to train on, clips to report on), which have nothing in common

Procedural scenes have seeds of their own: neither nano's training (`clips.py`) nor the sets that everything is scored on (`held_out.py`)
use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from fastsam2.benchmarks.datasets import Clip, Frame, Mask, open_dataset
from fastsam2.errors import VideoError, expected
from fastsam2.training.clips import visible_scene
from fastsam2.training.scene import HARD, LONG, PLAIN, Scene

PROCEDURAL = "procedural"
TRAINING_SEED, REPORT_SEED = 2001, 2002
"""First numbers of the seeds of scenes to train on and to report on."""

_LEVELS = (PLAIN, HARD, LONG)
_SIZES = ((240, 320), (216, 384), (320, 240))


def open_clips(
    data: str, *, clips: int, report_clips: int, frames: int, seed: int = 0, expressions: Path | None = None
) -> tuple[Iterator[Clip], Iterator[Clip]]:
    """Clips to train on and clips to report on.

    Args:
        data: "procedural", or a data set's folder for `open_dataset`.
        clips: how many to train on, at most.
        report_clips: how many to report on.
        frames: of a procedural clip.
        seed: which scenes, or the order of a data set's videos.
        expressions: texts of a data set's objects, for `read_expressions`; None takes the file that lies where its authors put it.

    Raises:
        VideoError: if the folder is no data set, or has too few videos to keep some apart.
    """
    for name, value in (("clips", clips), ("report_clips", report_clips), ("frames", frames)):
        if value < 1:
            raise VideoError(expected(f"{name} >= 1", value, "Ask for at least one"))
    if data == PROCEDURAL:
        if expressions is not None:
            raise VideoError(expected("a data set's folder with expressions", "procedural clips", "They have descriptions of their own"))
        return (
            (procedural_clip((TRAINING_SEED, seed, i), frames) for i in range(clips)),
            (procedural_clip((REPORT_SEED, seed, i), frames) for i in range(report_clips)),
        )
    found = open_dataset(Path(data), expressions=_expressions_of(Path(data)) if expressions is None else expressions)
    if len(found) <= report_clips:
        what = f"more than {report_clips} videos in {data}, so that some are left to train on"
        raise VideoError(expected(what, len(found), "Report on fewer (--report-clips), or name a larger data set"))
    order = np.random.default_rng((seed, 2003)).permutation(len(found))
    mixed = [found[i] for i in order]
    return iter(mixed[report_clips : report_clips + clips]), iter(mixed[:report_clips])


def _expressions_of(root: Path) -> Path | None:
    """The texts that lie where the authors of a data set put them: beside its folders, or in Ref-YouTube-VOS's folder for its splits."""
    split = root.resolve()
    places = (split / "meta_expressions.json", split / "expression_meta.json")
    return next((f for f in (*places, split.parent / "meta_expressions" / split.name / "meta_expressions.json") if f.is_file()), None)


def procedural_clip(seed: tuple[int, ...], frames: int) -> Clip:
    """A scene as a clip; its objects are prompted on the first frame, where enough of each is visible.

    Args:
        seed: any integers; the last one also chooses difficulty and size.
        frames: how many.
    """
    level, size = _LEVELS[seed[-1] % len(_LEVELS)], _SIZES[seed[-1] // len(_LEVELS) % len(_SIZES)]
    scene = visible_scene(seed, level, size)
    drawn = SceneFrames(scene, frames)
    texts = {i: [caption] for i, caption in enumerate(scene.captions, 1)}
    return Clip("_".join(map(str, seed)), drawn, annotated=range(frames), read=drawn.masks, expressions=texts)


class SceneFrames(Sequence[Frame]):
    """Frames of a scene, drawn when asked for.

    Args:
        scene: what to draw.
        length: number of frames.
        start: time of the first.
    """

    def __init__(self, scene: Scene, length: int, start: int = 0) -> None:
        self.scene, self.length, self.start = scene, length, start
        self._render = lru_cache(maxsize=2)(scene.render)

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> SceneFrames: ...
    def __getitem__(self, index: int | slice) -> Frame | SceneFrames:
        if isinstance(index, slice):
            first, stop, step = index.indices(self.length)
            if step != 1:
                raise ValueError("expected a slice without a step; got one with")
            return SceneFrames(self.scene, max(0, stop - first), self.start + first)
        if not -self.length <= index < self.length:
            raise IndexError(index)
        return self._render(float(self.start + index % self.length))[0]

    def masks(self, index: int) -> dict[int, Mask]:
        """Masks of the targets on a frame, by id from 1."""
        ids = self._render(float(self.start + index))[1]
        return {i: ids == i for i in range(1, self.scene.targets + 1)}
