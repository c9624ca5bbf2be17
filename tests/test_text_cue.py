"""Maps from texts to tokens on drawn numbers, where it is known which of them can tell objects apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastsam2.benchmarks.text_cue import against_objects, compare, inside_precision, object_means
from fastsam2.training.text_fit import Seen

KINDS, WIDTH, CELLS = 6, 12, 64
RNG = np.random.default_rng(0)
LOOK = np.concatenate([0.3 * np.eye(KINDS), np.zeros((KINDS, WIDTH - KINDS))], axis=1)  # what tells kinds apart is faint ...
EVERY_OBJECT = np.r_[np.zeros(KINDS), 1.0, np.zeros(WIDTH - KINDS - 1)]  # ... beside what all objects share ...
NOISE = np.r_[0.05 * np.ones(KINDS), 0.05, 0.6 * np.ones(WIDTH - KINDS - 1)]  # ... and what varies inside each


def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    vectors = np.array([np.r_[1.0, np.eye(KINDS)[int(t)]] for t in texts], np.float32)
    return vectors / np.float32(np.sqrt(2))


def frame(clip: int) -> Seen:
    """Two objects of different kinds on an empty ground."""
    kinds = RNG.choice(KINDS, 2, replace=False)
    coverage = {i: np.isin(np.arange(CELLS), np.arange(12) + 20 * i).astype(np.float32) for i in (1, 2)}
    tokens = RNG.standard_normal((CELLS, WIDTH)) * NOISE
    for i, kind in zip((1, 2), kinds, strict=True):
        tokens += coverage[i][:, None] * (LOOK[kind] + EVERY_OBJECT)
    tokens = (tokens - tokens.mean(axis=0)).astype(np.float32)
    return Seen(tokens, coverage, {i: (str(kind),) for i, kind in zip((1, 2), kinds, strict=True)}, f"clip {clip}")


def test_the_discriminant_tells_objects_apart_where_least_squares_finds_any_object() -> None:
    fitted, held_out = [frame(i) for i in range(60)], [frame(100 + i) for i in range(20)]
    reports = compare(fitted, fitted[:30], held_out, encode)
    assert list(reports) == ["least squares", "more clips", "no mean text", "against objects", "discriminant", "own tokens"]
    plain, best, own = reports["least squares"], reports["discriminant"], reports["own tokens"]
    assert plain.right > 0.9 and plain.wrong > 0.8, "every text finds every object"
    assert plain.against_others is not None and best.against_others is not None
    assert best.against_others > max(plain.against_others + 0.05, 0.95) and best.wrong < 0.65
    assert own.right > 0.9


def test_differences_are_to_the_other_objects_of_the_frame() -> None:
    """Oracle: the same by hand, of one frame; a frame with one object gives nothing."""
    seen = frame(0)
    means = object_means(seen)
    np.testing.assert_allclose(means[1], seen.tokens[20:32].mean(axis=0), rtol=1e-5)
    alone = Seen(seen.tokens, {1: seen.coverage[1]}, {1: seen.texts[1]}, "alone")
    x, y = against_objects([seen, alone], encode)
    np.testing.assert_array_equal(x, encode([seen.texts[1][0], seen.texts[2][0]]))
    np.testing.assert_allclose(y, np.stack([means[1] - means[2], means[2] - means[1]]), rtol=1e-5)


def test_precision_is_of_what_varies_inside_objects() -> None:
    precision = inside_precision([frame(i) for i in range(200)])
    np.testing.assert_allclose(1 / np.sqrt(np.diag(precision)), NOISE, rtol=0.15)
