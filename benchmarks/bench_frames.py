"""The frames that a benchmark runs on: stored once, losslessly, so that all sides decode the same files.

video | drawn scene ─► 00000.png, 00001.png, ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.errors import VideoError, expected
from fastsam2.runtime.video import Frame, open_video

SCENE = "ellipse on drifting texture, seed 0"
SCENE_SIZE = (720, 1280)  # height, width, pixels
DRIFT = 4  # of the texture, pixels per frame
SWAY = 0.03  # of the ellipse to both sides, share of the width
BOX = (0.28, 0.25, 0.65, 0.7)  # of the frame: x0, y0, x1, y1

Box = tuple[float, float, float, float]


def make_frames(count: int, size: tuple[int, int] = SCENE_SIZE, seed: int = 0) -> Iterator[Frame]:
    """A reddish ellipse that sways in front of a texture that drifts to the left: an object, so that masks are not a matter of rounding.

    Args:
        count: how many frames.
        size: height and width, pixels.
        seed: of the textures.

    Yields:
        uint8 [H, W, 3]; the ellipse fills `box_in(size)` on the first.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    far = _texture(rng.integers(0, 256, (height // 16, width // 8, 3)), size)
    near = _texture(rng.integers((200, 40, 30), (243, 83, 73), (height // 60 + 2, width // 60 + 2, 3)), size)
    x0, y0, x1, y1 = box_in(size)
    y, x = np.mgrid[:height, :width] + 0.5
    for t in range(count):
        sway = SWAY * width * math.sin(t / 6)
        inside = np.hypot((2 * (x - sway) - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)) < 1
        yield np.where(inside[..., None], near, np.roll(far, -DRIFT * t, axis=1))


def _texture(cells: npt.NDArray[np.int64], size: tuple[int, int]) -> Frame:
    """Colours [h, w, 3] as smooth spots, uint8 [H, W, 3]."""
    return np.asarray(Image.fromarray(cells.astype(np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC))


def box_in(size: tuple[int, int]) -> Box:
    """The box that prompts the object, in pixels of a frame of `size` (height, width)."""
    height, width = size
    return BOX[0] * width, BOX[1] * height, BOX[2] * width, BOX[3] * height


def store_frames(video: str | None, count: int, folder: Path) -> tuple[list[Path], tuple[int, int]]:
    """Write frames as PNG files.

    Args:
        video: any source of `open_video`; None for `make_frames`.
        count: how many of its frames, from the first on.
        folder: exists, and is empty.

    Returns:
        The files in order; height and width of the frames.

    Raises:
        VideoError: if the video cannot be read, or is shorter.
    """
    if video is None:
        files, size = _write(make_frames(count, SCENE_SIZE), folder)
    else:
        with open_video(video, max_frames=count) as source:
            files, size = _write(source, folder)
    if len(files) < count:
        todo = "Give a longer video, or time fewer frames with --frames"
        raise VideoError(expected(f"at least {count} frames in {video}", len(files), todo))
    return files, size


def _write(frames: Iterable[Frame], folder: Path) -> tuple[list[Path], tuple[int, int]]:
    files, size = [], (0, 0)
    for t, frame in enumerate(frames):
        files.append(folder / f"{t:05d}.png")
        Image.fromarray(frame).save(files[-1], compress_level=1)
        size = (frame.shape[0], frame.shape[1])
    return files, size
