"""Even orders and what they do to a sample."""

from __future__ import annotations

import numpy as np
import pytest

from fastsam2.spread import even_noise, uniform_scores


@pytest.mark.parametrize("grid", [5, 16, 64])
def test_noise_has_the_quantiles_of_a_gumbel_distribution_in_the_uniform_order(grid: int) -> None:
    """Oracle: the distribution's cumulative function, exp(-exp(-x))."""
    noise = even_noise(grid).astype(np.float64)
    order = np.argsort(uniform_scores(grid))
    np.testing.assert_array_equal(np.argsort(noise), order)
    np.testing.assert_allclose(np.exp(-np.exp(-noise[order])), (np.arange(grid**2) + 0.5) / grid**2, rtol=1e-5)
    with pytest.raises(ValueError, match="read-only"):
        even_noise(grid)[0] = 1


def test_the_largest_are_a_sample_in_proportion_and_even_where_the_density_is() -> None:
    """Oracle: drawing without replacement many times, with numpy's own weighted choice. Left half of the frame four times the right."""
    grid, keep = 32, 128
    density = np.where(np.arange(grid**2) % grid < grid // 2, 4.0, 1.0)
    density /= density.sum()
    kept = np.zeros(grid**2, np.bool_)
    kept[np.argsort(-(np.log(density) + even_noise(grid)))[:keep]] = True
    left = kept.reshape(grid, grid)[:, : grid // 2]
    rng = np.random.default_rng(0)
    drawn = np.array([rng.choice(grid**2, keep, replace=False, p=density) for _ in range(200)])
    want = (drawn % grid < grid // 2).sum(1)
    assert abs(int(left.sum()) - want.mean()) < 3 * want.std()
    for half in (left, kept.reshape(grid, grid)[:, grid // 2 :]):
        blocks = half.reshape(4, grid // 4, 2, grid // 4).sum(axis=(1, 3))
        assert blocks.max() - blocks.min() <= 1


def test_a_row_with_nearly_all_of_the_density_is_kept_wherever_it_lies() -> None:
    grid = 16
    worst = int(np.argmin(even_noise(grid)))
    density = np.full(grid**2, 1e-6)
    density[worst] = 1 - density.sum()
    assert int(np.argmax(np.log(density) + even_noise(grid))) == worst
