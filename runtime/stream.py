"""Overlay pictures encoded as they come, for viewers without a window.

    picture ─► slot for one ─► thread: H.264, no delay ─► udp://  rtsp://  file.mkv  file.ts  -

Tracking never waits for a viewer: over a network, or from a live source, a picture that the encoder has not taken yet is replaced by the
next one and counted. Files and pipes of recorded sources get every picture. A receiver that fails, or takes nothing for STALL_TIMEOUT_S, is
given up and `error` says so. UDP cannot tell whether anyone listens.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from time import monotonic
from typing import Any, cast

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from fastsam2.errors import VideoError, expected
from fastsam2.runtime.outputs import DEFAULT_FPS, even_size, video_codec

STALL_TIMEOUT_S = 10.0
KEY_FRAME_S = 1.0  # longest wait of a viewer that joins late
CLOCK = Fraction(1, 90_000)  # ticks of MPEG transport streams, seconds
STDOUT = "-"
FILE_FORMATS = {".mkv": "matroska", ".ts": "mpegts"}  # both play while they grow
URL_FORMATS = {"udp": "mpegts", "rtsp": "rtsp", "rtsps": "rtsp"}
RTSP_OPTIONS = {"rtsp_transport": "tcp"}
UDP_PACKET = "pkt_size=1316"  # bytes: seven cells of a transport stream, which fit an Ethernet frame


@dataclass(frozen=True, slots=True)
class StreamTarget:
    """Where a stream goes.

    Attributes:
        text: as the user wrote it.
        url: as libav opens it.
        format: libav's container.
        network: a URL.
        options: of the container.
    """

    text: str
    url: str
    format: str
    network: bool
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> StreamTarget:
        """Reads udp://HOST:PORT, rtsp://…, FILE.mkv, FILE.ts or - (an MPEG transport stream on standard output).

        Raises:
            VideoError: if it is something else, or a file that exists already.
        """
        if text == STDOUT:
            return cls(text, "pipe:1", "mpegts", False, {})
        scheme, is_url, _ = text.partition("://")
        if is_url and scheme.lower() in URL_FORMATS:
            if scheme.lower() == "udp":
                url = text if "pkt_size=" in text else f"{text}{'&' if '?' in text else '?'}{UDP_PACKET}"
                return cls(text, url, URL_FORMATS["udp"], True, {})
            return cls(text, text, URL_FORMATS[scheme.lower()], True, RTSP_OPTIONS)
        path = Path(text)
        if is_url or path.suffix.lower() not in FILE_FORMATS:
            forms = f"a stream to {', '.join(f'{s}://' for s in URL_FORMATS)}, a file {', '.join(FILE_FORMATS)}, or -"
            raise VideoError(expected(forms, repr(text), "For example --stream udp://127.0.0.1:5000, then `ffplay udp://127.0.0.1:5000`"))
        if path.is_file():
            raise VideoError(expected("a file that does not exist yet", path, "Remove it, or stream to another file"))
        if not path.parent.is_dir():
            raise VideoError(expected(f"a folder to put {path.name} into", f"{path.parent}, which does not exist", "Make it first"))
        return cls(text, text, FILE_FORMATS[path.suffix.lower()], False, {})


class OverlayStream:
    """Sends pictures of one size; a thread of its own encodes them.

    Args:
        target: see `StreamTarget.parse`.
        size: (H, W) of the pictures; odd sides are padded by repeating the last row or column.
        fps: rate of the source; only what gets every picture keeps it, the rest is stamped with the time it was given.
        live: the source is live.

    Attributes:
        lossy: pictures may be replaced before they are encoded.
        sent: pictures encoded.
        dropped: pictures replaced.
        error: why the stream was given up; None while it works.

    Raises:
        VideoError: if the target is not legal, or cannot be opened within STALL_TIMEOUT_S.
    """

    def __init__(self, target: str, *, size: tuple[int, int], fps: float | None, live: bool) -> None:
        self.target = StreamTarget.parse(target)
        self.lossy = self.target.network or live
        self.sent = self.dropped = 0
        self.error: str | None = None
        self._size = even_size(size)
        self._rate = Fraction(fps or DEFAULT_FPS).limit_denominator(1001)
        self._slot: tuple[npt.NDArray[np.uint8], int] | None = None  # picture, ticks
        self._shown = -1 / self._rate  # seconds
        self._start = 0.0
        self._busy_since: float | None = monotonic()
        self._opened = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="fastsam2-stream", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._opened or self.error is not None, STALL_TIMEOUT_S)
            if not self._opened:
                self._closed = True
                got = self.error or f"no answer for {STALL_TIMEOUT_S} s"
                raise VideoError(
                    expected(f"a stream that can be opened at {target}", got, "Start the receiver first, or check the address")
                )

    def write(self, picture: npt.NDArray[np.uint8], time: float | None = None) -> None:
        """Hands over a picture, uint8 [H, W, 3] RGB, which must not change afterwards; does nothing once `error` is set.

        A lossy stream returns at once; others wait for the encoder, for at most STALL_TIMEOUT_S. They show it `time` seconds after the
        first, or one step of the rate after the one before.
        """
        with self._changed:
            if not self.lossy:
                self._changed.wait_for(lambda: self._slot is None or self.error is not None, STALL_TIMEOUT_S)
            if self._busy_since is not None and monotonic() - self._busy_since > STALL_TIMEOUT_S:
                self._give_up(f"nothing was taken for {STALL_TIMEOUT_S} s")
            if self.error is not None:
                return
            self.dropped += self._slot is not None
            self._slot = (picture, self._ticks(time))
            self._changed.notify_all()

    def close(self) -> None:
        """Sends what was handed over and ends the stream, or gives it up after STALL_TIMEOUT_S. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(STALL_TIMEOUT_S if self.error is None else 0)
        if self._thread.is_alive():
            with self._changed:
                self._give_up(f"it did not end within {STALL_TIMEOUT_S} s")

    def discard(self) -> None:
        """Ends the stream; a file that it wrote is removed."""
        self.close()
        if not self.target.network and self.target.text != STDOUT:
            Path(self.target.text).unlink(missing_ok=True)

    def facts(self) -> dict[str, Any]:
        """What run.json says of the stream."""
        return {"target": self.target.text, "codec": video_codec(), "sent": self.sent, "dropped": self.dropped, "error": self.error}

    def _ticks(self, time: float | None) -> int:
        if not self.lossy:
            self._shown = self._shown + 1 / self._rate if time is None else Fraction(time)
            return round(self._shown / CLOCK)
        now = monotonic()
        self._start = self._start or now
        return round((now - self._start) / CLOCK)

    def _give_up(self, reason: str) -> None:
        self.error = self.error or reason
        self._slot = None
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            with av.open(self.target.url, "w", format=self.target.format, options=self.target.options) as container:
                stream = self._prepared(container)
                with self._changed:
                    self._opened, self._busy_since = True, None
                    self._changed.notify_all()
                self._encode_all(container, stream)
        except Exception as error:  # whatever ends this thread must be known to the one that tracks
            with self._changed:
                self._give_up(f"{type(error).__name__}: {error}")

    def _prepared(self, container: OutputContainer) -> VideoStream:
        fast = {"preset": "veryfast", "tune": "zerolatency", "crf": "23"} if video_codec() == "libx264" else {}
        stream = cast(VideoStream, container.add_stream(video_codec(), rate=self._rate, options=fast))
        stream.height, stream.width = self._size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = CLOCK
        container.start_encoding()
        return stream

    def _encode_all(self, container: OutputContainer, stream: VideoStream) -> None:
        last_ticks, next_key = -1, 0
        while (item := self._next()) is not None:
            picture, ticks = item
            pad = ((0, self._size[0] - picture.shape[0]), (0, self._size[1] - picture.shape[1]), (0, 0))
            frame = VideoFrame.from_ndarray(np.pad(picture, pad, mode="edge"), format="rgb24").reformat(format="yuv420p")
            frame.time_base = CLOCK
            frame.pts = last_ticks = max(ticks, last_ticks + 1)
            if last_ticks >= next_key:
                frame.pict_type = PictureType.I
                next_key = last_ticks + round(KEY_FRAME_S / CLOCK)
            container.mux(stream.encode(frame))
            self.sent += 1
        container.mux(stream.encode(None))

    def _next(self) -> tuple[npt.NDArray[np.uint8], int] | None:
        """The next picture; None at the end."""
        with self._changed:
            self._busy_since = None
            self._changed.wait_for(lambda: self._slot is not None or self._closed or self.error is not None)
            item, self._slot = self._slot, None
            self._busy_since = monotonic()
            self._changed.notify_all()
            return item
