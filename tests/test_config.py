"""ModelSpec, Prune and keep buckets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fastsam2.config import KEEP_BUCKETS, ModelSpec, Prune, bucket_rows
from fastsam2.enums import Protect, PrunePolicy
from fastsam2.errors import FastSam2Error, PromptError
from tests.specs import SIZES

TINY: dict[str, Any] = {**SIZES, "name": "sam2.1_hiera_tiny", "image_size": 1024, "hidden_dim": 256, "memory_dim": 64}
N = 4096
GATHERING = [policy for policy in PrunePolicy if policy not in (PrunePolicy.DENSE, PrunePolicy.POOL2X2)]


def test_derived_sizes_at_1024() -> None:
    spec = ModelSpec(**TINY)
    assert (spec.grid, spec.tokens, spec.low_res, spec.pointer_tokens) == (64, 4096, 256, 4)
    assert spec.table_rows == 4096 + 1024 + 1


def test_derived_sizes_at_128() -> None:
    spec = ModelSpec(**{**TINY, "image_size": 128, "hidden_dim": 64, "memory_dim": 16})
    assert (spec.grid, spec.tokens, spec.low_res, spec.pointer_tokens, spec.table_rows) == (8, 64, 32, 4, 64 + 16 + 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 1000),
        ("image_size", 0),
        ("image_size", -32),
        ("hidden_dim", 0),
        ("memory_dim", 0),
        ("num_maskmem", 1),
        ("max_object_pointers", 1),
        ("surprise", 1),
    ],
)
def test_spec_refuses(field: str, value: int) -> None:
    with pytest.raises(ValidationError, match=field):
        ModelSpec(**{**TINY, field: value})


@pytest.mark.parametrize("field", TINY)
def test_spec_needs_every_field(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        ModelSpec(**{key: value for key, value in TINY.items() if key != field})


def test_spec_is_frozen_and_survives_json() -> None:
    spec = ModelSpec(**TINY)
    with pytest.raises(ValidationError, match="frozen"):
        spec.image_size = 512  # type: ignore[misc]
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("fraction", "rows"), [(0.02, 82), (0.05, 205), (0.1, 410), (0.25, 1024), (0.5, 2048), (1.0, 4096), (1 / 4096, 1), (1e-9, 1)]
)
def test_bucket_rows_rounds_up(fraction: float, rows: int) -> None:
    assert bucket_rows(fraction, N) == rows


def test_bucket_rows_is_immune_to_binary_rounding() -> None:
    assert 0.07 * 100 > 7.0
    assert bucket_rows(0.07, 100) == 7


def test_default_keeps_everything() -> None:
    prune = Prune()
    assert prune.policy is PrunePolicy.DENSE
    assert prune.protect == (Protect.PROMPT, Protect.NEWEST)
    assert prune.rows(N) == N
    assert Prune(keep=1.0).rows(N) == N


@pytest.mark.parametrize("policy", GATHERING)
@pytest.mark.parametrize(
    ("keep", "rows"), [(0.001, 82), (0.02, 82), (0.03, 205), (0.05, 205), (0.051, 410), (0.6, 4096), (1.0, 4096), (None, 4096)]
)
def test_keep_is_rounded_up_to_a_bucket(policy: PrunePolicy, keep: float | None, rows: int) -> None:
    assert Prune(policy=policy, keep=keep).rows(N) == rows


@pytest.mark.parametrize(("tokens", "rows"), [(1, 82), (82, 82), (83, 205), (205, 205), (206, 410), (2049, 4096), (4096, 4096)])
def test_tokens_are_rounded_up_to_a_bucket(tokens: int, rows: int) -> None:
    assert Prune(policy=PrunePolicy.MASK, tokens=tokens).rows(N) == rows


def test_own_buckets() -> None:
    prune = Prune(policy=PrunePolicy.UNIFORM, keep=0.3, buckets=(0.3, 1.0))
    assert prune.rows(100) == 30
    assert Prune(policy=PrunePolicy.UNIFORM, keep=0.31, buckets=(0.3, 1.0)).rows(100) == 100


def test_pooling_keeps_a_quarter() -> None:
    assert Prune(policy=PrunePolicy.POOL2X2).rows(N) == 1024
    assert Prune(policy=PrunePolicy.POOL2X2, keep=0.25).rows(64) == 16


def test_choices_parse_from_text() -> None:
    prune = Prune(policy="mask", protect=("newest",), keep=0.1)  # type: ignore[arg-type]
    assert prune.policy is PrunePolicy.MASK
    assert prune.protect == (Protect.NEWEST,)
    assert Prune(policy=PrunePolicy.MASK, protect=()).protect == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "best"}, "policy='best'"),
        ({"protect": ("oldest",)}, "oldest"),
        ({"policy": "mask", "keep": 0.1, "tokens": 10}, "keep=0.1 and tokens=10"),
        ({"policy": "mask", "keep": 0.0}, "got 0.0"),
        ({"policy": "mask", "keep": -0.5}, "got -0.5"),
        ({"policy": "mask", "keep": 1.01}, "got 1.01"),
        ({"policy": "mask", "keep": float("nan")}, "got nan"),
        ({"policy": "mask", "tokens": 0}, "tokens >= 1"),
        ({"keep": 0.5}, "dense"),
        ({"tokens": 100}, "dense"),
        ({"policy": "pool2x2", "keep": 0.5}, "pool2x2"),
        ({"policy": "pool2x2", "tokens": 1024}, "pool2x2"),
        ({"buckets": ()}, "bucket"),
        ({"buckets": (0.5,)}, "bucket"),
        ({"buckets": (0.5, 0.25, 1.0)}, "bucket"),
        ({"buckets": (0.5, 0.5, 1.0)}, "bucket"),
        ({"buckets": (0.0, 1.0)}, "bucket"),
        ({"buckets": (1.0, 2.0)}, "bucket"),
    ],
)
def test_prune_refuses(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptError, match=rf"^expected .*{said}") as caught:
        Prune(**options)
    assert isinstance(caught.value, FastSam2Error)
    assert isinstance(caught.value, ValueError)


def test_more_tokens_than_a_frame_has() -> None:
    with pytest.raises(PromptError, match="at most 64 tokens, got 65"):
        Prune(policy=PrunePolicy.MASK, tokens=65).rows(64)


def test_default_buckets_are_legal_and_reach_all_rows() -> None:
    assert Prune(policy=PrunePolicy.RANDOM, keep=KEEP_BUCKETS[0], buckets=KEEP_BUCKETS).rows(N) == bucket_rows(KEEP_BUCKETS[0], N)
    assert bucket_rows(KEEP_BUCKETS[-1], N) == N
