"""A whole run, over a tracker that records its calls and marks each object with a square of its own."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2.cli import main
from fastsam2.config import Prune
from fastsam2.enums import BackendName, PrunePolicy, QueryPolicy
from fastsam2.errors import FastSam2Error, PromptError, VideoError
from fastsam2.runtime import run as run_module
from fastsam2.runtime.backends.onnxruntime import usable_cores
from fastsam2.runtime.prompt_args import TimedPrompt, read_prompts
from fastsam2.runtime.result import MemoryReport, Result
from fastsam2.runtime.run import run_video
from tests.specs import model_spec

SIZE = (24, 32)
FRAMES = 6
SPEC = model_spec(name="tiny", hidden_dim=32)


class RecordingTracker:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.calls: list[Any] = []
        self.ids: tuple[int, ...] = ()
        self.frame = -1
        self.upcoming: list[npt.NDArray[np.uint8] | None] = []

    def step(self, frame: npt.NDArray[np.uint8], *, upcoming: npt.NDArray[np.uint8] | None = None) -> Result:
        assert frame.shape == (*SIZE, 3)
        assert not self.upcoming or self.upcoming[-1] is None or self.upcoming[-1] is frame
        self.upcoming.append(upcoming)
        self.frame += 1
        self.calls.append(("step", self.frame))
        return self._result()

    def add(self, object_id: int, **prompt: Any) -> Result:
        assert object_id not in self.ids
        self.ids = (*self.ids, object_id)
        self.calls.append(("add", object_id, self.frame, prompt))
        return self._result()

    def correct(self, object_id: int, **prompt: Any) -> Result:
        assert object_id in self.ids
        self.calls.append(("correct", object_id, self.frame, prompt))
        return self._result()

    def describe(self, object_id: int, text: str | None) -> None:
        assert object_id in self.ids
        self.calls.append(("describe", object_id, self.frame, text))

    def remove(self, object_id: int) -> None:
        self.ids = tuple(i for i in self.ids if i != object_id)
        self.calls.append(("remove", object_id, self.frame))

    def stages_ms(self) -> dict[str, dict[str, float]]:
        return {"image_encoder": {"median": 1.0, "p90": 2.0}}

    def _result(self) -> Result:
        count = len(self.ids)
        masks = np.zeros((count, *SIZE), np.bool_)
        for i, object_id in enumerate(self.ids):
            masks[i, object_id % SIZE[0]] = True
        ones = np.ones(count, np.float32)
        memory = MemoryReport(tuple(10 * i for i in self.ids), tuple(0.5 * i for i in self.ids), tuple(100 * i for i in self.ids))
        return Result(self.frame, self.ids, masks, ones > 0, ones * np.float32(0.1), ones, np.zeros((count, 32, 32), np.float32), memory)


BUNDLE = Path("bundle dir")


class Bundle:
    spec = SPEC
    folder = BUNDLE
    manifest = SimpleNamespace(text=None)
    backend = SimpleNamespace(name="onnxruntime")
    gpu: dict[str, Any] | None = None
    closed = 0

    def device_facts(self) -> dict[str, Any] | None:
        return self.gpu

    def close(self) -> None:
        self.closed += 1

    def tracker(self, **options: Any) -> RecordingTracker:
        self.made = RecordingTracker(options)
        return self.made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frames = tmp_path / "frames"
    frames.mkdir()
    for i in range(FRAMES):
        Image.fromarray(np.full((*SIZE, 3), 40 * i, np.uint8)).save(frames / f"{i:05d}.png")
    return frames


def _run(bundle: Bundle, source: Path, out: Path | None, prompts: list[TimedPrompt], **options: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "load", lambda *_, **__: bundle)
        return run_video(BUNDLE, source=str(source), out=out, prompts=prompts, **options)


def _palette(out: Path, frame: int) -> list[int]:
    return np.unique(np.asarray(Image.open(out / "masks" / f"{frame:05d}.png"))).tolist()


def test_prompts_removals_and_files(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 4:8] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    prompts = read_prompts(
        boxes=["1,2,10,12"], points=["3,4,0", "1:5,6@2", "2:7,8@4"], masks=[f"7:{tmp_path / 'm.png'}@1"], removals=["7@3", "1@4"]
    )
    bundle, out, seen = Bundle(), tmp_path / "out", []
    record = _run(bundle, folder, out, prompts, progress=lambda done, total: seen.append((done, total)))
    calls = bundle.made.calls
    none = {"box": None, "points": None, "labels": None, "mask": None}
    masked = calls.pop(3)
    assert masked[:3] == ("add", 7, 1) and {**masked[3], "mask": None} == none
    np.testing.assert_array_equal(masked[3]["mask"], mask > 0)
    assert calls == [
        ("step", 0),
        ("add", 1, 0, {**none, "box": (1, 2, 10, 12), "points": ((3, 4),), "labels": (0,)}),
        ("step", 1),
        ("step", 2),
        ("correct", 1, 2, {**none, "points": ((5, 6),), "labels": (1,)}),
        ("remove", 7, 2),
        ("step", 3),
        ("remove", 1, 3),
        ("step", 4),
        ("add", 2, 4, {**none, "points": ((7, 8),), "labels": (1,)}),
        ("step", 5),
    ]
    assert [None if f is None else f[0, 0, 0] for f in bundle.made.upcoming] == [40, 80, 120, 160, 200, None]
    assert [_palette(out, t) for t in range(FRAMES)] == [[0, 1], [0, 1, 7], [0, 1, 7], [0, 1], [0, 2], [0, 2]]
    assert seen == [(n, FRAMES) for n in range(1, FRAMES + 1)]
    written = json.loads((out / "run.json").read_text())
    assert written.pop("outputs")["masks"] == "palette"
    assert written == record


def test_record(folder: Path, tmp_path: Path) -> None:
    prompts = read_prompts(points=["3,4", "2:3,4@1"], removals=["1@3"])
    record = _run(Bundle(), folder, tmp_path / "out", prompts, prune=Prune(policy=PrunePolicy.MASK, keep=0.07), frames=4, overlay=False)
    assert record["objects"] == [{"id": 1, "added_frame": 0, "removed_frame": 3}, {"id": 2, "added_frame": 1, "removed_frame": None}]
    assert record["model"] == SPEC.model_dump(mode="json")
    assert record["bundle"] == "bundle dir" and record["backend"] == "onnxruntime" and record["threads"] == usable_cores()
    assert record["frames"] == 4 and record["fps"] > 0 and record["interrupted"] is False
    assert record["keep"] == 7 / 64  # 0.07 of 64 rows is 5 rows; the next bucket, 0.1, has 7
    assert (record["memory_tokens"], record["memory_share"], record["bytes_per_object"]) == (20, 1.0, 200)
    assert record["source"] == {
        "name": str(folder),
        "size": list(SIZE),
        "fps": None,
        "frame_count": 4,
        "live": False,
        "dropped": 0,
        "drop_policy": "every frame",
    }
    assert set(record["stages_ms"]) == {"image_encoder", "decode", "write"}
    assert all(0 < record["stages_ms"][stage]["median"] <= record["stages_ms"][stage]["p90"] for stage in ("decode", "write"))
    assert record["per_frame"][3] == {"frame": 3, "ids": [2], "scores": [0.1], "visible": [True], "ious": [1.0]}
    assert record["config"]["prune"] == {
        "policy": "mask",
        "keep": 0.07,
        "tokens": None,
        "protect": ["prompt", "newest"],
        "seed": 0,
        "buckets": [0.02, 0.05, 0.1, 0.25, 0.5, 1.0],
        "guard": False,
        "queries": "all",
        "query_keep": None,
    }
    assert record["config"]["prompts"] == [p.to_json() for p in prompts]
    assert not (tmp_path / "out" / "overlay.mp4").exists()


@pytest.mark.parametrize(
    ("prune", "keep"),
    [(Prune(), 1.0), (Prune(policy=PrunePolicy.POOL2X2), 0.25), (Prune(policy=PrunePolicy.UNIFORM, tokens=17), 0.5)],
)
def test_effective_keep(folder: Path, tmp_path: Path, prune: Prune, keep: float) -> None:
    assert _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]), prune=prune, frames=1)["keep"] == keep


def test_options_reach_the_tracker(folder: Path, tmp_path: Path) -> None:
    bundle, prune = Bundle(), Prune(policy=PrunePolicy.RANDOM, keep=0.5, seed=3)
    options: dict[str, Any] = {"corrections_as_prompts": True, "max_prompt_frames": 2, "fill_hole_area": 8, "memory_budget_mb": 900}
    _run(bundle, folder, tmp_path / "out", read_prompts(points=["3,4"]), prune=prune, frames=1, **options)
    assert bundle.made.options == {"prune": prune, **options}


def test_command_repeats_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune = Prune(policy=PrunePolicy.RANDOM, keep=0.5, protect=(), seed=3, queries=QueryPolicy.DROP, query_keep=0.5)
    options: dict[str, Any] = {
        "corrections_as_prompts": True,
        "max_prompt_frames": 2,
        "fill_hole_area": 8,
        "frames": 5,
        "threads": 2,
        "separate": True,
    }
    prompts = read_prompts(boxes=["300:1,2,10.25,12@1"], points=["3,4,0", "2:5,6@3"], removals=["1@2"])
    record = _run(Bundle(), folder, tmp_path / "an out", prompts, prune=prune, rle=True, overlay=False, **options)
    program, *args = shlex.split(record["command"])
    loads: list[Any] = []
    monkeypatch.setattr(run_module, "load", lambda *args, **options: loads.append((args, options)) or Bundle())
    with pytest.raises(SystemExit, match="0"):
        main(args)
    assert program == "fastsam2" and loads == [
        (("./bundle dir",), {"backend": "onnxruntime", "threads": 2, "gpu": 0, "cuda_graphs": False})
    ]
    again = json.loads((tmp_path / "an out" / "run.json").read_text())
    assert {key: again[key] for key in ("config", "command", "objects", "per_frame")} == {
        key: record[key] for key in ("config", "command", "objects", "per_frame")
    }


def test_no_command_for_buckets_that_no_option_names(folder: Path, tmp_path: Path) -> None:
    prune = Prune(policy=PrunePolicy.MASK, keep=0.3, buckets=(0.3, 1.0))
    assert _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["3,4"]), prune=prune, frames=1)["command"] is None


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ({}, {}, "at least one prompt"),
        ({"points": ["3,4@6"]}, {}, "frames 0 to 5 of .*frames, got object 1 on frame 6"),
        ({"points": ["3,4@3"]}, {"frames": 3}, "frames 0 to 2"),
        ({"points": ["3,4"], "removals": ["1@6"]}, {}, "frames 0 to 5"),
        ({"points": ["3,4"], "boxes": ["2:0,0,33,10@1"]}, {}, "object 2 on frame 1: expected 0 <= x <= 32"),
        ({"boxes": ["9,0,3,10"]}, {}, "object 1 on frame 0: expected a box with x0 < x1"),
        ({"masks": ["2:WRONG.png@1"]}, {}, r"object 2 on frame 1: .*size \[24, 32\], got shape \[5, 7\]"),
        ({"masks": ["none.png"]}, {}, "readable PNG mask"),
        ({"points": ["256:3,4"]}, {}, "ids up to 255"),
        ({"points": ["3,4"]}, {"frames": 0}, "at least 1"),
        ({"points": ["3,4"]}, {"prune": Prune(policy=PrunePolicy.MASK, tokens=65)}, "at most 64 tokens"),
    ],
)
def test_errors_come_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: dict[str, list[str]], options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((5, 7), np.uint8)).save("WRONG.png")
    bundle = Bundle()
    with pytest.raises(PromptError, match=message):
        _run(bundle, folder, tmp_path / "out", read_prompts(**texts), **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists() and not hasattr(bundle, "made")


def test_big_ids_are_legal_in_separate_masks(folder: Path, tmp_path: Path) -> None:
    _run(Bundle(), folder, tmp_path / "out", read_prompts(points=["256:3,4"]), separate=True, frames=1)
    assert (tmp_path / "out" / "masks" / "256" / "00000.png").exists()


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="does not exist"):
        _run(Bundle(), tmp_path / "none.mp4", tmp_path / "out", read_prompts(points=["3,4"]))


def test_masks_are_named_as_numbered_pictures(folder: Path, tmp_path: Path) -> None:
    for name, masks in (("{:03d}", ["005.png", "006.png", "007.png"]), ("frame_{}", ["00000.png", "00001.png", "00002.png"])):
        source = tmp_path / name
        source.mkdir()
        for i in range(3):
            (source / f"{name.format(i + 5)}.png").write_bytes((folder / f"{i:05d}.png").read_bytes())
        out = tmp_path / f"out {name}"
        _run(Bundle(), source, out, read_prompts(points=["3,4"]))
        assert sorted(path.name for path in (out / "masks").iterdir()) == masks


def test_failing_tracker_leaves_the_earlier_run_in_place(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _run(Bundle(), folder, out, read_prompts(points=["3,4"]), frames=2)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    class BrokenBundle(Bundle):
        def tracker(self, **options: Any) -> RecordingTracker:
            tracker = super().tracker(**options)
            tracker.correct = lambda *_, **__: (_ for _ in ()).throw(FastSam2Error("broken"))  # type: ignore[method-assign]
            return tracker

    with pytest.raises(FastSam2Error, match="broken"):
        _run(BrokenBundle(), folder, out, read_prompts(points=["3,4", "3,4@1"]))
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_written_frame_is_the_one_after_its_prompts(folder: Path, tmp_path: Path) -> None:
    class Corrected(RecordingTracker):
        def correct(self, object_id: int, **prompt: Any) -> Result:
            result = super().correct(object_id, **prompt)
            return replace(result, masks=np.ones_like(result.masks))

    class CorrectedBundle(Bundle):
        def tracker(self, **options: Any) -> Corrected:
            return Corrected(options)

    _run(CorrectedBundle(), folder, tmp_path / "out", read_prompts(points=["3,4", "3,4@1"]), frames=3)
    assert [_palette(tmp_path / "out", t) for t in range(3)] == [[0, 1], [1], [0, 1]]


def test_texts_are_given_where_they_stand(folder: Path, tmp_path: Path) -> None:
    prompts = [*read_prompts(boxes=["2:1,2,10,12"], texts=["2:a cup"]), TimedPrompt(id=2, frame=3, box=(1, 2, 9, 9), text="a red cup")]
    bundle = Bundle()
    bundle.manifest = SimpleNamespace(text="a text encoder")
    prune = Prune(policy=PrunePolicy.ROUTER, keep=0.05, guard=True)
    record = _run(bundle, folder, tmp_path / "out", prompts, prune=prune, tokens=True, overlay=False)
    assert [c for c in bundle.made.calls if c[0] == "describe"] == [("describe", 2, 0, "a cup"), ("describe", 2, 3, "a red cup")]
    assert record["command"] is None  # --text names one description for an object
    assert [p["text"] for p in record["config"]["prompts"]] == ["a cup", "a red cup"]
    record = _run(bundle, folder, tmp_path / "one", prompts[:1], prune=prune, tokens=True, overlay=False)
    assert " --text '2:a cup' " in record["command"] and record["command"].endswith("--no-overlay --guard --show-tokens")
    with av.open(str(tmp_path / "one" / "tokens.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES - 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prune": Prune(policy=PrunePolicy.MASK, keep=0.1)}, "texts with --prune router"),
        ({"prune": Prune(policy=PrunePolicy.ROUTER)}, "a bundle with a text encoder"),
        ({"tokens": True}, "a policy that scores rows, got policy dense"),
        ({"tokens": True, "prune": Prune(policy=PrunePolicy.POOL2X2)}, "a policy that scores rows"),
    ],
)
def test_texts_and_token_videos_that_are_refused(folder: Path, tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        _run(Bundle(), folder, tmp_path / "out", read_prompts(boxes=["1,2,10,12"], texts=["a cup"]), **options)
    assert not (tmp_path / "out").exists()


def test_a_gpu_is_on_record_and_given_back(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle()
    bundle.backend, bundle.gpu = SimpleNamespace(name="tensorrt-rtx"), {"name": "a GPU", "arrays_peak": 7}
    box = read_prompts(boxes=["1:1,2,10,12"])
    record = _run(bundle, folder, tmp_path / "out", box, backend=BackendName.GPU, gpu=1, cuda_graphs=True)
    assert (record["backend"], record["gpu"], bundle.closed) == ("tensorrt-rtx", bundle.gpu, 1)
    assert "--backend tensorrt-rtx --gpu 1" in record["command"] and "--cuda-graphs" in record["command"]
    assert "gpu" not in _run(Bundle(), folder, tmp_path / "cpu", box)
    failing = Bundle()
    with pytest.raises(PromptError):
        _run(failing, folder, tmp_path / "late", read_prompts(boxes=["1:1,2,10,12@99"]))
    assert failing.closed == 1
