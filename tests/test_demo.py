"""The demo over a small sample and a tracker whose masks are known: object i is row i of the frame."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2.benchmarks.score import score_folders, score_masks
from fastsam2.builtin import builtin_bundles, builtin_samples, sample_path
from fastsam2.cli import main
from fastsam2.config import Prune
from fastsam2.demo import DEFAULT_BUNDLE, DEFAULT_SAMPLE, run_demo
from fastsam2.enums import PrunePolicy
from fastsam2.errors import FastSam2Error, ScoreError, VideoError
from fastsam2.runtime import run as run_module
from tests.test_run import SIZE, Bundle
from tests.test_score import write_palette
from tests.videos import write_video

FRAMES = 6


def _truth(second_from: int = 2) -> list[npt.NDArray[np.uint8]]:
    """Object 1 is row 1, object 2 rows 2 and 3."""
    frames = []
    for t in range(FRAMES):
        index = np.zeros(SIZE, np.uint8)
        index[1] = 1
        if t >= second_from:
            index[2:4] = 2
        frames.append(index)
    return frames


def make_sample(folder: Path, *, second_prompted: int = 2) -> Path:
    write_palette(folder / "truth", _truth())
    write_video(folder / "clip.mp4", [np.full((*SIZE, 3), 20 * t, np.uint8) for t in range(FRAMES)])
    objects = [
        {"id": 1, "caption": "a grey row", "first_frame": 0, "box": [0, 1, 32, 2]},
        {"id": 2, "caption": "two rows", "first_frame": second_prompted, "box": [0, 2, 32, 4]},
    ]
    facts = {"name": "rows", "set": "easy", "seed": 1, "size": list(SIZE), "fps": 25, "objects": objects}
    (folder / "clip.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    bundle = Bundle()
    monkeypatch.setattr(run_module, "load", lambda *_, **__: bundle)
    return bundle


def _call(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    program, *args = shlex.split(command)
    assert program == "fastsam2"
    with pytest.raises(SystemExit, match="0"):
        main(args)
    return capsys.readouterr().out


def _files(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file()]


def test_masks_are_scored(tracked: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample, out = make_sample(tmp_path / "a sample"), tmp_path / "an out"
    seen: list[Any] = []
    record = run_demo(out, bundle="any", sample=sample, progress=lambda *now: seen.append(now))
    assert [call[:3] for call in tracked.made.calls if call[0] == "add"] == [("add", 1, 0), ("add", 2, 2)]
    assert seen[-1] == (FRAMES, FRAMES)
    assert [(o["id"], o["frames"], o["j"]) for o in record["score"]["objects"]] == [(1, 5, 100), (2, 3, 50)]
    assert record["j"] == 75 and record["j_and_f"] == (record["j"] + record["f"]) / 2
    written = json.loads((out / "run.json").read_text())
    written.pop("outputs")
    assert written == json.loads(json.dumps(record)) and (out / "overlay.mp4").is_file()
    assert record["sample"]["truth"] == str(sample / "truth") and record["sample"]["objects"][1]["caption"] == "two rows"

    again = json.loads(_call(record["score_command"] + " --json", capsys))
    assert again == record["score"] and again["j_and_f"] == record["j_and_f"]
    assert "75.00" in _call(record["score_command"], capsys)
    assert record["score_command"].endswith("truth'") and shlex.split(record["run_command"])[1] == "run"
    shown = _call(record["command"], capsys)
    assert f"J&F {record['j_and_f']:.2f}" in shown and f"{FRAMES} frames" in shown and record["score_command"] in shown
    assert json.loads((out / "run.json").read_text())["score"] == record["score"]


def test_score_command_names_prompts_that_come_later_than_the_object(
    tracked: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_demo(tmp_path / "out", bundle="any", sample=make_sample(tmp_path / "sample", second_prompted=4))
    assert [(o["id"], o["prompted"], o["frames"]) for o in record["score"]["objects"]] == [(1, 0, 5), (2, 4, 1)]
    assert record["score_command"].endswith("--prompted 2@4")
    assert json.loads(_call(record["score_command"] + " --json", capsys)) == record["score"]


def test_commands_name_the_options(tracked: Bundle, tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "sample")
    prune = Prune(policy=PrunePolicy.MASK, keep=0.25)
    record = run_demo(tmp_path / "out", bundle="any", sample=sample, prune=prune, threads=1)
    assert record["command"].endswith(f"--bundle any --sample {sample} --prune mask --keep 0.25 --threads 1")
    assert tracked.made.options["prune"] == prune and record["threads"] == 1
    other = Prune(policy=PrunePolicy.MASK, keep=0.25, seed=3)
    assert run_demo(tmp_path / "out", bundle="any", sample=sample, prune=other)["command"] is None


def _no_truth(sample: Path) -> None:
    for file in (sample / "truth").iterdir():
        file.unlink()
    (sample / "truth").rmdir()


def _no_objects(sample: Path) -> None:
    (sample / "clip.json").write_text('{"name": "rows", "objects": []}')


def _long_truth(sample: Path) -> None:
    write_palette(sample / "truth", [*_truth(), _truth()[-1]])


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_no_truth, VideoError, r"clip.mp4, clip.json and truth/ in .*, got no truth"),
        (_no_objects, VideoError, "legal objects in .*clip.json"),
        (_long_truth, ScoreError, "masks for the 7 frames .*00006.png missing"),
    ],
)
def test_broken_samples_leave_nothing_behind(tracked: Bundle, tmp_path: Path, spoil: Any, error: type[FastSam2Error], message: str) -> None:
    sample = make_sample(tmp_path / "sample")
    spoil(sample)
    with pytest.raises(error, match=message):
        run_demo(tmp_path / "out", bundle="any", sample=sample)
    assert _files(tmp_path / "out") == []


def test_with_a_model(bundle_micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample, out = make_sample(tmp_path / "sample"), tmp_path / "out"
    _call(shlex.join(["fastsam2", "demo", "--bundle", str(bundle_micro), "--sample", str(sample), "--out", str(out), "--quiet"]), capsys)
    record = json.loads((out / "run.json").read_text())
    score = score_folders(out / "masks", sample / "truth")
    assert (record["j"], record["f"], record["j_and_f"]) == (score.j, score.f, score.j_and_f)
    assert record["outputs"]["frames"] == FRAMES and record["model"]["image_size"] == 128


def test_shipped_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files that ship: present, tracked, and scored twice to the same number."""
    assert DEFAULT_BUNDLE in builtin_bundles() and DEFAULT_SAMPLE in builtin_samples()
    out = tmp_path / "out"
    _call(shlex.join(["fastsam2", "demo", "--out", str(out), "--quiet"]), capsys)
    record = json.loads((out / "run.json").read_text())
    assert record["sample"]["name"] == DEFAULT_SAMPLE and record["score"]["not_scored"] == record["score"]["not_in_truth"] == []
    truth = sample_path(DEFAULT_SAMPLE) / "truth"
    assert json.loads(_call(f"fastsam2 score {out / 'masks'} {truth} --json", capsys)) == record["score"]
    frames = np.stack([np.asarray(Image.open(path)) for path in sorted(truth.glob("*.png"))])
    still = {i: np.broadcast_to(frames[0] == i, frames.shape) for i in (1, 2)}
    knows_nothing = score_masks(still, {i: frames == i for i in still})
    assert record["j_and_f"] > knows_nothing.j_and_f + 5, "worse than a mask that never moves"
