"""Videos made for the tests of sources and runs."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 48, 64
CORNERS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
QUARTER_TURNS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # degrees clockwise -> a, b, c, d


def quadrants() -> Array:
    """Top: red, green; bottom: blue, white."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[:24, :32], frame[:24, 32:], frame[24:, :32], frame[24:, 32:] = CORNERS.values()
    return frame


def corner_names(frame: Array) -> list[str]:
    pixels = [frame[4, 4], frame[4, -5], frame[-5, 4], frame[-5, -5]]
    return [min(CORNERS, key=lambda name: int(np.abs(pixel.astype(int) - CORNERS[name]).sum())) for pixel in pixels]


def level(i: int) -> int:
    return 30 + 8 * i


def counting(count: int) -> list[Array]:
    """Frames whose grey level tells their number, on noise that keeps the encoder busy."""
    noise = np.random.default_rng(0).integers(-15, 16, (HEIGHT, WIDTH, 1))
    return [np.broadcast_to(level(i) + np.roll(noise, i, 1), (HEIGHT, WIDTH, 3)).clip(0, 255).astype(np.uint8) for i in range(count)]


def numbers(frames: Iterable[Array]) -> list[int]:
    return [round((float(frame.mean()) - 30) / 8) for frame in frames]


def write_video(path: Path, frames: list[Array], *, codec: str = "libx264", fps: int = 25) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "12", "bf": "0"} if codec == "libx264" else {"qscale": "2"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Patches the display matrix of an mp4's track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
