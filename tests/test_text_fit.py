"""The text projection: its algebra, and the report on which way round texts point. `test_router_training.py` fits one to a bundle."""

from __future__ import annotations

import numpy as np
import pytest

from fastsam2.errors import PromptError, VideoError
from fastsam2.training.text_fit import Seen, auc, sign_report, solve
from tests.words import encode


def test_the_projection_solves_its_normal_equations() -> None:
    """Oracle: least squares of the stacked system [X; sqrt(ridge) I] W = [Y; 0]; numpy's condition number; a W that fits exactly."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((40, 12)).astype(np.float32), rng.standard_normal((40, 5)).astype(np.float32)
    fit = solve(x, y, 3.0)
    stacked = np.concatenate([x.astype(np.float64), np.sqrt(3.0) * np.eye(12)])
    want, *_ = np.linalg.lstsq(stacked, np.concatenate([y.astype(np.float64), np.zeros((12, 5))]), rcond=None)
    np.testing.assert_allclose(fit.projection, want, atol=1e-6)
    assert fit.condition == pytest.approx(np.linalg.cond(stacked) ** 2, rel=1e-6)
    exact = solve(x, (x @ want).astype(np.float32), 0.0)
    np.testing.assert_allclose(exact.projection, want, atol=1e-5)
    assert exact.explained == pytest.approx(1.0, abs=1e-6)
    assert 0 < fit.explained < exact.explained
    with pytest.raises(PromptError, match=r"condition below 1e\+12, got .* with 8 pairs, E = 12 and ridge 0"):
        solve(x[:8], y[:8], 0.0)
    with pytest.raises(PromptError, match="ridge >= 0, got -1"):
        solve(x, y, -1)


def test_auc_is_the_chance_of_the_right_order() -> None:
    """Oracle: all pairs, counted."""
    values = np.array([0.1, 0.5, 0.5, 0.9, 0.3, 0.5], np.float32)
    positive = np.array([0, 1, 0, 1, 0, 1], np.bool_)
    wins = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert auc(values, positive, ~positive) == pytest.approx(np.mean(wins))
    assert auc(-values, positive, ~positive) == pytest.approx(1 - np.mean(wins))


def planted(sign: float) -> list[Seen]:
    """Frames in which the tokens of two objects point along, or against, a direction that belongs to the object's text."""
    rng = np.random.default_rng(5)
    frames = []
    for k in range(6):
        own = {1: f"red {k}", 2: f"blue {k}"}
        tokens = rng.standard_normal((64, 512)).astype(np.float32) * 0.02
        coverage = {i: np.zeros(64, np.float32) for i in own}
        for i, text in own.items():
            coverage[i][10 * i : 10 * i + 8] = 1
            tokens[10 * i : 10 * i + 8] += sign * encode([text])[0]
        frames.append(Seen(tokens - tokens.mean(0), coverage, {i: (t,) for i, t in own.items()}, f"clip {k}"))
    return frames


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_sign_report_finds_which_way_round_texts_point(sign: float) -> None:
    """Oracle: how the frames were made; the projection is the identity."""
    report = sign_report(planted(sign), encode, np.eye(512, dtype=np.float32))
    best, reverse = (report.right, report.right_reversed) if sign > 0 else (report.right_reversed, report.right)
    assert best > 0.98
    assert reverse < 0.02
    assert abs(report.wrong - 0.5) < 0.45 < best - 0.5
    assert report.against_others is not None
    assert (report.against_others > 0.98) == (sign > 0)
    assert (report.objects, report.frames) == (12, 12)
    assert "12 objects" in report.lines()
    with pytest.raises(VideoError, match="frames that show a described object"):
        sign_report([], encode, np.eye(512, dtype=np.float32))
