"""`evaluate` end to end on miniature data sets. Oracles: vos-benchmark and `score_folders` on the masks it writes, and a second call."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from fastsam2.benchmarks import eval as evaluation
from fastsam2.benchmarks.eval import evaluate
from fastsam2.benchmarks.eval_video import Job, run_job
from fastsam2.benchmarks.score import score_folders
from fastsam2.builtin import sample_path
from fastsam2.config import Prune
from fastsam2.errors import BackendError, BundleError, PromptError, ScoreError, StateError, VideoError
from tests import eval_folders as folders
from tests.test_eval_scores import close, oracle, separate_oracle

Report = dict[str, Any]


def scores(report: Report, video: str) -> dict[str, tuple[float, float]]:
    (own,) = (v for v in report["videos"] if v["video"] == video)
    return {o["object"]: (o["j"], o["f"]) for o in own["objects"]}


def untimed(report: Report) -> list[Report]:
    return [{k: v for k, v in video.items() if k != "seconds"} for video in report["videos"]]


def pngs(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*.png")}


def test_davis_scores_are_those_of_vos_benchmark(tmp_path: Path, bundle_micro: Path) -> None:
    folders.write_davis(tmp_path / "data")
    heard: list[str] = []
    report = evaluate(str(bundle_micro), dataset="davis", root=tmp_path / "data", out=tmp_path / "eval.json", progress=heard.append)
    assert report == json.loads((tmp_path / "eval.json").read_text())
    masks = tmp_path / "eval_submission"
    assert sorted(p.name for p in masks.iterdir()) == ["ant", "bear"]
    rows = []
    for video in ("bear", "ant"):
        wanted = oracle(tmp_path / "data/Annotations/480p", masks, video)
        close(scores(report, video), wanted)
        rows += [(video, i, *pair) for i, pair in wanted.items()]
    assert (report["j"], report["f"]) == pytest.approx((np.mean([r[2] for r in rows]), np.mean([r[3] for r in rows])), abs=1e-6)
    assert report["j_and_f"] == pytest.approx((report["j"] + report["f"]) / 2) and 0 < report["j"] < 100
    assert [w["video"] for w in report["worst"]] == sorted(("bear", "ant"), key=lambda v: np.mean(list(scores(report, v).values())))
    assert (report["dataset"], report["split"], report["scored_objects"], report["complete"]) == ("davis", "val", 3, True)
    assert "failed" not in report and "note" not in report
    with (tmp_path / "eval.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(r["video"], r["object"]) for r in table] == [("bear", "1"), ("bear", "2"), ("ant", "1")]
    assert float(table[0]["j"]) == scores(report, "bear")["1"][0] and table[0]["prompted"] == "00000" and table[0]["frames"] == "3"
    assert heard[0].startswith("1 of 2: bear J&F ") and len(heard) == 2


def test_sav_has_pictures_of_each_object_and_the_scores_of_its_evaluator(tmp_path: Path, bundle_micro: Path) -> None:
    folders.write_sav(tmp_path / "data")
    report = evaluate(str(bundle_micro), dataset="sav", root=tmp_path / "data", out=tmp_path / "eval.json")
    masks = tmp_path / "eval_submission/sav_000001"
    assert sorted(pngs(masks)) == [f"{i:03d}/{t:05d}.png" for i in range(3) for t in (0, 4, 8, 12)]
    pixels = {name: np.asarray(Image.open(masks / name)) for name in pngs(masks)}
    assert not pixels["002/00004.png"].any() and pixels["002/00008.png"].any(), "empty before its prompt"
    assert (pixels["000/00000.png"] & pixels["001/00000.png"]).any(), "overlaps stay"
    wanted = separate_oracle(tmp_path / "data/sav_val/Annotations_6fps", tmp_path / "eval_submission", "sav_000001")
    close(scores(report, "sav_000001"), wanted)
    assert {o["object"]: o["prompted"] for o in report["videos"][0]["objects"]} == {"000": "00000", "001": "00000", "002": "00008"}


@pytest.mark.parametrize("dataset", ["davis", "mose", "lvos", "ytvos"])
def test_private_splits_give_a_submission_and_no_scores(tmp_path: Path, bundle_micro: Path, dataset: str) -> None:
    split = {"davis": "test-dev", "mose": "valid", "lvos": "test", "ytvos": "valid"}[dataset]
    truth = folders.WRITERS[dataset](tmp_path / "data", split)
    heard: list[str] = []
    out = tmp_path / "out" / "eval.json"
    masks = tmp_path / "masks"
    report = evaluate(
        str(bundle_micro), dataset=dataset, root=tmp_path / "data", split=split, out=out, submission=masks, progress=heard.append
    )
    assert not {"j", "f", "j_and_f", "worst"} & report.keys() and not out.with_suffix(".csv").exists()
    assert f"the ground truth of {dataset} {split} is private" in report["note"] and heard[-1] == report["note"]
    names = {
        "davis": folders.numbers(5),
        "mose": folders.numbers(4),
        "lvos": folders.numbers(7, step=5, start=1, digits=8),
        "ytvos": folders.numbers(5, step=5),
    }[dataset]
    inside = "Annotations/" if dataset in ("lvos", "ytvos") else ""
    assert sorted(pngs(masks)) == sorted(f"{inside}{video}/{name}.png" for video in truth for name in names)
    late = {"lvos": "abCD1234", "ytvos": "003234408d"}.get(dataset)
    if late is not None:
        ids = [set(np.unique(np.asarray(Image.open(masks / inside / late / f"{name}.png"))).tolist()) for name in names]
        assert 2 not in ids[0] | ids[1] and 2 in ids[2], "the object is there from its own frame on"


def test_lvos_splits_its_mean_by_seen_and_unseen(tmp_path: Path, bundle_micro: Path) -> None:
    folders.write_lvos(tmp_path / "data")
    (tmp_path / "data/val/unseen_videos.txt").write_text("R3UJGYwy\n")
    report = evaluate(str(bundle_micro), dataset="lvos", root=tmp_path / "data", out=tmp_path / "eval.json")
    ((j, f),) = scores(report, "R3UJGYwy").values()
    assert report["unseen"] == pytest.approx({"j": j, "f": f, "j_and_f": (j + f) / 2})
    assert report["seen"]["j"] == pytest.approx(np.mean([pair[0] for pair in scores(report, "abCD1234").values()]))


def test_nano_on_the_sample_scores_as_fastsam2_score(tmp_path: Path) -> None:
    """Some frames of the clip that ships with the package, as a plain folder."""
    sample, clip = sample_path("hard_000"), tmp_path / "data/hard_000"
    (clip / "frames").mkdir(parents=True)
    (clip / "truth").mkdir()
    with av.open(str(sample / "clip.mp4")) as video:
        for t, frame in zip(range(4), video.decode(video=0), strict=False):
            Image.fromarray(frame.to_ndarray(format="rgb24")).save(clip / "frames" / f"{t:05d}.png")
            shutil.copy(sample / "truth" / f"{t:05d}.png", clip / "truth")
    report = evaluate("nano", dataset="folder", root=tmp_path / "data", out=tmp_path / "eval.json", threads=1)
    score = score_folders(tmp_path / "eval_submission/hard_000", clip / "truth")
    assert scores(report, "hard_000") == {str(o.id): (o.j, o.f) for o in score.objects}
    assert (report["j"], report["f"]) == pytest.approx((score.j, score.f)) and report["j_and_f"] > 60


def test_descriptions_reach_the_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first text of each object, on the frame it begins; objects without a text are tracked without one."""
    from fastsam2.runtime.tracker import Tracker

    folders.write_folder(tmp_path / "data", length=3, videos=("a", "b"))
    entries = {"0": {"exp": "the blue box", "obj_id": "2"}, "1": {"exp": "another text", "obj_id": "2"}}
    (tmp_path / "texts.json").write_text(json.dumps({"videos": {"b": {"expressions": entries}}}))
    told = []
    add = Tracker.add

    def spy(self: Tracker, object_id: int, **given: Any) -> Any:
        told.append((self.frame, object_id, given["text"]))
        return add(self, object_id, **given)

    monkeypatch.setattr(Tracker, "add", spy)
    options: dict[str, Any] = {"dataset": "folder", "root": tmp_path / "data", "expressions": tmp_path / "texts.json", "threads": 1}
    evaluate("nano", **options, videos=["b"], prune=Prune(policy="router", keep=0.05), out=tmp_path / "eval.json")  # type: ignore[arg-type]
    assert told == [(0, 1, None), (1, 2, "the blue box")]
    with pytest.raises(PromptError, match=r"no descriptions without the router, got .*texts\.json with policy mask"):
        evaluate("nano", **options, prune=Prune(policy="mask", keep=0.05), out=tmp_path / "eval.json")  # type: ignore[arg-type]


def test_bundles_that_cannot_do_what_is_asked(tmp_path: Path, bundle_micro: Path) -> None:
    folders.write_folder(tmp_path / "data")
    options: dict[str, Any] = {"dataset": "folder", "root": tmp_path / "data", "out": tmp_path / "eval.json"}
    with pytest.raises(BundleError, match="a bundle with a router"):
        evaluate(str(bundle_micro), **options, prune=Prune(policy="router", keep=0.05))  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="a backend of"):
        evaluate(str(bundle_micro), **options, backend="tpu")
    with pytest.raises(PromptError, match="processes >= 1"):
        evaluate(str(bundle_micro), **options, processes=0)
    assert not (tmp_path / "eval.json").exists()


def test_a_second_call_tracks_only_what_is_missing(tmp_path: Path, bundle_micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.write_folder(tmp_path / "data", videos=("a", "b", "c"))
    options: dict[str, Any] = {"dataset": "folder", "root": tmp_path / "data", "out": tmp_path / "eval.json"}
    first = evaluate(str(bundle_micro), **options)
    before = pngs(tmp_path / "eval_submission")
    ran: list[str] = []

    def spy(job: Job) -> Report:
        ran.append(job.video)
        return run_job(job)

    monkeypatch.setattr(evaluation, "run_job", spy)
    assert untimed(evaluate(str(bundle_micro), **options)) == untimed(first) and ran == []
    log = tmp_path / "eval.jsonl"
    log.write_text(log.read_text()[:-20])  # the last line was being written
    (tmp_path / "eval_submission/.partial/c").mkdir(parents=True)
    shutil.rmtree(tmp_path / "eval_submission/a")
    again = evaluate(str(bundle_micro), **options)
    assert ran == ["a", "c"] and untimed(again) == untimed(first)
    assert pngs(tmp_path / "eval_submission") == before and not (tmp_path / "eval_submission/.partial").exists()


def test_two_calls_do_not_share_a_folder(tmp_path: Path, bundle_micro: Path) -> None:
    folders.write_davis(tmp_path / "data")
    call: dict[str, Any] = {"dataset": "davis", "root": tmp_path / "data", "out": tmp_path / "eval.json"}
    holder = (
        "import sys, pathlib\nfrom fastsam2.files import only_one\nwith only_one(pathlib.Path(sys.argv[1])): print(1, flush=True), input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "eval_submission")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        with pytest.raises(StateError, match="another call that is writing to it"):
            evaluate(str(bundle_micro), **call)
        assert not (tmp_path / "eval.jsonl").exists()
        other.communicate(b"\n")
    assert evaluate(str(bundle_micro), **call)["complete"]


def test_other_settings_do_not_mix(tmp_path: Path, bundle_micro: Path) -> None:
    folders.write_folder(tmp_path / "data", videos=("a",))
    options: dict[str, Any] = {"dataset": "folder", "root": tmp_path / "data", "out": tmp_path / "eval.json"}
    evaluate(str(bundle_micro), **options)
    with pytest.raises(StateError, match=r"the settings \{'prune': .*'dense'.* of the run in .*eval\.jsonl, got \{'prune': .*'mask'"):
        evaluate(str(bundle_micro), **options, prune=Prune(policy="mask", keep=0.5))  # type: ignore[arg-type]
    with pytest.raises(StateError, match=r"a new folder for masks, got .*data, which holds other files"):
        evaluate(str(bundle_micro), **{**options, "out": tmp_path / "other.json"}, submission=tmp_path / "data")


def test_one_broken_video_does_not_cost_the_others(tmp_path: Path, bundle_micro: Path) -> None:
    folders.write_folder(tmp_path / "data", videos=("a", "b"))
    frame = tmp_path / "data/a/frames/00002.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(b"no picture")
    options: dict[str, Any] = {"dataset": "folder", "root": tmp_path / "data", "out": tmp_path / "eval.json"}
    with pytest.raises(VideoError, match=r"masks of 2 videos, got 1 that failed, such as a: .*readable picture.*00002\.jpg"):
        evaluate(str(bundle_micro), **options)
    report = json.loads((tmp_path / "eval.json").read_text())
    assert (
        report["complete"] is False and [f["video"] for f in report["failed"]] == ["a"] and [v["video"] for v in report["videos"]] == ["b"]
    )
    assert sorted(p.name for p in (tmp_path / "eval_submission").iterdir()) == ["b"]
    frame.write_bytes(whole)
    report = evaluate(str(bundle_micro), **options)
    assert report["complete"] is True and [v["video"] for v in report["videos"]] == ["a", "b"]


def test_clips_without_a_frame_to_score(tmp_path: Path, bundle_micro: Path) -> None:
    folders.write_davis(tmp_path / "data", length=2)
    with pytest.raises(ScoreError, match="a frame to score"):
        evaluate(str(bundle_micro), dataset="davis", root=tmp_path / "data", out=tmp_path / "eval.json")


CALL = """
import sys
from pathlib import Path
from fastsam2.benchmarks.eval import evaluate
if __name__ == "__main__":
    evaluate(sys.argv[1], dataset="folder", root=Path(sys.argv[2]), out=Path(sys.argv[3]), processes=2, threads=1)
"""


def test_killed_in_the_middle_it_goes_on_and_leaves_no_process(tmp_path: Path, bundle_micro: Path) -> None:
    """Two worker processes; the parent is killed once a video is done. Masks and scores are those of one process that ran through."""
    names = tuple("abcdef")
    folders.write_folder(tmp_path / "data", length=8, videos=names)
    whole = evaluate(str(bundle_micro), dataset="folder", root=tmp_path / "data", out=tmp_path / "whole/eval.json")
    (tmp_path / "call.py").write_text(CALL)
    out = tmp_path / "eval.json"
    command = [sys.executable, str(tmp_path / "call.py"), str(bundle_micro), str(tmp_path / "data"), str(out)]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    first = subprocess.Popen(command, env=environment)
    log = out.with_suffix(".jsonl")
    while first.poll() is None and not (log.is_file() and log.read_text().count("\n") >= 2):
        time.sleep(0.01)
    workers = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and _parent(p) == first.pid]
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and len(workers) >= 2
    assert 2 <= log.read_text().count("\n") < 1 + len(names), "killed in the middle"
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert list((tmp_path / "eval_submission/.partial").iterdir()), "they did not first end their videos"
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert untimed(json.loads(out.read_text())) == untimed(whole)
    assert pngs(tmp_path / "eval_submission") == pngs(tmp_path / "whole/eval_submission")


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0
