"""Training batches: windows of procedural scenes with the masks and prompts of a few of their actors. Deterministic by seed and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from fastsam2.training.scene import HARD, LONG, PLAIN, Difficulty, Scene
from fastsam2.training.silhouettes import Silhouette

TRAINING_SEED = 0
"""First number of the seeds of training scenes; held-out sets use others (`held_out.py`)."""

_PAINTING = 8  # frames that cost as much to draw as a scene costs to paint; as many are cut from one before it is replaced
_CUTS = 2  # pieces of one window
_OFF_CENTRE = 0.25  # of its side, how far a piece's middle is from the object's
_CLOSE_UP = 0.25  # share of scenes with larger things than the sets that are scored, as real video has them
_CLOSEST = 3.0  # times as large
_WINDOW = 128  # pixels, the widest window of the encoder
_LEAST_SHARE = 0.003  # of the frame, that a prompted object shows
_LEAST_VISIBLE = 0.35  # of its outline


_Window = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Frames uint8 [T, H, W, 3], ids uint8 [T, H, W] as `Scene.render` gives them, and the ids of objects to prompt."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is given of each of B objects on one frame: points with labels, or masks.

    Attributes:
        points: float32 [B, P, 2] in model pixels, or None. A box is two points labelled 2 and 3.
        labels: int32 [B, P], or None.
        masks: float32 [B, 1, S, S] of 0 and 1, or None.
    """

    points: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.int32] | None = None
    masks: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Objects:
    """B objects of a batch that are prompted in the same way and followed over L frames, the prompted one included.

    Attributes:
        clip: int64 [B], whose.
        start: int64 [B], the frame on which it is prompted.
        masks: bool [L, B, S, S], what is visible of each on that frame and those after it.
        prompts: pixels of the piece.
    """

    clip: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]
    prompts: Prompts


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of several scenes.

    Attributes:
        frames: uint8 [clips, T, 3, S, S].
        ids: uint8 [clips, T, S, S], who is where: 0 background, 255 occluders, others the clip's objects, prompted or not.
        objects: those followed from the first frame on, if there are such, and those prompted on one frame only.
        place: row and column, in a whole frame, at which the model is to take these pieces to be.
    """

    frames: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.uint8]
    objects: tuple[Objects, ...]
    place: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What a batch is made of.

    Attributes:
        size: side of the square frames, pixels.
        frames: per clip.
        clips: in a batch.
        objects: per clip and kind: those that are followed from its first frame on, and those prompted on each other frame only.
        pace: speed of everything that moves; slow motion teaches to use the memory at all.
        drawn: side of the scenes that frames are cut out of, round an object; None for whole scenes. Cuts show an object at the size it
            has in a larger frame, for the cost of a small one, and go along with it some of the way.
        follow: whether there are any of the first kind.
    """

    size: int
    frames: int
    clips: int
    objects: int
    pace: float = 1.0
    drawn: int | None = None
    follow: bool = True

    @property
    def whole(self) -> int:
        """Side of the frames the model is for."""
        return self.drawn or self.size

    @property
    def reuse(self) -> int:
        """How many steps in a row a scene serves."""
        return max(1, _PAINTING // self.frames)


def step_of(position: int, workers: int, reuse: int) -> int:
    """The step whose batch comes at a position, so that each of the workers, which take positions in turn, makes runs of steps.

    A scene serves `reuse` steps in a row; every worker would paint every scene again if steps went round among them.
    """
    block, inside = divmod(position, reuse * workers)
    return block * reuse * workers + inside % workers * reuse + inside // workers


class Batches:
    """Makes the batch of any step.

    Args:
        shape: sizes.
        seed: of the run.
        rank: which of several processes this one is; each has scenes of its own.
        silhouettes: real outlines to use among the drawn ones.
    """

    def __init__(self, shape: BatchShape, *, seed: int, rank: int = 0, silhouettes: Sequence[Silhouette] = ()) -> None:
        self.shape, self.seed, self.rank = shape, seed, rank
        self.silhouettes = tuple(silhouettes)
        self._scene = lru_cache(maxsize=2 * shape.clips)(self._make_scene)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step."""
        shape = self.shape
        rng = np.random.default_rng((TRAINING_SEED, self.seed, self.rank, 1, step))
        cuts = 1 if shape.drawn is None else _CUTS
        frames, ids, seen, inside = [], [], [], []
        for slot in range(shape.clips // cuts):
            generation = (step + slot * cuts * shape.reuse // shape.clips) // shape.reuse
            window = self._window(rng, slot, generation)
            for _ in range(cuts):
                clip_frames, clip_ids, at_first = self._piece(*window, rng)
                clip_frames, clip_ids = _augment(clip_frames, clip_ids, rng)
                frames.append(clip_frames)
                ids.append(clip_ids)
                seen.append(window[2])
                inside.append(at_first)
        everywhere, groups = np.stack(ids), []
        if shape.follow:
            groups.append(self._objects(everywhere, [(k, 0, names) for k, names in enumerate(inside)], shape.frames, rng))
        single = []
        for k, names in enumerate(seen):
            for t in range(int(shape.follow), shape.frames):
                large = _large(everywhere[k, t], names)
                single.append((k, t, large) if len(large) else (k, 0, inside[k]))
        if single:
            groups.append(self._objects(everywhere, single, 1, rng))
        row, column = (_WINDOW * rng.integers(0, (shape.whole - shape.size) // _WINDOW + 1, 2)).tolist()
        return Batch(np.stack(frames), everywhere, tuple(groups), (row, column))

    def _objects(
        self, ids: npt.NDArray[np.uint8], parts: Sequence[tuple[int, int, npt.NDArray[np.int64]]], length: int, rng: np.random.Generator
    ) -> Objects:
        """So many of each part (a clip, a frame, who may be prompted there) as a clip has; repeats where there are fewer."""
        n = self.shape.objects
        chosen = [np.resize(rng.permutation(names)[:n], n)[:, None, None] for *_, names in parts]
        masks = np.concatenate([ids[k, t : t + length, None] == who for (k, t, _), who in zip(parts, chosen, strict=True)], 1)
        clip, start = (np.repeat([part[i] for part in parts], n) for i in (0, 1))
        return Objects(clip, start, masks, make_prompts(masks[0], rng, masks=length > 1))

    def _make_scene(self, slot: int, generation: int, attempt: int) -> Scene:
        seed = (TRAINING_SEED, self.seed, self.rank, 0, slot, generation, attempt)
        rng = np.random.default_rng((*seed, 9))
        level = (PLAIN, HARD, LONG)[int(rng.choice(3, p=[0.4, 0.35, 0.25]))]
        side = self.shape.whole
        if side <= 128:  # what is small here could not be seen
            level = replace(level, radius=(level.radius[0] * 1.5, level.radius[1] * 1.5))
        elif rng.random() < _CLOSE_UP:
            times = _CLOSEST ** rng.random()
            level = replace(level, radius=(level.radius[0] * times, level.radius[1] * times))
        return Scene(seed, level, (side, side), aspect=float(np.exp(rng.uniform(-0.55, 0.65))), silhouettes=self.silhouettes)

    def _window(self, rng: np.random.Generator, slot: int, generation: int) -> _Window:
        """A stretch of a scene in which enough of something is visible at first."""
        for attempt in range(100):
            scene = self._scene(slot, generation, attempt // 4)
            start = float(rng.uniform(0, 3000))
            stride = float(rng.choice([1, 1, 2, 3]) * rng.choice([-1, 1])) * self.shape.pace
            first, ids = scene.render(start)
            seen = [i + 1 for i in range(len(scene.actors)) if is_visible(scene, i, start, ids)]
            if not seen:
                continue
            rendered = [(first, ids)] + [scene.render(start + k * stride) for k in range(1, self.shape.frames)]
            return np.stack([f for f, _ in rendered]), np.stack([m for _, m in rendered]), np.array(seen)
        raise AssertionError("no window with a visible object in 25 scenes")

    def _piece(
        self, frames: npt.NDArray[np.uint8], ids: npt.NDArray[np.uint8], seen: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> _Window:
        """What a batch takes of a window: a square round one of its objects, and which are in it at first."""
        size, inside = self.shape.size, seen
        if self.shape.drawn is not None:
            anchor = int(rng.choice(seen))
            mask = ids == anchor
            middles = _middle(mask[0]) + rng.uniform(-_OFF_CENTRE, _OFF_CENTRE, 2) * size + self._drift(mask, rng)
            corners = np.clip(middles - size / 2, 0, self.shape.drawn - size).astype(int)
            pieces = [(np.s_[y : y + size], np.s_[x : x + size]) for y, x in corners]
            whole = np.bincount(ids[0].ravel(), minlength=256)[seen]
            frames = np.stack([frame[piece] for frame, piece in zip(frames, pieces, strict=True)])
            ids = np.stack([frame[piece] for frame, piece in zip(ids, pieces, strict=True)])
            share = np.bincount(ids[0].ravel(), minlength=256)[seen] / whole
            inside = seen[(share >= 0.5) | (seen == anchor)]
        return frames, ids, inside

    @staticmethod
    def _drift(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """An even pan, float [T, 2], along a random share of the way an object goes while it is seen."""
        seen = np.flatnonzero(mask.any((1, 2)))
        way = rng.uniform(0, 1) * (_middle(mask[seen[-1]]) - _middle(mask[0]))
        return np.linspace(np.zeros(2), way, len(mask))


def _large(ids: npt.NDArray[np.uint8], seen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which of the ids `seen` show enough of themselves to be prompted."""
    return seen[np.bincount(ids.ravel(), minlength=256)[seen] >= _LEAST_SHARE * ids.size]


def _middle(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Row and column, float [2]."""
    return np.asarray(np.argwhere(mask).mean(0))


def is_visible(scene: Scene, index: int, t: float, ids: npt.NDArray[np.uint8]) -> bool:
    """Whether an actor shows enough of itself at time `t` to be prompted."""
    area = int(np.count_nonzero(ids == index + 1))
    return area >= _LEAST_SHARE * ids.size and area >= _LEAST_VISIBLE * scene.outline_area(index, t)


def visible_scene(seed: tuple[int, ...], level: Difficulty, size: tuple[int, int]) -> Scene:
    """The first of the scenes with seeds (*seed, 0), (*seed, 1), ... whose targets all show enough of themselves at time 0.

    Args:
        seed: any integers.
        level: of difficulty.
        size: (H, W), pixels.
    """
    for attempt in range(1000):
        scene = Scene((*seed, attempt), level, size)
        _, first = scene.render(0)
        if all(is_visible(scene, i, 0, first) for i in range(scene.targets)):
            return scene
    raise AssertionError("no scene with all targets visible at first in 1000")


def _augment(
    frames: npt.NDArray[np.uint8], ids: npt.NDArray[np.uint8], rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Mirror, turn, and swap colour channels, for a scene is used several times; frames come out as [T, 3, H, W]."""
    frames = frames[..., rng.permutation(3)]
    if rng.random() < 0.5:
        frames, ids = frames[:, :, ::-1], ids[..., ::-1]
    turns = int(rng.integers(4))
    frames, ids = np.rot90(frames, turns, (1, 2)), np.rot90(ids, turns, (1, 2))
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), np.ascontiguousarray(ids)


def make_prompts(truth: npt.NDArray[np.bool_], rng: np.random.Generator, *, masks: bool) -> Prompts:
    """Prompts of one kind for objects with masks bool [B, S, S]: boxes, clicks, or, where allowed, masks.

    A mask prompt is itself the first frame's answer, so there is nothing to learn from it without a second frame.
    """
    kind = rng.choice(["box", "points", "mask"], p=[0.4, 0.2, 0.4] if masks else [0.6, 0.4, 0.0])
    if kind == "mask":
        return Prompts(masks=truth[:, None].astype(np.float32))
    if kind == "box":
        boxes = np.stack([_loose_box(m, rng) for m in truth])
        return Prompts(points=boxes, labels=np.broadcast_to(np.array([2, 3], np.int32), (len(truth), 2)).copy())
    count = int(rng.integers(1, 4))
    points = np.stack([_clicks(m, count, rng) for m in truth])
    labels = np.ones((len(truth), count), np.int32)
    if count > 1 and rng.random() < 0.5:
        labels[:, -1] = 0
        points[:, -1] = np.stack([_clicks(~m, 1, rng)[0] for m in truth])
    return Prompts(points=points, labels=labels)


def tight_box(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """float32 [4]: x0, y0, x1, y1 in pixels, right and lower sides exclusive.

    Raises:
        ValueError: if the mask is empty.
    """
    ys, xs = np.nonzero(mask)
    if not len(ys):
        raise ValueError("expected a mask with at least one pixel; got an empty one")
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


def _loose_box(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    box = tight_box(mask)
    slack = np.tile(box[2:] - box[:2], 2) * rng.normal(0, 0.04, 4)
    return np.clip(box + slack, 0, mask.shape[-1]).astype(np.float32).reshape(2, 2)


def _clicks(mask: npt.NDArray[np.bool_], count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """float32 [count, 2] x, y: the first anywhere well inside, others anywhere inside."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    out = []
    for k in range(count):
        ys, xs = np.nonzero(depth >= (0.5 * depth.max() if k == 0 else 0.5))
        if not len(ys):
            ys, xs = np.zeros(1, np.int64), np.zeros(1, np.int64)
        i = int(rng.integers(len(ys)))
        out.append((xs[i] + 0.5, ys[i] + 0.5))
    return np.array(out, np.float32)
