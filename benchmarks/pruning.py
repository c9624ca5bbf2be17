"""What pruning the memory costs: J&F of every policy, with and without protection and descriptions, on the same drawn clips.

    python -m benchmarks.pruning --bundle BUNDLE --out results.json --plot results.png
    python -m benchmarks.pruning --recompute results.json

Objects are prompted with their true masks on the first frame; every later frame is scored. Each frame is encoded once for all cases, and a
case is the tracker itself with other options; policies that the runtime does not have answer in place of the router graph
(`row_rules.py`). Scores of single clips go to OUT.jsonl as they come, so an interrupted study goes on where it stopped; every number of
the table is worked out from them, which is all that `--recompute` does.

Stands above `training/`, whose clips and recorded attention it uses; needs OpenCV and onnx, and no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fastsam2.benchmarks.conditions import conditions
from fastsam2.benchmarks.datasets import Clip
from fastsam2.benchmarks.pruning_table import ALL_TEXTS, DENSE, ORACLES, POLICIES, QUERY_POLICIES, REMEDIES, Case, cases, goals, plot, table
from fastsam2.benchmarks.row_rules import FeatureCache, Foresight, RuleBackend, forecast, mask_and_uncertainty, mask_sample, relevance
from fastsam2.benchmarks.score import score_masks
from fastsam2.builtin import bundle_path
from fastsam2.bundle import read_manifest
from fastsam2.config import Prune
from fastsam2.enums import ExportTarget, GraphRole, Protect, PrunePolicy, QueryPolicy
from fastsam2.errors import BundleError, FastSam2Error, expected
from fastsam2.files import read_json_lines, write_json_lines
from fastsam2.runtime.backends.protocol import Backend, Float
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.tracker import Tracker
from fastsam2.training.attention_mass import AttentionTap
from fastsam2.training.held_out import SETS, HeldOutClip, study_clip
from fastsam2.training.router_samples import Recorder

_SETTLED = 8  # frames after which the bank is full


@dataclass(frozen=True, slots=True)
class Job:
    """All cases on one clip.

    Attributes:
        bundle: folder.
        threads: CPU threads of one operator.
        set, seed, clip: which, see `study_clip`.
        frames: of the clip.
        todo: cases that have no score yet.
    """

    bundle: Path
    threads: int
    set: str
    seed: int
    clip: int
    frames: int
    todo: tuple[Case, ...]


class Embeddings:
    """What the tracker takes for a text encoder: embeddings worked out beforehand, by the words themselves."""

    def __init__(self, known: dict[str, Float]) -> None:
        self.known = known

    def encode(self, texts: Sequence[str]) -> Float:
        """See `TextEncoder.encode`."""
        return np.stack([self.known[text] for text in texts])


def run_job(job: Job) -> list[dict[str, Any]]:
    """Scores of one clip, a dictionary per case."""
    loaded = _load(job.bundle, job.threads)
    clip = study_clip(job.set, job.seed, job.clip, frames=job.frames)
    backend = FeatureCache(loaded.backend)
    mass = _foresee(job, clip, loaded, backend) if any(c.policy in ORACLES for c in job.todo) else {}
    place = {"set": job.set, "seed": job.seed, "clip": job.clip}
    return [{**place, **asdict(case), **_score(case, clip, loaded, backend, mass, job)} for case in job.todo]


@lru_cache(maxsize=1)
def _load(bundle: Path, threads: int) -> LoadedBundle:
    return load(bundle, threads=threads)


def _foresee(job: Job, clip: HeldOutClip, loaded: LoadedBundle, backend: Backend) -> dict[tuple[int, int], Float]:
    recorder = Recorder(AttentionTap(job.bundle, backend, threads=job.threads), loaded.spec)
    recorder.record(Clip.of_arrays(clip.name, clip.frames, clip.truth))
    return recorder.mass


def _score(
    case: Case, clip: HeldOutClip, loaded: LoadedBundle, backend: Backend, mass: dict[tuple[int, int], Float], job: Job
) -> dict[str, Any]:
    foresight = Foresight(mass, loaded.spec, sample=case.policy == "oracle_sample")
    spoken = _descriptions(case, clip, loaded, job)
    tracker = Tracker(
        _backend(case, loaded, backend, foresight),
        loaded.spec,
        prune=_prune(case, job.seed),
        texts=None if spoken is None else Embeddings({str(i): e for i, e in spoken.items()}),
    )
    masks = np.zeros((len(clip.ids), *clip.truth.shape), np.bool_)
    shares = []
    for t, frame in enumerate(clip.frames):
        foresight.frame, foresight.ids = t - 1, tracker.ids
        result = tracker.step(frame)
        if t == 0:
            for i in clip.ids:
                result = tracker.add(i, mask=clip.truth[0] == i, text=None if spoken is None else str(i))
        masks[:, t] = result.masks
        if t >= min(_SETTLED, len(clip.frames) - 1):
            shares.append(float(np.mean(result.memory.share)))
    predicted = {i: masks[i - 1] for i in clip.ids}
    score = score_masks(predicted, {i: clip.truth == i for i in clip.ids}, prompted=dict.fromkeys(clip.ids, 0))
    numbers = {"j_and_f": score.j_and_f, "j": score.j, "f": score.f}
    return {**{k: round(v, 3) for k, v in numbers.items()}, "objects": len(clip.ids), "memory_share": round(float(np.mean(shares)), 4)}


def _prune(case: Case, seed: int) -> Prune:
    if case == DENSE:
        return Prune()
    if case.policy in QUERY_POLICIES:
        return Prune(queries=QueryPolicy(case.policy), query_keep=case.keep)
    own = case.policy if case.policy in {p.value for p in PrunePolicy} else PrunePolicy.ROUTER.value
    protect = (Protect.PROMPT, Protect.NEWEST) if case.protected else ()
    keep = None if own == PrunePolicy.POOL2X2.value else case.keep
    return Prune(policy=PrunePolicy(own), keep=keep, protect=protect, seed=seed, guard=case.policy == "router_guard")


def _backend(case: Case, loaded: LoadedBundle, backend: Backend, foresight: Foresight) -> Backend:
    match case.policy:
        case "mask_uncertainty":
            return RuleBackend(backend, mask_and_uncertainty(loaded.spec))
        case "text":
            return RuleBackend(backend, relevance(loaded.backend, loaded.spec))
        case "mask_sample":
            return RuleBackend(backend, mask_sample(loaded.spec))
        case "router_forecast":
            return RuleBackend(backend, forecast(loaded.backend, loaded.spec, noise=0))
        case "router_half_noise":
            return RuleBackend(backend, forecast(loaded.backend, loaded.spec, noise=0.5))
        case "router_turned":
            return RuleBackend(backend, forecast(loaded.backend, loaded.spec, turned=True))
        case "router_turned_flat":
            return RuleBackend(backend, forecast(loaded.backend, loaded.spec, power=0.7, turned=True))
        case "oracle" | "oracle_sample":
            return RuleBackend(backend, foresight)
        case _:
            return backend


def _descriptions(case: Case, clip: HeldOutClip, loaded: LoadedBundle, job: Job) -> dict[int, Float] | None:
    """Embedding of each object's description; None without descriptions."""
    if case.text == "none":
        return None
    assert loaded.texts is not None
    own = loaded.texts.encode(clip.captions)
    if case.text == "wrong":
        other = _other_captions(job.set, job.seed, job.clip + 1, tuple(clip.captions))
        own = loaded.texts.encode([other[i % len(other)] for i in range(len(clip.ids))])
    return {i: -e if case.text == "reversed" else e for i, e in zip(clip.ids, own, strict=True)}


@lru_cache(maxsize=64)
def _other_captions(name: str, seed: int, index: int, known: tuple[str, ...]) -> list[str]:
    """Captions of the next clip that shares none of them with this one."""
    while True:
        other = [c for c in study_clip(name, seed, index, frames=1).captions if c not in known]
        if other:
            return other
        index += 1


def study(args: argparse.Namespace) -> None:
    """Measure what is missing, then write table, goals and plot."""
    bundle = bundle_path(args.bundle)
    wanted = cases(args.policies, args.keep, {"yes": (True,), "no": (False,), "both": (True, False)}[args.protected], args.texts)
    _check(bundle, wanted)
    frames = {name: SETS[name].frames for name in SETS} | dict(args.frames)
    lines = args.out.with_suffix(".jsonl")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(bundle)
    head = {
        "bundle": str(args.bundle),
        "graphs": {role.value: sorted(manifest.digests(role)) for role in GraphRole if manifest.digests(role)},
        "image_size": manifest.model.image_size,
        "tokens": manifest.model.tokens,
        "frames": frames,
    }
    scores = _begin(lines, {k: head[k] for k in ("graphs", "frames")})
    done = {(s["set"], s["seed"], s["clip"], s["policy"], s["text"], s["keep"], s["protected"]) for s in scores}
    jobs = []
    for clip in range(args.clips):
        for seed in range(args.seeds):
            for name in args.sets:
                todo = tuple(c for c in wanted if (name, seed, clip, c.policy, c.text, c.keep, c.protected) not in done)
                if todo:
                    jobs.append(Job(bundle, args.threads, name, seed, clip, frames[name], todo))
    with lines.open("a") as log, ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run_job, job) for job in jobs]
        for count, finished in enumerate(as_completed(running), 1):
            for score in finished.result():
                scores.append(score)
                log.write(json.dumps(score) + "\n")
            log.flush()
            print(f"{count} of {len(jobs)} clips", file=sys.stderr, flush=True)
    write(args.out, {**conditions(args.threads, "benchmarks.pruning", ("onnxruntime",)), **head}, scores)


def _check(bundle: Path, wanted: Sequence[Case]) -> None:
    """Find out before the first clip whether the bundle can do what is asked.

    Raises:
        BundleError: if it cannot.
    """
    manifest = read_manifest(bundle)
    if manifest.router is None and any(c.policy in ("router", "text", *REMEDIES) for c in wanted):
        raise BundleError(
            expected("a bundle with a router for the policies router and text", bundle, "Train one with `fastsam2 train-router`")
        )
    if any(c.policy in QUERY_POLICIES for c in wanted):
        manifest.graph(GraphRole.QUERY_ATTENTION, ExportTarget.ONNXRUNTIME)
    if any(c.text != "none" for c in wanted) and (manifest.text is None or manifest.text.projection is None):
        todo = "Use `fastsam2 add-text` and `fastsam2 fit-text`, then train the router again; or leave the policy text and --texts out"
        raise BundleError(expected("a bundle with text encoder and projection", bundle, todo))


def _begin(lines: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores so far. The first line says of what they are; a last line that was cut off is dropped and measured again.

    Raises:
        BundleError: if the file's scores are of another bundle or of clips of another length.
    """
    known = read_json_lines(lines)
    if known and known[0] != head:
        raise BundleError(expected(f"scores of this bundle and clip length in {lines}", "others", "Name another --out, or remove the file"))
    write_json_lines(lines, known or [head])
    return known[1:]


def write(out: Path, head: dict[str, Any], scores: list[dict[str, Any]]) -> None:
    """Write {conditions, goals, rows, scores}."""
    record = {**head, "goals": goals(scores), "rows": table(scores), "scores": scores}
    text = json.dumps({k: v for k, v in record.items() if k != "scores"}, indent=1)
    each = ",\n".join("  " + json.dumps(s) for s in scores)
    out.write_text(f'{text[:-2]},\n "scores": [\n{each}\n ]\n}}\n')


def _set_frames(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if name not in SETS or not count.isdigit() or int(count) < 2:
        raise argparse.ArgumentTypeError(f"expected SET=N with one of {', '.join(SETS)} and N >= 2, got {text!r}")
    return name, int(count)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="nano", help="folder, or name of a built-in bundle")
    parser.add_argument("--out", type=Path, help="JSON to write; single scores go beside it, as .jsonl, and are gone on from")
    parser.add_argument("--plot", type=Path, help="PNG to write (needs matplotlib)")
    parser.add_argument("--recompute", type=Path, metavar="RESULTS", help="work table and goals out again from the scores of a result")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--policies", nargs="+", choices=(*POLICIES, *QUERY_POLICIES), default=list(POLICIES))
    parser.add_argument(
        "--texts", nargs="+", choices=ALL_TEXTS, default=list(ALL_TEXTS), help="descriptions to measure router and text with"
    )
    parser.add_argument("--keep", nargs="+", type=float, default=[0.02, 0.05, 0.1, 0.25, 0.5, 1.0])
    parser.add_argument("--protected", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--clips", type=int, default=50, help="of each set and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--frames", nargs="+", type=_set_frames, default=[], metavar="SET=N", help="frames of a clip; by default plain=60 hard=60 long=300"
    )
    parser.add_argument("--processes", type=int, default=1, help="clips at once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    args = parser.parse_args(argv)
    if (args.out is None) == (args.recompute is None):
        parser.error("expected --out or --recompute; got both or none")
    try:
        if args.recompute is not None:
            held = json.loads(args.recompute.read_text())
            write(args.recompute, {k: v for k, v in held.items() if k not in ("goals", "rows", "scores")}, held["scores"])
        else:
            study(args)
        record = json.loads((args.out or args.recompute).read_text())
        if args.plot is not None:
            plot(record["rows"], args.plot)
    except FastSam2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for goal in record["goals"]:
        print(goal)
    return 0


if __name__ == "__main__":
    sys.exit(main())
