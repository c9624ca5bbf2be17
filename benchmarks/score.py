"""J, F and J&F of predicted masks against ground truth, as DAVIS defines them, with numpy alone.

    masks/*.png + truth/*.png ──► per object and frame J, F ──► mean over frames ──► mean over objects, 0..100

J is the intersection over the union of two masks. F is the harmonic mean of the precision and recall of their boundary pixels, matched
within a disk of ceil(0.008 · diagonal) pixels. Mirrors davisvideochallenge/davis2017-evaluation @30b698a `davis2017/metrics.py`
(`db_eval_iou`, `f_measure`, `_seg2bmap`) and the semi-supervised part of `davis2017/evaluation.py`. Values of one frame are 0..1, means
over frames 0..100. Two empty masks agree perfectly (1). Ground truth has no void label: colour 255 is an object.

Frames scored of each object (`ScoredFrames`):

- `after_prompt`: from the frame after the one it is prompted on (its first in the ground truth unless stated) to the last one.
- `davis`: the same without the last frame. In DAVIS, where all objects are prompted on the first frame, these are its frames 1 to T - 2.

Other benchmarks count other frames (`benchmarks/protocols.py`); `Scorer` takes them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, hypot, isqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.enums import ScoredFrames
from fastsam2.errors import ScoreError, expected

BOUNDARY_TOLERANCE = 0.008  # of the diagonal, as DAVIS

Mask = npt.NDArray[np.bool_]
Masks = Mapping[int, Mask]  # by object id
Files = dict[int, Path]  # one frame's files by object id; WHOLE is a picture of all objects
WHOLE = -1  # no folder's number: SA-V counts objects from 000


@dataclass(frozen=True, slots=True)
class _Frame:
    """Masks of one frame; ids left out are empty."""

    size: tuple[int, ...]  # H, W
    masks: Masks


@dataclass(frozen=True, slots=True)
class ObjectScore:
    """One object; means over its scored frames, 0..100.

    Attributes:
        id: object id.
        prompted: index of the frame it is prompted on, the one before the first scored.
        frames: how many frames are scored.
        j: region similarity.
        f: boundary accuracy.
    """

    id: int
    prompted: int
    frames: int
    j: float
    f: float

    @property
    def j_and_f(self) -> float:
        """(j + f) / 2."""
        return (self.j + self.f) / 2


@dataclass(frozen=True, slots=True)
class Score:
    """Objects of one clip; their means, 0..100.

    Attributes:
        objects: scored ones, by id.
        scored: which of their frames count.
        not_scored: ids of the ground truth without a frame to score.
        not_in_truth: predicted ids that the ground truth lacks; they count for nothing.
    """

    objects: tuple[ObjectScore, ...]
    scored: ScoredFrames
    not_scored: tuple[int, ...] = ()
    not_in_truth: tuple[int, ...] = ()

    @property
    def j(self) -> float:
        """Mean J over objects."""
        return float(np.mean([o.j for o in self.objects]))

    @property
    def f(self) -> float:
        """Mean F over objects."""
        return float(np.mean([o.f for o in self.objects]))

    @property
    def j_and_f(self) -> float:
        """(j + f) / 2."""
        return (self.j + self.f) / 2

    def to_json(self) -> dict[str, Any]:
        """JSON-ready facts, unrounded."""
        objects = [{"id": o.id, "prompted": o.prompted, "frames": o.frames, "j": o.j, "f": o.f, "j_and_f": o.j_and_f} for o in self.objects]
        return {
            "j_and_f": self.j_and_f,
            "j": self.j,
            "f": self.f,
            "scored": self.scored.value,
            "objects": objects,
            "not_scored": list(self.not_scored),
            "not_in_truth": list(self.not_in_truth),
        }


def jaccard(a: Mask, b: Mask) -> float:
    """Intersection over union of two bool [H, W] masks, 0..1; 1 when both are empty.

    Raises:
        ScoreError: if shapes or dtypes do not fit.
    """
    _check_pair(a, b)
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def boundary_f(a: Mask, b: Mask, *, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """F-measure of the boundaries of two masks.

    Args:
        a: bool [H, W].
        b: bool [H, W]; exchanging the two changes nothing.
        tolerance: a boundary pixel within ceil(tolerance · diagonal) pixels of the other boundary is matched; values of 1 and above are
            the distance itself, pixels.

    Returns:
        0..1; 1 when neither mask has a boundary (empty, or as large as the frame), 0 when one has none.

    Raises:
        ScoreError: if shapes or dtypes do not fit, or the tolerance is negative.
    """
    _check_pair(a, b)
    if tolerance < 0:
        raise ScoreError(expected("tolerance >= 0", tolerance, f"DAVIS uses {BOUNDARY_TOLERANCE}"))
    box = _common_box(a, b)
    if box is None:
        return 1.0
    radius = int(tolerance) if tolerance >= 1 else ceil(tolerance * hypot(*a.shape))
    edge_a, edge_b = _boundary(a[box]), _boundary(b[box])
    count_a, count_b = np.count_nonzero(edge_a), np.count_nonzero(edge_b)
    if not count_a or not count_b:
        return float(count_a == count_b)
    of_a = np.count_nonzero(edge_a & _dilated(edge_b, radius)) / count_a
    of_b = np.count_nonzero(edge_b & _dilated(edge_a, radius)) / count_b
    return 2 * of_a * of_b / (of_a + of_b) if of_a + of_b else 0.0


class Scorer:
    """Scores a clip frame by frame, on frames chosen beforehand; holds two numbers for each object and frame.

    Args:
        counted: object id -> indices of the frames that count.
        prompted: object id -> index of the frame of its prompt.
        from_sight: leave out an object's frames before the first counted one on which it shows, in the prediction or in the ground truth,
            and objects that the ground truth shows on no counted frame. vos-benchmark and the SA-V evaluator do, DAVIS does not.
    """

    def __init__(self, counted: Mapping[int, Collection[int]], prompted: Mapping[int, int], *, from_sight: bool = False) -> None:
        self._counted = {i: frozenset(frames) for i, frames in counted.items()}
        self._prompted, self._from_sight = dict(prompted), from_sight
        self._values: dict[int, list[tuple[float, float]]] = {}
        self._shown: set[int] = set()

    def add(self, frame: int, predicted: Masks, truth: Masks) -> None:
        """Compare a frame; ids that either side leaves out are empty there.

        Args:
            frame: its index.
            predicted: masks bool [H, W] by object id.
            truth: the same.

        Raises:
            ScoreError: if shapes or dtypes differ.
        """
        for i in (i for i, frames in self._counted.items() if frame in frames):
            a, b = predicted.get(i), truth.get(i)
            if a is None or b is None:
                given = a if b is None else b
                empty = np.zeros((1, 1) if given is None else given.shape, np.bool_)
                a, b = empty if a is None else a, empty if b is None else b
            if b.any():
                self._shown.add(i)
            if i in self._values or not self._from_sight or a.any() or b.any():
                self._values.setdefault(i, []).append((jaccard(a, b), boundary_f(a, b)))

    def objects(self) -> tuple[ObjectScore, ...]:
        """The objects that have a frame, by id."""
        kept = {i: v for i, v in self._values.items() if i in self._shown or not self._from_sight}
        return _means(kept, self._prompted)


def score_masks(
    predicted: Masks, truth: Masks, *, scored: ScoredFrames = ScoredFrames.AFTER_PROMPT, prompted: Mapping[int, int] | None = None
) -> Score:
    """Scores whole sequences held in memory.

    Args:
        predicted: object id -> bool [T, H, W].
        truth: object id -> bool [T, H, W].
        scored: which frames count.
        prompted: object id -> frame of its prompt; objects left out are taken to be prompted on their first frame in the ground truth.

    Raises:
        ScoreError: if there is no common object, shapes or dtypes differ, or no frame is left to score.
    """
    shapes = {np.shape(masks) for masks in (*predicted.values(), *truth.values())}
    if len(shapes) > 1 or any(len(shape) != 3 for shape in shapes):
        raise ScoreError(expected("masks [T, H, W] of one shape", sorted(shapes), "Score one clip at a time, at its own size"))
    length, *size = next(iter(shapes), (0,))
    pairs = (tuple(_Frame(tuple(size), {i: m[t] for i, m in side.items()}) for side in (predicted, truth)) for t in range(length))
    return _score(pairs, list(range(length)), scored=scored, prompted=prompted)


def score_folders(
    masks: Path, truth: Path, *, scored: ScoredFrames = ScoredFrames.AFTER_PROMPT, prompted: Mapping[int, int] | None = None
) -> Score:
    """Scores a folder of masks, as `fastsam2 run` writes them, against a folder of ground truth.

    Both hold palette (or grey) PNGs, `00000.png` and so on, whose pixel values are object ids with 0 for the background; or a folder
    per object, named by its id, with PNGs that are 0 outside the object (000 is an object, too). In the latter form an
    object is empty on frames that it lacks but another object has. The frames of `truth` count; `masks` may have more.

    Args:
        masks: predicted ones.
        truth: visible pixels of every object.
        scored: which frames count.
        prompted: object id -> frame number of its prompt; objects left out are prompted on their first frame in the ground truth.

    Raises:
        ScoreError: if a folder or file is missing, unreadable or of another kind, sizes differ, or there is nothing in common to score.
    """
    predicted_files, truth_files = _frame_files(Path(masks)), _frame_files(Path(truth))
    missing = sorted(truth_files.keys() - predicted_files.keys())
    if missing:
        some = ", ".join(f"{number:05d}.png" for number in missing[:3]) + (", ..." if len(missing) > 3 else "")
        got = f"{len(truth_files) - len(missing)} of them: {some} missing in {masks}"
        raise ScoreError(
            expected(f"masks for the {len(truth_files)} frames of {truth}", got, "Track the whole clip, or name its own truth")
        )
    numbers = sorted(truth_files)
    pairs = ((_read_frame(predicted_files[number]), _read_frame(truth_files[number])) for number in numbers)
    return _score(pairs, numbers, scored=scored, prompted=prompted)


def parse_prompted(texts: Iterable[str]) -> dict[int, int]:
    """Texts ID@FRAME -> object id -> frame.

    Raises:
        ScoreError: if a text has another form, or an id comes twice.
    """
    prompted: dict[int, int] = {}
    for text in texts:
        match = re.fullmatch(r"([0-9]+)@([0-9]+)", text)
        if match is None or int(match[1]) in prompted:
            raise ScoreError(expected("--prompted ID@FRAME, once for an object", repr(text), "For example --prompted 2@14"))
        prompted[int(match[1])] = int(match[2])
    return prompted


def _score(
    pairs: Iterable[tuple[_Frame, ...]], numbers: Sequence[int], *, scored: ScoredFrames, prompted: Mapping[int, int] | None
) -> Score:
    """One pass over (predicted, truth) of every frame; `numbers` are the frames' numbers, ascending."""
    starts = dict(prompted or {})
    values: dict[int, list[tuple[float, float]]] = {}
    seen: set[int] = set()
    in_truth: set[int] = set()
    last = len(numbers) - 1
    for t, (number, (predicted, truth)) in enumerate(zip(numbers, pairs, strict=True)):
        if predicted.size != truth.size:
            got = f"masks of {list(predicted.size)} and ground truth of {list(truth.size)} pixels on frame {number}"
            raise ScoreError(expected("one height and width", got, "Write masks at the size of the ground truth"))
        seen |= {i for i, mask in predicted.masks.items() if mask.any()}
        for i in (i for i, mask in truth.masks.items() if mask.any()):
            in_truth.add(i)
            starts.setdefault(i, number)
        if scored is ScoredFrames.DAVIS and t == last:
            continue
        empty = np.zeros(truth.size, np.bool_)
        for i in (i for i, start in starts.items() if number > start):
            a, b = predicted.masks.get(i, empty), truth.masks.get(i, empty)
            values.setdefault(i, []).append((jaccard(a, b), boundary_f(a, b)))
    unknown = sorted(starts.keys() - in_truth)
    if unknown:
        raise ScoreError(
            expected(f"prompt frames of objects {sorted(in_truth)}", f"one of object {unknown[0]}", "Name objects of the ground truth")
        )
    if not in_truth & seen:
        got = f"predicted ids {sorted(seen)} and true ids {sorted(in_truth)}"
        raise ScoreError(expected("an object in both masks and ground truth", got, "Track objects under the ids of the ground truth"))
    if not values:
        raise ScoreError(expected("a frame to score after a prompt", f"{len(numbers)} frames, {scored.value}", "Score a longer clip"))
    return Score(_means(values, starts), scored, tuple(sorted(in_truth - values.keys())), tuple(sorted(seen - in_truth)))


def _means(values: Mapping[int, Sequence[tuple[float, float]]], prompted: Mapping[int, int]) -> tuple[ObjectScore, ...]:
    objects = []
    for i, pairs in sorted(values.items()):
        j, f = (100 * np.mean(np.array(pairs), axis=0)).tolist()
        objects.append(ObjectScore(id=i, prompted=prompted[i], frames=len(pairs), j=j, f=f))
    return tuple(objects)


def _check_pair(a: Mask, b: Mask) -> None:
    if a.ndim != 2 or a.shape != b.shape or a.dtype != np.bool_ or b.dtype != np.bool_:
        got = f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        raise ScoreError(expected("two bool masks [H, W] of one size", got, "Compare masks at the size of the ground truth"))


def _common_box(a: Mask, b: Mask) -> tuple[slice, slice] | None:
    """The box of all pixels in either mask, with the one pixel around it that its boundary may touch; None when both are empty."""
    either = a | b
    rows = np.flatnonzero(either.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(either[rows[0] : rows[-1] + 1].any(axis=0))
    top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
    return slice(top, int(rows[-1]) + 2), slice(left, int(columns[-1]) + 2)


def _boundary(mask: Mask) -> Mask:
    """Pixels that differ from the one to the right, below, or right below; in the last row and column from the one neighbour there is."""
    edge = np.zeros_like(mask)
    edge[:-1, :-1] = (mask[:-1, :-1] ^ mask[:-1, 1:]) | (mask[:-1, :-1] ^ mask[1:, :-1]) | (mask[:-1, :-1] ^ mask[1:, 1:])
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def _dilated(edge: Mask, radius: int) -> Mask:
    """Pixels within `radius` of an edge pixel.

    The disk is a pile of horizontal spans: rows are widened by a span's half-width (a difference of running sums) and moved up and down.
    """
    height, width = edge.shape
    sums = np.zeros((height, width + 1), np.int32)
    np.cumsum(edge, axis=1, dtype=np.int32, out=sums[:, 1:])
    columns = np.arange(width)
    near = np.zeros_like(edge)
    for dy in range(min(radius, height - 1) + 1):
        half = isqrt(radius * radius - dy * dy)
        wide = sums[:, np.minimum(columns + half + 1, width)] != sums[:, np.maximum(columns - half, 0)]
        near[: height - dy] |= wide[dy:]
        near[dy:] |= wide[: height - dy]
    return near


def _frame_files(folder: Path) -> dict[int, Files]:
    """Frame number -> its files."""
    if not folder.is_dir():
        raise ScoreError(expected("a folder of masks", f"{folder}, which is no folder", "Name the masks folder that `fastsam2 run` wrote"))
    whole = _numbered(folder.glob("*.png"))
    objects = _numbered(path for path in folder.iterdir() if path.is_dir())
    if whole and objects:
        raise ScoreError(expected("PNGs or one folder per object", f"both in {folder}", "Keep one of the two"))
    found: dict[int, Files] = {}
    for object_id, files in {WHOLE: whole, **{i: _numbered(path.glob("*.png")) for i, path in objects.items()}}.items():
        for number, file in files.items():
            found.setdefault(number, {})[object_id] = file
    if not found:
        raise ScoreError(expected(f"PNG masks in {folder}", "none", "Name the masks folder that `fastsam2 run` wrote"))
    return found


def _numbered(paths: Iterable[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(p for p in paths if not p.name.startswith(".")):
        if not (path.stem.isascii() and path.stem.isdecimal()):
            raise ScoreError(expected("names that are numbers, such as 00000.png", path, "Rename or remove it"))
        if int(path.stem) in found:
            raise ScoreError(expected("one mask per number", f"{found[int(path.stem)].name} and {path.name}", "Remove one of them"))
        found[int(path.stem)] = path
    return found


def _read_frame(files: Files) -> _Frame:
    pixels = {object_id: _pixels(file) for object_id, file in files.items()}
    sizes = {picture.shape for picture in pixels.values()}
    if len(sizes) > 1:
        raise ScoreError(expected("one height and width", f"{sorted(sizes)} in {sorted(map(str, files.values()))}", "Write them again"))
    if WHOLE not in pixels:
        return _Frame(sizes.pop(), {object_id: picture != 0 for object_id, picture in pixels.items()})
    index = pixels[WHOLE]
    ids = np.flatnonzero(np.bincount(index.ravel(), minlength=256)).tolist()
    return _Frame(index.shape, {i: index == i for i in ids if i})


def _pixels(file: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            if image.format != "PNG" or image.mode not in ("P", "L", "1"):
                got = f"{image.format} of mode {image.mode} in {file}"
                raise ScoreError(expected("a palette PNG whose pixels are object ids", got, "Save indices, not colours: PIL mode P"))
            return np.asarray(image).astype(np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ScoreError):
            raise
        raise ScoreError(expected("a readable PNG mask", f"{file} ({error})", "Write it again")) from error
