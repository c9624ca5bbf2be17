"""Overlay streams: what arrives, and what a slow, dead or missing receiver does to the sender."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from fastsam2.errors import VideoError
from fastsam2.runtime import stream
from fastsam2.runtime.stream import OverlayStream, StreamTarget
from fastsam2.runtime.video import open_video
from tests.videos import HEIGHT, WIDTH, Array, counting, numbers

SIZE = (HEIGHT, WIDTH)


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_file_of_a_recorded_source_gets_every_picture(tmp_path: Path, name: str) -> None:
    sender = OverlayStream(str(tmp_path / name), size=SIZE, fps=12.5, live=False)
    for picture in counting(20):
        sender.write(picture)
    sender.close()
    sender.close()
    assert (sender.lossy, sender.sent, sender.dropped, sender.error) == (False, 20, 0, None)
    assert sender.facts() == {"target": str(tmp_path / name), "codec": "libx264", "sent": 20, "dropped": 0, "error": None}
    with av.open(str(tmp_path / name)) as container:
        times = [float(frame.time or 0) for frame in container.decode(video=0)]
    assert np.diff(times) == pytest.approx(np.full(19, 0.08), abs=2e-3)
    with open_video(str(tmp_path / name)) as video:
        assert numbers(video) == list(range(20))


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    sender = OverlayStream(str(tmp_path / "a.mkv"), size=(47, 63), fps=None, live=False)
    sender.write(counting(1)[0][:47, :63])
    sender.close()
    with open_video(str(tmp_path / "a.mkv")) as video:
        assert video.size == (48, 64)


def _received(url: str, options: dict[str, str], found: list[list[int]], count: int) -> None:
    with av.open(url, options=options) as container:
        frames: list[Array] = []
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == count:
                break
    found.append(numbers(frames))


@pytest.mark.parametrize("scheme", ["udp", "rtsp"])
def test_network_receiver(scheme: str) -> None:
    port = free_port(socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM)
    url = f"{scheme}://127.0.0.1:{port}" + ("/live" if scheme == "rtsp" else "")
    found: list[list[int]] = []
    options = {"rtsp_flags": "listen", "listen_timeout": "10"} if scheme == "rtsp" else {"analyzeduration": "500000"}
    receiver = threading.Thread(target=_received, args=(url, options, found, 10), daemon=True)
    receiver.start()
    time.sleep(0.3)
    sender = OverlayStream(url, size=SIZE, fps=25, live=False)
    assert sender.lossy
    deadline = time.monotonic() + 20
    given = 0
    pictures = counting(25)
    while receiver.is_alive() and sender.error is None and time.monotonic() < deadline:
        sender.write(pictures[given % 25])
        given += 1
        time.sleep(0.03)
    assert len(found) == 1
    steps = np.diff(found[0]) % 25
    assert (steps >= 1).all() and steps.mean() < 3
    sender.close()
    assert given - 3 <= sender.sent + sender.dropped <= given


def test_standard_output() -> None:
    code = f"""
from fastsam2.runtime.stream import OverlayStream
from tests.videos import counting
sender = OverlayStream("-", size={SIZE}, fps=25, live=False)
for picture in counting(8): sender.write(picture)
sender.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60, cwd=Path(__file__).parents[1])
    assert done.stderr == b""
    with av.open(io.BytesIO(done.stdout), format="mpegts") as container:
        assert numbers(f.to_ndarray(format="rgb24") for f in container.decode(video=0)) == list(range(8))


def _until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def noise(i: int) -> Array:
    return np.random.default_rng(i).integers(0, 256, (240, 320, 3), np.uint8)


@pytest.fixture
def pipe(tmp_path: Path) -> tuple[str, Callable[[], int]]:
    """A named pipe and the function that opens its reading end."""
    path = tmp_path / "pipe.ts"
    os.mkfifo(path)
    return str(path), lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def test_receiver_that_takes_nothing_costs_no_time_and_is_given_up(
    pipe: tuple[str, Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STALL_TIMEOUT_S", 1.0)
    target, open_reader = pipe
    reader = open_reader()
    sender = OverlayStream(target, size=(240, 320), fps=25, live=True)
    start, longest = time.monotonic(), 0.0
    pictures = [noise(i) for i in range(4)]
    for i in range(400):
        before = time.monotonic()
        sender.write(pictures[i % 4])
        longest = max(longest, time.monotonic() - before)
        if sender.error:
            break
        time.sleep(0.01)
    assert sender.error == "nothing was taken for 1.0 s" and sender.dropped > 5
    assert longest < 0.5 and time.monotonic() - start < 4
    before = time.monotonic()
    sender.close()
    assert time.monotonic() - before < 0.5
    os.close(reader)


def test_recorded_source_waits_for_a_slow_pipe(pipe: tuple[str, Callable[[], int]]) -> None:
    target, open_reader = pipe
    reader = open_reader()
    os.set_blocking(reader, True)
    sender = OverlayStream(target, size=(240, 320), fps=25, live=False)

    def drain() -> None:
        while os.read(reader, 1 << 16):
            time.sleep(0.01)

    slow = threading.Thread(target=drain)
    slow.start()
    for i in range(8):
        sender.write(noise(i))
    sender.close()
    slow.join()
    assert (sender.sent, sender.dropped, sender.error) == (8, 0, None)
    os.close(reader)


def test_receiver_that_goes_away(pipe: tuple[str, Callable[[], int]]) -> None:
    target, open_reader = pipe
    reader = open_reader()
    sender = OverlayStream(target, size=(240, 320), fps=25, live=True)
    sender.write(noise(0))
    assert _until(lambda: sender.sent == 1)
    os.close(reader)
    for i in range(1, 50):
        sender.write(noise(i))
        if _until(lambda: sender.error is not None, 0.1):
            break
    assert sender.error is not None and "Broken pipe" in sender.error
    sender.write(noise(0))
    sender.close()


def test_receiver_that_is_not_there() -> None:
    with pytest.raises(VideoError, match=r"a stream that can be opened at rtsp://.*refused"):
        OverlayStream(f"rtsp://127.0.0.1:{free_port(socket.SOCK_STREAM)}/live", size=SIZE, fps=25, live=True)


@pytest.mark.parametrize("target", ["a.mp4", "a", "", "http://127.0.0.1/a.ts", "a.mkv/b"])
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(VideoError, match="expected a stream to udp://, rtsp://"):
        StreamTarget.parse(target)


def test_datagrams_hold_whole_cells() -> None:
    assert StreamTarget.parse("udp://h:1").url == "udp://h:1?pkt_size=1316"
    assert StreamTarget.parse("UDP://h:1?ttl=2").url == "UDP://h:1?ttl=2&pkt_size=1316"
    assert StreamTarget.parse("udp://h:1?pkt_size=188").url == "udp://h:1?pkt_size=188"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        sender = OverlayStream(f"udp://127.0.0.1:{receiver.getsockname()[1]}", size=(240, 320), fps=25, live=False)
        sender.write(noise(0))
        assert len(receiver.recv(1 << 16)) == 1316
        sender.close()


def test_existing_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(b"precious")
    with pytest.raises(VideoError, match="a file that does not exist yet"):
        OverlayStream(str(tmp_path / "a.mkv"), size=SIZE, fps=25, live=False)
    with pytest.raises(VideoError, match=r"a folder to put a.mkv into, got .*none, which does not exist"):
        OverlayStream(str(tmp_path / "none" / "a.mkv"), size=SIZE, fps=25, live=False)


def test_a_discarded_stream_leaves_no_file(tmp_path: Path) -> None:
    sender = OverlayStream(str(tmp_path / "a.mkv"), size=SIZE, fps=25, live=False)
    sender.write(np.zeros((*SIZE, 3), np.uint8))
    sender.discard()
    assert list(tmp_path.iterdir()) == []


def test_recorded_pictures_are_shown_at_their_times(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.8, 0.85]
    sender = OverlayStream(str(tmp_path / "a.mkv"), size=SIZE, fps=25, live=False)
    for i, seconds in enumerate(times):
        sender.write(np.full((*SIZE, 3), 40 * i, np.uint8), seconds)
    sender.close()
    with open_video(str(tmp_path / "a.mkv")) as video:
        np.testing.assert_allclose([video.time for _ in video], times, atol=1e-3)
