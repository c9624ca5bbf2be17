"""Live sources: the newest frame wins, the rest is counted; errors and ends."""

from __future__ import annotations

import functools
import http.server
import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path

import av
import numpy as np
import pytest

from fastsam2.errors import VideoError
from fastsam2.runtime import video
from fastsam2.runtime.video import FrameSource, open_video
from tests.videos import (
    HEIGHT,
    WIDTH,
    Array,
    counting,
    numbers,
    write_video,
)


class Script:
    """A fake live source that gives a frame when told to, so that tests decide what the reader has seen."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked = 0
        self.closed = threading.Event()
        self._ordered = 0
        self._may_go_on = threading.Semaphore(0)
        self._ending = False

    def frames(self) -> Generator[tuple[Array, float | None], None, None]:
        try:
            for i in range(256):
                self.asked += 1
                self._may_go_on.acquire()
                if self._ending:
                    break
                yield np.full((4, 6, 3), i, np.uint8), 100 + i / 4
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()

    def give(self, count: int) -> None:
        """Lets frames through; returns when the reader asks for one more, so it has stored them all."""
        self.order(count)
        deadline = time.monotonic() + 5
        while self.asked <= self._ordered:
            assert time.monotonic() < deadline, "the reader did not ask for another frame"
            time.sleep(0.001)

    def order(self, count: int) -> None:
        self._ordered += count
        self._may_go_on.release(count)

    def end(self) -> None:
        self._ending = True
        self._may_go_on.release()


def live_source(script: Script, *, max_frames: int | None = None) -> FrameSource:
    script.order(1)
    return FrameSource(script.frames(), source="fake", live=True, max_frames=max_frames)


def value(frame: Array) -> int:
    return int(frame[0, 0, 0])


def test_live_consumer_gets_the_newest_frame_and_the_rest_is_counted() -> None:
    script = Script()
    with live_source(script) as source:
        assert (source.live, source.size, source.dropped, source.frame_count) == (True, (4, 6), 0, None)
        script.give(3)
        assert value(next(source)) == 3
        assert source.dropped == 3
        script.give(1)
        assert value(next(source)) == 4
        script.give(2)
        script.give(3)
        assert value(next(source)) == 9
        assert source.dropped == 7
        script.end()
    assert script.closed.wait(5)


def test_live_frames_have_the_time_of_their_arrival() -> None:
    script = Script()
    with live_source(script) as source:
        next(source)
        assert source.time == 0
        script.give(3)  # of which the last is seen
        next(source)
        assert source.time == 0.75
        script.end()


def test_live_consumer_waits_for_a_frame_it_has_not_seen() -> None:
    script = Script()
    with live_source(script) as source:
        assert value(next(source)) == 0
        threading.Timer(0.05, script.give, [1]).start()
        assert value(next(source)) == 1
        assert source.dropped == 0
        script.end()


def test_live_reader_passes_its_exception_on_after_its_last_frame() -> None:
    script = Script(error=VideoError("the camera was unplugged"))
    with live_source(script) as source:
        script.end()
        assert script.closed.wait(5)
        assert value(next(source)) == 0
        with pytest.raises(VideoError, match="unplugged"):
            next(source)


def test_live_source_that_ends_or_fails_before_its_first_frame() -> None:
    script = Script()
    script.end()
    with pytest.raises(VideoError, match="at least one frame in fake, got none"):
        FrameSource(script.frames(), source="fake", live=True)
    script = Script(error=VideoError("no signal"))
    script.end()
    with pytest.raises(VideoError, match="no signal"):
        FrameSource(script.frames(), source="fake", live=True)


def test_closing_a_live_source_ends_its_reader_and_a_waiting_consumer() -> None:
    script = Script()
    source = live_source(script)
    assert value(next(source)) == 0
    seen: list[int] = []
    consumer = threading.Thread(target=lambda: seen.extend(value(frame) for frame in source))
    consumer.start()
    threading.Timer(0.05, script.order, [1]).start()  # the frame that the reader is blocked on
    source.close()
    consumer.join(5)
    assert not consumer.is_alive()
    assert seen == []
    assert script.closed.wait(5)
    assert not any(thread.name == "fastsam2-live-reader" for thread in threading.enumerate())


def test_live_max_frames_counts_delivered_frames() -> None:
    script = Script()
    with live_source(script, max_frames=2) as source:
        script.give(4)
        assert value(next(source)) == 4
        script.give(1)
        assert [value(frame) for frame in source] == [5]
        script.end()


def test_udp_stream_is_live() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"udp://127.0.0.1:{probe.getsockname()[1]}"
    done = threading.Event()

    def send() -> None:
        with av.open(f"{url}?pkt_size=1316", "w", format="mpegts") as container:
            stream = container.add_stream("mpeg4", rate=25, options={"g": "5"})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for i in range(2000):
                if done.wait(0.01):
                    break
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), i % 256, np.uint8))))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with open_video(url) as source:
            assert (source.live, source.size, source.frame_count) == (True, (HEIGHT, WIDTH), None)
            first = next(source).mean()
            time.sleep(0.5)
            assert next(source).mean() > first + 5
            assert source.dropped > 5
    finally:
        done.set()
        sender.join()


def test_silent_stream_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "STALL_TIMEOUT_S", 0.3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(VideoError, match=r"got nothing for 0\.3 s"):
        open_video(f"udp://127.0.0.1:{port}")


def test_http_file_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    write_video(tmp_path / "clip.mp4", counting(5))
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with open_video(f"{url}/clip.mp4") as source:
            assert not source.live
            assert numbers(source) == list(range(5))
        with pytest.raises(VideoError, match="404"):
            open_video(f"{url}/none.mp4")
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("system", "source", "opened"),
    [
        ("Linux", "0", ("/dev/video0", "v4l2")),
        ("Linux", "/dev/video3", ("/dev/video3", "v4l2")),
        ("Darwin", "1", ("1:none", "avfoundation")),
    ],
)
def test_camera_devices(monkeypatch: pytest.MonkeyPatch, system: str, source: str, opened: tuple[str, str]) -> None:
    calls: list[tuple[str, object]] = []

    def fake_open(file: str, *, format: str | None, **_: object) -> None:
        calls.append((file, format))
        raise OSError("no camera here")

    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(av, "open", fake_open)
    with pytest.raises(VideoError, match="no camera here"):
        open_video(source)
    assert calls == [opened]


def test_camera_that_the_system_cannot_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr(video, "enumerate_input_devices", lambda _: [])
    with pytest.raises(VideoError, match="a camera number below 0, got 0"):
        open_video("0")
    with pytest.raises(VideoError, match="a camera number on Windows, got /dev/video0"):
        open_video("/dev/video0")
