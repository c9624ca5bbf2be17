"""How well a description finds its object, by the way in which texts are mapped to tokens.

    python -m benchmarks.text_cue --out text_cue.json

AUC of the cosine between cells and projected text, on drawn clips that nothing was fitted to (`training.text_fit.sign_report`): the object
against everything else, the same with another object's text, and the object against the other objects of its frame. Every map is a closed
form on the same pairs of text x and mean token y of an object (minus the frame's mean token):

    least squares       y ~ x W, what `fastsam2 fit-text` stores
    more clips          the same on all clips instead of the first 60
    no mean text        the direction of x is (x - mean x) W: what texts share does not count
    against objects     y is the difference to the frame's other objects
    discriminant        that, and directions times the inverse covariance of tokens inside objects (Fisher's discriminant)
    own tokens          no text: the mean token of the object where it is first seen, with the same covariance; what a text could reach

Stands above `training/`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsam2.benchmarks.conditions import conditions
from fastsam2.runtime.loaded import load
from fastsam2.training.clip_source import PROCEDURAL, open_clips
from fastsam2.training.router_samples import Encode
from fastsam2.training.text_fit import RIDGE_SHARE, Seen, SignReport, pairs, see, sign_report, solve

Float = npt.NDArray[np.float32]
_FEWER = 60  # clips that nano's own projection was fitted to
_INSIDE = 0.5  # coverage of a cell


def object_means(frame: Seen) -> dict[int, Float]:
    """Mean token of every object that covers a cell or more, float32 [C]."""
    return {i: (w @ frame.tokens) / w.sum() for i, w in frame.coverage.items() if w.sum() >= 1}


def against_objects(seen: Sequence[Seen], encode: Encode) -> tuple[Float, Float]:
    """X [n, E] and Y [n, C] as `text_fit.pairs`, with the difference to the mean of the frame's other objects; frames with two or more."""
    x, y = [], []
    for frame in seen:
        means = object_means(frame)
        for object_id, texts in frame.texts.items():
            others = [m for i, m in means.items() if i != object_id]
            if object_id in means and others:
                for embedding in encode(list(texts)):
                    x.append(embedding)
                    y.append(means[object_id] - np.mean(others, axis=0))
    return np.stack(x), np.stack(y)


def inside_precision(seen: Sequence[Seen]) -> Float:
    """Inverse of the covariance of tokens about the mean of their object, float32 [C, C]; a thousandth of its mean variance is added."""
    parts = []
    for frame in seen:
        for coverage in frame.coverage.values():
            own = frame.tokens[coverage >= _INSIDE]
            parts.append(own - own.mean(axis=0) if len(own) else own)
    covariance = np.cov(np.concatenate(parts).T)
    width = len(covariance)
    inverse: Float = np.linalg.inv(covariance + 1e-3 * np.trace(covariance) / width * np.eye(width)).astype(np.float32)
    return inverse


def compare(fitted: Sequence[Seen], fewer: Sequence[Seen], held_out: Sequence[Seen], encode: Encode) -> dict[str, SignReport]:
    """The table of the module docstring."""

    def fit(x: Float, y: Float) -> Float:
        return solve(x, y, RIDGE_SHARE * len(x)).projection

    def judged(direction: Callable[[Float], Float]) -> SignReport:
        """Embeddings stand for directions already, so the projection is the identity."""
        return sign_report(held_out, lambda texts: direction(encode(texts)), np.eye(held_out[0].tokens.shape[1], dtype=np.float32))

    x, y = pairs(fitted, encode)
    x_few, y_few = pairs(fewer, encode)
    x_other, y_other = against_objects(fitted, encode)
    few, every, other = fit(x_few, y_few), fit(x, y), fit(x_other - x_other.mean(axis=0), y_other - y_other.mean(axis=0))
    shared, shared_other, precision = x.mean(axis=0), x_other.mean(axis=0), inside_precision(fitted)
    return {
        "least squares": judged(lambda e: e @ few),
        "more clips": judged(lambda e: e @ every),
        "no mean text": judged(lambda e: (e - shared) @ every),
        "against objects": judged(lambda e: (e - shared_other) @ other),
        "discriminant": judged(lambda e: (e - shared_other) @ other @ precision),
        "own tokens": _by_own_tokens(held_out, precision),
    }


def _by_own_tokens(held_out: Sequence[Seen], precision: Float) -> SignReport:
    """Each object is described by a text of its own name, whose embedding is the direction of its first mean token."""
    first: dict[str, Float] = {}
    renamed = []
    for frame in held_out:
        means = object_means(frame)
        for object_id, mean in means.items():
            first.setdefault(f"{frame.clip} {object_id}", mean)
        renamed.append(replace(frame, texts={i: (f"{frame.clip} {i}",) for i in frame.texts if f"{frame.clip} {i}" in first}))
    return sign_report(renamed, lambda texts: np.stack([first[t] for t in texts]), precision)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_cue", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="nano", help="folder, or name of a built-in bundle, with a text encoder")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--clips", type=int, default=100, help="to fit to")
    parser.add_argument("--held-out", type=int, default=40, help="clips to judge on")
    parser.add_argument("--frames", type=int, default=32, help="of each clip")
    parser.add_argument("--every", type=int, default=10, help="frame that is looked at")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(argv)
    loaded = load(args.bundle, threads=args.threads)
    if loaded.texts is None:
        parser.error(f"expected a bundle with a text encoder, got {args.bundle}")
    clips, held_out = open_clips(PROCEDURAL, clips=args.clips, report_clips=args.held_out, frames=args.frames)
    kept = list(clips)
    fitted = list(see(loaded, kept, every=args.every))
    names = {clip.name for clip in kept[:_FEWER]}
    judged = list(see(loaded, held_out, every=args.every))
    reports = compare(fitted, [frame for frame in fitted if frame.clip in names], judged, loaded.texts.encode)
    rows = [{"map": name, **{k: v if v is None else round(v, 4) for k, v in asdict(r).items()}} for name, r in reports.items()]
    record = {
        **conditions(args.threads, "benchmarks.text_cue", ("onnxruntime",)),
        "bundle": str(args.bundle),
        "clips": args.clips,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        others = "-" if row["against_others"] is None else f"{row['against_others']:.3f}"
        print(f"{row['map']:16} own {row['right']:.3f}  another's {row['wrong']:.3f}  own, against other objects {others}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
