"""W [E, C], a linear map from text embeddings to tokens, in closed form; and whether it points at the described object at all.

    text of object i ─ text encoder ─► x_i [E] ─┐
    tokens of object i, mean, minus the frame's mean token ─► y_i [C] ─┴─► W

W minimises  Σ_i |x_i W − y_i|² + ridge · |W|².  With X [n, E] and Y [n, C] the rows x_i and y_i, its derivative is zero where

    (Xᵀ X + ridge · I) W = Xᵀ Y

which are solved in float64. n counts pairs of an object's text and a frame that shows the object. The frame's mean token is taken away
because every token shares it: without that, W learns the average token and every text points the same way. The router compares texts with
tokens in the same way (`export/wrappers/router.py`).

Text embeddings of CLIP are known to be able to match an object's surroundings better than the object (LiteLVLM, ICML 2026), and SAM 2's
encoder has seen no language. So `sign_report` measures: the AUC of the cosine, cells inside the object against cells outside, on clips that
W was not fitted to. 0.5 is chance, below 0.5 the reversed cosine is the better cue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.benchmarks.datasets import Clip, Mask
from fastsam2.builtin import bundle_to_change
from fastsam2.bundle import FileEntry, Manifest, ProjectionEntry, changed_bundle, write_manifest
from fastsam2.config import IMAGE_STRIDE
from fastsam2.enums import GraphRole
from fastsam2.errors import BundleError, PromptError, VideoError, expected
from fastsam2.export.exporter import check_complete
from fastsam2.export.router import check_unchanged, fitted_to
from fastsam2.runtime.backends.protocol import Float
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.preprocess import frame_to_pixels, mask_to_input
from fastsam2.training.clip_source import open_clips
from fastsam2.training.router_samples import Encode

FILE = PurePosixPath("text_projection.npy")
RIDGE_SHARE = 0.01  # default ridge, in units of n; texts have unit length, so the eigenvalues of XᵀX add up to n
_INSIDE, _OUTSIDE = 0.5, 0.05  # coverage of a cell
_WORST_CONDITION = 1e12

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fit:
    """A projection and how it was fitted.

    Attributes:
        projection: float32 [E, C].
        samples: n.
        ridge: as in the sum.
        condition: largest / smallest eigenvalue of XᵀX + ridge · I.
        explained: 1 - Σ|x_i W − y_i|² / Σ|y_i|², on the pairs it was fitted to.
    """

    projection: Float
    samples: int
    ridge: float
    condition: float
    explained: float


@dataclass(frozen=True, slots=True)
class SignReport:
    """AUC of the cosine, inside the object against outside; means over objects, each a mean over its frames.

    Attributes:
        right: with the object's own text.
        right_reversed: of minus that cosine.
        wrong: with a text of another object.
        wrong_reversed: of minus that cosine.
        against_others: own text, cells of the object against cells of other objects; None where frames show one object only.
        objects: how many.
        frames: pairs of object and frame.
    """

    right: float
    right_reversed: float
    wrong: float
    wrong_reversed: float
    against_others: float | None
    objects: int
    frames: int

    def lines(self) -> str:
        """The report as text."""
        others = "no frame shows two" if self.against_others is None else f"{self.against_others:.3f}"
        return (
            f"AUC of the cosine inside against outside, {self.objects} objects, {self.frames} frames (0.5 is chance)\n"
            f"own text        {self.right:.3f}   reversed {self.right_reversed:.3f}\n"
            f"another's text  {self.wrong:.3f}   reversed {self.wrong_reversed:.3f}\n"
            f"own text, against cells of other objects  {others}"
        )


@dataclass(frozen=True, slots=True)
class TextFitReport:
    """What `fit_text` gave: the bundle that has the projection now, how it was fitted, what it is worth."""

    bundle: Path
    samples: int
    ridge: float
    condition: float
    explained: float
    sign: SignReport

    def to_json(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return {**asdict(self), "bundle": str(self.bundle)}


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame with described objects.

    Attributes:
        tokens: float32 [N, C] minus the frame's mean token.
        coverage: object id -> float32 [N], share of each cell that the object covers.
        texts: object id -> texts, for those that have any.
        clip: name.
    """

    tokens: Float
    coverage: dict[int, Float]
    texts: dict[int, tuple[str, ...]]
    clip: str


def see(loaded: LoadedBundle, clips: Iterable[Clip], *, frames: int | None = None, every: int = 4) -> Iterator[Seen]:
    """Encodes every fourth annotated frame that shows a described object.

    Args:
        loaded: the bundle whose image encoder is used.
        clips: with masks and expressions.
        frames: read at most so many of each clip.
        every: annotated frame.
    """
    spec = loaded.spec
    for clip in clips:
        if not any(clip.expressions.values()):
            continue
        for frame in [t for t in clip.annotated if frames is None or t < frames][::every]:
            masks = clip.masks(frame)
            texts = {i: clip.expressions[i] for i in masks if clip.expressions.get(i)}
            if not texts:
                continue
            pixels = frame_to_pixels(clip.frames[frame], spec.image_size)
            tokens = loaded.backend.run(GraphRole.IMAGE_ENCODER, {"pixels": pixels})["tokens"][0]
            coverage = {i: _coverage(mask, spec.image_size) for i, mask in masks.items()}
            yield Seen(tokens - tokens.mean(axis=0), coverage, texts, clip.name)


def _coverage(mask: Mask, size: int) -> Float:
    side = size // IMAGE_STRIDE
    cells = mask_to_input(mask, size).reshape(side, IMAGE_STRIDE, side, IMAGE_STRIDE)
    return np.asarray(cells.mean(axis=(1, 3)).reshape(-1), np.float32)


def pairs(seen: Iterable[Seen], encode: Encode) -> tuple[Float, Float]:
    """X [n, E] and Y [n, C]: each text of each object with the object's mean token, cells weighted by coverage.

    An object that covers less than one cell in all is left out.
    """
    rows_x, rows_y = [], []
    for frame in seen:
        for object_id, texts in frame.texts.items():
            weight = frame.coverage[object_id]
            if weight.sum() < 1:
                continue
            mean = (weight @ frame.tokens) / weight.sum()
            for embedding in encode(list(texts)):
                rows_x.append(embedding)
                rows_y.append(mean)
    if not rows_x:
        todo = "Name data with expressions, or their file with --expressions, or give procedural clips"
        raise VideoError(expected("frames that show objects with a description", "none", todo))
    return np.stack(rows_x).astype(np.float32), np.stack(rows_y).astype(np.float32)


def solve(x: Float, y: Float, ridge: float) -> Fit:
    """The W of the module docstring.

    Args:
        x: float32 [n, E].
        y: float32 [n, C].
        ridge: >= 0.

    Raises:
        PromptError: if ridge is negative, or the equations have no unique answer in float64: condition above 1e12.
    """
    if not ridge >= 0:
        raise PromptError(expected("ridge >= 0", ridge, f"Leave it out for {RIDGE_SHARE} times the number of pairs"))
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    normal = x64.T @ x64 + ridge * np.eye(x.shape[1])
    values = np.linalg.eigvalsh(normal)
    condition = float(values[-1] / values[0]) if values[0] > 0 else float("inf")
    if condition > _WORST_CONDITION:
        got = f"{condition:.3g} with {len(x)} pairs, E = {x.shape[1]} and ridge {ridge:g}"
        raise PromptError(expected(f"normal equations of condition below {_WORST_CONDITION:g}", got, "Give a larger ridge, or more texts"))
    w = np.linalg.solve(normal, x64.T @ y64)
    explained = 1.0 - float(np.square(x64 @ w - y64).sum() / max(np.square(y64).sum(), 1e-30))
    return Fit(w.astype(np.float32), len(x), float(ridge), condition, explained)


def sign_report(seen: Iterable[Seen], encode: Encode, projection: Float) -> SignReport:
    """Does the cosine with the projected text tell the object's cells from others, and which way round?

    Args:
        seen: frames of clips that the projection was not fitted to.
        encode: texts -> float32 [T, E].
        projection: float32 [E, C].

    Raises:
        VideoError: if no frame shows a described object with cells inside and outside.
    """
    frames = list(seen)
    texts = sorted({t for frame in frames for own in frame.texts.values() for t in own})
    found: dict[tuple[str, int], list[tuple[float, float | None, float | None]]] = {}
    for frame in frames:
        unit = frame.tokens / np.maximum(np.linalg.norm(frame.tokens, axis=1, keepdims=True), 1e-6)
        for object_id, own in frame.texts.items():
            inside, outside = frame.coverage[object_id] >= _INSIDE, frame.coverage[object_id] <= _OUTSIDE
            if not inside.any() or not outside.any():
                continue
            right = unit @ _direction(encode(own[:1])[0], projection)
            other_text = _other(texts, own, frame.texts.values())
            wrong = None
            if other_text is not None:
                wrong = auc(unit @ _direction(encode([other_text])[0], projection), inside, outside)
            rivals = np.zeros_like(inside)
            for other, coverage in frame.coverage.items():
                if other != object_id:
                    rivals |= (coverage >= _INSIDE) & outside
            against = auc(right, inside, rivals) if rivals.any() else None
            found.setdefault((frame.clip, object_id), []).append((auc(right, inside, outside), wrong, against))
    if not found:
        raise VideoError(expected("frames that show a described object in some cells and not in others", "none", "Name other clips"))
    columns = [[v for v in column if v is not None] for column in zip(*[_means(v) for v in found.values()], strict=True)]
    right_auc, wrong_auc, against_auc = (float(np.mean(c)) if c else None for c in columns)
    assert right_auc is not None
    chance = 0.5 if wrong_auc is None else wrong_auc  # no other text to try
    count = sum(len(v) for v in found.values())
    return SignReport(right_auc, 1 - right_auc, chance, 1 - chance, against_auc, len(found), count)


def _means(values: Sequence[tuple[float | None, ...]]) -> list[float | None]:
    columns = [[v for v in column if v is not None] for column in zip(*values, strict=True)]
    return [float(np.mean(c)) if c else None for c in columns]


def _other(texts: Sequence[str], own: Sequence[str], shown: Iterable[Sequence[str]]) -> str | None:
    """A text that describes nothing in the frame, always the same one for the same object; or else one of another object in it."""
    here = {t for group in shown for t in group}
    for candidates in ([t for t in texts if t not in here], sorted(here - set(own))):
        if candidates:
            return candidates[sum(map(ord, own[0])) % len(candidates)]
    return None


def _direction(embedding: Float, projection: Float) -> Float:
    direction = embedding @ projection
    unit: Float = direction / np.maximum(np.linalg.norm(direction), 1e-6)
    return unit


def auc(values: Float, positive: npt.NDArray[np.bool_], negative: npt.NDArray[np.bool_]) -> float:
    """Chance that a positive has a larger value than a negative, ties counting half; both must have members."""
    high, low = values[positive], np.sort(values[negative])
    below, at_most = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
    return float((below + at_most).mean() / 2 / len(low))


def fit_text(
    bundle: Path | str,
    clips: Iterable[Clip],
    *,
    held_out: Iterable[Clip],
    out: Path | None = None,
    ridge: float | None = None,
    frames: int | None = None,
    encode: Encode | None = None,
    threads: int | None = None,
    progress: Say | None = None,
) -> TextFitReport:
    """Fit a text projection to a bundle that has a text encoder, and store it there as `text_projection.npy`.

    Fit it before the router is trained: a router carries the projection it was trained with, so one that read another is dropped.

    Args:
        bundle: folder, or name of a built-in bundle, which then needs `out`.
        clips: with masks and expressions, to fit to.
        held_out: other clips, for the sign report.
        out: a new folder for the result; None changes the bundle itself.
        ridge: see the module docstring; None takes 0.01 · n.
        frames: read of each clip at most.
        encode: texts -> float32 [T, E]; None takes the bundle's text encoder.
        threads: CPU threads; None for every core.
        progress: called with one line at a time.

    Raises:
        BundleError: if the bundle is not whole, has no text encoder, or the result cannot be written.
        PromptError: if ridge is out of range, or too small for so few texts.
        VideoError: if no clip shows a described object.
    """
    folder, say = bundle_to_change(bundle, out), progress or (lambda _: None)
    if out is not None and Path(out).exists():
        raise BundleError(expected("a path that does not exist yet", out, "Choose another --out"))
    loaded = load(folder, threads=threads)
    if loaded.manifest.text is None:
        raise BundleError(expected("a bundle with a text encoder", f"{folder} without", "Add one with `fastsam2 add-text`"))
    if encode is None:
        assert loaded.texts is not None, "the manifest has a text entry"
        encode = loaded.texts.encode
    say("encoding the frames to fit to")
    x, y = pairs(see(loaded, clips, frames=frames), encode)
    fit = solve(x, y, RIDGE_SHARE * len(x) if ridge is None else ridge)
    say(f"{fit.samples} pairs, ridge {fit.ridge:g}, condition {fit.condition:.3g}, explains {fit.explained:.1%} of the tokens' differences")
    sign = sign_report(see(loaded, held_out, frames=frames), encode, fit.projection)
    fitted = (GraphRole.IMAGE_ENCODER, GraphRole.TEXT_ENCODER)
    check_unchanged(folder, [fitted_to(loaded.manifest, role) for role in fitted], lambda m: [fitted_to(m, role) for role in fitted])
    with changed_bundle(folder, out) as (copy, manifest):
        _store(copy, manifest, fit, say)
    return TextFitReport(folder if out is None else Path(out), fit.samples, fit.ridge, fit.condition, fit.explained, sign)


def _store(copy: Path, manifest: Manifest, fit: Fit, say: Callable[[str], object]) -> None:
    assert manifest.text is not None, "checked before"
    if manifest.text.projection is not None:
        (copy / manifest.text.projection.file.path).unlink()
    np.save(copy / FILE, fit.projection, allow_pickle=False)
    projection = ProjectionEntry(
        file=FileEntry.of(copy, FILE),
        image_encoder=fitted_to(manifest, GraphRole.IMAGE_ENCODER),
        text_encoder=fitted_to(manifest, GraphRole.TEXT_ENCODER),
        samples=fit.samples,
        ridge=fit.ridge,
        condition=fit.condition,
    )
    changed = manifest.model_copy(update={"text": manifest.text.model_copy(update={"projection": projection})})
    if manifest.router is not None and manifest.router.text_encoder is not None:
        kept = tuple(g for g in manifest.graphs if g.role not in (GraphRole.ROUTER, GraphRole.ROUTER_GATHER))
        for path in {g.file.path for g in manifest.graphs} - {g.file.path for g in kept}:
            (copy / path).unlink()
        changed = changed.model_copy(update={"graphs": kept, "router": None})
        say("dropped the router, which was trained with another text projection: make one with `fastsam2 train-router`")
    write_manifest(copy, changed)
    check_complete(copy)


def fit_text_command(
    bundle: Path | str,
    *,
    data: str = "procedural",
    out: Path | None = None,
    seed: int = 0,
    clips: int = 200,
    report_clips: int = 24,
    frames: int = 24,
    ridge: float | None = None,
    expressions: Path | None = None,
    threads: int | None = None,
    progress: Say | None = None,
) -> TextFitReport:
    """`fastsam2 fit-text`.

    Args:
        bundle: folder, or name of a built-in bundle, which then needs `out`.
        data: folder of a data set with expressions, or "procedural".
        out: a new folder for the result; None changes the bundle itself.
        seed: which clips.
        clips: to fit to, at most.
        report_clips: other clips, for the sign report.
        frames: read of each clip at most.
        ridge: see `fit_text`.
        expressions: see `open_clips`.
        threads: CPU threads; None for every core.
        progress: called with one line at a time.

    Raises:
        FastSam2Error: as `fit_text` and `open_clips`.
    """
    to_fit, to_report = open_clips(data, clips=clips, report_clips=report_clips, frames=frames, seed=seed, expressions=expressions)
    return fit_text(bundle, to_fit, held_out=to_report, out=out, ridge=ridge, frames=frames, threads=threads, progress=progress)
