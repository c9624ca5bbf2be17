"""J and F of a split against other evaluators on the same masks: vos-benchmark, and the rules of DAVIS and SA-V by hand.

The evaluator of SA-V is vos-benchmark applied to the folder of each object, and compares what is not 0; so do these tests.
Real masklets come from FASTSAM2_TEST_DATA, a folder with sav_000001_manual.json of SA-V.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.benchmarks.protocols import Counted, counted, prompts
from fastsam2.benchmarks.score import Scorer
from fastsam2.benchmarks.splits import Split, open_split
from fastsam2.benchmarks.submission import new_video, object_label, video_folder
from fastsam2.runtime.outputs import mask_from_counts
from tests import eval_folders as folders

DATA = "FASTSAM2_TEST_DATA"
EVERY = 16  # of the annotated frames of a real masklet

Mask = npt.NDArray[np.bool_]
Scores = dict[str, tuple[float, float]]


def oracle(truth: Path, predicted: Path, video: str) -> Scores:
    """vos-benchmark: object -> J, F."""
    module = pytest.importorskip("vos_benchmark.benchmark", reason="vos-benchmark, or scikit-image that it needs, is not installed")
    _, j, f = module.VideoEvaluator(str(truth), str(predicted))(video)
    return {str(i): (float(j[i]), float(f[i])) for i in j}


def separate_oracle(truth: Path, predicted: Path, video: str) -> Scores:
    """The same with each object as a video, as the evaluator of SA-V has it."""
    scores = {}
    for folder in sorted((truth / video).iterdir()):
        if own := oracle(truth / video, predicted / video, folder.name):
            (scores[folder.name],) = own.values()
    return scores


def run(split: Split, video: str, out: Path, predicted: Mapping[int, list[Mask]]) -> Scores:
    """Writes and scores masks that no tracker made; by object id, one a frame."""
    clip = split.clip(video)
    prompted = prompts(split.protocol, clip)
    frames = counted(split.protocol, clip, prompted, split.lifetimes.get(video))
    scorer = Scorer(frames, prompted, from_sight=split.protocol.counted is Counted.SIGHTED)
    with new_video(out, split.protocol, video) as masks:
        for t in clip.annotated:
            own = {i: m[t] for i, m in predicted.items()}
            ids = np.zeros(next(iter(own.values())).shape, np.uint8)
            for i, mask in own.items():
                ids[mask] = i
            if not split.protocol.separate:
                own = {i: ids == i for i in own}
            masks.write(clip.frame_names[t], own, ids)
            scorer.add(t, own, clip.masks(t))
    return {object_label(o.id, separate=split.protocol.separate): (o.j, o.f) for o in scorer.objects()}


def shaken(masks: npt.NDArray[np.bool_], seed: int) -> list[Mask]:
    """Each frame moved by a few pixels of its own."""
    rng = np.random.default_rng(seed)
    reach = 1 + masks.shape[1] // 20
    return [np.roll(mask, rng.integers(-reach, reach + 1, 2), (0, 1)) for mask in masks]


def close(mine: Scores, wanted: Scores) -> None:
    assert mine.keys() == wanted.keys()
    for i in mine:
        assert mine[i] == pytest.approx(wanted[i], abs=1e-6)


def test_davis_equals_vos_benchmark(tmp_path: Path) -> None:
    truth = folders.write_davis(tmp_path / "data", length=6)["bear"]
    split = open_split("davis", tmp_path / "data")
    mine = run(split, "bear", tmp_path / "masks", {i: shaken(truth == i, i) for i in (1, 2)})
    close(mine, oracle(tmp_path / "data/Annotations/480p", tmp_path / "masks", "bear"))
    assert all(0 < value < 100 for pair in mine.values() for value in pair)


def test_mose_train_equals_vos_benchmark(tmp_path: Path) -> None:
    truth = folders.write_mose(tmp_path / "data", "train", length=7)["0a1b2c3d"]
    split = open_split("mose", tmp_path / "data", "train")
    mine = run(split, "0a1b2c3d", tmp_path / "masks", {i: shaken(truth == i, 10 + i) for i in (1, 2)})
    close(mine, oracle(tmp_path / "data/train/Annotations", tmp_path / "masks", "0a1b2c3d"))


def test_where_vos_benchmark_and_davis_differ(tmp_path: Path) -> None:
    """An object that neither side shows right after the first frame: DAVIS counts these frames as right, vos-benchmark leaves them out."""
    truth = folders.write_davis(tmp_path / "data", length=6)["ant"]
    truth[1:3] = 0
    folders.write_palette(tmp_path / "data/Annotations/480p/ant", {f"{t:05d}": truth[t] for t in range(6)})
    masks = shaken(truth == 1, 3)
    mine = run(open_split("davis", tmp_path / "data"), "ant", tmp_path / "masks", {1: masks})
    other = oracle(tmp_path / "data/Annotations/480p", tmp_path / "masks", "ant")
    for ours, theirs in zip(mine["1"], other["1"], strict=True):
        assert ours == pytest.approx((2 * 100 + 2 * theirs) / 4, abs=1e-6) and theirs < 95


def test_sav_equals_vos_benchmark_object_by_object(tmp_path: Path) -> None:
    """An object that comes later counts from where it shows, be it in the prediction alone."""
    truth = folders.write_sav(tmp_path / "data", length=22)["sav_000001"]
    early = shaken(truth == 3, 3)
    early[4] = truth[12] == 3
    predicted = {1: shaken(truth == 1, 1), 2: shaken(np.roll(truth == 1, 4, axis=2), 2), 3: early}
    mine = run(open_split("sav", tmp_path / "data"), "sav_000001", tmp_path / "masks", predicted)
    close(mine, separate_oracle(tmp_path / "data/sav_val/Annotations_6fps", tmp_path / "masks", "sav_000001"))
    early[4] = np.zeros_like(early[4])
    later = run(open_split("sav", tmp_path / "data"), "sav_000001", tmp_path / "masks", predicted)
    close(later, separate_oracle(tmp_path / "data/sav_val/Annotations_6fps", tmp_path / "masks", "sav_000001"))
    assert later["002"][0] > mine["002"][0] > 0


def test_an_object_that_never_shows_between_first_and_last_is_not_scored(tmp_path: Path) -> None:
    truth = folders.write_sav(tmp_path / "data")["sav_000001"]
    folders.write_palette(
        tmp_path / "data/sav_val/Annotations_6fps/sav_000001/002",
        {f"{t:05d}": (truth[t] == 3).astype(np.uint8) * (t > 8) for t in (0, 4, 8, 12)},
    )
    mine = run(open_split("sav", tmp_path / "data"), "sav_000001", tmp_path / "masks", {i: shaken(truth > 0, i) for i in (1, 2, 3)})
    assert set(mine) == {"000", "001"}
    close(mine, separate_oracle(tmp_path / "data/sav_val/Annotations_6fps", tmp_path / "masks", "sav_000001"))


def test_lvos_scores_an_object_while_it_is_there(tmp_path: Path) -> None:
    """Object 2 enters on frame 2 and leaves after frame 5 of 7; only frames 3 and 4 count, one of them wrong."""
    truth = folders.write_lvos(tmp_path / "data")["abCD1234"]
    second = [truth[t] == 2 if t in (3,) else np.zeros(truth.shape[1:], np.bool_) for t in range(7)]
    mine = run(open_split("lvos", tmp_path / "data"), "abCD1234", tmp_path / "masks", {1: list(truth == 1), 2: second})
    assert mine == {"1": (100, 100), "2": (50, 50)}


def masklets(data: dict[str, Any]) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """The masklets of SA-V on some of their annotated frames, [T, H, W]."""
    for place in range(data["masklet_num"]):
        rles = [frame[place] for frame in data["masklet"][::EVERY]]
        yield place, np.stack([mask_from_counts(rle["counts"], tuple(rle["size"])) for rle in rles])


@pytest.mark.skipif(DATA not in os.environ, reason=f"{DATA} does not name a folder with masklets of SA-V")
def test_real_masklets(tmp_path: Path) -> None:
    """sav_000001 laid out as a video of SA-V val; its masks moved a little are the prediction."""
    data = json.loads((Path(os.environ[DATA]) / "sav_000001_manual.json").read_text(encoding="utf-8"))
    base, predicted = tmp_path / "data/sav_val", {}
    for place, kept in masklets(data):
        names = [f"{4 * EVERY * t:05d}" for t in range(len(kept))]
        folder = base / "Annotations_6fps/sav_000001" / f"{place:03d}"
        folders.write_palette(folder, {n: m.astype(np.uint8) for n, m in zip(names, kept, strict=True)})
        predicted[place + 1] = shaken(kept, place)
    assert len(predicted) >= 2 and len(names) >= 5
    folders.write_frames(base / "JPEGImages_24fps/sav_000001", np.zeros((len(names), *kept.shape[1:]), np.uint8), names)
    (base / "sav_val.txt").write_text("sav_000001\n")
    mine = run(open_split("sav", tmp_path / "data"), "sav_000001", tmp_path / "masks", predicted)
    close(mine, separate_oracle(base / "Annotations_6fps", tmp_path / "masks", "sav_000001"))
    assert all(10 < value < 100 for pair in mine.values() for value in pair)
    assert video_folder(tmp_path / "masks", open_split("sav", tmp_path / "data").protocol, "sav_000001").is_dir()
