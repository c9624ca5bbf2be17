"""`run_bench` on the micro model. Oracles: the raw pairs, an uninterrupted run, and what a broken side must change."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastsam2.benchmarks import bench, bench_case, bench_frames
from fastsam2.benchmarks.bench import run_bench
from fastsam2.benchmarks.bench_case import measure, quality, worst_iou
from fastsam2.benchmarks.bench_frames import box_in, make_frames
from fastsam2.benchmarks.bench_memory import Request
from fastsam2.benchmarks.bench_record import BenchRecord
from fastsam2.benchmarks.sides import Official
from fastsam2.errors import BundleError, FastSam2Error, PromptError, VideoError
from tests.bare_nano import bare_nano

FRAMES = 3
PEAKS = {"official": 7000, "ours": 5000}


class World:
    """`run_bench` of the micro model with its official side; memory is told, not measured.

    Attributes:
        requests: for memory, of all runs.
        measured: number of objects of each group, and of sides.
        stop_at: number of objects at which a run is interrupted.
    """

    def __init__(self, bundle: Path, config: Path, folder: Path) -> None:
        self.bundle, self.config, self.out = bundle, config, folder / "bench.json"
        self.requests: list[Request] = []
        self.measured: list[tuple[int, int]] = []
        self.stop_at: int | None = None

    def peak_memory(self, request: Request) -> dict[str, Any]:
        self.requests.append(request)
        peaks = {n: {"peak_bytes": PEAKS[request.side] + n} for n in request.objects}
        return {"start_up_ms": 12.5, "peaks": peaks}

    def measure(self, sides: Sequence[Any], compared: Sequence[Any], files: Sequence[Path], **options: Any) -> Any:
        objects = len(sides[-1].tracker.ids)
        if objects == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append((objects, len(sides)))
        return measure(sides, compared, files, **options)

    def run(self, **options: Any) -> dict[str, Any]:
        given = {"against": "official", "config": str(self.config), "frames": FRAMES, "threads": 1, "out": self.out}
        return run_bench(str(self.bundle), **{**given, **options})


@pytest.fixture
def world(bundle_micro: Path, micro_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(bundle_micro, micro_config, tmp_path)
    monkeypatch.setattr(bench_frames, "SCENE_SIZE", (96, 160))
    monkeypatch.setattr(bench, "SETTLE_S", 0.0)
    monkeypatch.setattr(bench, "peak_memory", made.peak_memory)
    monkeypatch.setattr(bench, "measure", made.measure)
    return made


def by_key(record: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    cases = {(c["objects"], c["keep"], c["boundary"]): c for c in record["cases"]}
    assert len(cases) == len(record["cases"])
    return cases


def test_cases_follow_from_their_pairs(world: World) -> None:
    record = world.run(objects=[2, 1, 2], keep=[1.0, 0.2, 0.25], policy="random")
    assert json.loads(world.out.read_text()) == record
    assert {"cpu", "commit", "bundle_sha256", "python", "torch"} <= record.keys()
    assert (record["frames"], record["video_size"]) == (FRAMES, [96, 160])
    cases = by_key(record)
    assert list(cases) == [(n, k, b) for n in (1, 2) for k in (1.0, 0.25) for b in ("end_to_end", "model")]
    for (objects, keep, boundary), case in cases.items():
        pairs = np.array(case["pairs"])
        assert pairs.shape == (FRAMES, 2)
        assert pairs.min() > 0
        assert case["official_ms"] == np.median(pairs[:, 0])
        assert case["ours_ms"] == np.median(pairs[:, 1]) == case["frames_ms"]["p50"]
        assert case["frames_ms"]["p99"] <= pairs[:, 1].max()
        ratio = pairs[:, 0] / pairs[:, 1]
        assert (case["ratio"], case["ratio_spread"]) == (np.median(ratio), [ratio.min(), ratio.max()])
        assert case["model"] == "micro"
        assert (case["backend"], case["precision"], case["against"], case["threads"]) == ("onnxruntime", "fp32", "official", 1)
        assert case["policy"] == ("dense" if keep == 1 else "random")
        assert case["memory_share"] == (1.0 if keep == 1 else pytest.approx((2 + 5 * 0.25) / 7))
        assert case["peak_bytes"] == 5000 + objects
        assert case["official_peak_bytes"] == 7000 + objects
        assert (case["start_up_ms"], case["official_start_up_ms"]) == (12.5, 12.5)
        assert {"image_encoder", "memory_attention", "mask_decoder", "memory_encoder"} <= case["stages_ms"].keys()
        assert ("decode" in case["stages_ms"]) == (boundary == "end_to_end")
        assert not {"energy_j_per_frame", "device_peak_bytes", "cuda_graphs"} & case.keys()
        assert None not in case.values()
        whole = np.array(cases[objects, keep, "end_to_end"]["pairs"])
        if boundary == "model":
            assert (whole > pairs).all(), "decoding comes on top of the same steps"
        if keep == 1:
            assert case["mask_iou"] >= 0.999
            assert case["counts"] is True
        else:
            assert 0.1 < case["mask_iou"] < 0.999, "rows taken at random show in the masks"
            assert "counts" not in case
    assert cases[1, 1.0, "model"]["mask_sha256"] == cases[1, 1.0, "end_to_end"]["mask_sha256"] != cases[1, 0.25, "model"]["mask_sha256"]
    assert cases[1, 0.25, "model"]["bytes_per_object"] < cases[1, 1.0, "model"]["bytes_per_object"]


def test_an_interrupted_run_goes_on_where_it_stopped(world: World) -> None:
    world.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        world.run(objects=[1, 3])
    first = json.loads(world.out.read_text())["cases"]
    assert [c["objects"] for c in first] == [1, 1]
    world.stop_at = None
    world.measured.clear()
    world.requests.clear()
    record = world.run(objects=[1, 3], keep=[1.0, 0.25])
    assert record["cases"][:2] == first
    assert world.measured == [(1, 3), (3, 3)], "dense runs along, for the pruned case to be compared with"
    assert [(r.side, r.keep, list(r.objects)) for r in world.requests] == [
        ("official", None, [1, 3]),
        ("ours", 0.25, [1, 3]),
        ("ours", None, [3]),
    ]
    assert [(c["objects"], c["keep"]) for c in record["cases"][2::2]] == [(1, 0.25), (3, 1.0), (3, 0.25)]
    world.measured.clear()
    lines: list[str] = []
    assert world.run(objects=[3, 1], keep=[0.25, 1.0], progress=lines.append) == record
    assert (world.measured, len(lines)) == ([], 1)
    assert len(world.run(objects=[1], keep=[0.5])["cases"]) == len(record["cases"]) + 2, "another share is another case"
    alone = world.run(objects=[3], keep=[0.25], out=world.out.with_name("again.json"))
    again, before = by_key(alone), by_key(record)
    assert list(again) == [(3, 0.25, "end_to_end"), (3, 0.25, "model")]
    for key, case in again.items():
        assert case["mask_sha256"] == before[key]["mask_sha256"], "a case does not depend on the others of its run"
        assert case["mask_iou"] == before[key]["mask_iou"]
        words = case["command"].split()
        assert words[:3] == ["fastsam2", "bench", str(world.bundle)]
        options = dict(zip(words[3::2], words[4::2], strict=True))
        wanted = {"--objects": "3", "--keep": "0.25", "--policy": "mask", "--frames": str(FRAMES), "--against": "official"}
        assert wanted.items() <= options.items()


def test_a_file_keeps_what_its_first_cases_were_measured_with(tmp_path: Path) -> None:
    head = {"cpu": "a", "driver": "550.1", "date": "2026-01-01", "commit": "aaaa", "video": "clip.mp4"}
    first = BenchRecord(tmp_path / "bench.json", head)
    first.head["video_size"] = [720, 1280]
    first.add([{"objects": 1}])
    for change in ({"driver": "580.9"}, {"python": "3.12"}, {"tensorrt": "11.1"}):
        with pytest.raises(PromptError, match="a file measured with"):
            BenchRecord(tmp_path / "bench.json", {**head, **change})
    later = BenchRecord(tmp_path / "bench.json", {**head, "date": "2026-02-02", "commit": "bbbb"})
    later.head["video_size"] = [480, 640]
    with pytest.raises(PromptError, match=r"\[480, 640\].*got .*\[720, 1280\]"):
        later.add([{"objects": 2}])
    later.head["video_size"] = [720, 1280]
    later.add([{"objects": 2}])
    content = json.loads((tmp_path / "bench.json").read_text())
    assert (content["date"], content["commit"]) == ("2026-01-01", "aaaa")
    assert content["cases"] == [
        {"objects": 1, "date": "2026-01-01", "commit": "aaaa"},
        {"objects": 2, "date": "2026-02-02", "commit": "bbbb"},
    ]


def test_without_the_official_side_torch_is_not_needed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "sam2", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
    record = world.run(against=None, config=None, keep=[0.25], model="mine")
    assert [c["boundary"] for c in record["cases"]] == ["end_to_end", "model"]
    case = record["cases"][0]
    assert case["model"] == "mine"
    assert 0 < case["mask_iou"] < 1
    assert case["ours_ms"] > 0
    assert not {"official_ms", "ratio", "ratio_spread", "pairs", "against", "official_peak_bytes", "counts"} & case.keys()
    assert world.measured == [(1, 2)]
    assert "--against" not in case["command"]


def test_a_dense_case_that_differs_does_not_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    step: Callable[..., Any] = Official.step
    monkeypatch.setattr(Official, "step", lambda self, frame: np.roll(step(self, frame), 2, axis=2))
    for case in world.run()["cases"]:
        assert case["counts"] is False
        assert 0.5 < case["mask_iou"] < 0.999
        assert f"{case['mask_iou']:.4f}" in case["counts_why"]


def taken(iou: float | None, covered: float) -> bench_case.Taken:
    return bench_case.Taken(ious=[] if iou is None else [1.0, iou], covered=[covered, covered])


def test_what_counts() -> None:
    assert quality(taken(0.9991, 0.1), dense=True, precision="fp32")["counts"] is True
    assert quality(taken(0.9989, 0.1), dense=True, precision="fp32")["counts"] is False
    assert quality(taken(0.96, 0.1), dense=True, precision="fp16")["counts"] is True
    assert quality(taken(0.94, 0.1), dense=True, precision="fp16")["counts"] is False
    assert "cover 0.10 %" in quality(taken(1.0, 0.001), dense=True, precision="fp32")["counts_why"]
    assert "cover 99.00 %" in quality(taken(1.0, 0.99), dense=True, precision="fp32")["counts_why"]
    assert "counts" not in quality(taken(1.0, 0.1), dense=False, precision="fp32")
    assert "mask_iou" not in quality(taken(None, 0.1), dense=True, precision="fp32")


def test_worst_iou() -> None:
    one, other = np.zeros((2, 3, 4, 4), np.bool_)
    assert worst_iou(one, other) == 1, "nothing on both sides"
    one[0], other[0, :2] = True, True
    assert worst_iou(one, other) == 0.5
    one[2, 0, 0] = True
    assert worst_iou(one, other) == 0


class Listed:
    """A side that says what it is asked; its mask is `value`."""

    def __init__(self, name: str, log: list[str], value: bool) -> None:
        self.name, self.log, self.value = name, log, value

    def decode(self, file: Path) -> str:
        self.log.append(f"{self.name} decodes {file}")
        return str(file)

    def step(self, frame: str) -> np.ndarray[Any, Any]:
        self.log.append(f"{self.name} {frame}")
        return np.full((1, 2, 2), self.value)


def test_sides_take_turns_and_the_first_frame_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(bench_case.time, "sleep", lambda seconds: log.append(f"pause {seconds}"))
    sides: Any = [Listed("a", log, True), Listed("b", log, True), Listed("c", log, False)]
    found = measure(sides, [None, 0, 1], [Path(str(t)) for t in range(4)], settle_s=0.2)
    assert [line for line in log if line[:5] != "pause" and "decodes" not in line] == (
        ["a 0", "b 0", "c 0", "b 1", "c 1", "a 1", "c 2", "a 2", "b 2", "a 3", "b 3", "c 3"]
    )
    assert log[:3] == ["pause 0.2", "a decodes 0", "a 0"]
    assert [len(t.timer.samples_ms("step")) for t in found] == [3, 3, 3]
    assert [t.ious for t in found] == [[], [1.0] * 3, [0.0] * 3]
    assert [t.covered for t in found] == [[1.0] * 3, [1.0] * 3, [0.0] * 3]
    ones, zeros = (hashlib.sha256(3 * bytes([bits])).hexdigest() for bits in (0b11110000, 0))
    assert [t.digest.hexdigest() for t in found] == [ones, ones, zeros]


def test_bad_options_are_refused(world: World, tmp_path: Path) -> None:
    for options, what in (
        ({"frames": 0}, "frames"),
        ({"objects": [0]}, "objects"),
        ({"objects": []}, "objects"),
        ({"keep": []}, "share"),
        ({"keep": [1.5]}, "keep"),
        ({"keep": [0.5], "policy": "dense"}, "dense"),
        ({"against": "meta"}, "meta"),
        ({"against": "official-compiled"}, "GPU"),
        ({"config": None}, "--config"),
        ({"checkpoint": "random:9"}, "random:9"),
    ):
        with pytest.raises(FastSam2Error, match=what):
            world.run(**options)
    assert not world.out.exists()
    assert world.requests == []


def test_a_file_of_other_conditions_is_refused(world: World) -> None:
    world.run(against=None)
    kept = world.out.read_bytes()
    for options, what in (({"threads": 2}, "'threads': 2"), ({"frames": FRAMES + 1}, "'frames'")):
        with pytest.raises(PromptError, match=what):
            world.run(against=None, **options)
    with pytest.raises(PromptError, match="bundle_sha256"):
        run_bench(str(bare_nano()), out=world.out, frames=FRAMES, threads=1)
    assert world.out.read_bytes() == kept
    for other in ("[]", '{"cases": 3}', "{"):
        world.out.write_text(other)
        with pytest.raises(PromptError, match="a benchmark in"):
            world.run(against=None)


def test_a_video_is_used_and_has_to_be_long_enough(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for t, frame in enumerate(make_frames(22, (80, 120))):
        Image.fromarray(frame).save(folder / f"{t}.png")
    record = world.run(against=None, video=str(folder))
    assert (record["video"], record["video_size"]) == (str(folder), [80, 120])
    (folder / "21.png").unlink()
    with pytest.raises(VideoError, match=r"at least 22 frames in .*clip, got 21"):
        world.run(against=None, video=str(folder), out=tmp_path / "other.json")


def test_frames_show_an_object_and_do_not_depend_on_their_number() -> None:
    few, many = list(make_frames(2, (90, 160))), list(make_frames(9, (90, 160)))
    np.testing.assert_array_equal(few[1], many[1])
    assert few[0].shape == (90, 160, 3)
    assert few[0].dtype == np.uint8
    assert not np.array_equal(few[0], few[1])
    x0, y0, x1, y1 = box_in((90, 160))
    red = (few[0][..., 0] > 180) & (few[0][..., 1:] < 100).all(axis=-1)
    assert red[45, 75]
    assert red[round(y0) : round(y1), round(x0) : round(x1)].mean() == pytest.approx(np.pi / 4, abs=0.05)


def test_other_weights_are_refused(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"x")
    with pytest.raises(BundleError, match=r"others in .*other.pt"):
        world.run(checkpoint=str(other))
