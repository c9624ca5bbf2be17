"""Outlines of named shapes, and their deformation: closed polygons in object units (about -1..1), ready for an even-odd fill."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Outline: TypeAlias = list[npt.NDArray[np.float32]]
"""Closed polygons float32 [n, 2]; what an even number of them covers is a hole."""

_POINTS = 72


def _angles(count: int = _POINTS) -> npt.NDArray[np.float64]:
    return np.arange(count, dtype=np.float64) * (2 * math.pi / count)


def _polar(radius: npt.ArrayLike, *, sx: float = 1.0, sy: float = 1.0) -> Outline:
    a = _angles()
    r = np.broadcast_to(np.asarray(radius), a.shape)
    return [np.stack([r * np.cos(a) * sx, r * np.sin(a) * sy], 1).astype(np.float32)]


def _corners(*points: tuple[float, float]) -> Outline:
    """A polygon by its corners, its sides subdivided so that it can bend."""
    c = np.array(points, np.float32)
    steps = max(1, _POINTS // len(c))
    t = np.linspace(0, 1, steps, endpoint=False, dtype=np.float32)[:, None]
    return [np.concatenate([a + (b - a) * t for a, b in zip(c, np.roll(c, -1, 0), strict=True)])]


def _regular(n: int) -> Outline:
    return _corners(*((math.sin(2 * math.pi * i / n), -math.cos(2 * math.pi * i / n)) for i in range(n)))


def _star(n: int, inner: float) -> Outline:
    radii = [1.0, inner] * n
    return _corners(*((r * math.sin(math.pi * i / n), -r * math.cos(math.pi * i / n)) for i, r in enumerate(radii)))


def _bar(h: float) -> Outline:
    return _corners((-1, -h), (1, -h), (1, h), (-1, h))


def _cross(w: float) -> Outline:
    return _corners((-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w))


def _heart() -> Outline:
    a = _angles()
    x = 16 * np.sin(a) ** 3
    y = -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a))
    return [(np.stack([x, y + 2], 1) / 16).astype(np.float32)]


def _crescent() -> Outline:
    a = np.linspace(0.25 * math.pi, 1.75 * math.pi, _POINTS // 2)
    outer = np.stack([np.cos(a), np.sin(a)], 1)
    b = np.linspace(1.75 * math.pi, 0.25 * math.pi, _POINTS // 2)
    inner = np.stack([0.25 + 0.75 * np.cos(b) * 0.9, np.sin(b) * 0.95], 1)
    return [np.concatenate([outer, inner]).astype(np.float32)]


def _ring() -> Outline:
    a = _angles()
    circle = np.stack([np.cos(a), np.sin(a)], 1).astype(np.float32)
    return [circle, circle[::-1] * 0.5]


def _drop() -> Outline:
    a = _angles()
    return [np.stack([np.sin(a) * np.sin(a / 2) ** 1.5, -np.cos(a)], 1).astype(np.float32)]


def _blob(rng: np.random.Generator) -> Outline:
    a = _angles()
    r = np.ones_like(a)
    for k in range(2, 7):
        r += rng.uniform(0, 0.55 / k) * np.cos(k * a + rng.uniform(0, 2 * math.pi))
    return _polar(r / r.max())


SHAPES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "disc": lambda _: _polar(1.0),
    "oval": lambda rng: _polar(1.0, sy=float(rng.uniform(0.45, 0.7))),
    "triangle": lambda _: _regular(3),
    "square": lambda _: _corners((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "bar": lambda rng: _bar(float(rng.uniform(0.25, 0.45))),
    "pentagon": lambda _: _regular(5),
    "hexagon": lambda _: _regular(6),
    "star": lambda rng: _star(int(rng.integers(4, 7)), float(rng.uniform(0.4, 0.55))),
    "gear": lambda rng: _polar(0.85 + 0.15 * np.sign(np.cos(int(rng.integers(6, 10)) * _angles()))),
    "flower": lambda rng: _polar(0.78 + 0.22 * np.cos(int(rng.integers(5, 8)) * _angles())),
    "heart": lambda _: _heart(),
    "cross": lambda rng: _cross(float(rng.uniform(0.28, 0.42))),
    "crescent": lambda _: _crescent(),
    "ring": lambda _: _ring(),
    "arrow": lambda _: _corners((-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)),
    "drop": lambda _: _drop(),
    "blob": _blob,
}
"""Names as they appear in captions."""


class Wobble:
    """A smooth, periodic deformation of an outline: a few sine waves across the plane, and a bend.

    Args:
        rng: draws it.
        strength: about the largest displacement, object units.
    """

    def __init__(self, rng: np.random.Generator, strength: float) -> None:
        self.waves = rng.normal(0, 1.6, (3, 2)).astype(np.float32)
        self.push = (rng.normal(0, 0.5, (3, 2)) * strength).astype(np.float32)
        self.speed = rng.uniform(0.05, 0.25, 3)
        self.phase = rng.uniform(0, 2 * math.pi, 3)
        self.bend = float(rng.normal(0, 0.6) * strength)
        self.bend_speed = float(rng.uniform(0.04, 0.15))

    def __call__(self, outline: Outline, t: float) -> Outline:
        """The outline at time `t`, frames."""
        return [self._move(points, t) for points in outline]

    def _move(self, points: npt.NDArray[np.float32], t: float) -> npt.NDArray[np.float32]:
        phase = points @ self.waves.T + (self.phase + self.speed * t)
        moved = points + np.sin(phase).astype(np.float32) @ self.push
        moved[:, 1] += self.bend * math.sin(self.bend_speed * t + self.phase[0]) * (points[:, 0] ** 2 - 0.4)
        return moved.astype(np.float32)
