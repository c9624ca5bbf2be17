"""J&F of a bundle on the benchmarks of video object segmentation, with the masks their servers and evaluators read.

    data set, bundle ─► every video ─► OUT.jsonl, a line each ─► OUT.json (scores, worst clips), OUT.csv (objects)
                            └─► submission folder

A video counts when its line is in OUT.jsonl, so an interrupted run goes on with the videos that lack one. Videos run in processes of their
own; one that fails costs only itself and is tried again by the next call. How a video is tracked is in `benchmarks/eval_video.py`, what a
benchmark asks in `benchmarks/protocols.py`, what is known of the layouts and servers in docs/eval.md.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fastsam2
from fastsam2.benchmarks.conditions import conditions
from fastsam2.benchmarks.eval_video import Job, Record, close_bundle, end_with_parent, means, run_job
from fastsam2.benchmarks.splits import Split, open_split
from fastsam2.benchmarks.submission import PARTIAL, video_folder
from fastsam2.builtin import bundle_path
from fastsam2.bundle import Manifest, read_manifest
from fastsam2.config import Prune
from fastsam2.enums import BackendName, GraphRole, PrunePolicy
from fastsam2.errors import BundleError, PromptError, ScoreError, StateError, VideoError, expected
from fastsam2.files import only_one, read_json_lines, write_json, write_json_lines
from fastsam2.runtime.backends.onnxruntime import usable_cores

WORST = 10  # clips that are named
_COLUMNS = ("video", "object", "prompted", "frames", "j_and_f", "j", "f")


def evaluate(
    bundle: str,
    *,
    dataset: str,
    root: Path,
    out: Path,
    split: str | None = None,
    expressions: Path | None = None,
    backend: str = BackendName.ONNXRUNTIME.value,
    prune: Prune | None = None,
    submission: Path | None = None,
    videos: Sequence[str] | None = None,
    processes: int = 1,
    threads: int | None = None,
    gpu: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Track the objects of every video of a split from their true masks, and score the masks where the ground truth is public.

    Args:
        bundle: name of a built-in bundle, or a folder.
        dataset: "davis", "sav", "mose", "lvos", "ytvos" or "folder".
        root: its folder; layouts are in `benchmarks/splits.py`.
        out: JSON file to write. OUT.jsonl beside it holds finished videos, OUT.csv the scores of single objects.
        split: None takes the one with public ground truth, the validation split if there are two.
        expressions: descriptions for the router, JSON as `read_expressions` takes it; the first of an object is used.
        backend: where graphs run.
        prune: which memory rows to keep; None keeps all.
        submission: folder for masks; None puts OUT_submission beside `out`.
        videos: the ones wanted; None takes all.
        processes: videos at once.
        threads: CPU threads of one operator in each process; None shares the cores among the processes.
        gpu: which GPU.
        progress: hears a line for every finished video.

    Returns:
        What `out` holds: conditions, settings, `videos` and, with public ground truth, `j_and_f`, `j`, `f` (means over all objects, 0..100)
        and `worst`.

    Raises:
        VideoError: if the data set is not what its layout says, or at least one video failed: `out` is written and lists them.
        BundleError: if the bundle is not whole, or lacks the router or the text encoder that is asked for.
        BackendError: if the backend cannot be used here.
        PromptError: if an option is out of range, or descriptions come without the router.
        StateError: if `out` holds a run with other settings, or another call is writing to the same folder of masks.
        ScoreError: if no object has a frame to score.
    """
    out, root, prune = Path(out), Path(root), prune or Prune()
    if processes < 1:
        raise PromptError(expected("processes >= 1", processes, "Use 1 to track one video after the other"))
    found = open_split(dataset, root, split, videos=videos, expressions=expressions)
    folder = bundle_path(bundle)
    manifest = read_manifest(folder)
    _check_texts(manifest, folder, prune, expressions)
    for video in found.videos:
        found.clip(video)
    masks = out.with_name(f"{out.stem}_submission") if submission is None else Path(submission)
    settings = _settings(manifest, found, root, expressions, backend, prune, masks)
    threads = threads or max(1, usable_cores() // processes)
    log = out.with_suffix(".jsonl")
    with only_one(masks):
        done = _begin(log, settings, masks)
        done = {v: r for v, r in done.items() if v not in found.videos or video_folder(masks, found.protocol, v).is_dir()}
        shutil.rmtree(masks / PARTIAL, ignore_errors=True)
        place = (found.dataset.value, root, found.name, expressions, masks)
        jobs = [Job(str(folder), backend, threads, gpu, prune, *place, v) for v in found.videos if v not in done]
        failed: list[Record] = []
        with log.open("a", encoding="utf-8") as lines:
            for record in _run(jobs, processes):
                if "error" in record:
                    failed.append(record)
                else:
                    done[record["video"]] = record
                    lines.write(json.dumps(record) + "\n")
                    lines.flush()
                count = len([v for v in found.videos if v in done]) + len(failed)
                progress(f"{count} of {len(found.videos)}: {_line(record)}")
        shutil.rmtree(masks / PARTIAL, ignore_errors=True)
        report = {**conditions(threads, "fastsam2", ("onnxruntime",)), "bundle": bundle, **settings, "processes": processes}
        report |= _report(found, [done[v] for v in found.videos if v in done], failed)
        _write(out, report, found)
    if "note" in report:
        progress(report["note"])
    if failed:
        got = f"{len(failed)} that failed, such as {failed[0]['video']}: {failed[0]['error']}"
        raise VideoError(expected(f"masks of {len(found.videos)} videos", got.rstrip("."), f"Put it right and call again; {out} lists all"))
    if not found.private and "j_and_f" not in report:
        raise ScoreError(expected(f"a frame to score in the videos of {root}", "none", "Score longer clips"))
    return report


def _check_texts(manifest: Manifest, folder: Path, prune: Prune, expressions: Path | None) -> None:
    """Find out before the first video whether the bundle can do what is asked."""
    routes = prune.policy is PrunePolicy.ROUTER
    if routes and manifest.router is None:
        raise BundleError(expected("a bundle with a router", f"{folder} without", "Train one with `fastsam2 train-router`"))
    if expressions is None:
        return
    if not routes:
        got = f"{expressions} with policy {prune.policy.value}"
        raise PromptError(expected("no descriptions without the router", got, "Prune with policy router: only it reads descriptions"))
    if manifest.text is None:
        raise BundleError(expected("a bundle with a text encoder", f"{folder} without", "Add one with `fastsam2 add-text`"))


def _settings(
    manifest: Manifest, found: Split, root: Path, expressions: Path | None, backend: str, prune: Prune, submission: Path
) -> dict[str, Any]:
    """What decides the masks of a video; runs that differ in it do not mix."""
    settings = {
        "dataset": found.dataset.value,
        "split": found.name,
        "root": str(root.resolve()),
        "fastsam2": fastsam2.__version__,
        "model": manifest.model.name,
        "image_size": manifest.model.image_size,
        "graphs": {role.value: sorted(manifest.digests(role)) for role in GraphRole if manifest.digests(role)},
        "backend": backend,
        "prune": {k: v for k, v in asdict(prune).items() if v is not None},
        "submission": str(submission.resolve()),
    }
    if expressions is not None:
        settings["expressions"] = {"file": str(expressions), "sha256": hashlib.sha256(expressions.read_bytes()).hexdigest()}
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # as it is read back: enums are texts, tuples are lists
    return plain


def _begin(log: Path, settings: dict[str, Any], submission: Path) -> dict[str, Record]:
    """Finished videos of earlier calls. A last line that was cut off is dropped.

    Raises:
        StateError: if they are of other settings, or the submission folder holds what no such run left.
        VideoError: if the file cannot be written.
    """
    try:
        known = read_json_lines(log)
        if known and known[0] != settings:
            names = sorted(n for n in {*known[0], *settings} if known[0].get(n) != settings.get(n))
            held, asked = ({n: side[n] for n in names if n in side} for side in (known[0], settings))
            todo = f"Name another --out, or remove {log} to begin anew"
            raise StateError(expected(f"the settings {held} of the run in {log}", asked, todo))
        if not known and submission.is_dir() and any(submission.iterdir()):
            todo = "Name another folder, or empty this one"
            raise StateError(expected("a new folder for masks", f"{submission}, which holds other files", todo))
        write_json_lines(log, known or [settings])
    except OSError as error:
        raise VideoError(expected(f"a file that can be written at {log}", error, "Choose another --out")) from error
    return {record["video"]: record for record in known[1:]}


def _run(jobs: Sequence[Job], processes: int) -> Iterator[Record]:
    """Records of videos as they end."""
    if processes == 1:
        try:
            for job in jobs:
                yield run_job(job)
        finally:
            if jobs:
                close_bundle(jobs[0])
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        running = [pool.submit(run_job, job) for job in jobs]
        try:
            for finished in as_completed(running):
                yield finished.result()
        except BrokenProcessPool as error:
            todo = "Use fewer processes if memory ran out, and call again: finished videos are kept"
            raise VideoError(expected("worker processes that live", "one that was ended from outside", todo)) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _report(found: Split, records: Sequence[Record], failed: Sequence[Record]) -> dict[str, Any]:
    """Scores over all objects, the worst clips, and what failed."""
    report: dict[str, Any] = {"ran_on": sorted({r["backend"] for r in records})}
    if found.private:
        report["note"] = (
            f"No scores: the ground truth of {found.dataset.value} {found.name} is private. Zip the content of the submission folder "
            f"and send it to {found.protocol.server}."
        )
    else:
        rows = [(r["video"], o) for r in records for o in r["objects"]]
        report |= means([o for _, o in rows])
        report["scored_objects"] = len(rows)
        if found.unseen is not None:
            parts = {"seen": [o for v, o in rows if v not in found.unseen], "unseen": [o for v, o in rows if v in found.unseen]}
            report |= {name: means(part) for name, part in parts.items() if part}
        ranked = sorted((r for r in records if "j_and_f" in r), key=lambda r: (r["j_and_f"], r["video"]))
        report["worst"] = [{"video": r["video"], "j_and_f": r["j_and_f"]} for r in ranked[:WORST]]
    report["complete"] = not failed
    if failed:
        report["failed"] = list(failed)
    report["videos"] = list(records)
    return report


def _write(out: Path, report: Mapping[str, Any], found: Split) -> None:
    table = out.with_suffix(".csv")
    try:
        if not found.private:
            with table.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, _COLUMNS)
                writer.writeheader()
                writer.writerows({"video": r["video"], **o} for r in report["videos"] for o in r["objects"])
        write_json(out, report)
    except OSError as error:
        raise VideoError(expected(f"files that can be written at {out}", error, "Choose another --out")) from error


def _line(record: Record) -> str:
    if "error" in record:
        return f"{record['video']} failed: {record['error']}"
    score = f"J&F {record['j_and_f']:.1f}, " if "j_and_f" in record else ""
    without = f", no mask of objects {record['without_mask']}" if "without_mask" in record else ""
    return f"{record['video']} {score}{record['frames'] / max(record['seconds'], 1e-3):.1f} frames/s{without}"
