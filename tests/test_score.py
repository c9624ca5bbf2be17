"""J and F. Oracles: the DAVIS formulas over OpenCV's dilation, and cases computed by hand."""

from __future__ import annotations

import time
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2.benchmarks.score import Score, boundary_f, jaccard, parse_prompted, score_folders, score_masks
from fastsam2.enums import ScoredFrames
from fastsam2.errors import ScoreError
from fastsam2.runtime.overlay import PALETTE

Mask = npt.NDArray[np.bool_]
SIZE = (60, 90)


def blobs(seed: int, size: tuple[int, int] = SIZE) -> Mask:
    """A few ellipses and stray pixels; some touch the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.bool_)
    for _ in range(int(rng.integers(1, 4))):
        cy, cx, ry, rx = *(rng.uniform(0, side) for side in size), *(rng.uniform(2, max(side / 3, 2)) for side in size)
        mask ^= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
    return mask ^ (rng.random(size) < 4 / mask.size)


def davis(predicted: Mask, truth: Mask, tolerance: float = 0.008) -> tuple[float, float]:
    """`db_eval_iou` and `f_measure` of davis2017-evaluation."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV, the oracle of the dilation, is not installed (extra: holes)")

    def boundary(mask: Mask) -> Mask:
        right, below, diagonal = np.zeros((3, *mask.shape), np.bool_)
        right[:, :-1], below[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
        edge = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
        edge[-1] = mask[-1] ^ right[-1]
        edge[:, -1] = mask[:, -1] ^ below[:, -1]
        edge[-1, -1] = False
        return edge

    radius = ceil(tolerance * np.linalg.norm(truth.shape)) if tolerance < 1 else int(tolerance)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    edges = [boundary(mask) for mask in (predicted, truth)]
    near = [cv2.dilate(edge.astype(np.uint8), disk) > 0 for edge in edges]
    counts = [int(edge.sum()) for edge in edges]
    if 0 in counts:
        f = float(counts[0] == counts[1])
    else:
        precision, recall = (edges[0] & near[1]).sum() / counts[0], (edges[1] & near[0]).sum() / counts[1]
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    union = (predicted | truth).sum()
    return ((predicted & truth).sum() / union if union else 1.0), f


@pytest.mark.parametrize("size", [SIZE, (1, 7), (7, 1), (33, 33), (480, 360)])
@pytest.mark.parametrize("tolerance", [0.008, 0.05, 3])
def test_equals_davis_on_random_blobs(size: tuple[int, int], tolerance: float) -> None:
    seen = []
    for seed in range(0, 24, 2):
        a = blobs(seed, size)
        b = blobs(seed + 1, size) if seed % 3 else np.roll(a, (seed // 8, 1), (0, 1)) ^ blobs(seed + 1, size) & (a.sum() % 2 == 0)
        wanted = davis(a, b, tolerance)
        assert (jaccard(a, b), boundary_f(a, b, tolerance=tolerance)) == pytest.approx(wanted, abs=1e-12)
        assert boundary_f(b, a, tolerance=tolerance) == pytest.approx(wanted[1], abs=1e-12)
        seen.append(wanted[1])
    assert min(size) == 1 or (min(seen) < 0.9 and max(seen) > 0.1)


def square(top: int, left: int, side: int = 10, size: tuple[int, int] = SIZE) -> Mask:
    mask = np.zeros(size, np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def test_cases_by_hand() -> None:
    nothing, everything = np.zeros(SIZE, np.bool_), np.ones(SIZE, np.bool_)
    one = square(20, 20)
    assert (jaccard(nothing, nothing), boundary_f(nothing, nothing)) == (1, 1)
    assert (jaccard(one, nothing), boundary_f(one, nothing), boundary_f(nothing, one)) == (0, 0, 0)
    assert (jaccard(one, one), boundary_f(one, one)) == (1, 1)
    assert (jaccard(one, everything), boundary_f(one, everything), boundary_f(everything, everything)) == (100 / 5400, 0, 1)
    assert jaccard(one, square(20, 25)) == 50 / 150
    # The radius is 1 pixel: ceil(0.008 * 108.2). Boundaries are 1 pixel up and left of the square, 40 + 1 pixels long with corners.
    assert boundary_f(one, square(20, 21)) == 1
    assert boundary_f(one, square(20, 40)) == 0
    # 2 to the right: rows 19 and 29 (11 pixels each) match in all but their outermost pixel; of the columns only the ends do.
    a, b = square(20, 20), square(20, 22)
    edge, matched = 11 + 11 + 9 + 9, 10 + 10 + 0 + 0
    assert boundary_f(a, b) == pytest.approx(davis(a, b)[1]) and boundary_f(a, b) == pytest.approx(matched / edge, abs=0.06)


def test_one_pixel_moves_within_and_out_of_reach() -> None:
    a, b = np.zeros((2, *SIZE), np.bool_)
    a[30, 30] = b[30, 34] = True  # each boundary is a 2 x 2 square, columns 29-30 and 33-34
    assert [boundary_f(a, b, tolerance=t) for t in (1, 2, 3, 4)] == [0, 0, 0.5, 1]


def clip(*objects: list[Mask]) -> dict[int, Mask]:
    return {i: np.stack(masks) for i, masks in enumerate(objects, 1)}


def test_which_frames_are_scored() -> None:
    empty, one, far = np.zeros(SIZE, np.bool_), square(5, 5), square(40, 70)
    truth = clip([one] * 5, [empty, empty, one, one, empty])
    predicted = clip([far, one, one, one, far], [one, one, far, one, empty])
    score = score_masks(predicted, truth)
    assert [(o.id, o.prompted, o.frames, o.j, o.f) for o in score.objects] == [(1, 0, 4, 75, 75), (2, 2, 2, 100, 100)]
    assert (score.j, score.f, score.j_and_f) == (87.5, 87.5, 87.5)
    score = score_masks(predicted, truth, scored=ScoredFrames.DAVIS)
    assert [(o.id, o.frames, o.j) for o in score.objects] == [(1, 3, 100), (2, 1, 100)]
    score = score_masks(predicted, truth, prompted={1: 3, 2: 1})
    assert [(o.id, o.prompted, o.frames, o.j) for o in score.objects] == [(1, 3, 1, 0), (2, 1, 3, pytest.approx(200 / 3))]


def test_objects_that_are_not_scored_are_named() -> None:
    empty, one = np.zeros(SIZE, np.bool_), square(5, 5)
    score = score_masks(clip([one] * 3, [empty] * 3, [one] * 3), clip([one] * 3, [empty, empty, one]))
    assert [o.id for o in score.objects] == [1] and score.not_scored == (2,) and score.not_in_truth == (3,)
    json = score.to_json()
    assert json["objects"] == [{"id": 1, "prompted": 0, "frames": 2, "j": 100.0, "f": 100.0, "j_and_f": 100.0}]
    assert (json["j_and_f"], json["scored"], json["not_scored"], json["not_in_truth"]) == (100, "after_prompt", [2], [3])


def test_an_object_that_was_never_predicted_counts() -> None:
    one = [square(5, 5)] * 3
    assert score_masks(clip(one), {1: clip(one)[1], 2: clip(one)[1]}).j_and_f == 50


def test_sequence_of_one_object() -> None:
    def score(predicted: Mask, truth: Mask) -> tuple[float, float]:
        (only,) = score_masks({1: predicted}, {1: truth}).objects
        return only.j, only.f

    truth = np.stack([square(5, 5 + t) for t in range(4)])
    assert score(truth, truth) == (100, 100)
    assert score(np.roll(truth, 1, axis=0), truth) == (pytest.approx(100 * 90 / 110), 100)
    with pytest.raises(ScoreError, match="shape"):
        score(truth[:2], truth)
    with pytest.raises(ScoreError, match="bool"):
        score(truth.astype(np.uint8), truth)  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match="a frame to score"):
        score(truth[:1], truth[:1])


def write_palette(folder: Path, frames: list[npt.NDArray[np.uint8]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for t, index in enumerate(frames):
        image = Image.fromarray(index)
        image.putpalette(PALETTE.tobytes())
        image.save(folder / f"{t:05d}.png")
    return folder


def indices(seed: int, count: int = 4) -> list[npt.NDArray[np.uint8]]:
    frames = []
    for t in range(count):
        index = np.zeros(SIZE, np.uint8)
        for i in (2, 1):
            index[np.roll(blobs(seed + i), t, axis=1)] = i
        frames.append(index)
    return frames


def masks_of(frames: list[npt.NDArray[np.uint8]]) -> dict[int, Mask]:
    return {i: np.stack([index == i for index in frames]) for i in (1, 2)}


def test_folders_say_what_arrays_say(tmp_path: Path) -> None:
    predicted, truth = indices(1), indices(2)
    score = score_folders(write_palette(tmp_path / "masks", predicted), write_palette(tmp_path / "truth", truth))
    assert score == score_masks(masks_of(predicted), masks_of(truth)) and 0 < score.j < 100
    assert score_folders(tmp_path / "masks", tmp_path / "truth", prompted={1: 2}).objects[0].frames == 1


def test_separate_masks_may_overlap_and_start_late(tmp_path: Path) -> None:
    truth = indices(2)
    for i, start in ((1, 0), (2, 1)):
        (tmp_path / "masks" / f"{i:03d}").mkdir(parents=True)
        for t in range(start, 4):
            Image.fromarray(np.where(truth[t] > 0, 255, 0).astype(np.uint8)).save(tmp_path / "masks" / f"{i:03d}" / f"{t:05d}.png")
    score = score_folders(tmp_path / "masks", write_palette(tmp_path / "truth", truth))
    both = np.stack([index > 0 for index in truth])
    assert score == score_masks({1: both, 2: both}, masks_of(truth)) and score.j < 100


def test_object_000_is_an_object(tmp_path: Path) -> None:
    """As in SA-V, whose folders count from 000; one is perfect and one was never found."""
    truth = indices(2)
    for i in (1, 2):
        for side in ("masks", "truth"):
            folder = tmp_path / side / f"{i - 1:03d}"
            folder.mkdir(parents=True)
            for t in range(0 if i == 1 else 1, 4):
                mask = (truth[t] == i) & (i == 1 or side == "truth")
                Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / f"{t:05d}.png")
    score = score_folders(tmp_path / "masks", tmp_path / "truth")
    assert [(o.id, o.prompted, o.j) for o in score.objects] == [(0, 0, 100), (1, 1, 0)]


def _without_a_frame(masks: Path) -> None:
    (masks / "00002.png").unlink()


def _colours(masks: Path) -> None:
    Image.open(masks / "00001.png").convert("RGB").save(masks / "00001.png")


def _other_size(masks: Path) -> None:
    Image.open(masks / "00001.png").resize((9, 9)).save(masks / "00001.png")


def _other_ids(masks: Path) -> None:
    for file in masks.iterdir():
        image = np.asarray(Image.open(file))
        write_palette(masks, [image * 0])
        Image.fromarray(np.where(image > 0, 7, 0).astype(np.uint8)).save(file)


def _no_pictures(masks: Path) -> None:
    for file in masks.iterdir():
        file.unlink()


def _truncated(masks: Path) -> None:
    (masks / "00001.png").write_bytes((masks / "00001.png").read_bytes()[:60])


def _named(masks: Path) -> None:
    (masks / "00001.png").rename(masks / "frame1.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_frame, r"masks for the 4 frames of .*got 3 of them: 00002.png missing"),
        (_colours, "palette PNG.*mode RGB in .*00001.png"),
        (_other_size, r"one height and width, got masks of \[9, 9\] and ground truth of \[60, 90\] pixels on frame 1"),
        (_other_ids, r"predicted ids \[7\] and true ids \[1, 2\]"),
        (_no_pictures, "PNG masks in .*got none"),
        (_truncated, "readable PNG mask"),
        (_named, "names that are numbers"),
    ],
)
def test_folders_that_cannot_be_scored(tmp_path: Path, spoil: object, message: str) -> None:
    truth = write_palette(tmp_path / "truth", indices(2))
    masks = write_palette(tmp_path / "masks", indices(2))
    assert callable(spoil)
    spoil(masks)
    with pytest.raises(ScoreError, match=message):
        score_folders(masks, truth)


def test_missing_folder_and_strange_prompts(tmp_path: Path) -> None:
    truth = write_palette(tmp_path / "truth", indices(2))
    with pytest.raises(ScoreError, match="no folder"):
        score_folders(tmp_path / "none", truth)
    with pytest.raises(ScoreError, match="one of object 9"):
        score_folders(truth, truth, prompted={9: 1})


def test_prompt_frames_as_texts() -> None:
    assert parse_prompted(["2@14", "1@0"]) == {2: 14, 1: 0}
    for texts in (["2"], ["2@x"], ["2@1", "2@3"]):
        with pytest.raises(ScoreError, match="--prompted ID@FRAME"):
            parse_prompted(texts)


@pytest.mark.serial
def test_a_clip_takes_seconds() -> None:
    truth = np.stack([np.roll(square(100, 80, 150, (480, 360)), t, axis=1) for t in range(60)])
    start = time.process_time()
    score: Score = score_masks(dict.fromkeys((1, 2, 3), np.roll(truth, 2, axis=1)), dict.fromkeys((1, 2, 3), truth))
    assert time.process_time() - start < 5 and score.objects[2].frames == 59
