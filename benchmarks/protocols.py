"""What each benchmark asks of a tracker that is given masks: which objects it is told of when, which frames count, what may overlap.

    Clip ─ prompts ─► object id -> frame it is told of        result ─ exclusive_ids ─► one object id a pixel
         └ counted ─► object id -> frames that are scored

Prompts and masks mirror facebookresearch/sam2 @2b90b9f `tools/vos_inference.py`. The objects of the first frame are tracked, or, as with
`--track_object_appearing_later_in_video`, each object from its first mask on that is not empty. The object with the highest logit keeps a
pixel (`non_overlap_masks`), or, as with `--per_obj_png_file`, masks stay as they are. The score threshold is 0; no hole is filled.

Frames that count are those of the evaluators: davisvideochallenge/davis2017-evaluation @ac7c43f `davis2017/evaluation.py`,
facebookresearch/sam2 `sav_dataset/utils/sav_benchmark.py`, LingyiHongfd/lvos-evaluation @25cb02d `lvos/evaluation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from fastsam2.benchmarks.datasets import Clip
from fastsam2.enums import Dataset
from fastsam2.errors import VideoError, expected
from fastsam2.runtime.postprocess import resize_logits
from fastsam2.runtime.result import Result

LVOS_STEP = 5  # numbers of annotated frames of LVOS are this far apart


class Counted(str, Enum):
    """Which annotated frames of an object are scored.

    INNER: all but the clip's first and last.
    SIGHTED: of those that have a picture of the object all but the first and last, from the one on where it shows, predicted or true.
    LIFETIME: those strictly between its first and last, which the data set lists.
    AFTER_PROMPT: those after the frame on which the tracker is told of it.
    """

    INNER = "inner"
    SIGHTED = "sighted"
    LIFETIME = "lifetime"
    AFTER_PROMPT = "after_prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The semi-supervised protocol of one benchmark.

    Attributes:
        public: splits whose ground truth is published; the first is the default.
        private: splits of which only prompts are published.
        later_objects: objects may appear after the first frame; otherwise those that do are not part of the task.
        separate: masks may overlap, and each object has pictures of its own.
        counted: which frames are scored.
        inside: folder of a submission that holds the videos; "" puts them at its top.
        server: who scores private splits, or what scores the written masks.
    """

    public: tuple[str, ...]
    private: tuple[str, ...] = ()
    later_objects: bool
    separate: bool = False
    counted: Counted
    inside: str = ""
    server: str

    @property
    def splits(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.public, *self.private)


PROTOCOLS: dict[Dataset, Protocol] = {
    Dataset.DAVIS: Protocol(
        public=("val", "train"),
        private=("test-dev", "test-challenge"),
        later_objects=False,
        counted=Counted.INNER,
        server="the DAVIS 2017 semi-supervised competition on CodaLab",
    ),
    Dataset.SAV: Protocol(
        public=("val", "test"),
        later_objects=True,
        separate=True,
        counted=Counted.SIGHTED,
        server="sav_dataset/sav_evaluator.py of facebookresearch/sam2",
    ),
    Dataset.MOSE: Protocol(
        public=("train",),
        private=("valid", "test"),
        later_objects=False,
        counted=Counted.INNER,
        server="the MOSE competition on CodaLab",
    ),
    Dataset.LVOS: Protocol(
        public=("val", "train"),
        private=("test",),
        later_objects=True,
        counted=Counted.LIFETIME,
        inside="Annotations",
        server="the LVOS competition on CodaLab",
    ),
    Dataset.YTVOS: Protocol(
        public=("train",),
        private=("valid", "valid_all_frames", "test", "test_all_frames"),
        later_objects=True,
        counted=Counted.AFTER_PROMPT,
        inside="Annotations",
        server="the YouTube-VOS competition on CodaLab",
    ),
    Dataset.FOLDER: Protocol(
        public=("",),
        later_objects=True,
        counted=Counted.AFTER_PROMPT,
        server="`fastsam2 score`",
    ),
}


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When an object of LVOS is there, as its meta file says.

    Attributes:
        start, end: numbers of its first and last frame.
        frames: annotated frames from the one to the other, both included.
    """

    start: int
    end: int
    frames: int

    @property
    def inner(self) -> tuple[int, ...]:
        """Numbers of the frames that are scored: every fifth before `end`, without the first and the one that `frames` makes the last."""
        return tuple(n for k, n in enumerate(range(self.start, self.end, LVOS_STEP)) if 0 < k < self.frames - 1)


def prompts(protocol: Protocol, clip: Clip) -> dict[int, int]:
    """Object id -> index of the frame whose mask is its prompt.

    Where objects may come later this reads every mask of the clip once.

    Raises:
        VideoError: if the first frame has no annotation and objects may not come later, or there is no object.
    """
    if protocol.later_objects:
        found = clip.first
    elif clip.annotated[0] != 0:
        got = f"one of frame {clip.frame_names[clip.annotated[0]]} first"
        raise VideoError(expected(f"an annotation of the first frame {clip.frame_names[0]} of {clip.name}", got, "Complete the data set"))
    else:
        found = dict.fromkeys(sorted(clip.masks(0)), 0)
    if not found:
        raise VideoError(expected(f"a mask that is not empty to prompt with in {clip.name}", "none", "Complete the data set"))
    return found


def counted(
    protocol: Protocol, clip: Clip, prompted: Mapping[int, int], lifetimes: Mapping[int, Lifetime] | None = None
) -> dict[int, tuple[int, ...]]:
    """Object id -> indices of the frames that are scored, ascending.

    Args:
        protocol: whose rule.
        clip: with public ground truth.
        prompted: from `prompts`.
        lifetimes: by object id, where the rule needs them.

    Raises:
        VideoError: if a frame that the rule needs has no annotation.
    """
    match protocol.counted:
        case Counted.AFTER_PROMPT:
            return {i: tuple(t for t in clip.annotated if t > start) for i, start in prompted.items()}
        case Counted.SIGHTED:
            return {i: clip.annotated_of(i)[1:-1] for i in prompted}
        case Counted.LIFETIME:
            for i in sorted((lifetimes or {}).keys() - prompted.keys()):
                raise VideoError(expected(f"a mask of object {i} of {clip.name}", "none that is not empty", "Complete the data set"))
            return {i: _indices(clip, i, life.inner) for i, life in (lifetimes or {}).items()}
        case Counted.INNER:
            missing = sorted(set(range(len(clip.frames))) - set(clip.annotated))
            if missing:
                raise _missing(clip, clip.frame_names[missing[0]], f"{len(clip.annotated)} of {len(clip.frames)} frames annotated")
            return {i: clip.annotated[1:-1] for i in prompted}


def exclusive_ids(result: Result) -> npt.NDArray[np.uint8]:
    """The object of every pixel: where masks overlap, the one with the highest logit at video resolution, of equal ones the lowest id.

    What `_apply_non_overlapping_constraints` of facebookresearch/sam2 `sam2/modeling/sam2_base.py` leaves positive. A pixel in one mask
    only is decided by that mask; logits are resized, one object at a time, only where there are others.

    Args:
        result: of one frame; ids in 1..255.

    Returns:
        uint8 [H, W]; 0 is the background.
    """
    order = np.argsort(result.ids)
    size = (result.masks.shape[1], result.masks.shape[2])
    ids = np.zeros(size, np.uint8)
    times = np.zeros(size, np.uint8)
    for row in order:
        ids[result.masks[row]] = result.ids[row]
        times += result.masks[row]
    shared = times > 1
    best = np.full(np.count_nonzero(shared), -np.inf, np.float32)
    winner = np.zeros(best.shape, np.uint8)
    for row in order if best.size else ():
        logits = resize_logits(result.low_res_logits[row][None], size)[0][shared]
        higher = logits > best
        best[higher], winner[higher] = logits[higher], result.ids[row]
    ids[shared] = winner
    return ids


def _indices(clip: Clip, object_id: int, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Indices of annotated frames by their numbers."""
    known = {int(clip.frame_names[t]): t for t in clip.annotated}
    for number in numbers:
        if number not in known:
            raise _missing(clip, f"{number:08d}", f"none, though object {object_id} is scored there")
    return tuple(known[number] for number in numbers)


def _missing(clip: Clip, frame: str, got: str) -> VideoError:
    return VideoError(expected(f"the annotation {frame}.png of {clip.name}", got, "Complete the data set, or leave this video out"))
