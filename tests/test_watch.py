"""Runs that are watched: a window that tests look through, boxes drawn in it, streams that fail. Tracker and sources as in test_run."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam2.errors import PromptError, VideoError
from fastsam2.runtime import run as run_module
from fastsam2.runtime.prompt_args import read_prompts
from fastsam2.runtime.stream import OverlayStream
from fastsam2.runtime.video import FrameSource, Timed, open_video
from fastsam2.runtime.watch import Watch
from fastsam2.runtime.window import Picture, WindowInput
from tests.test_run import BUNDLE, FRAMES, SIZE, Bundle, _run, folder

__all__ = ["folder"]  # the fixture

BOX = (4.0, 5.0, 20.0, 15.0)
OTHER_BOX = (1.0, 2.0, 9.0, 12.0)


class FakeWindow:
    """A user that acts after having seen so many pictures: pictures seen -> what is done."""

    def __init__(self, acts: dict[int, WindowInput] | None = None) -> None:
        self.acts = acts or {}
        self.shown: list[Picture] = []
        self.waits: list[float] = []
        self.closed = False

    def show(self, picture: Picture) -> None:
        assert picture.shape == (*SIZE, 3) and picture.dtype == np.uint8
        self.shown.append(picture)

    def poll(self, wait_s: float = 0.0) -> WindowInput:
        self.waits.append(wait_s)
        return self.acts.get(len(self.shown), WindowInput())

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources become live ones that lose nothing."""

    def opened(source: str, *, max_frames: int | None = None) -> FrameSource:
        def frames() -> Generator[Timed, None, None]:
            yield from ((frame, None) for frame in open_video(source))

        video = FrameSource(frames(), source=source, max_frames=max_frames)
        video.live = True
        return video

    monkeypatch.setattr(run_module, "open_video", opened)


def test_window_shows_every_frame_and_stays_open(folder: Path) -> None:
    window, bundle = FakeWindow(), Bundle()
    record = _run(bundle, folder, None, read_prompts(points=["3,4"]), window=window)
    assert len(window.shown) == FRAMES == record["frames"] and not window.closed and set(window.waits) == {0.0}
    assert record["interrupted"] is False and record["stream"] is None
    assert not np.array_equal(window.shown[0], np.zeros((*SIZE, 3)))  # row 1 is painted
    assert sorted(p.name for p in folder.parent.iterdir()) == ["frames"]
    assert shlex.split(record["command"])[-1] == "--show" and "--out" not in record["command"]


def test_drawn_boxes_become_objects_on_the_next_frame(folder: Path, tmp_path: Path, live: None) -> None:
    window = FakeWindow({2: WindowInput(boxes=(BOX,)), 4: WindowInput(boxes=(OTHER_BOX, BOX))})
    bundle = Bundle()
    record = _run(bundle, folder, tmp_path / "out", [], window=window)
    assert [(call[1], call[2], call[3]["box"]) for call in bundle.made.calls if call[0] == "add"] == [
        (1, 2, BOX),
        (2, 4, OTHER_BOX),
        (3, 4, BOX),
    ]
    assert record["objects"] == [{"id": i, "added_frame": t, "removed_frame": None} for i, t in ((1, 2), (2, 4), (3, 4))]
    assert [(p["id"], p["frame"], p["box"]) for p in record["config"]["prompts"]] == [(1, 2, [*BOX]), (2, 4, [*OTHER_BOX]), (3, 4, [*BOX])]
    assert "--box 1:4,5,20,15@2" in record["command"]
    assert record["per_frame"][1]["ids"] == [] and record["per_frame"][2]["ids"] == [1]
    assert set(window.waits) == {0.0} and len(window.shown) == FRAMES


def test_drawn_ids_follow_all_planned_ones(folder: Path) -> None:
    window, bundle = FakeWindow({1: WindowInput(boxes=(BOX,))}), Bundle()
    record = _run(bundle, folder, None, read_prompts(points=["3,4", "7:3,4@5"]), window=window)
    assert [(o["id"], o["added_frame"]) for o in record["objects"]] == [(1, 0), (8, 1), (7, 5)]


def test_drawn_ids_stay_what_palette_masks_can_hold(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    window = FakeWindow({1: WindowInput(boxes=(BOX, OTHER_BOX))})
    record = _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["255:3,4", "1:3,4"]), window=window)
    assert [(o["id"], o["added_frame"]) for o in record["objects"]] == [(255, 0), (1, 0), (2, 1), (3, 1)]
    watch = Watch(window=window, ids=range(1, 3))
    watch._boxes = [BOX, OTHER_BOX]
    assert [p.id for p in watch.prompts(0, [2])] == [1]
    assert "a box drawn on the picture was dropped" in caplog.text
    watch = Watch(window=window)
    watch._boxes = [BOX]
    assert [p.id for p in watch.prompts(0, [300])] == [301]


def test_recorded_source_without_prompts_waits_for_a_box(folder: Path) -> None:
    window, bundle = FakeWindow({9: WindowInput(boxes=(BOX,))}), Bundle()
    record = _run(bundle, folder, None, [], window=window)
    assert record["objects"] == [{"id": 1, "added_frame": 0, "removed_frame": None}]
    assert len(window.shown) == 9 + FRAMES and record["frames"] == FRAMES
    assert all(wait > 0 for wait in window.waits[:9]) and set(window.waits[9:]) == {0.0}
    assert all((picture == 0).all() for picture in window.shown[:9])


@pytest.mark.parametrize("kind", ["recorded", "live"])
def test_closing_the_window_ends_the_run_normally(folder: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "live":
        request.getfixturevalue("live")
    window = FakeWindow({3: WindowInput(closed=True)})
    record = _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4", "2:3,4@5"]), window=window)
    assert record["interrupted"] is True and record["frames"] == 3
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3 and (tmp_path / "out" / "run.json").is_file()


def test_closing_before_the_first_box(folder: Path) -> None:
    record = _run(Bundle(), folder, None, [], window=FakeWindow({2: WindowInput(closed=True)}))
    assert (record["frames"], record["interrupted"], record["objects"]) == (1, True, [])


def test_stream_beside_files(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "live.mkv"
    record = _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]), stream=str(target), overlay=False)
    assert record["stream"] == {"target": str(target), "codec": "libx264", "sent": FRAMES, "dropped": 0, "error": None}
    with open_video(str(target)) as video:
        assert len(list(video)) == FRAMES
    assert f"--stream {target}" in record["command"] and not (tmp_path / "out" / "overlay.mp4").exists()


def test_stream_alone(folder: Path, tmp_path: Path) -> None:
    record = _run(Bundle(), folder, None, read_prompts(points=["300:3,4"]), stream=str(tmp_path / "live.ts"))
    assert record["stream"]["sent"] == FRAMES and sorted(p.name for p in tmp_path.iterdir()) == ["frames", "live.ts"]


def _fail_after(monkeypatch: pytest.MonkeyPatch, pictures: int) -> None:
    real = OverlayStream.write

    given = 0

    def write(self: OverlayStream, picture: Picture, time: float | None) -> None:
        nonlocal given
        real(self, picture, time)
        given += 1
        if given == pictures:
            self.error = "the wire was cut"

    monkeypatch.setattr(OverlayStream, "write", write)


def test_failed_stream_does_not_end_a_run_that_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fail_after(monkeypatch, 2)
    with caplog.at_level(logging.WARNING):
        record = _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]), stream=str(tmp_path / "live.mkv"))
    assert record["frames"] == FRAMES and record["stream"]["error"] == "the wire was cut"
    (message,) = [r.getMessage() for r in caplog.records]
    assert "tracking goes on" in message and "the wire was cut" in message


def test_failed_stream_ends_a_run_that_has_nothing_else(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_after(monkeypatch, 2)
    bundle = Bundle()
    with pytest.raises(VideoError, match=r"a receiver that takes the stream at .*the wire was cut"):
        _run(bundle, folder, None, read_prompts(points=["3,4"]), stream=str(tmp_path / "live.mkv"))
    assert bundle.made.frame == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, PromptError, "--out, --show or --stream, got none"),
        ({"stream": "a.mkv", "rle": True}, PromptError, "--out with --separate or --rle"),
        ({"stream": "a.mkv", "separate": True}, PromptError, "--out with --separate or --rle"),
        ({"stream": "a.avi"}, VideoError, "a stream to udp://"),
    ],
)
def test_runs_without_files(folder: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _run(Bundle(), folder, None, read_prompts(points=["3,4"]), **options)


def test_amend_changes_the_record_before_it_is_written(folder: Path, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def amend(record: dict[str, Any], masks: Path) -> dict[str, Any]:
        seen.append(sorted(p.name for p in masks.iterdir()))
        return {**record, "more": 1}

    record = _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]), frames=2, amend=amend)
    assert record["more"] == 1 and seen == [["00000.png", "00001.png"]] and '"more": 1' in (tmp_path / "out" / "run.json").read_text()
    assert record["bundle"] == str(BUNDLE)
