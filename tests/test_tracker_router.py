"""The tracker with a router, guard and descriptions, on the built-in nano; the router graph is replaced by a rule with a known answer.

Oracles: the same tracker without pruning (keep 1.0 changes no bit); the rule's own scores.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastsam2
from fastsam2.builtin import sample_path
from fastsam2.config import Prune, bucket_rows
from fastsam2.demo import read_sample
from fastsam2.enums import Alarm, GraphRole, PrunePolicy
from fastsam2.errors import BackendError, BundleError, PromptError
from fastsam2.runtime.backends.protocol import Array, Backend
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.runtime.policies.mask import cell_coverage
from fastsam2.runtime.tracker import Tracker
from fastsam2.runtime.video import open_video

FRAMES = 6


@dataclass
class WithRouter:
    """A backend whose router scores a cell by the mask's coverage, plus the text's first number."""

    inner: Backend
    name: str = "with router"
    seen: list[dict[str, Any]] = field(default_factory=list)
    failures: int = 0

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if role is not GraphRole.ROUTER:
            if role is GraphRole.IMAGE_ENCODER and self.failures:
                self.failures -= 1
                raise BackendError("out of memory")
            return self.inner.run(role, inputs)
        self.seen.append({k: v.copy() for k, v in inputs.items()})
        logits, text = inputs["low_res_logits"], inputs["text"] * inputs["has_text"][:, None]
        grid = logits.shape[-1] // 4
        scores = np.stack([cell_coverage(own[0], grid).reshape(-1) for own in logits]) + text[:, :1]
        return {"scores": scores.astype(np.float32), "relevance": scores * 0 + text[:, :1], "context": scores[:1] * 0}


class FixedTexts:
    """ "red" -> [1, 0, ...]."""

    def encode(self, texts: Any) -> npt.NDArray[np.float32]:
        out = np.zeros((len(texts), 512), np.float32)
        out[np.arange(len(texts)), [0 if t == "red" else 1 for t in texts]] = 1
        return out


@pytest.fixture(scope="module")
def nano() -> LoadedBundle:
    return fastsam2.load("nano")


@pytest.fixture(scope="module")
def clip() -> tuple[list[npt.NDArray[np.uint8]], list[tuple[int, Any]]]:
    folder = sample_path("hard_000")
    with open_video(str(folder / "clip.mp4"), max_frames=FRAMES) as video:
        return list(video), [(o.id, o.box) for o in read_sample(folder).objects]


def run(tracker: Tracker, clip: Any, **text: str) -> list[fastsam2.Result]:
    frames, objects = clip
    results = [tracker.step(frames[0])]
    for object_id, box in objects:
        results[0] = tracker.add(object_id, box=box, text=text.get(f"object_{object_id}"))
    return results + [tracker.step(frame) for frame in frames[1:]]


def router(nano: LoadedBundle, **options: Any) -> tuple[Tracker, WithRouter]:
    backend = WithRouter(nano.backend)
    return Tracker(backend, nano.spec, prune=Prune(policy=PrunePolicy.ROUTER, **options), texts=FixedTexts()), backend


def test_keeping_all_rows_changes_no_bit(nano: LoadedBundle, clip: Any) -> None:
    dense = run(nano.tracker(), clip)
    kept = run(router(nano, keep=1.0)[0], clip)
    for a, b in zip(dense, kept, strict=True):
        np.testing.assert_array_equal(a.low_res_logits, b.low_res_logits)
    assert dense[-1].tokens is None


def test_the_report_names_the_rows_the_bank_holds(nano: LoadedBundle, clip: Any) -> None:
    tracker, backend = router(nano, keep=0.1)
    results = run(tracker, clip)
    k = bucket_rows(0.1, nano.spec.tokens)
    assert results[0].tokens is None
    for before, result in pairwise(results):
        report = result.tokens
        assert report is not None and report.frame == before.frame and report.ids == before.ids and report.keep == k
        assert (report.kept.sum(1) == k).all() and set(report.alarms) == {None}
        for scores, kept in zip(report.scores, report.kept, strict=True):
            assert scores[kept].min() >= scores[~kept].max()
        grid = nano.spec.grid
        expected = np.stack([cell_coverage(own, grid).reshape(-1) for own in before.low_res_logits])
        np.testing.assert_array_equal(report.scores, expected)
        assert report.uncertainty is not None and report.relevance is not None and report.context is not None
        assert report.uncertainty.shape == report.relevance.shape == report.scores.shape
    # Prompt frame and newest frame dense, what is between compacted to what the report said.
    held = tracker._objects[results[0].ids[0]].memory.frames
    last = results[-1].tokens
    assert last is not None
    assert [len(held[t].position) for t in sorted(held)] == [nano.spec.tokens, *[k] * (len(held) - 2), nano.spec.tokens]
    np.testing.assert_array_equal(held[FRAMES - 3].position, np.flatnonzero(results[FRAMES - 2].tokens.kept[0]))  # type: ignore[union-attr]
    assert len(backend.seen) == FRAMES - 1  # once a frame for all objects


def test_texts_reach_the_router_and_only_for_their_object(nano: LoadedBundle, clip: Any) -> None:
    first, second, *_ = [i for i, _ in clip[1]]
    tracker, backend = router(nano, keep=0.1)
    results = run(tracker, clip, **{f"object_{second}": "red"})
    for call in backend.seen:
        assert call["has_text"].tolist() == [i == second for i, _ in clip[1]]
    report = results[-1].tokens
    assert report is not None and report.relevance is not None
    assert report.relevance[:, 0].tolist() == [float(i == second) for i, _ in clip[1]]
    tracker.describe(first, "blue")
    tracker.describe(second, None)
    tracker.step(clip[0][0])
    assert backend.seen[-1]["has_text"].tolist() == [i == first for i, _ in clip[1]]


def test_the_guard_raises_the_budget_of_all_objects_and_says_why(nano: LoadedBundle, clip: Any) -> None:
    tracker, _ = router(nano, keep=0.02, guard=True)
    run(tracker, clip)
    frames, objects = clip
    tracker.step(np.zeros_like(frames[0]))  # everything is gone
    report = tracker.step(frames[-1]).tokens
    assert report is not None
    assert any(alarm in tuple(Alarm) for alarm in report.alarms)
    assert report.keep > bucket_rows(0.02, nano.spec.tokens)
    held = {len(tracker._objects[i].memory.frames) for i, _ in objects}
    assert len(held) == 1


def test_a_failed_step_is_not_judged_twice(nano: LoadedBundle, clip: Any) -> None:
    once, _ = router(nano, keep=0.05, guard=True)
    again, backend = router(nano, keep=0.05, guard=True)
    run(once, clip)
    run(again, clip)
    dark = np.zeros_like(clip[0][0])
    for tracker in (once, again):
        tracker.step(dark)
    backend.failures = 2
    for _ in range(2):
        with pytest.raises(BackendError):
            again.step(clip[0][-1])
    a, b = once.step(clip[0][-1]), again.step(clip[0][-1])
    assert a.tokens is not None and b.tokens is not None
    assert (a.tokens.keep, a.tokens.alarms) == (b.tokens.keep, b.tokens.alarms)
    assert once._guard == again._guard
    np.testing.assert_array_equal(a.low_res_logits, b.low_res_logits)


def test_what_is_refused(nano: LoadedBundle, clip: Any) -> None:
    frame, (object_id, box) = clip[0][0], clip[1][0]
    plain = nano.tracker(prune=Prune(policy=PrunePolicy.MASK, keep=0.1))
    plain.step(frame)
    with pytest.raises(PromptError, match="without the router"):
        plain.add(object_id, box=box, text="red")
    assert plain.ids == ()
    without = Tracker(WithRouter(nano.backend), nano.spec, prune=Prune(policy=PrunePolicy.ROUTER))
    without.step(frame)
    with pytest.raises(PromptError, match="bundle with a text encoder"):
        without.add(object_id, box=box, text="red")
    tracker, _ = router(nano)
    tracker.step(frame)
    tracker.add(object_id, box=box)
    with pytest.raises(PromptError, match="a tracked object id"):
        tracker.describe(object_id + 1, "red")
    if nano.manifest.router is None:
        with pytest.raises(BundleError, match=r"a bundle with a router.*train-router"):
            nano.tracker(prune=Prune(policy=PrunePolicy.ROUTER))


def test_a_router_without_descriptions_needs_no_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a plain `pip install fastsam2`."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    tracker = fastsam2.load("nano", threads=1).tracker(prune=Prune.preset("fast"))
    frame = np.zeros((64, 96, 3), np.uint8)
    tracker.step(frame)
    tracker.add(1, box=(8, 8, 40, 40))
    assert tracker.step(frame).tokens is not None
    with pytest.raises(BackendError, match=r"package tokenizers .*pip install fastsam2\[text\]"):
        tracker.add(2, box=(8, 8, 40, 40), text="the red star")
    assert tracker.ids == (1,)
