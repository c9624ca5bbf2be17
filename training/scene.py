"""Procedural clips: textured things that move, turn, grow, bend, hide each other and come back, before a moving camera.

A scene is a function of time: `Scene.render(t)` draws any frame alone, so clips of any length and stride come from one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from fastsam2.training.shapes import SHAPES, Outline, Wobble
from fastsam2.training.silhouettes import Silhouette
from fastsam2.training.textures import Image, Look, backdrop, paint, random_look

_SUBPIXEL = 4  # bits of sub-pixel position in cv2.fillPoly
_MARGIN = 1.5  # the background is so much larger than the frame


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Ranges a scene is drawn from. Lengths are shares of the frame's shorter side.

    Attributes:
        targets: number of annotated objects.
        distractors: number of others that move in the same way.
        similar: share of distractors that copy a target's look, its shape, or both.
        occluders: number of things that pass in front of everything.
        radius: of objects.
        reach: how far an object swings from its middle.
        period: of that swing, frames.
        camera: pan of the camera.
        clutter: number of still things painted on the background.
        camouflage: chance that the background and its clutter have a target's colours.
        noise: largest standard deviation of sensor noise, grey levels.
    """

    targets: tuple[int, int] = (1, 3)
    distractors: tuple[int, int] = (1, 3)
    similar: float = 0.6
    occluders: tuple[int, int] = (0, 1)
    radius: tuple[float, float] = (0.09, 0.22)
    reach: tuple[float, float] = (0.15, 0.45)
    period: tuple[float, float] = (70.0, 180.0)
    camera: float = 0.06
    clutter: tuple[int, int] = (2, 9)
    camouflage: float = 0.6
    noise: float = 8.0


PLAIN = Difficulty()
HARD = Difficulty(
    targets=(2, 3),
    distractors=(3, 5),
    similar=0.85,
    occluders=(1, 2),
    radius=(0.055, 0.15),
    reach=(0.2, 0.5),
    period=(50.0, 130.0),
    camera=0.1,
    clutter=(4, 14),
    camouflage=0.8,
    noise=12.0,
)
LONG = Difficulty(distractors=(1, 3), similar=0.7, occluders=(1, 1), radius=(0.08, 0.18), reach=(0.2, 0.5), clutter=(2, 10))


@dataclass(slots=True)
class _Path:
    """A smooth random walk round a middle: two sine waves an axis."""

    middle: tuple[float, float]
    reach: tuple[float, float]
    rate: tuple[float, float]
    phase: tuple[float, float, float, float]

    def __call__(self, t: float) -> tuple[float, float]:
        (mx, my), (rx, ry), (wx, wy), (a, b, c, d) = self.middle, self.reach, self.rate, self.phase
        x = mx + rx * (math.sin(wx * t + a) + 0.25 * math.sin(2.3 * wx * t + b))
        y = my + ry * (math.sin(wy * t + c) + 0.25 * math.sin(1.9 * wy * t + d))
        return x, y


@dataclass(slots=True)
class Actor:
    """Something that moves. Its outline is in object units, its place in shares of the frame's shorter side.

    Attributes:
        shape: name used in the caption.
        look: how it is painted.
        outline: at rest; empty for a silhouette, which has one per frame.
        silhouette: real outlines over time, or None.
        patch: uint8 [n, n, 3], covers -1.3..1.3 in object units.
        path: middle over time.
    """

    shape: str
    look: Look
    outline: Outline
    silhouette: Silhouette | None
    patch: Image
    path: _Path
    wobble: Wobble
    radius: float
    swell: tuple[float, float, float]
    turn: tuple[float, float, float]
    squash: tuple[float, float, float]
    pace: float

    @property
    def caption(self) -> str:
        """For example `red and white striped star`."""
        return f"{self.look.words()} {self.shape}"

    def place(self, t: float) -> npt.NDArray[np.float32]:
        """float32 [2, 3]: object units to shares of the shorter side."""
        x, y = self.path(t)
        amount, rate, phase = self.swell
        r = self.radius * math.exp(amount * math.sin(rate * t + phase))
        angle = self.turn[0] + self.turn[1] * t + 0.5 * math.sin(self.turn[2] * t + phase)
        amount, rate, phase = self.squash
        stretch = math.exp(amount * math.sin(rate * t + phase))
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[r * c * stretch, -r * s / stretch, x], [r * s * stretch, r * c / stretch, y]], np.float32)

    def shape_at(self, t: float) -> Outline:
        """The outline at time `t`, object units."""
        return self.silhouette.at(t * self.pace) if self.silhouette is not None else self.wobble(self.outline, t)


def _actor(rng: np.random.Generator, level: Difficulty, extent: tuple[float, float], silhouettes: Sequence[Silhouette]) -> Actor:
    real = silhouettes[int(rng.integers(len(silhouettes)))] if silhouettes and rng.random() < 0.25 else None
    shape = "figure" if real is not None else str(rng.choice(list(SHAPES)))
    look = random_look(rng)
    reach = (float(rng.uniform(*level.reach)) * extent[0] / 1.25, float(rng.uniform(*level.reach)) * extent[1] / 1.25)
    path = _Path(
        middle=(extent[0] * float(rng.uniform(0.3, 0.7)), extent[1] * float(rng.uniform(0.3, 0.7))),
        reach=reach,
        rate=(2 * math.pi / float(rng.uniform(*level.period)), 2 * math.pi / float(rng.uniform(*level.period))),
        phase=tuple(rng.uniform(0, 2 * math.pi, 4).tolist()),
    )
    spin = float(rng.normal(0, 0.04)) if rng.random() < 0.6 else 0.0
    return Actor(
        shape=shape,
        look=look,
        outline=[] if real is not None else SHAPES[shape](rng),
        silhouette=real,
        patch=paint(look, rng),
        path=path,
        wobble=Wobble(rng, float(rng.choice([0.0, 0.1, 0.22]))),
        radius=float(np.exp(rng.uniform(*np.log(level.radius)))),
        swell=(float(rng.uniform(0, 0.35)), float(rng.uniform(0.03, 0.1)), float(rng.uniform(0, 6.3))),
        turn=(float(rng.uniform(0, 6.3)) if real is None else float(rng.normal(0, 0.3)), spin, float(rng.uniform(0.02, 0.12))),
        squash=(float(rng.uniform(0, 0.2)), float(rng.uniform(0.03, 0.15)), float(rng.uniform(0, 6.3))),
        pace=float(rng.uniform(0.3, 1.0)),
    )


def _imitate(rng: np.random.Generator, actor: Actor, model: Actor) -> None:
    """Make a distractor share its model's look, its shape, or both."""
    what = rng.integers(3)
    if what != 0:
        actor.look, actor.patch = model.look, paint(model.look, rng) if rng.random() < 0.5 else model.patch
    if what != 1:
        actor.shape, actor.outline, actor.silhouette = model.shape, model.outline, model.silhouette
        actor.radius = model.radius * float(np.exp(rng.normal(0, 0.15)))


@dataclass(slots=True)
class _Camera:
    pan: tuple[float, float]
    rate: tuple[float, float, float]
    phase: tuple[float, float, float]
    zoom: float
    roll: float
    shake: float

    def __call__(self, t: float, height: int, width: int, jitter: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """float32 [2, 3]: shares of the shorter side to pixels."""
        s = min(height, width)
        zoom = math.exp(self.zoom * math.sin(self.rate[2] * t + self.phase[2])) * s
        angle = self.roll * math.sin(self.rate[2] * 1.3 * t + self.phase[1])
        c, n = zoom * math.cos(angle), zoom * math.sin(angle)
        dx = self.pan[0] * math.sin(self.rate[0] * t + self.phase[0]) + self.shake * jitter[0]
        dy = self.pan[1] * math.sin(self.rate[1] * t + self.phase[1]) + self.shake * jitter[1]
        mx, my = width / s / 2, height / s / 2
        return np.array([[c, -n, width / 2 + dx * s - c * mx + n * my], [n, c, height / 2 + dy * s - n * mx - c * my]], np.float32)


def _compose(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The map that applies b, then a."""
    return np.concatenate([a[:, :2] @ b[:, :2], a[:, :2] @ b[:, 2:] + a[:, 2:]], 1)


@dataclass
class Scene:
    """Everything in a clip, drawn from one seed.

    Args:
        seed: any integers; equal seeds give equal scenes.
        level: ranges to draw from.
        size: height and width of frames, pixels.
        aspect: width / height of the world shown; frames are stretched to `size` when it differs (training at square sizes).
        silhouettes: real outlines to use for a quarter of the actors.
    """

    seed: tuple[int, ...]
    level: Difficulty
    size: tuple[int, int]
    aspect: float | None = None
    silhouettes: Sequence[Silhouette] = ()
    targets: int = field(init=False)
    actors: list[Actor] = field(init=False)
    occluders: list[Actor] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        level, (height, width) = self.level, self.size
        aspect = self.aspect or width / height
        self._extent = (max(aspect, 1.0), max(1 / aspect, 1.0))
        self.targets = int(rng.integers(level.targets[0], level.targets[1] + 1))
        self.actors = [_actor(rng, level, self._extent, self.silhouettes) for _ in range(self.targets)]
        for _ in range(int(rng.integers(level.distractors[0], level.distractors[1] + 1))):
            other = _actor(rng, level, self._extent, self.silhouettes)
            if rng.random() < level.similar:
                _imitate(rng, other, self.actors[int(rng.integers(self.targets))])
            self.actors.append(other)
        self.occluders = [
            _actor(rng, level, self._extent, ()) for _ in range(int(rng.integers(level.occluders[0], level.occluders[1] + 1)))
        ]
        for bar in self.occluders:  # tall and narrow, so that what passes behind comes out again
            bar.outline = SHAPES["bar"](rng)
            bar.radius = float(rng.uniform(0.15, 0.36))
            bar.turn = (math.pi / 2 + float(rng.normal(0, 0.25)), 0.0, 0.02)
            bar.path.reach = (bar.path.reach[0] * 0.6, bar.path.reach[1] * 0.2)
        self._depth = rng.permutation(len(self.actors))
        self._background = self._paint_background(rng)
        rate = rng.uniform(0.015, 0.07, 3)
        moving = rng.random() < 0.7
        pan = rng.uniform(0, level.camera, 2) * moving
        self._camera = _Camera(
            pan=(float(pan[0]), float(pan[1])),
            rate=(float(rate[0]), float(rate[1]), float(rate[2])),
            phase=tuple(rng.uniform(0, 6.3, 3).tolist()),
            zoom=float(rng.uniform(0, 0.12)) * moving,
            roll=float(rng.uniform(0, 0.08)) * moving,
            shake=float(rng.choice([0.0, 0.0, 0.004, 0.01])),
        )
        self._light = (float(rng.uniform(0, 0.25)), float(rng.uniform(0.02, 0.15)), rng.normal(1, 0.05, 3), rng.normal(0, 0.2, 2))
        self._blur = (float(rng.choice([0, 0, 0.6, 1.0])), int(rng.choice([0, 0, 3, 5])), float(rng.uniform(0, math.pi)))
        self._noise = float(rng.uniform(0, level.noise))
        self._grain = rng.standard_normal((height + 64, width + 64, 3)).astype(np.float32)

    @property
    def captions(self) -> list[str]:
        """Of the targets."""
        return [a.caption for a in self.actors[: self.targets]]

    def render(self, t: float) -> tuple[Image, npt.NDArray[np.uint8]]:
        """Draw the frame at time `t`.

        Returns:
            RGB uint8 [H, W, 3], and uint8 [H, W]: 0 background, 1.. index + 1 into `actors` (targets first), 255 occluders.
        """
        height, width = self.size
        rng = np.random.default_rng((*self.seed, 7, round(t * 16) & 0xFFFFFFFF))
        stretch = self._stretch()
        camera = _compose(stretch, self._camera(t, *self._frame_size(), rng.normal(0, 1, 2)))
        s = min(self._background.shape[:2]) / _MARGIN
        half = (_MARGIN - 1) / 2
        to_world = np.array([[1 / s, 0, -half * self._extent[0]], [0, 1 / s, -half * self._extent[1]]], np.float32)
        image = _warp(self._background, _compose(camera, to_world), width, height)
        ids = np.zeros((height, width), np.uint8)
        for index in self._depth:
            self._draw(image, ids, self.actors[index], t, camera, int(index) + 1)
        for actor in self.occluders:
            self._draw(image, ids, actor, t, camera, 255)
        return self._expose(image, t, rng), ids

    def outline_area(self, index: int, t: float) -> float:
        """Pixels the actor would cover with nothing before it, whether in the frame or not."""
        camera = _compose(self._stretch(), self._camera(t, *self._frame_size(), np.zeros(2)))
        actor = self.actors[index]
        m = _compose(camera, actor.place(t))
        return float(sum(cv2.contourArea(p @ m[:, :2].T + m[:, 2]) for p in actor.shape_at(t)))

    def _frame_size(self) -> tuple[int, int]:
        """Height and width of an unstretched frame with the shorter side of `size`."""
        s = min(self.size)
        return round(s * self._extent[1]), round(s * self._extent[0])

    def _stretch(self) -> npt.NDArray[np.float32]:
        height, width = self._frame_size()
        return np.array([[self.size[1] / width, 0, 0], [0, self.size[0] / height, 0]], np.float32)

    def _paint_background(self, rng: np.random.Generator) -> Image:
        height, width = (round(n * _MARGIN) for n in self._frame_size())
        hidden = self.actors[int(rng.integers(self.targets))].look if rng.random() < self.level.camouflage else None
        image = backdrop(rng, (height, width), hidden)
        s = min(height, width)
        unused = np.zeros((height, width), np.uint8)
        for _ in range(int(rng.integers(self.level.clutter[0], self.level.clutter[1] + 1))):
            thing = _actor(rng, self.level, (width / s * 1.4, height / s * 1.4), ())
            if hidden is not None and rng.random() < 0.5:
                thing.look, thing.patch = hidden, paint(hidden, rng)
            self._draw(image, unused, thing, 0.0, np.array([[s, 0, 0], [0, s, 0]], np.float32), 1)
        return image

    def _draw(self, image: Image, ids: npt.NDArray[np.uint8], actor: Actor, t: float, camera: npt.NDArray[np.float32], value: int) -> None:
        m = _compose(camera, actor.place(t))
        polygons = [p @ m[:, :2].T + m[:, 2] for p in actor.shape_at(t)]
        low = np.maximum(np.floor(np.min([p.min(0) for p in polygons], 0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(np.max([p.max(0) for p in polygons], 0)).astype(int) + 2, [image.shape[1], image.shape[0]])
        w, h = (high - low).tolist()
        if w <= 0 or h <= 0:
            return
        region = np.s_[low[1] : high[1], low[0] : high[0]]
        fixed = [np.round((p - low) * (1 << _SUBPIXEL)).astype(np.int32) for p in polygons]
        cover = np.zeros((h, w), np.uint8)
        cv2.fillPoly(cover, fixed, 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL)
        side = actor.patch.shape[0]
        unit = np.array([[2.6 / side, 0, -1.3], [0, 2.6 / side, -1.3]], np.float32)  # patch pixels to object units
        warp = _compose(m, unit)
        warp[:, 2] -= low
        texture = _warp(actor.patch, warp, w, h)
        alpha = cover[..., None].astype(np.float32) / 255
        image[region] = np.round(image[region] + (texture.astype(np.float32) - image[region]) * alpha).astype(np.uint8)
        ids[region][cover > 127] = value

    def _expose(self, image: Image, t: float, rng: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        swing, rate, tint, slope = self._light
        gain = 1 + swing * math.sin(rate * t)
        x = np.linspace(-0.5, 0.5, width, dtype=np.float32) * slope[0]
        y = np.linspace(-0.5, 0.5, height, dtype=np.float32) * slope[1]
        out = image.astype(np.float32) * ((gain + x[None, :, None] + y[:, None, None]) * tint.astype(np.float32))
        defocus, streak, angle = self._blur
        if defocus:
            out = cv2.GaussianBlur(out, (0, 0), defocus)
        if streak and math.sin(0.05 * t + angle) > 0.3:
            out = cv2.filter2D(out, -1, _streak(streak, angle))
        oy, ox = rng.integers(0, 65, 2)
        out += self._noise * self._grain[oy : oy + height, ox : ox + width]
        return np.asarray(np.clip(out, 0, 255), np.uint8)


def _warp(image: Image, matrix: npt.NDArray[np.float32], width: int, height: int) -> Image:
    warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(warped, np.uint8)


def _streak(length: int, angle: float) -> npt.NDArray[np.float32]:
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D((length / 2 - 0.5, length / 2 - 0.5), math.degrees(angle), 1.0)
    turned = np.asarray(cv2.warpAffine(kernel, turn, (length, length)), np.float32)
    return turned / turned.sum()
