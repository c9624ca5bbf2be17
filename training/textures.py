"""Named colours and patterns, painted as square patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 35, 35),
    "orange": (235, 130, 25),
    "yellow": (235, 215, 50),
    "green": (45, 150, 55),
    "cyan": (60, 200, 200),
    "blue": (40, 75, 200),
    "purple": (130, 50, 170),
    "pink": (235, 130, 180),
    "brown": (115, 75, 40),
    "white": (235, 235, 230),
    "gray": (128, 128, 130),
    "black": (28, 28, 32),
}
"""RGB of the names used in captions; every use varies them a little."""

PATTERNS = ("plain", "striped", "checkered", "dotted", "mottled", "shaded", "ringed")
"""Names used in captions."""
_WEIGHTS = (0.07, 0.19, 0.17, 0.15, 0.2, 0.1, 0.12)  # how often each is drawn: two colours hide better than one


@dataclass(frozen=True, slots=True)
class Look:
    """How something is painted: two colour names and a pattern name."""

    first: str
    second: str
    pattern: str

    def words(self) -> str:
        """As in a caption: `red plain`, `red and white striped`."""
        return f"{self.first} plain" if self.pattern == "plain" else f"{self.first} and {self.second} {self.pattern}"


def random_look(rng: np.random.Generator) -> Look:
    """Two different colours and a pattern."""
    first, second = rng.choice(list(COLOURS), 2, replace=False)
    return Look(str(first), str(second), str(rng.choice(PATTERNS, p=_WEIGHTS)))


def colour(name: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """RGB float32 [3], 0..255, near the named colour."""
    return np.clip(np.array(COLOURS[name], np.float32) + rng.normal(0, 14, 3), 0, 255).astype(np.float32)


def clouds(rng: np.random.Generator, size: tuple[int, int], *, cell: int, octaves: int = 4) -> npt.NDArray[np.float32]:
    """Smooth noise in several octaves, float32 [H, W], standard deviation about 1.

    Args:
        rng: draws it.
        size: height and width, pixels.
        cell: size of the coarsest features, pixels.
        octaves: each is twice as fine and weighs 0.6 as much.
    """
    out = np.zeros(size, np.float32)
    weight = 1.0
    for octave in range(octaves):
        step = max(1, cell >> octave)
        grid = rng.standard_normal((size[0] // step + 2, size[1] // step + 2)).astype(np.float32)
        out += weight * cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        weight *= 0.6
    return out / max(float(out.std()), 1e-6)


def paint(look: Look, rng: np.random.Generator, side: int = 96) -> Image:
    """A patch uint8 [side, side, 3] that covers -1..1 in object units."""
    a, b = colour(look.first, rng), colour(look.second, rng)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = -x * math.sin(angle) + y * math.cos(angle)
    n = rng.uniform(2.0, 4.5)
    if look.pattern == "striped":
        mix = (np.sin(math.pi * n * u) > rng.uniform(-0.4, 0.4)).astype(np.float32)
    elif look.pattern == "checkered":
        mix = ((np.floor(u * n * 0.8) + np.floor(v * n * 0.8)) % 2).astype(np.float32)
    elif look.pattern == "dotted":
        mix = ((np.mod(u * n, 1) - 0.5) ** 2 + (np.mod(v * n, 1) - 0.5) ** 2 < rng.uniform(0.06, 0.13)).astype(np.float32)
    elif look.pattern == "mottled":
        mix = (clouds(rng, (side, side), cell=max(6, int(side / n / 1.2)), octaves=2) > rng.uniform(-0.2, 0.6)).astype(np.float32)
    elif look.pattern == "shaded":
        mix = np.clip(u * 0.5 + 0.5, 0, 1)
    elif look.pattern == "ringed":
        mix = (np.sin(math.pi * n * np.hypot(u, v) * 1.3) > 0).astype(np.float32)
    else:
        mix = np.zeros_like(u)
    patch = a + (b - a) * mix[..., None]
    light = 1 + rng.uniform(0, 0.22) * (u * rng.choice([-1, 1]) + v * 0.5) + 0.04 * clouds(rng, (side, side), cell=side // 6, octaves=3)
    return np.asarray(np.clip(patch * light[..., None], 0, 255), np.uint8)


def backdrop(rng: np.random.Generator, size: tuple[int, int], hidden: Look | None = None) -> Image:
    """A background uint8 [H, W, 3]: clouds of two to four colours, sometimes with a grain or bands.

    Args:
        rng: draws it.
        size: height and width, pixels.
        hidden: two of the colours are those of this look, so that colour alone does not give its bearer away.
    """
    names = list(rng.choice(list(COLOURS), int(rng.integers(2, 5))))
    if hidden is not None:
        names = [names[0], hidden.first, hidden.second][int(rng.integers(2)) :] + names[2:]
    cell = int(min(size) * rng.uniform(0.08, 0.4))
    out = np.broadcast_to(colour(str(names[0]), rng), (*size, 3)).astype(np.float32)
    for name in names[1:]:
        field = clouds(rng, size, cell=cell)
        sharp = rng.uniform(0.8, 6)
        mix = 1 / (1 + np.exp(-np.clip(sharp * (field - rng.uniform(-0.3, 0.8)), -30, 30)))
        out = out + (colour(str(name), rng) - out) * mix[..., None]
    if rng.random() < 0.3:
        y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
        angle, period = rng.uniform(0, math.pi), rng.uniform(8, 40)
        bands = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period) > 0
        out = out * (1 - rng.uniform(0.05, 0.3) * bands[..., None])
    out = out * (1 + rng.uniform(0.02, 0.12) * clouds(rng, size, cell=4, octaves=2)[..., None])
    dull = 0.0 if hidden is not None else rng.uniform(0.0, 0.6)
    return np.asarray(np.clip(out * (1 - dull) + out.mean(-1, keepdims=True) * dull, 0, 255), np.uint8)
