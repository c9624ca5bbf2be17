"""Files of `fastsam2 run`, and masks read from files.

    (frame, Result), ... ──► OUT/.partial/ ──finish()──► OUT/masks/  masks.json  overlay.mp4  tokens.mp4  run.json

Nothing appears under its final name before the run is complete; run.json comes last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO, cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from fastsam2.errors import PromptError, VideoError, expected
from fastsam2.runtime.overlay import PALETTE, draw_overlay
from fastsam2.runtime.result import Result
from fastsam2.runtime.token_view import TokenPanels

PARTIAL = ".partial"
RUN_FILE = "run.json"
OWNED = ("masks", "masks.json", "overlay.mp4", "tokens.mp4", RUN_FILE)  # in the order they move into place
DEFAULT_FPS = 25.0  # overlay rate for sources without one, such as folders
PALETTE_IDS = range(1, 256)
_STEPS = 256  # of a frame's length: the times that pictures of uneven rate can have
_MPEG4_CLOCK = 65535  # most ticks a second that MPEG-4 part 2 knows


class RunWriter:
    """Writes everything one run produces under one folder.

    Layout: `masks/00000.png` palette images (index = object id, the lowest id wins where objects overlap), or with `separate`
    `masks/001/00000.png` 0/255 images per object; `masks.json` COCO RLE; `overlay.mp4`; `run.json`.

    Args:
        out: the folder; made if missing. May hold an earlier run, which `finish` replaces.
        size: (H, W) of frames and masks, pixels.
        fps: rate of the overlay; None writes it at 25.
        separate: one mask file per object instead of one per frame; needed for ids outside 1..255 and to keep overlaps.
        rle: also write masks.json.
        overlay: also write overlay.mp4.
        token_video: also write tokens.mp4, the memory rows kept of every frame but the last.
        names: of the mask files, by frame, without suffix; None numbers them from 00000.

    Raises:
        VideoError: if the folder cannot be written, or holds files of these names that no run left there.
    """

    def __init__(
        self,
        out: Path,
        *,
        size: tuple[int, int],
        fps: float | None,
        separate: bool,
        rle: bool,
        overlay: bool = True,
        token_video: TokenPanels | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.out = out
        self._names = names
        self.size = size
        self._separate = separate
        self._partial = out / PARTIAL
        self._frames = 0
        self._rle: TextIO | None = None
        self._separator = ""
        self._video = OverlayVideo(self._partial / "overlay.mp4", size=size, fps=fps or DEFAULT_FPS) if overlay else None
        self._panels = token_video
        self._tokens: OverlayVideo | None = None
        if token_video is not None:
            self._tokens = OverlayVideo(self._partial / "tokens.mp4", size=token_video.size(size), fps=fps or DEFAULT_FPS)
        self._last: tuple[npt.NDArray[np.uint8], float | None] | None = None
        with _writing(out):
            self._put_back()
            foreign = [name for name in OWNED if (out / name).exists()]
            if foreign and RUN_FILE not in foreign:
                raise VideoError(
                    expected(f"a new folder, or one with an earlier run's {RUN_FILE}", f"{out} holding {foreign}", "Choose another folder")
                )
            out.mkdir(parents=True, exist_ok=True)
            if self._partial.exists():
                shutil.rmtree(self._partial)
            self.masks.mkdir(parents=True)
            if rle:
                self._rle = (self._partial / "masks.json").open("w", encoding="utf-8")
                self._rle.write("[")

    @property
    def masks(self) -> Path:
        """The folder that holds the masks until `finish`."""
        return self._partial / "masks"

    @property
    def _earlier(self) -> Path:
        return self._partial / "earlier"

    def write(
        self,
        frame_rgb: npt.NDArray[np.uint8],
        result: Result,
        *,
        picture: npt.NDArray[np.uint8] | None = None,
        time: float | None = None,
    ) -> None:
        """Writes one frame's masks and overlay picture, named by `result.frame`.

        Args:
            frame_rgb: uint8 [H, W, 3].
            result: masks [B, H, W].
            picture: `draw_overlay` of the two where it was drawn already.
            time: seconds after the first frame; None for one step of the rate after the frame before.

        Raises:
            VideoError: if sizes differ from the run's, or the disk does not take it. Call `abort`.
            PromptError: if an id does not fit a palette image.
        """
        if frame_rgb.shape != (*self.size, 3) or result.masks.shape[1:] != self.size:
            got = f"frame {list(frame_rgb.shape)}, masks {list(result.masks.shape)}"
            raise VideoError(expected(f"frame and masks of height and width {list(self.size)}", got, "Give all frames one size"))
        strange = [i for i in result.ids if i not in PALETTE_IDS]
        if strange and not self._separate:
            raise PromptError(expected("object ids in 1..255 for palette masks", strange, "Use --separate, or other ids"))
        name = f"{result.frame:05d}.png" if self._names is None else f"{self._names[result.frame]}.png"
        with _writing(self.out):
            if self._separate:
                for object_id, mask in zip(result.ids, result.masks, strict=True):
                    folder = self.masks / f"{object_id:03d}"
                    folder.mkdir(exist_ok=True)
                    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / name)
            else:
                self._palette_image(result).save(self.masks / name)
            if self._rle is not None:
                self._write_rle(result, self._rle)
            if self._video is not None:
                self._video.write(draw_overlay(frame_rgb, result) if picture is None else picture, time)
            if self._tokens is not None and self._panels is not None:
                if self._last is not None:
                    before, then = self._last
                    self._tokens.write(self._panels.draw(before, result.tokens), then)
                self._last = frame_rgb, time
        self._frames += 1

    def finish(self, run: dict[str, Any]) -> None:
        """Completes the files and moves them into place, over what an earlier run left.

        Args:
            run: JSON-ready facts about the run; run.json also gets `outputs`: how masks were written, the overlay's codec, fps and size.

        Raises:
            VideoError: if no frame was written or the disk does not take it. Call `abort`, which puts an earlier run's files back.
        """
        if not self._frames:
            raise VideoError(expected("at least one written frame", "none", "Call abort for a run without frames"))
        outputs = {
            "frames": self._frames,
            "masks": "separate" if self._separate else "palette",
            "rle": self._rle is not None,
            "overlay": self._video.facts() if self._video is not None else None,
            "tokens": self._tokens.facts() if self._tokens is not None and self._frames > 1 else None,
        }
        with _writing(self.out):
            for video in (self._video, self._tokens):
                if video is not None:
                    video.close()
            if self._rle is not None:
                self._rle.write("\n]\n")
                self._rle.close()
            text = json.dumps({**run, "outputs": outputs}, indent=2, allow_nan=False)
            (self._partial / RUN_FILE).write_text(text + "\n", encoding="utf-8")
            self._replace()
            shutil.rmtree(self._partial)

    def abort(self) -> None:
        """Removes what this run wrote; an earlier run's files stay as they are."""
        with suppress(OSError, av.error.FFmpegError):  # a full disk may refuse the last flush of what is thrown away anyway
            if self._rle is not None:
                self._rle.close()
            for video in (self._video, self._tokens):
                if video is not None:
                    video.close()
        with _writing(self.out):
            if self._partial.exists():
                self._put_back()
                shutil.rmtree(self._partial)

    def _palette_image(self, result: Result) -> Image.Image:
        index = np.zeros(self.size, np.uint8)
        for i in np.argsort(result.ids)[::-1]:
            index[result.masks[i]] = result.ids[i]
        image = Image.fromarray(index)
        image.putpalette(PALETTE.tobytes())
        return image

    def _write_rle(self, result: Result, file: TextIO) -> None:
        for i, object_id in enumerate(result.ids):
            entry = {
                "frame": result.frame,
                "id": object_id,
                "size": list(self.size),
                "counts": counts_from_mask(result.masks[i]),
                "score": float(result.scores[i]),
                "visible": bool(result.visible[i]),
            }
            file.write(f"{self._separator}\n{json.dumps(entry, allow_nan=False)}")
            self._separator = ","

    def _replace(self) -> None:
        self._earlier.mkdir()
        for name in OWNED[::-1]:
            if (self.out / name).exists():
                os.replace(self.out / name, self._earlier / name)
        for name in OWNED:
            if (self._partial / name).exists():
                os.replace(self._partial / name, self.out / name)
        self._earlier.rename(self._partial / "replaced")  # from here on the new run is the one that counts

    def _put_back(self) -> None:
        """Files of an earlier run that `_replace` had moved away when it was stopped, whatever stopped it."""
        for name in OWNED:
            if (self._earlier / name).exists():
                if (self.out / name).exists():
                    os.replace(self.out / name, self._partial / name)
                os.replace(self._earlier / name, self.out / name)


class OverlayVideo:
    """An mp4 of RGB pictures at their times: H.264, or MPEG-4 part 2 where PyAV comes without libx264. The first picture makes the file.

    Args:
        path: the file.
        size: (H, W) of the pictures; odd sides are padded by repeating the last row or column.
        fps: frames per second, for pictures without a time.
    """

    def __init__(self, path: Path, *, size: tuple[int, int], fps: float) -> None:
        self.codec = video_codec()
        self.fps = fps
        self.path = path
        self.size = even_size(size)
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._rate = Fraction(fps).limit_denominator(1001)  # 30000/1001 comes back from 29.97...
        self._steps = _STEPS if self.codec == "libx264" else min(_STEPS, max(1, _MPEG4_CLOCK // self._rate.numerator))
        self._clock = 1 / (self._rate * self._steps)
        self._ticks = -1

    def facts(self) -> dict[str, Any]:
        """What run.json says of the video; `size` is [H, W]."""
        return {"codec": self.codec, "fps": self.fps, "size": list(self.size)}

    def write(self, picture: npt.NDArray[np.uint8], time: float | None = None) -> None:
        """Appends one uint8 [H, W, 3] RGB picture, `time` seconds after the first; None for one step of the rate after the one before."""
        if self._container is None or self._stream is None:
            self._container = av.open(str(self.path), "w")
            options = {"preset": "veryfast", "crf": "20"} if self.codec == "libx264" else {}
            self._stream = cast(VideoStream, self._container.add_stream(self.codec, rate=self._rate, options=options))
            self._stream.height, self._stream.width = self.size
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = self._clock
        pad = ((0, self.size[0] - picture.shape[0]), (0, self.size[1] - picture.shape[1]), (0, 0))
        frame = VideoFrame.from_ndarray(np.pad(picture, pad, mode="edge"), format="rgb24")
        wanted = self._ticks + self._steps if time is None else round(time / self._clock)
        frame.time_base = self._clock
        frame.pts = self._ticks = 0 if self._ticks < 0 else max(wanted, self._ticks + 1)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes what the encoder still holds and the index. Safe to call twice."""
        container, self._container = self._container, None
        if container is not None and self._stream is not None:
            with container:
                container.mux(self._stream.encode(None))


def video_codec() -> str:
    """H.264 where PyAV comes with its encoder, else MPEG-4 part 2."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def even_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) rounded up to what 4:2:0 video can hold."""
    return (size[0] + size[0] % 2, size[1] + size[1] % 2)


@contextmanager
def _writing(out: Path) -> Generator[None, None, None]:
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        raise VideoError(expected(f"a folder that can be written at {out}", error, "Free some space, or choose another folder")) from error


def load_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Reads a mask prompt.

    Args:
        path: a PNG; every pixel that is not 0 (palette index, grey value, or any of R, G, B) belongs to the object.

    Returns:
        bool [H, W].

    Raises:
        PromptError: if it is missing, not a PNG, damaged, or has transparent pixels.
    """
    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise PromptError(expected("a PNG mask", f"{image.format} in {path}", "Save it as PNG, which keeps 0 exactly 0"))
            pixels = np.asarray(image)
            alpha = image.mode in ("LA", "RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PromptError(expected("a readable PNG mask", f"{path} ({error})", "Check the path, or save it again")) from error
    if alpha:
        if pixels[..., -1].min() < np.iinfo(pixels.dtype).max:
            raise PromptError(expected("a mask without transparent pixels", path, "Save it without alpha, 0 outside the object"))
        pixels = pixels[..., :-1]
    inside: npt.NDArray[np.bool_] = np.any(np.atleast_3d(pixels), axis=2)
    return inside


def counts_from_mask(mask: npt.NDArray[np.bool_]) -> str:
    """COCO's compressed run lengths of a bool [H, W] mask.

    Columns are read one after the other; runs alternate between outside and inside, the first one outside (0 if the first pixel is
    inside). From the fourth on a run is stored as the difference to the one two before, as little-endian groups of 5 bits with a
    continuation bit, offset to printable characters. Mirrors `rleEncode` and `rleToString` of cocodataset/cocoapi `common/maskApi.c`.
    """
    pixels = np.concatenate(([False], mask.T.ravel()))
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    runs = np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()
    text: list[str] = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != (-1 if group & 0x10 else 0)
            text.append(chr(48 + group + (0x20 if more else 0)))
    return "".join(text)


def mask_from_counts(counts: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The bool [H, W] mask of COCO's compressed run lengths; inverse of `counts_from_mask`.

    Raises:
        PromptError: if the string is malformed or does not fill a mask of `size`.
    """
    runs: list[int] = []
    value = shift = 0
    for group in (ord(character) - 48 for character in counts):
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            if group & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift or not all("0" <= character <= "o" for character in counts) or min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise PromptError(expected(f"run lengths of a mask of {list(size)} pixels", f"{counts[:40]!r}", "Check size and counts"))
    inside = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, runs).reshape(size[::-1]).T)
