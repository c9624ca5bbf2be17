"""The tracker with query pruning, on the built-in nano; its query_attention graph computes in torch.

Oracle: the same tracker without query pruning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import fastsam2
from fastsam2.builtin import sample_path
from fastsam2.config import Prune
from fastsam2.demo import read_sample
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError
from fastsam2.export.checkpoints import build_model
from fastsam2.export.to_onnx import build_wrapper
from fastsam2.runtime.backends.protocol import Array, Backend
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.runtime.tracker import Tracker
from fastsam2.runtime.video import open_video

ROOT = Path(__file__).parents[1]
FRAMES = 3
QUERY, MEMORY = GraphRole.QUERY_ATTENTION, GraphRole.MEMORY_ATTENTION


@dataclass
class WithQueries:
    """A backend that has query_attention."""

    inner: Backend
    graph: torch.nn.Module
    name: str = "with queries"
    calls: list[tuple[GraphRole, dict[str, Any]]] = field(default_factory=list)

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if role in (QUERY, MEMORY):
            self.calls.append((role, {k: v.copy() for k, v in inputs.items()}))
        if role is not QUERY:
            return self.inner.run(role, inputs)
        with torch.inference_mode():
            return {"conditioned": self.graph(**{k: torch.from_numpy(v.copy()) for k, v in inputs.items()}).numpy()}


@pytest.fixture(scope="module")
def nano() -> LoadedBundle:
    return fastsam2.load("nano", threads=1)


@pytest.fixture(scope="module")
def graph() -> torch.nn.Module:
    loaded = build_model(str(ROOT / "training" / "nano.yaml"), str(ROOT / "training" / "nano.pt"))
    return build_wrapper(loaded.module, loaded.spec, QUERY, ExportTarget.TENSORRT)


@pytest.fixture(scope="module")
def clip() -> tuple[list[npt.NDArray[np.uint8]], list[tuple[int, Any]]]:
    folder = sample_path("hard_000")
    with open_video(str(folder / "clip.mp4"), max_frames=FRAMES) as video:
        return list(video), [(o.id, o.box) for o in read_sample(folder).objects]


def tracker(nano: LoadedBundle, graph: torch.nn.Module, **options: Any) -> tuple[Tracker, WithQueries]:
    backend = WithQueries(nano.backend, graph)
    return Tracker(backend, nano.spec, prune=Prune(**options)), backend


def run(tracker: Tracker, clip: Any) -> list[fastsam2.Result]:
    frames, objects = clip
    results = [tracker.step(frames[0])]
    for object_id, box in objects:
        results[0] = tracker.add(object_id, box=box)
    return results + [tracker.step(frame) for frame in frames[1:]]


def test_all_tokens_as_queries_change_nothing_but_rounding(nano: LoadedBundle, graph: torch.nn.Module, clip: Any) -> None:
    dense = run(nano.tracker(), clip)
    pruned, backend = tracker(nano, graph, queries="drop", query_keep=1.0)
    for a, b in zip(dense, run(pruned, clip), strict=True):
        assert np.abs(a.low_res_logits - b.low_res_logits).max() < 1e-3 * a.low_res_logits.std()
    assert {role for role, _ in backend.calls} == {QUERY}


@pytest.mark.parametrize(("queries", "keep"), [("drop", 0.5), ("merge", 0.25)])
def test_all_objects_run_as_one_batch_of_equal_queries(
    nano: LoadedBundle, graph: torch.nn.Module, clip: Any, queries: str, keep: float
) -> None:
    pruned, backend = tracker(nano, graph, queries=queries, query_keep=keep, policy="mask", keep=0.1)
    results = run(pruned, clip)
    assert [role for role, _ in backend.calls] == [QUERY] * (FRAMES - 1)
    for _, inputs in backend.calls:
        assert inputs["query_position"].shape == (len(clip[1]), keep * nano.spec.tokens)
    assert results[-1].memory.share[0] < 1  # rows are pruned as without query pruning
    assert not np.array_equal(results[-1].low_res_logits, run(nano.tracker(), clip)[-1].low_res_logits)
    assert "query_attention" in pruned.stages_ms() and "query_pruning" in pruned.stages_ms()


def test_an_object_out_of_sight_is_sought_everywhere(nano: LoadedBundle, graph: torch.nn.Module, clip: Any) -> None:
    frames, ((first, _), (second, other), *_) = clip
    pruned, backend = tracker(nano, graph, queries="drop", query_keep=0.25)
    pruned.step(frames[0])
    pruned.add(first, mask=np.zeros(frames[0].shape[:2], bool))
    pruned.add(second, box=other)
    pruned.step(frames[1])
    assert [(role, len(inputs["memory"])) for role, inputs in backend.calls] == [(MEMORY, 1), (QUERY, 1)]


def test_a_correction_sees_the_whole_frame(nano: LoadedBundle, graph: torch.nn.Module, clip: Any) -> None:
    frames, ((object_id, box), *_) = clip
    pruned, backend = tracker(nano, graph, queries="drop", query_keep=0.25)
    pruned.step(frames[0])
    pruned.add(object_id, box=box)
    pruned.step(frames[1])
    backend.calls.clear()
    click = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    pruned.correct(object_id, points=[click])
    pruned.correct(object_id, points=[[box[0], box[1]]], labels=[0], append=True)
    assert [role for role, _ in backend.calls] == [MEMORY]  # once for the frame
    dense = nano.tracker()
    dense.step(frames[0])
    dense.add(object_id, box=box)
    dense.step(frames[1])
    kept, whole = pruned._objects[object_id].newest.conditioned, dense._objects[object_id].newest.conditioned
    np.testing.assert_array_equal(kept, whole)


def test_a_bundle_without_the_graph_is_refused(nano: LoadedBundle) -> None:
    with pytest.raises(BundleError, match=r"a query_attention graph .*fastsam2 export .* --query-attention"):
        nano.tracker(prune=Prune(queries="merge", query_keep=0.5))  # type: ignore[arg-type]
