"""The folder that an evaluation server, or an evaluator on disk, expects of a run.

    one picture a frame     INSIDE/VIDEO/FRAME.png         palette PNG, pixels are object ids
    one for each object     INSIDE/VIDEO/OBJECT/FRAME.png  palette PNG, 1 on the object; OBJECT counts from 000

FRAME is the name of the frame's own file, INSIDE is "" or "Annotations" as the protocol says. What lies in the folder when a run has ended
is what goes into the zip file: `cd FOLDER && zip -r ../masks.zip *`. Pictures are those of facebookresearch/sam2 @2b90b9f
`tools/vos_inference.py` (`save_masks_to_dir`), in the palette of DAVIS.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.benchmarks.protocols import Protocol
from fastsam2.errors import VideoError, expected
from fastsam2.runtime.overlay import PALETTE

PARTIAL = ".partial"  # holds videos that are being tracked


class VideoMasks:
    """Writes the masks of one video.

    Args:
        folder: where; made if missing.
        separate: a folder for each object.
    """

    def __init__(self, folder: Path, *, separate: bool) -> None:
        self.folder, self._separate = folder, separate
        with _writing(folder):
            folder.mkdir(parents=True)

    def write(self, frame_name: str, masks: Mapping[int, npt.NDArray[np.bool_]], ids: npt.NDArray[np.uint8]) -> None:
        """Write one frame.

        Args:
            frame_name: name of its file, without suffix.
            masks: bool [H, W] by object id, of all objects of the video; written if objects are separate.
            ids: uint8 [H, W], the object of each pixel; written if they are not.

        Raises:
            VideoError: if the disk does not take it.
        """
        with _writing(self.folder):
            if not self._separate:
                _save(ids, self.folder / f"{frame_name}.png")
                return
            for object_id, mask in masks.items():
                own = self.folder / object_label(object_id, separate=True)
                own.mkdir(exist_ok=True)
                _save(mask.astype(np.uint8), own / f"{frame_name}.png")


def object_label(object_id: int, *, separate: bool) -> str:
    """What the benchmark calls an object: its colour, or the name of its folder, which counts from 000."""
    return f"{object_id - 1:03d}" if separate else str(object_id)


def video_folder(submission: Path, protocol: Protocol, video: str) -> Path:
    """Where the masks of a finished video lie."""
    return submission / protocol.inside / video


@contextmanager
def new_video(submission: Path, protocol: Protocol, video: str) -> Generator[VideoMasks, None, None]:
    """A writer whose pictures appear in the submission when the block ends well, in place of earlier ones.

    Raises:
        VideoError: if the folder cannot be written.
    """
    partial, final = submission / PARTIAL / video, video_folder(submission, protocol, video)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield VideoMasks(partial, separate=protocol.separate)
        with _writing(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise VideoError(expected(f"a folder that can be written at {folder}", error, "Free some space, or choose another")) from error


def _save(pixels: npt.NDArray[np.uint8], file: Path) -> None:
    image = Image.fromarray(pixels)
    image.putpalette(PALETTE.tobytes())
    image.save(file)
