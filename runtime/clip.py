"""Frames of a finished clip, resized once and held as uint8 on the host.

    folder of JPEGs | video file | uint8 [T, H, W, 3] | sequence of uint8 [H, W, 3]  ─►  ClipFrames: index -> pixels uint8 [1, 3, S, S]

Mirrors facebookresearch/sam2 @2b90b9f `sam2/utils/misc.py` (`load_video_frames`, `AsyncVideoFrameLoader`): the same file names in the same
order, the same filter, no rotation by EXIF. Unlike there, all frames must be of one size, and video files are resized by the same filter.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.errors import VideoError, expected
from fastsam2.runtime.preprocess import check_frame, frame_to_pixels

Frame = npt.NDArray[np.uint8]

JPEG_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".JPEG")


class ClipFrames:
    """The frames of a clip in the size of the model, by index. `load_clip` makes it.

    Args:
        pixels: uint8 [1, 3, S, S] each; None for frames that are still to be read from `files`.
        size: (H, W) of the frames, pixels.
        files: one picture per frame; needed for those that are None, which a thread begins to read at once.

    Attributes:
        size: as given.
    """

    def __init__(self, pixels: list[Frame | None], size: tuple[int, int], files: Sequence[Path] = ()) -> None:
        self.size = size
        self._pixels, self._files = pixels, files
        self._error: BaseException | None = None
        if any(held is None for held in pixels):
            threading.Thread(target=self._load_rest, name="fastsam2-clip-reader", daemon=True).start()

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Frame:
        """Pixels uint8 [1, 3, S, S] of a frame, not to be written to; read at once if the thread has not come that far.

        Raises:
            VideoError: if a frame could not be read: this one, or any that the thread has reached.
            IndexError: if there is no such frame.
        """
        if self._error is not None:
            raise VideoError(str(self._error)) from self._error
        held = self._pixels[index]
        return self._load(index) if held is None else held

    def _load(self, index: int) -> Frame:
        first = self._pixels[0]
        assert first is not None
        pixels = self._pixels[index] = _resized(_read_picture(self._files[index]), index, self.size, first.shape[-1])
        return pixels

    def _load_rest(self) -> None:
        try:
            for index, pixels in enumerate(self._pixels):
                if pixels is None:
                    self._load(index)
        except Exception as error:  # raised in the thread that asks for a frame
            self._error = error


def load_clip(source: object, image_size: int, *, background: bool = False) -> ClipFrames:
    """Open a clip.

    Args:
        source: a folder of JPEG files named by frame number, the path of a video file, uint8 [T, H, W, 3] RGB, or a sequence of uint8
            [H, W, 3] RGB of one size.
        image_size: S, pixels.
        background: load all but the first frame of a folder in a thread; other sources are always read at once.

    Raises:
        VideoError: if there is no such source, it has no frame, a frame cannot be read or has another size than the first.
        PromptError: if an array is no RGB frame.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            files = jpeg_files(path)
            if not background:
                return _load_all((_read_picture(file) for file in files), image_size)
            first = _read_picture(files[0])
            size = (first.shape[0], first.shape[1])
            return ClipFrames([frame_to_pixels(first, image_size), *[None] * (len(files) - 1)], size, files)
        if path.is_file():
            return _load_all(_decoded(str(path)), image_size)
        raise VideoError(expected("a folder of JPEG frames or a video file", f"{str(path)!r}, which does not exist", "Check the path"))
    if (isinstance(source, np.ndarray) and source.ndim == 4) or isinstance(source, list | tuple):
        return _load_all(source, image_size)
    got = f"{source.dtype} {list(source.shape)}" if isinstance(source, np.ndarray) else type(source).__name__
    raise VideoError(expected("a folder of JPEG frames, a video file, or RGB frames [T, H, W, 3]", got, "Give a path or uint8 frames"))


def jpeg_files(folder: Path) -> list[Path]:
    """The files that the official loader reads, in its order.

    Raises:
        VideoError: if there is none, or one is not named by a frame number.
    """
    files = [file for file in folder.iterdir() if file.suffix in JPEG_SUFFIXES]
    if not files:
        todo = f"Extract them: ffmpeg -i VIDEO -q:v 2 -start_number 0 '{folder}/%05d.jpg'"
        raise VideoError(expected(f"JPEG files {list(JPEG_SUFFIXES)} in {folder}", "none", todo))
    numbered: list[tuple[int, Path]] = []
    for file in files:
        try:
            numbered.append((int(file.stem), file))
        except ValueError as error:
            raise VideoError(expected("JPEG files named by frame number, as 00000.jpg", file, "Rename or remove it")) from error
    return [file for _, file in sorted(numbered)]


def _read_picture(file: Path) -> Frame:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(expected("a readable picture", f"{file} ({error})", "Replace or remove the file")) from error


def _decoded(path: str) -> Iterable[Frame]:
    from fastsam2.runtime.video import open_video  # loads libav, which folders and arrays do not need

    with open_video(path) as video:
        yield from video


def _load_all(frames: Iterable[Frame], image_size: int) -> ClipFrames:
    """Resizes frame by frame, so that never more than one is held in full."""
    pixels: list[Frame | None] = []
    size: tuple[int, int] | None = None
    for index, frame in enumerate(frames):
        check_frame(frame)
        size = size or (frame.shape[0], frame.shape[1])
        pixels.append(_resized(frame, index, size, image_size))
    if size is None:
        raise VideoError(expected("a clip of at least one frame", "none", "Give RGB frames"))
    return ClipFrames(pixels, size)


def _resized(frame: Frame, index: int, size: tuple[int, int], image_size: int) -> Frame:
    if frame.shape[:2] != size:
        got = f"{frame.shape[1]}x{frame.shape[0]} at frame {index}"
        raise VideoError(expected(f"frames of {size[1]}x{size[0]} pixels as the first one", got, "Give all frames one size"))
    return frame_to_pixels(frame, image_size)
