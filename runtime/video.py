"""Frames from files, folders, cameras and streams.

    video file | folder of images | camera | URL ──► FrameSource ──► RGB uint8 [H, W, 3], upright, all of one size; when each was

Recorded sources deliver every frame or raise. Live sources keep only the newest frame: a slow consumer skips, never lags.
"""

from __future__ import annotations

import platform
import re
import threading
import time
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.device import enumerate_input_devices
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from fastsam2.errors import PromptError, VideoError, expected

Frame = npt.NDArray[np.uint8]
Timed = tuple[Frame, float | None]  # a frame and its time in seconds from any zero, None where the source has none
Frames = Generator[Timed, None, None]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtp", "rtmp", "srt", "udp"})
FILE_SCHEMES = frozenset({"http", "https"})
_NO_RATE = 1000  # frames per second: libav's guess where there are only milliseconds to go by
STALL_TIMEOUT_S = 10.0  # a camera or URL that gives nothing for this long is taken for dead


class NewestFrame:
    """Reads a live source in a thread and keeps only its newest frame.

    Args:
        frames: the source; the thread iterates and closes it.

    Attributes:
        dropped: frames that a newer one overwrote before the consumer saw them.
    """

    def __init__(self, frames: Frames) -> None:
        self.dropped = 0
        self._frames = frames
        self._newest: Timed | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="fastsam2-live-reader", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            try:
                for frame in self._frames:
                    with self._changed:
                        if self._closed:
                            break
                        self.dropped += self._newest is not None
                        self._newest = frame
                        self._changed.notify_all()
            finally:
                self._frames.close()
        except BaseException as error:  # raised again in the consumer's thread
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def __iter__(self) -> NewestFrame:
        return self

    def __next__(self) -> Timed:
        """Waits for a frame that was not delivered yet.

        Raises:
            BaseException: what ended the reader, after its last frame was delivered.
        """
        with self._changed:
            frame = self._wait()
            self._newest = None
            return frame

    def peek(self) -> Timed:
        """The frame that `next` would answer now; it stays undelivered and can still be overwritten."""
        with self._changed:
            return self._wait()

    def _wait(self) -> Timed:
        self._changed.wait_for(lambda: self._newest is not None or self._ended or self._closed)
        if self._newest is not None and not self._closed:
            return self._newest
        if self._error is not None and not self._closed:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Ends the iteration and the reader, which may first sit out one blocking read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.join(STALL_TIMEOUT_S + 1)


class FrameSource:
    """One pass over the frames of a source: uint8 [H, W, 3], RGB, contiguous, owned by the caller. A context manager.

    Args:
        frames: yields the frames and their times; closed with this object.
        source: as the user wrote it.
        live: keep only the newest frame.
        fps: frames per second.
        frame_count: how many frames will come.
        stems: file stems of a folder's frames.
        max_frames: end after this many delivered frames.

    Attributes:
        source: as given.
        size: (H, W) in pixels after rotation.
        fps: average rate, None where the source has none (folders, some streams).
        frame_count: frames this source delivers where its index tells, else None; the delivered number once exhausted.
        live: the newest-frame policy is on.
        dropped: frames of a live source overwritten before they were asked for; 0 for recorded ones.
        time: seconds from the first frame to the one delivered last: by its time stamp, in live sources by its arrival; None for folders.
        stems: one per frame for a folder, else None.

    Raises:
        VideoError: if the source has no frame or the first one cannot be decoded.
    """

    def __init__(
        self,
        frames: Frames,
        *,
        source: str,
        live: bool = False,
        fps: float | None = None,
        frame_count: int | None = None,
        stems: list[str] | None = None,
        max_frames: int | None = None,
    ) -> None:
        self.source = source
        self.live = live
        self.fps = fps
        self.frame_count = frame_count if frame_count is None or max_frames is None else min(frame_count, max_frames)
        self.stems = stems if max_frames is None or stems is None else stems[:max_frames]
        self._max_frames = max_frames
        self._delivered = 0
        self._closed = False
        self._frames = NewestFrame(frames) if live else frames
        self._first: Timed | None = None
        self.time: float | None = None
        self._begin: float | None = None
        try:
            if isinstance(self._frames, NewestFrame):
                first = self._frames.peek()
            else:
                first = self._first = next(self._frames)
        except StopIteration:
            self.close()
            raise VideoError(expected(f"at least one frame in {source}", "none", "Check that the source plays in a video player")) from None
        except BaseException:
            self.close()
            raise
        self.size: tuple[int, int] = (first[0].shape[0], first[0].shape[1])

    @property
    def numbers(self) -> list[str] | None:
        """File stems of a folder's frames if all of them are numbers: what to call what belongs to a frame."""
        return self.stems if self.stems and all(stem.isascii() and stem.isdecimal() for stem in self.stems) else None

    @property
    def dropped(self) -> int:
        """Frames of a live source that were overwritten before they were asked for."""
        return self._frames.dropped if isinstance(self._frames, NewestFrame) else 0

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> FrameSource:
        return self

    def __next__(self) -> Frame:
        """The next frame, or a live source's newest.

        Raises:
            VideoError: if it cannot be decoded or has another size than the first.
        """
        if self._delivered == self._max_frames or self._closed:
            raise StopIteration
        timed, self._first = self._first, None
        if timed is None:
            try:
                timed = next(self._frames)
            except StopIteration:
                if not self.live:
                    self.frame_count = self._delivered
                raise
        frame, seconds = timed
        if frame.shape[:2] != self.size:
            name = self.stems[self._delivered] if self.stems else self.source
            raise VideoError(
                expected(
                    f"frames of {self.size[1]}x{self.size[0]} pixels as the first one",
                    f"{frame.shape[1]}x{frame.shape[0]} at frame {self._delivered} ({name})",
                    "Give all frames one size",
                )
            )
        self._delivered += 1
        self._begin = seconds if self._begin is None else self._begin
        self.time = None if seconds is None or self._begin is None else seconds - self._begin
        return frame

    def close(self) -> None:
        """Releases the source; iterating afterwards ends at once. Safe to call twice."""
        self._closed = True
        self._first = None
        self._frames.close()


def open_video(source: str, *, max_frames: int | None = None) -> FrameSource:
    """Opens a source of frames.

    Args:
        source: a video file; a folder of images, by name, numbers in it as numbers (frame_2 before frame_10); a camera ("0",
            "/dev/video0", on Windows and macOS the number only); or a URL. Cameras and rtsp, rtp, rtmp, srt, udp URLs are live.
        max_frames: end after this many frames.

    Returns:
        The opened source; close it or use it in a `with`.

    Raises:
        VideoError: if the source is missing, unreadable, empty, or of no known kind.
        PromptError: if max_frames is below 1.
    """
    if max_frames is not None and max_frames < 1:
        raise PromptError(expected("max_frames of at least 1", max_frames, "Leave it out to read every frame"))
    scheme, has_scheme, _ = source.partition("://")
    if has_scheme:
        if scheme.lower() not in LIVE_SCHEMES | FILE_SCHEMES:
            raise VideoError(expected(f"a URL of {sorted(LIVE_SCHEMES | FILE_SCHEMES)}", source, "Give a path without a scheme for a file"))
        return _open_av(source, source, live=scheme.lower() in LIVE_SCHEMES, blocking=True, max_frames=max_frames)
    if source.isdecimal() or source.startswith("/dev/video"):
        file, device = _camera(source)
        return _open_av(source, file, device=device, live=True, blocking=True, max_frames=max_frames)
    path = Path(source)
    if path.is_dir():
        files = _frame_files(path)
        return FrameSource(
            _images(files), source=source, frame_count=len(files), stems=[file.stem for file in files], max_frames=max_frames
        )
    if not path.is_file():
        raise VideoError(expected("a file, folder, camera number or URL", f"{source!r}, which does not exist", "Check the path"))
    return _open_av(source, source, max_frames=max_frames)


def _camera(source: str) -> tuple[str, str]:
    """The file and input device that libav knows a camera by."""
    system = platform.system()
    if system == "Linux":
        return (f"/dev/video{source}" if source.isdecimal() else source), "v4l2"
    if not source.isdecimal():
        raise VideoError(expected(f"a camera number on {system}", source, 'Give "0" for the first camera'))
    if system == "Darwin":
        return f"{source}:none", "avfoundation"
    names = [device.name for device in enumerate_input_devices("dshow") if "video" in device.media_types]
    if int(source) >= len(names):
        raise VideoError(expected(f"a camera number below {len(names)}", source, f"The cameras found are {names}"))
    return f"video={names[int(source)]}", "dshow"


def _open_av(
    source: str, file: str, *, device: str | None = None, live: bool = False, blocking: bool = False, max_frames: int | None = None
) -> FrameSource:
    options = {"rtsp_flags": "prefer_tcp"} if source.startswith("rtsp") else {}
    try:
        container = av.open(file, format=device, options=options, timeout=STALL_TIMEOUT_S if blocking else None)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            expected(f"a readable video at {source}", _reason(error), "Check that it exists, that it may be read, and that it is a video")
        ) from error
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos or container.format.name == "tty":  # libav would draw any text file as a terminal
        container.close()
        raise VideoError(expected(f"a video stream in {source}", f"a {container.format.name} file without one", "Give a file with video"))
    stream = videos[0]
    rate = stream.average_rate or stream.guessed_rate
    rate = rate if rate and rate < _NO_RATE else None
    return FrameSource(
        _decoded(container, stream, source, live),
        source=source,
        live=live,
        fps=float(rate) if rate else None,
        frame_count=None if live else _indexed_frames(stream),
        max_frames=max_frames,
    )


def _indexed_frames(stream: VideoStream) -> int | None:
    """Frames the container's index promises, or None where header and index disagree or there is no complete index."""
    entries = stream.index_entries
    if not stream.frames or len(entries) != stream.frames:
        return None
    return sum(not entry.is_discard for entry in entries)


def _decoded(container: InputContainer, stream: VideoStream, source: str, live: bool) -> Frames:
    """Upright frames of an opened container, which is closed at the end.

    A recording that breaks off raises; Matroska, WebM and MPEG-TS do not reveal it and just end. In a live stream packets that cannot be
    decoded (before the first key frame, after losses) are skipped.
    """
    number = 0
    alive = time.monotonic()
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                if not live or time.monotonic() - alive > STALL_TIMEOUT_S:
                    raise
                continue
            for frame in frames:
                if frame.is_corrupt and not live:
                    raise VideoError(_broken(source, number, "a damaged one", live=live))
                yield _upright(frame, source), time.monotonic() if live else frame.time
                number += 1
                alive = time.monotonic()
    except av.error.FFmpegError as error:
        raise VideoError(_broken(source, number, _reason(error), live=live)) from error
    finally:
        container.close()


def _reason(error: Exception) -> object:
    return f"nothing for {STALL_TIMEOUT_S} s" if isinstance(error, av.error.ExitError) else error


def _broken(source: str, number: int, got: object, *, live: bool) -> str:
    if live:
        return expected(f"frames from {source}", f"{got} after {number} of them", "Check the camera or the sender")
    before = f"Re-encode the file, or read only what comes before: --frames {number}, in Python max_frames={number}"
    todo = before if number else "Check that it plays elsewhere"
    return expected(f"a whole frame {number} in {source}", got, todo)


def _upright(frame: VideoFrame, source: str) -> Frame:
    """RGB of a decoded frame after its display matrix: quarter turns, mirrored or not, as phones write them.

    The matrix maps stored to shown pixels: x' = a·x + c·y, y' = b·x + d·y, in 16.16 fixed point, rows (a, b, u), (c, d, v), (tx, ty, w).
    """
    image = frame.to_ndarray(format="rgb24")
    if frame.rotation:  # asked first: PyAV's side_data raises on kinds it does not know
        matrix = cast(SideDataContainer, frame.side_data)["DISPLAYMATRIX"]
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if (a or d) and (b or c):
            raise VideoError(expected("a rotation by quarter turns", f"{frame.rotation} degrees in {source}", "Re-encode it upright"))
        if b or c:
            image, a, d = image.swapaxes(0, 1), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image, dtype=np.uint8)


def _frame_files(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "." and file.is_file()]
    if not files:
        raise VideoError(expected(f"images {sorted(IMAGE_SUFFIXES)} in {folder}", "none", "Give a folder with one image per frame"))
    files.sort(key=lambda file: (_natural(file.stem), file.name))
    for file, after in pairwise(files):
        if _natural(file.stem) == _natural(after.stem):
            raise VideoError(expected("one image per frame", f"both {file.name} and {after.name} in {folder}", "Remove one of them"))
    return files


def _natural(name: str) -> list[int | str]:
    """Text and numbers in turn, for comparison: text first, possibly empty."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]


def _images(files: list[Path]) -> Frames:
    for number, file in enumerate(files):
        try:
            with Image.open(file) as image:
                several = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"  # cameras put a preview behind the picture
                if image.mode.startswith(("I", "F")) or several:
                    got = f"mode {image.mode}, {getattr(image, 'n_frames', 1)} pictures in {file}"
                    raise VideoError(expected("one 8-bit picture per file", got, "Convert the frames to 8-bit PNG or JPEG"))
                yield np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8), None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(expected(f"a readable image as frame {number}", f"{file} ({error})", "Replace or remove the file")) from error
