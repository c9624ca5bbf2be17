"""Runs whose source tells no length or no rate, that are interrupted, or whose source breaks off."""

from __future__ import annotations

import json
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.errors import PromptError, VideoError
from fastsam2.runtime import run as run_module
from fastsam2.runtime.prompt_args import read_prompts
from fastsam2.runtime.result import Result
from fastsam2.runtime.video import FrameSource, Timed, open_video
from tests.test_run import Bundle, RecordingTracker, _run, folder

__all__ = ["folder"]  # the fixture


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """A process started in the background ignores SIGINT; these tests send it to themselves."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def _unknown_length(
    monkeypatch: pytest.MonkeyPatch,
    *,
    live: bool = False,
    interrupt_at: int | None = None,
    stop: BaseException = KeyboardInterrupt(),  # noqa: B008
    times: list[float] | None = None,
) -> None:
    """Sources stop telling their length; `live` ones are stopped while the given frame is awaited."""

    def opened(source: str, *, max_frames: int | None = None) -> FrameSource:
        def frames() -> Generator[Timed, None, None]:
            for i, frame in enumerate(open_video(source)):
                if i == interrupt_at:
                    raise stop
                yield frame, None if times is None else times[i]

        video = FrameSource(frames(), source=source, max_frames=max_frames)
        video.live = live
        return video

    monkeypatch.setattr(run_module, "open_video", opened)


def test_prompt_after_the_end_of_an_unknown_length(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unknown_length(monkeypatch)
    bundle, seen = Bundle(), []
    with pytest.raises(PromptError, match=r"the 6 frames that .* had, got a prompt for object 1 on frame 6"):
        _run(bundle, folder, tmp_path / "out", read_prompts(points=["3,4", "3,4@6"]), progress=lambda *now: seen.append(now))
    assert seen[-1] == (6, None) and not list((tmp_path / "out").rglob("*"))
    record = _run(bundle, folder, tmp_path / "out", read_prompts(points=["3,4", "3,4@5"]))
    assert record["frames"] == 6 and record["source"]["frame_count"] == 6


def test_frames_limit_an_unknown_length(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unknown_length(monkeypatch)
    with pytest.raises(PromptError, match="frames 0 to 1"):
        _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4@2"]), frames=2)
    assert not (tmp_path / "out").exists()


def test_interrupted_live_run_ends_normally(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unknown_length(monkeypatch, live=True, interrupt_at=3)
    record = _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4", "2:3,4@5"]))
    assert record["interrupted"] is True and record["frames"] == 3
    assert record["source"]["live"] is True and record["source"]["drop_policy"] == "keep only the newest frame"
    assert record["objects"] == [{"id": 1, "added_frame": 0, "removed_frame": None}]
    assert [p.name for p in sorted((tmp_path / "out" / "masks").iterdir())] == ["00000.png", "00001.png", "00002.png"]


def test_a_live_source_that_breaks_off_leaves_what_was_tracked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = VideoError("expected frames from udp://x, got nothing for 10.0 s. Check the sender.")
    _unknown_length(monkeypatch, live=True, interrupt_at=4, stop=gone)
    record = _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4", "2:3,4@5"]))
    assert (record["frames"], record["interrupted"], record["source_lost"]) == (4, False, str(gone))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["source_lost"] == str(gone)
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 4
    assert "ended after 4 frames, which are kept" in caplog.text


@pytest.mark.parametrize(("live", "at"), [(True, 0), (False, 3)], ids=["live, first frame", "recorded"])
def test_other_sources_that_break_off_leave_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool, at: int
) -> None:
    _unknown_length(monkeypatch, live=live, interrupt_at=at, stop=VideoError("it broke"))
    with pytest.raises(VideoError, match="it broke"):
        _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]), stream=str(tmp_path / "a.mkv"))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder) == []


def test_the_overlay_keeps_the_times_of_its_source(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0.0, 0.04, 0.2, 1.0, 1.01, 3.5]
    _unknown_length(monkeypatch, times=times)
    _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]), stream=str(tmp_path / "a.mkv"))
    for path in (tmp_path / "out" / "overlay.mp4", tmp_path / "a.mkv"):
        with open_video(str(path)) as video:
            np.testing.assert_allclose([video.time for _ in video], times, atol=1e-3)


def test_interrupted_live_run_finishes_its_frame(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unknown_length(monkeypatch, live=True)

    class Pressed(RecordingTracker):
        def step(self, frame: npt.NDArray[np.uint8], **ahead: Any) -> Result:
            if self.frame == 1:
                signal.raise_signal(signal.SIGINT)
            assert ahead["upcoming"] is None, "a live source gives the newest frame only"
            return super().step(frame, **ahead)

    class PressedBundle(Bundle):
        def tracker(self, **options: Any) -> Pressed:
            return Pressed(options)

    before = signal.getsignal(signal.SIGINT)
    record = _run(PressedBundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]))
    assert record["interrupted"] is True and record["frames"] == 3 and signal.getsignal(signal.SIGINT) is before


def test_interrupted_recorded_run_writes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unknown_length(monkeypatch, interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]))
    assert not list((tmp_path / "out").rglob("*"))


def test_live_run_interrupted_before_its_first_frame(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unknown_length(monkeypatch, live=True)
    monkeypatch.setattr(FrameSource, "__next__", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]))
    assert not list((tmp_path / "out").rglob("*"))
