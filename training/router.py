"""Train the router of a bundle: everything else stays as it is.

    clips ─ Recorder ─► samples on disk ─ cross-entropy against the attention received, AdamW ─► RouterGraph ─ add_router ─► bundle
                                                                                                     └─► share of attention kept, by policy

Encoder, memory attention and text tower are frozen graphs of the bundle; half of the samples lose their text, so that one router serves
objects with and without a description. Interrupt it at any time: the next call with the same options goes on from the last save.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fastsam2.benchmarks.datasets import Clip
from fastsam2.builtin import bundle_to_change
from fastsam2.bundle import Manifest
from fastsam2.config import ModelSpec, bucket_rows
from fastsam2.contracts import BASE_ROLES
from fastsam2.enums import GraphRole
from fastsam2.errors import BundleError, PromptError, StateError, VideoError, expected
from fastsam2.export.router import add_router, check_unchanged, fitted_to
from fastsam2.export.wrappers.router import RouterGraph
from fastsam2.kernels.reference import top_k
from fastsam2.runtime.backends.protocol import Float
from fastsam2.runtime.host_device import HOST
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.policies.base import RowContext
from fastsam2.runtime.policies.mask import mask_scores
from fastsam2.runtime.policies.random import RandomPolicy
from fastsam2.runtime.uncertainty import uncertainty
from fastsam2.spread import uniform_scores
from fastsam2.training.attention_mass import AttentionTap
from fastsam2.training.clip_source import open_clips
from fastsam2.training.router_samples import Encode, Recorder, Samples
from fastsam2.training.saves import save

BUDGETS = (0.05, 0.25)  # keep fractions that are reported
_BATCH = 16
_RATE = 3e-3
_WEIGHT_DECAY = 0.01
_TEXT_DROPPED = 0.5
_SAVE_EVERY = 200  # steps
_LOG_EVERY = 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What training gave.

    Attributes:
        bundle: folder that has the router now.
        steps: of training.
        samples: trained on, and reported on.
        saw_text: descriptions took part.
        captured: policy -> keep fraction -> share of the later attention that falls on the rows kept, 0..1, mean over report samples.
        worst: the same, 10th percentile.
    """

    bundle: Path
    steps: int
    samples: tuple[int, int]
    saw_text: bool
    captured: Mapping[str, Mapping[float, float]]
    worst: Mapping[str, Mapping[float, float]]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return {**asdict(self), "bundle": str(self.bundle)}

    def table(self) -> str:
        """`captured` and `worst` as lines of text."""
        head = "policy".ljust(21) + "".join(f"keep {b:<6g}10th pct  " for b in BUDGETS)
        lines = [
            name.ljust(21) + "".join(f"{means[b]:<11.3f}{self.worst[name][b]:<10.3f}" for b in BUDGETS)
            for name, means in self.captured.items()
        ]
        return "\n".join([head, *lines])


def train_router(
    bundle: Path | str,
    clips: Iterable[Clip],
    *,
    held_out: Iterable[Clip],
    steps: int,
    work: Path,
    data: str,
    out: Path | None = None,
    seed: int = 0,
    frames: int | None = None,
    encode: Encode | None = None,
    dropout_samples: int = 0,
    threads: int | None = None,
    progress: Say | None = None,
) -> RouterReport:
    """Train a router for a bundle and add it.

    Args:
        bundle: folder, or name of a built-in bundle, which then needs `out`.
        clips: to train on.
        held_out: to report on.
        steps: of training, batches of 16 samples.
        work: folder for samples, the state to go on from, log.jsonl and report.json. A run is the same run as long as bundle, data, seed,
            steps and frames are.
        data: what the clips are, for the manifest and for telling runs apart.
        out: a new folder for the result; None changes the bundle itself.
        seed: of weights and batches.
        frames: read of each clip at most.
        encode: texts -> float32 [T, E]; None takes the bundle's text encoder. Without a text projection in the bundle texts are not used.
        dropout_samples: Monte-Carlo dropout, see `RouterGraph`; 0 for none.
        threads: CPU threads; None for every core.
        progress: called with one line at a time.

    Raises:
        BundleError: if the bundle is not whole, or the result cannot be written.
        PromptError: if a number is out of range.
        StateError: if `work` holds another run.
        VideoError: if the clips give no samples.
    """
    if steps < 1:
        raise PromptError(expected("steps >= 1", steps, "A few hundred are enough for a small data set"))
    if dropout_samples < 0:
        raise PromptError(expected("dropout_samples >= 0", dropout_samples, "0 trains without dropout, 8 is a fair number"))
    folder, say = bundle_to_change(bundle, out), progress or (lambda _: None)
    if out is not None and out.exists():
        raise BundleError(expected("a path that does not exist yet", out, "Choose another --out"))
    loaded = load(folder, threads=threads)
    projection = read_projection(loaded)
    if projection is None:
        encode = None
        say("no text projection in the bundle: the router learns without descriptions (fit one with `fastsam2 fit-text`)")
    elif encode is None:
        assert loaded.texts is not None, "a projection goes with a text encoder"
        encode = loaded.texts.encode
    numbers = {"seed": seed, "steps": steps, "frames": frames, "dropout_samples": dropout_samples}
    identity = _identity(loaded.manifest, with_text=projection is not None)
    _claim(work / "run.json", {**identity, "data": data, **numbers})
    recorder = Recorder(AttentionTap(folder, loaded.backend, threads=threads), loaded.spec, encode=encode)
    to_train, trained = _recorded(recorder, clips, work / "samples" / "train", frames, say)
    to_report, reported = _recorded(recorder, held_out, work / "samples" / "report", frames, say)
    _claim(work / "clips.json", {"clips to train on": trained, "clips to report on": reported})
    saw_text = bool(to_train.has_text.any())
    say(f"{len(to_train)} samples to train on, {len(to_report)} to report on, {'with' if saw_text else 'without'} descriptions")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        known = None if projection is None else torch.from_numpy(projection)
        module = RouterGraph(loaded.spec, known, dropout_samples=dropout_samples)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        train(module, to_train, steps=steps, seed=seed, work=work, progress=say)
        captured, worst = captured_mass(module, loaded.spec, to_report)
    finally:
        torch.set_num_threads(before)
    check_unchanged(folder, identity, lambda manifest: _identity(manifest, with_text=projection is not None))
    result = add_router(folder, module, data=data, steps=steps, saw_text=saw_text, out=out)
    report = RouterReport(result, steps, (len(to_train), len(to_report)), saw_text, captured, worst)
    (work / "report.json").write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    return report


def train_router_command(
    bundle: Path | str,
    *,
    data: str = "procedural",
    out: Path | None = None,
    work: Path = Path("out/router"),
    seed: int = 0,
    steps: int = 2000,
    clips: int = 60,
    report_clips: int = 12,
    frames: int = 32,
    dropout_samples: int = 0,
    expressions: Path | None = None,
    threads: int | None = None,
    progress: Say | None = None,
) -> RouterReport:
    """`fastsam2 train-router`.

    Args:
        bundle: folder, or name of a built-in bundle, which then needs `out`.
        data: folder of a data set, or "procedural".
        out: a new folder for the result; None changes the bundle itself.
        work: see `train_router`.
        seed: of clips, weights and batches.
        steps: of training.
        clips: to train on, at most.
        report_clips: other clips, to report on.
        frames: read of each clip at most.
        dropout_samples: see `train_router`.
        expressions: see `open_clips`.
        threads: CPU threads; None for every core.
        progress: called with one line at a time.

    Raises:
        FastSam2Error: as `train_router` and `open_clips`.
    """
    to_train, to_report = open_clips(data, clips=clips, report_clips=report_clips, frames=frames, seed=seed, expressions=expressions)
    name = data if data == "procedural" else Path(data).resolve().name
    return train_router(
        bundle,
        to_train,
        held_out=to_report,
        steps=steps,
        work=work,
        data=f"{name}, {clips} + {report_clips} clips of at most {frames} frames, seed {seed}",
        out=out,
        seed=seed,
        frames=frames,
        dropout_samples=dropout_samples,
        threads=threads,
        progress=progress,
    )


def read_projection(loaded: LoadedBundle) -> Float | None:
    """The bundle's text projection, float32 [E, C], or None.

    Raises:
        BundleError: if its file is of another shape.
    """
    text = loaded.manifest.text
    if text is None or text.projection is None:
        return None
    file = loaded.folder / text.projection.file.path
    values: Float = np.load(file, allow_pickle=False)
    shape = (loaded.spec.text_dim, loaded.spec.hidden_dim)
    if values.shape != shape or values.dtype != np.float32:
        got = f"{values.dtype} {list(values.shape)}"
        raise BundleError(expected(f"float32 {list(shape)} in {file}", got, "Fit it again with `fastsam2 fit-text`"))
    return values


def train(module: RouterGraph, samples: Samples, *, steps: int, seed: int, work: Path, progress: Say | None = None) -> None:
    """Fit the module in place; goes on from `work`/state.pt where there is one.

    A batch is decided by seed and step alone, so an interrupted run ends with the weights of an uninterrupted one.

    Args:
        module: to train, on the CPU.
        samples: what to learn.
        steps: in all.
        seed: of the batches.
        work: folder of the state and of log.jsonl.
        progress: called with one line at a time.
    """
    say = progress or (lambda _: None)
    optimizer = torch.optim.AdamW(module.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1, pct_start=0.1)
    state, begin = work / "state.pt", 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        begin = int(saved["step"])
        say(f"going on from step {begin}")
    started = time.monotonic()
    module.train()
    with (work / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in range(begin, steps):
            rng = np.random.default_rng((seed, step))
            chosen = rng.integers(len(samples), size=min(_BATCH, len(samples)))
            inputs, target = batch(module.spec, samples, chosen)
            inputs["has_text"] &= torch.from_numpy(rng.random(len(chosen)) >= _TEXT_DROPPED)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**31)))  # of what is dropped
                logits, _, _ = module.rank(**inputs)
            loss = F.cross_entropy(logits.squeeze(-1), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % _LOG_EVERY == 0 or step + 1 == steps:
                value = loss.item()
                excess = value + torch.xlogy(target, target).sum(1).mean().item()
                _log(log, {"step": step + 1, "loss": value, "excess": excess, "seconds": time.monotonic() - started})
                say(f"step {step + 1}/{steps}  cross-entropy {value:.4f}, {excess:.4f} above the attention's own entropy")
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
                held = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                save(state, {**held, "step": step + 1})
    module.eval()


def batch(spec: ModelSpec, samples: Samples, chosen: npt.NDArray[np.int64]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs of `RouterGraph.rank`, each sample on a frame of its own, and target [B, N]."""
    logits = samples.logits[chosen].astype(np.float32)
    inputs = {
        "tokens": torch.from_numpy(samples.tokens[samples.frame[chosen]].astype(np.float32)),
        "text": torch.from_numpy(samples.text[chosen]),
        "has_text": torch.from_numpy(samples.has_text[chosen]),
        "low_res_logits": torch.from_numpy(logits[:, None]),
        "uncertainty": torch.from_numpy(uncertainty(logits, spec.grid)),
        "object_score": torch.from_numpy(samples.score[chosen]),
        "iou": torch.from_numpy(samples.iou[chosen]),
    }
    return inputs, torch.from_numpy(samples.target[chosen])


def captured_mass(
    module: RouterGraph, spec: ModelSpec, samples: Samples
) -> tuple[dict[str, dict[float, float]], dict[str, dict[float, float]]]:
    """Share of the attention that falls on the rows each policy keeps: mean and 10th percentile over samples.

    "oracle" ranks by the attention itself. "router" gets no text and no noise: how well it foretells attention; "router as it keeps" has
    the noise that trades some of the share for ground. "router + text" and "router + other text" (of the next sample that has one),
    without noise, are there when samples have texts.
    """
    texted = np.flatnonzero(samples.has_text)
    everything = np.arange(len(samples))
    scores: dict[str, tuple[npt.NDArray[np.int64], Float]] = {"router": (everything, _scores(module, samples, everything, None))}
    scores["router as it keeps"] = (everything, _scores(module, samples, everything, None, noise=True))
    if len(texted):
        scores["router + text"] = (texted, _scores(module, samples, texted, samples.text[texted]))
        scores["router + other text"] = (texted, _scores(module, samples, texted, np.roll(samples.text[texted], 1, axis=0)))
    logits = samples.logits.astype(np.float32)
    scores["mask"] = (everything, np.stack([mask_scores(own, spec.grid) for own in logits]))
    scores["uniform"] = (everything, np.broadcast_to(uniform_scores(spec.grid), samples.target.shape))
    by_chance = RandomPolicy(HOST)
    chances = [by_chance.scores(RowContext(spec, 1, int(i), own, 0)) for i, own in enumerate(logits)]
    scores["random"] = (everything, np.stack(HOST.fetch(*chances)))
    scores["oracle"] = (everything, samples.target)
    mean: dict[str, dict[float, float]] = {}
    worst: dict[str, dict[float, float]] = {}
    for name, (rows, ranking) in scores.items():
        shares = {
            b: np.take_along_axis(samples.target[rows], top_k(ranking, bucket_rows(b, spec.tokens)), axis=1).sum(axis=1) for b in BUDGETS
        }
        mean[name] = {b: float(values.mean()) for b, values in shares.items()}
        worst[name] = {b: float(np.percentile(values, 10)) for b, values in shares.items()}
    return mean, worst


def _scores(module: RouterGraph, samples: Samples, rows: npt.NDArray[np.int64], text: Float | None, *, noise: bool = False) -> Float:
    """Scores float32 [n, N] of the samples `rows`, described by `text` [n, E] or not at all; without noise shares of attention foretold."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            inputs, _ = batch(module.spec, samples, rows[part])
            inputs["has_text"] = torch.full((len(rows[part]),), text is not None)
            if text is not None:
                inputs["text"] = torch.from_numpy(np.ascontiguousarray(text[part]))
            logits, _, _ = module.rank(**inputs)
            parts.append((logits + module.noise if noise else logits).softmax(dim=1).mean(dim=-1).numpy())
    return np.concatenate(parts)


def _recorded(recorder: Recorder, clips: Iterable[Clip], folder: Path, frames: int | None, say: Say) -> tuple[Samples, list[str]]:
    """Samples of clips, from disk where a clip was recorded before, and what tells the clips from others."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, keys = [], []
    for index, clip in enumerate(clips):
        first = hashlib.sha256(np.ascontiguousarray(clip.frames[0]).tobytes())
        told = json.dumps([clip.name, len(clip.frames), sorted(clip.expressions.items()), first.hexdigest()])
        key = f"{index:05d}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
        keys.append(key)
        file, empty = folder / f"{key}.npz", folder / f"{key}.none"
        if not file.is_file() and not empty.is_file():
            say(f"tracking {folder.name} clip {index + 1} ({clip.name})")
            samples = recorder.record(clip, frames=frames)
            if samples is None:
                empty.touch()
            else:
                samples.save(file)
        if file.is_file():
            parts.append(Samples.load(file))
    if not parts:
        what = f"clips to {folder.name} on in which an object can be tracked for 4 frames and more"
        raise VideoError(expected(what, "none", "Name other data, or read more --frames of each clip"))
    return Samples.join(parts), keys


def _identity(manifest: Manifest, *, with_text: bool) -> dict[str, Any]:
    """What decides the samples of a bundle."""
    roles = (*BASE_ROLES, GraphRole.TEXT_ENCODER) if with_text else BASE_ROLES
    text = manifest.text
    projection = text.projection.file.sha256 if with_text and text is not None and text.projection is not None else None
    return {**{role.value: fitted_to(manifest, role) for role in roles}, "projection": projection}


def _claim(file: Path, identity: dict[str, Any]) -> None:
    """Makes a folder that of this run by a file that says so, or sees that it is."""
    work = file.parent
    work.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        held = json.loads(file.read_text(encoding="utf-8"))
        other = sorted(k for k in identity if held.get(k) != identity[k])
        if other:
            raise StateError(expected(f"the work of this run in {work}", f"one with another {', '.join(other)}", "Choose another --work"))
    else:
        file.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def _log(log: TextIO, line: dict[str, Any]) -> None:
    log.write(json.dumps(line) + "\n")
    log.flush()
