"""Deterministic clips: three textured, overlapping shapes moving over a textured ground, with their true masks.

Sizes are never square, so that swapped axes or a wrong resize cannot hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.training.held_out import study_clip

FRAMES = 24  # more than the 16 pointers of a step, so that the divisor of pointer offsets is the streaming one
SHAPES = ("disc", "box", "star")  # painted in this order: the star covers the box, the box covers the disc


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip and what is true of it.

    Attributes:
        name: for folders and messages.
        frames: uint8 [T, H, W, 3], RGB.
        truth: bool [T, len(SHAPES), H, W]; visible pixels of each shape.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.bool_]

    def mask(self, frame: int, shape: str) -> npt.NDArray[np.bool_]:
        """Visible pixels of a shape, bool [H, W]."""
        mask: npt.NDArray[np.bool_] = self.truth[frame, SHAPES.index(shape)]
        return mask

    def write_png(self, folder: Path) -> Path:
        """Write `00000.png`, ... and return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(self.frames):
            Image.fromarray(frame).save(folder / f"{index:05d}.png", compress_level=1)
        return folder

    def write_official(self, folder: Path) -> Path:
        """Write the same PNG bytes as `00000.jpg`, ...: the official loader reads .jpg names only, and Pillow looks at the bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(self.frames):
            Image.fromarray(frame).save(folder / f"{index:05d}.jpg", format="PNG", compress_level=1)
        return folder


def make_clip(name: str, seed: int, *, width: int = 320, height: int = 240, frames: int = FRAMES, curtain: range = range(0)) -> Clip:
    """Paint a clip; the same arguments always give the same bytes. A flat grey curtain hides everything on the frames of `curtain`."""
    rng = np.random.default_rng(seed)
    ground = _texture(rng, height + frames, width + frames)
    paints = [_texture(rng, height, width) for _ in SHAPES]
    tints = rng.uniform(-70, 70, (len(SHAPES), 3))
    centres = rng.uniform(0.35, 0.65, (len(SHAPES), 2)) * (width, height)
    swings = rng.uniform(0.08, 0.16, (len(SHAPES), 2)) * (width, height)
    phases = rng.uniform(0, 2 * np.pi, (len(SHAPES), 2))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    images = np.empty((frames, height, width, 3), np.uint8)
    truth = np.zeros((frames, len(SHAPES), height, width), np.bool_)
    for t in range(frames):
        image = ground[t : t + height, t : t + width].copy()
        for k, shape in enumerate(SHAPES):
            cx, cy = centres[k] + swings[k] * np.sin(phases[k] + 0.15 * t)
            inside = _inside(shape, x - cx, y - cy, 0.2 * min(width, height), 0.05 * t)
            image[inside] = paints[k][inside] + tints[k]
            truth[t, :k, inside] = False
            truth[t, k] = inside
        if t in curtain:
            image[:], truth[t] = 128.0, False
        images[t] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Clip(name, images, truth)


def drawn_clip() -> Clip:
    """Of what trained weights know: 60 frames with three things that each cover 1.7 % of every frame or more, and that nano holds."""
    clip = study_clip("plain", 15, 1)
    return Clip("drawn", clip.frames, np.stack([clip.truth == i for i in clip.ids], axis=1))


def _texture(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float64]:
    """Coarse blotches plus fine grain, float64 [H, W, 3], about 0..255."""
    coarse = rng.uniform(0, 255, (height // 24 + 2, width // 24 + 2, 3))
    blotches = coarse.repeat(24, axis=0).repeat(24, axis=1)[:height, :width]
    return 0.7 * blotches + 0.3 * rng.uniform(0, 255, (height, width, 3))


def _inside(shape: str, dx: npt.NDArray[np.float64], dy: npt.NDArray[np.float64], radius: float, angle: float) -> npt.NDArray[np.bool_]:
    """Pixels of a shape centred at the origin, turned by `angle` radians."""
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    inside: npt.NDArray[np.bool_]
    if shape == "disc":
        inside = np.hypot(u, v) < radius
    elif shape == "box":
        inside = (np.abs(u) < 1.2 * radius) & (np.abs(v) < 0.7 * radius)
    else:
        inside = np.hypot(u, v) < radius * (0.8 + 0.3 * np.cos(5 * np.arctan2(v, u)))
    return inside
