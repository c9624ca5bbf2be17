"""One video of a benchmark: tracked, written, scored. What a worker process of `benchmarks/eval.py` runs.

    Job ─► Split.clip ─► frames ─ Tracker ─► masks ─┬─► submission
                           └ prompts from masks     └─ Scorer ◄─ ground truth ─► record of the video, JSON-ready

Frames and masks are decoded one at a time and not kept.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.benchmarks.datasets import Clip
from fastsam2.benchmarks.protocols import Counted, counted, exclusive_ids, prompts
from fastsam2.benchmarks.score import ObjectScore, Scorer
from fastsam2.benchmarks.splits import Split, open_split
from fastsam2.benchmarks.submission import VideoMasks, new_video, object_label
from fastsam2.config import Prune
from fastsam2.enums import PrunePolicy
from fastsam2.errors import FastSam2Error, reason
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.tracker import Tracker

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A video to track; everything a worker needs to do it.

    Attributes:
        bundle: folder of the bundle.
        backend, threads, gpu: as in `fastsam2.load`.
        prune: which memory rows to keep.
        dataset, root, split, expressions: as in `open_split`.
        submission: folder for masks.
        video: which.
    """

    bundle: str
    backend: str
    threads: int | None
    gpu: int
    prune: Prune
    dataset: str
    root: Path
    split: str
    expressions: Path | None
    submission: Path
    video: str


def run_job(job: Job) -> Record:
    """Tracks a video and scores it where its ground truth is public.

    Returns:
        `video`, `frames`, `seconds`, `backend`, and with public ground truth `j`, `f`, `j_and_f` and `objects`; or `video` and `error`,
        whatever went wrong with this video alone.

    Raises:
        FastSam2Error: if the bundle cannot be opened: no video can be tracked.
    """
    loaded = _bundle(job.bundle, job.backend, job.threads, job.gpu)
    tracker = loaded.tracker(prune=job.prune)
    try:
        split = _split(job.dataset, job.root, job.split, job.expressions)
        start = time.perf_counter()
        with new_video(job.submission, split.protocol, job.video) as masks:
            record = track_clip(tracker, split, split.clip(job.video), masks)
        facts = {"backend": loaded.backend.name, "seconds": round(time.perf_counter() - start, 3)}
        return {"video": job.video, **record, **facts}
    except Exception as error:  # one broken video, or a defect it brings to light, must not cost the others
        return {"video": job.video, "error": str(error) if isinstance(error, FastSam2Error) else reason(error)}


def track_clip(tracker: Tracker, split: Split, clip: Clip, masks: VideoMasks) -> Record:
    """Tracks the objects of a clip and writes their masks.

    Args:
        tracker: without objects.
        split: the clip's.
        clip: of the split.
        masks: takes the masks of the frames that the benchmark asks for.

    Raises:
        VideoError: if frames or masks are missing, broken or of different sizes.
        PromptError: if the tracker does not take a prompt or a text.
    """
    protocol = split.protocol
    prompted = prompts(protocol, clip)
    written = frozenset(split.written(clip))
    frames = {} if split.private else counted(protocol, clip, prompted, split.lifetimes.get(clip.name))
    scored = frozenset(t for own in frames.values() for t in own)
    scorer = Scorer(frames, prompted, from_sight=protocol.counted is Counted.SIGHTED)
    length = max(written | scored) + 1
    for t in range(length):
        predicted, ids = _step(tracker, clip, t, prompted, separate=protocol.separate)
        if t in written:
            masks.write(clip.frame_names[t], {i: predicted.get(i, np.zeros(ids.shape, np.bool_)) for i in prompted}, ids)
        if t in scored:
            scorer.add(t, predicted, clip.masks(t))
    record: Record = {"frames": length}
    lacking = sorted(split.objects.get(clip.name, frozenset()) - prompted.keys())
    if lacking:
        record["without_mask"] = lacking
    if split.private:
        return record
    return {**record, **_scores(scorer.objects(), clip, separate=protocol.separate)}


def _step(
    tracker: Tracker, clip: Clip, frame: int, prompted: Mapping[int, int], *, separate: bool
) -> tuple[dict[int, npt.NDArray[np.bool_]], npt.NDArray[np.uint8]]:
    """Masks by object id and the object of each pixel (all 0 where objects are separate); objects that begin on the frame are added."""
    result = tracker.step(clip.frames[frame])
    new = [i for i, start in prompted.items() if start == frame]
    truth = clip.masks(frame) if new else {}
    for i in sorted(new):
        texts = clip.expressions.get(i, ()) if tracker.pruner.prune.policy is PrunePolicy.ROUTER else ()
        result = tracker.add(i, mask=truth[i], text=texts[0] if texts else None)
    if separate:
        own = {i: result[i] for i in result.ids}
        return own, np.zeros(result.masks.shape[1:], np.uint8)
    ids = exclusive_ids(result)
    return {i: ids == i for i in result.ids}, ids


def _scores(objects: Sequence[ObjectScore], clip: Clip, *, separate: bool) -> Record:
    rows = [
        {
            "object": object_label(o.id, separate=separate),
            "prompted": clip.frame_names[o.prompted],
            "frames": o.frames,
            "j": o.j,
            "f": o.f,
            "j_and_f": o.j_and_f,
        }
        for o in objects
    ]
    return {**means(rows), "objects": rows}


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of J, F and J&F over objects; empty without objects."""
    return {name: float(np.mean([row[name] for row in rows])) for name in ("j_and_f", "j", "f")} if rows else {}


def end_with_parent() -> None:
    """Makes a worker process end when the process that started it does, however that ends."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def close_bundle(job: Job) -> None:
    """Release the bundle that `run_job` keeps open in this process for the next video."""
    if _bundle.cache_info().currsize:
        _bundle(job.bundle, job.backend, job.threads, job.gpu).close()
        _bundle.cache_clear()


@lru_cache(maxsize=1)
def _bundle(bundle: str, backend: str, threads: int | None, gpu: int) -> LoadedBundle:
    return load(bundle, backend=backend, threads=threads, gpu=gpu)


@lru_cache(maxsize=1)
def _split(dataset: str, root: Path, split: str, expressions: Path | None) -> Split:
    return open_split(dataset, root, split, expressions=expressions)
