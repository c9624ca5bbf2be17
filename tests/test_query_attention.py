"""The query_attention graph in torch, and as ONNX. Oracles: memory_attention where all tokens are queries; the official
`MemoryAttention` with gathered rotation tables for any other choice (`export/validate.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.export import validate
from fastsam2.export.checkpoints import LoadedModel, build_model
from fastsam2.export.to_onnx import build_wrapper, example_inputs, export_graph
from fastsam2.export.wrappers.query_attention import QueryAttentionGraph

ORT, TRT = ExportTarget.ONNXRUNTIME, ExportTarget.TENSORRT
QUERY, MEMORY = GraphRole.QUERY_ATTENTION, GraphRole.MEMORY_ATTENTION
ROUNDING = 1e-5  # of the spread: float32, in another order


@pytest.fixture(scope="module")
def micro(micro_config: Path) -> LoadedModel:
    return build_model(str(micro_config), "random:2", image_size=64)  # 16 tokens


@pytest.fixture(scope="module")
def graph(micro: LoadedModel) -> QueryAttentionGraph:
    """In the form that computes in torch."""
    wrapper = build_wrapper(micro.module, micro.spec, QUERY, TRT)
    assert isinstance(wrapper, QueryAttentionGraph)
    return wrapper


def inputs(micro: LoadedModel, count: int, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    made = example_inputs(micro.spec, QUERY, TRT, {"B": batch, "K": count, "M": 21, "P": 3}, seed)
    made["memory_bias"][:, ::5] = -1e4
    return made


def apart(want: torch.Tensor, have: torch.Tensor) -> float:
    assert want.shape == have.shape
    return float((want - have).square().mean().sqrt() / want.std())


@torch.inference_mode()
def test_all_tokens_in_order_give_memory_attention(micro: LoadedModel, graph: QueryAttentionGraph) -> None:
    n = micro.spec.tokens
    given = inputs(micro, n)
    given["query_position"] = given["source"] = torch.arange(n, dtype=torch.int32).expand(2, -1)
    whole = build_wrapper(micro.module, micro.spec, MEMORY, TRT)
    want = whole(**{k: v for k, v in given.items() if k not in ("query_position", "source")})
    assert apart(want, graph(**given)) < ROUNDING
    mirrored = {**given, "query_position": given["query_position"].flip(1), "source": given["source"].flip(1)}
    assert apart(want, graph(**mirrored)) < ROUNDING  # the order of queries means nothing


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 4, 11, 20])
def test_any_choice_equals_the_official_attention_on_those_queries(micro: LoadedModel, graph: QueryAttentionGraph, count: int) -> None:
    given = inputs(micro, count, batch=3, seed=count)
    (want,) = validate._ORACLES[QUERY](micro.module, micro.spec, **given)
    assert apart(want, graph(**given)) < ROUNDING


@torch.inference_mode()
@pytest.mark.parametrize("damaged", ["query_position", "source"])
def test_the_comparison_can_fail(micro: LoadedModel, graph: QueryAttentionGraph, damaged: str) -> None:
    given = inputs(micro, 8)
    (want,) = validate._ORACLES[QUERY](micro.module, micro.spec, **given)
    assert apart(want, graph(**{**given, damaged: given[damaged].roll(1, dims=1)})) > 1e-2


@torch.inference_mode()
def test_what_passes_through_depends_on_its_token_only(micro: LoadedModel, graph: QueryAttentionGraph) -> None:
    given = inputs(micro, 5)
    given["source"][:, :] = -1
    given["source"][:, 3] = 2
    out = graph(**given)
    attention = micro.module.memory_attention
    code = validate._grid_code(micro.module, micro.spec)
    alone = attention.norm(given["tokens"] + 0.1 * code).expand(2, -1, -1)
    passed = torch.arange(micro.spec.tokens) != 3
    torch.testing.assert_close(out[:, passed], alone[:, passed], rtol=0, atol=1e-5)
    assert apart(alone[:, 3], out[:, 3]) > 1e-2


@torch.inference_mode()
def test_merging_equal_cells_moves_them_alike(micro: LoadedModel, graph: QueryAttentionGraph) -> None:
    """The last 2x2 cell as one query: its four members get one update, and keep what tells them apart."""
    n, grid = micro.spec.tokens, micro.spec.grid
    members = torch.tensor([(grid - 2) * grid + grid - 2, (grid - 2) * grid + grid - 1, n - 2, n - 1])
    own = torch.tensor([i for i in range(n) if i not in members.tolist()], dtype=torch.int32)
    given = inputs(micro, 1, batch=1)
    given["query_position"] = torch.cat([own, torch.tensor([n + n // 4 - 1], dtype=torch.int32)])[None]
    given["source"] = torch.full((1, n), len(own), dtype=torch.int32)
    given["source"][0, own.long()] = torch.arange(len(own), dtype=torch.int32)
    (want,) = validate._ORACLES[QUERY](micro.module, micro.spec, **given)
    out = graph(**given)
    assert apart(want, out) < ROUNDING
    assert len(out[0, members].unique(dim=0)) == 4
    given["tokens"][0, members] = given["tokens"][0, members[:1]] + 0.1 * (
        graph.token_position[0, members[:1]] - graph.token_position[0, members]
    )
    assert graph(**given)[0, members].std(dim=0).max() < out[0, members].std(dim=0).max()


def test_the_exported_graph(micro: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "query_attention.onnx"
    export_graph(build_wrapper(micro.module, micro.spec, QUERY, ORT), micro.spec, QUERY, ORT, file)
    checks = validate.check_graph(micro.module, micro.spec, QUERY, ORT, file)
    assert checks.keys() == {"conditioned"} and checks["conditioned"] < ROUNDING
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for batch, count in ((1, 1), (2, 20)):
        made: dict[str, Any] = example_inputs(micro.spec, QUERY, ORT, {"B": batch, "K": count, "M": 1, "P": 1}, seed=count)
        (out,) = session.run(None, {k: v.numpy() for k, v in made.items()})
        assert out.shape == (batch, micro.spec.tokens, micro.spec.hidden_dim) and np.isfinite(out).all()
