"""Sizes of optimization profiles. Oracle: sums by hand for SAM 2.1 tiny at 1024 px, and the contracts."""

from __future__ import annotations

from typing import Any

import pytest

from fastsam2.contracts import GRAPHS, graph_spec
from fastsam2.engines.profiles import MAX_POINTS, Limits, axis_sizes, profiles
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError
from tests.specs import model_spec

TINY = model_spec(image_size=1024, hidden_dim=256, memory_dim=64)


def test_dense_sizes_are_seven_frames_and_sixteen_pointers() -> None:
    sizes = axis_sizes(TINY, Limits())
    assert sizes["B"] == (1, 1, 4) and sizes["Q"] == (1, 1, MAX_POINTS)
    assert sizes["M"] == (1, 28672, 28672) and sizes["P"] == (1, 16, 16) and sizes["R"] == (5, 28736, 28736)


def test_prompted_frames_add_rows_and_pointers() -> None:
    sizes = axis_sizes(TINY, Limits(max_objects=2, max_prompt_frames=4))
    assert sizes["M"][2] == 10 * 4096 and sizes["P"][2] == 19 and sizes["R"][2] == 10 * 4096 + 4 * 19 and sizes["B"][2] == 2


def test_a_keep_bucket_leaves_prompted_and_newest_frames_dense() -> None:
    assert axis_sizes(TINY, Limits(), keep=0.05)["M"] == (1, 2 * 4096 + 5 * 205, 2 * 4096 + 5 * 205)
    assert axis_sizes(TINY, Limits(max_prompt_frames=2), keep=0.02)["M"][2] == 3 * 4096 + 5 * 82


@pytest.mark.parametrize("role", GRAPHS)
def test_shapes_cover_every_dynamic_input(role: GraphRole) -> None:
    found = profiles(TINY, role, Limits(keep_buckets=(0.05,)))
    dynamic = [t for t in graph_spec(role, ExportTarget.TENSORRT).inputs if t.dynamic()]
    assert bool(found) == bool(dynamic)
    assert [p.name for p in found] == (["dense", "keep 0.05"] if any("M" in t.axes for t in dynamic) else ["dense"] if dynamic else [])
    for profile in found:
        assert list(profile.shapes) == [t.name for t in dynamic]
        assert set(profile.sizes) == {axis for t in dynamic for axis in t.dynamic().values()}
        for tensor in dynamic:
            low, likely, high = profile.shapes[tensor.name]
            assert all(a <= b <= c for a, b, c in zip(low, likely, high, strict=True))
            for index, axis in tensor.dynamic().items():
                assert (low[index], likely[index], high[index]) == profile.sizes[axis]


def test_static_dimensions_come_from_the_model() -> None:
    (profile,) = profiles(TINY, GraphRole.MEMORY_ATTENTION, Limits())
    assert profile.shapes["memory"] == ((1, 1, 64), (1, 28672, 64), (4, 28672, 64))
    assert "tokens" not in profile.shapes


def test_limits_survive_json() -> None:
    limits = Limits.of(max_objects=3, max_prompt_frames=2, keep_buckets=(0.25, 0.05, 0.25))
    assert limits.keep_buckets == (0.05, 0.25)
    assert Limits.model_validate_json(limits.model_dump_json()) == limits


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_objects": 0}, "max_objects"),
        ({"max_prompt_frames": 0}, "max_prompt_frames"),
        ({"keep_buckets": (0.5, 1.0)}, r"keep_buckets\.1"),
    ],
)
def test_illegal_limits(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BackendError, match=f"expected a legal {field}, got "):
        Limits.of(**{"max_objects": 4, "max_prompt_frames": 1, "keep_buckets": (), **changes})
