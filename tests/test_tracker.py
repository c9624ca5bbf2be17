"""The streaming loop on the micro model: batching, pruning, bounds, failures. Oracles: the same tracker run another way, and arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastsam2
from fastsam2 import Prune, Result, Tracker
from fastsam2.contracts import BASE_ROLES
from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError, FastSam2Error, PromptError
from fastsam2.runtime.loaded import LoadedBundle
from tests.parity.clips import make_clip

FRAMES = make_clip("tracker", 5).frames
BOX, OTHER_BOX = (90, 60, 210, 170), (60, 90, 160, 200)


@pytest.fixture(scope="module")
def bundle(bundle_micro: Path) -> LoadedBundle:
    return fastsam2.load(bundle_micro, threads=1)


def _same(a: Result, b: Result) -> bool:
    return a.ids == b.ids and np.array_equal(a.low_res_logits, b.low_res_logits) and np.array_equal(a.scores, b.scores)


def _run(tracker: Tracker, count: int = len(FRAMES), boxes: dict[int, tuple[int, Any]] | None = None) -> list[Result]:
    """Track `count` frames; boxes maps an object id to (frame, box)."""
    results = []
    for t, frame in enumerate(FRAMES[:count]):
        result = tracker.step(frame)
        for object_id, (start, box) in (boxes or {1: (0, BOX)}).items():
            if start == t:
                result = tracker.add(object_id, box=box)
        results.append(result)
    return results


def _alone(result: Result, object_id: int) -> npt.NDArray[np.float32]:
    return result.low_res_logits[result.ids.index(object_id)]


def test_objects_with_different_histories_give_the_masks_they_give_alone(bundle: LoadedBundle) -> None:
    together = _run(bundle.tracker(), boxes={1: (0, BOX), 2: (0, OTHER_BOX), 3: (4, BOX), 4: (4, OTHER_BOX)})
    for object_id, start, box in ((1, 0, BOX), (2, 0, OTHER_BOX), (3, 4, BOX), (4, 4, OTHER_BOX)):
        single = _run(bundle.tracker(), boxes={object_id: (start, box)})
        for t in range(start, len(FRAMES)):
            assert np.array_equal(_alone(together[t], object_id), _alone(single[t], object_id)), (object_id, t)


def test_steps_are_batched_and_the_image_is_encoded_once(bundle: LoadedBundle) -> None:
    calls: list[tuple[GraphRole, int]] = []

    class Counting:
        name = "counting"

        def run(self, role: GraphRole, inputs: Any) -> dict[str, Any]:
            calls.append((role, len(inputs["memory"]) if role is GraphRole.MEMORY_ATTENTION else 1))
            return bundle.backend.run(role, inputs)

    tracker = Tracker(Counting(), bundle.spec)
    _run(tracker, 3, boxes={i: (0, BOX) for i in (1, 2, 3)})
    calls.clear()
    tracker.step(FRAMES[3])
    assert calls == [
        (GraphRole.MEMORY_ENCODER, 1),
        (GraphRole.IMAGE_ENCODER, 1),
        (GraphRole.MEMORY_ATTENTION, 3),
        (GraphRole.MASK_DECODER, 1),
    ]


def test_frames_without_objects_cost_no_graph(bundle: LoadedBundle) -> None:
    tracker = bundle.tracker()
    for frame in FRAMES[:3]:
        assert tracker.step(frame).ids == ()
    assert set(tracker.stages_ms()) == {"preprocess", "postprocess"}
    assert tracker.add(1, box=BOX).frame == 2


def test_chunks_within_the_memory_budget_change_no_bit(bundle: LoadedBundle) -> None:
    boxes = {i: (0, (60 + 5 * i, 60, 200, 150 + 5 * i)) for i in range(1, 6)}
    whole, chunked = bundle.tracker(), bundle.tracker(memory_budget_mb=1)
    assert len(chunked._stages.chunks(GraphRole.MASK_DECODER, 5)) > 1
    assert all(map(_same, _run(whole, 8, boxes), _run(chunked, 8, boxes)))


def test_keeping_everything_through_the_gather_is_bit_identical_to_dense(bundle: LoadedBundle) -> None:
    dense = _run(bundle.tracker())
    for policy in ("mask", "random", "uniform"):
        tracker = bundle.tracker(prune=Prune(policy=policy, keep=1.0, protect=()))
        assert all(map(_same, dense, _run(tracker))), policy
        assert tracker.pruner.gathers == len(FRAMES) - 1, policy  # every frame whose memory was written


@pytest.mark.parametrize("policy", ["mask", "random", "uniform", "pool2x2"])
def test_pruned_banks_hold_what_they_report(bundle: LoadedBundle, policy: str) -> None:
    keep = None if policy == "pool2x2" else 0.1
    n = bundle.spec.tokens
    k = n // 4 if keep is None else 7  # ceil(0.1 * 64)
    report = _run(bundle.tracker(prune=Prune(policy=policy, keep=keep)))[-1].memory
    assert report.rows == (2 * n + 5 * k,)  # the prompt frame and the newest stay dense
    assert report.share == pytest.approx(((2 * n + 5 * k) / (7 * n),))
    assert report.bytes[0] < _run(bundle.tracker())[-1].memory.bytes[0]
    bare = _run(bundle.tracker(prune=Prune(policy=policy, keep=keep, protect=())))[-1].memory
    assert bare.rows == (7 * k,)


def test_pruning_changes_masks_a_little_and_is_repeatable(bundle: LoadedBundle) -> None:
    dense = _run(bundle.tracker())[-1]
    prune = Prune(policy="random", keep=0.25, seed=3)
    first, again = _run(bundle.tracker(prune=prune))[-1], _run(bundle.tracker(prune=prune))[-1]
    assert _same(first, again)
    assert not _same(first, dense)
    other = _run(bundle.tracker(prune=Prune(policy="random", keep=0.25, seed=4)))[-1]
    assert not _same(first, other)


def test_the_bank_is_bounded(bundle: LoadedBundle) -> None:
    tracker = bundle.tracker(corrections_as_prompts=True, max_prompt_frames=2)
    sizes = []
    for t in range(70):
        tracker.step(FRAMES[t % len(FRAMES)])
        if t == 0:
            tracker.add(1, box=BOX)
        elif t % 5 == 0:
            tracker.correct(1, points=[(150, 110)])
        memory = tracker._objects[1].memory
        sizes.append((len(memory.frames), memory.rows_held))
    spec = bundle.spec
    assert max(frames for frames, _ in sizes) <= spec.max_object_pointers - 1 + 2
    assert max(rows for _, rows in sizes) <= (spec.num_maskmem - 1 + 2) * spec.tokens
    assert sizes[40:55] == sizes[55:70]  # periodic: nothing creeps


def test_trackers_share_a_bundle_in_parallel(bundle: LoadedBundle) -> None:
    alone = _run(bundle.tracker(), 8)
    with ThreadPoolExecutor(3) as pool:
        for results in pool.map(lambda _: _run(bundle.tracker(), 8), range(3)):
            assert all(map(_same, alone, results))


def test_removal_leaves_the_others_alone(bundle: LoadedBundle) -> None:
    tracker = bundle.tracker()
    _run(tracker, 6, boxes={1: (0, BOX), 2: (0, OTHER_BOX)})
    tracker.remove(1)
    assert tracker.ids == (2,)
    assert np.array_equal(_alone(tracker.step(FRAMES[6]), 2), _alone(_run(bundle.tracker(), 7, boxes={2: (0, OTHER_BOX)})[-1], 2))
    tracker.remove(2)
    assert tracker.step(FRAMES[7]).ids == ()
    assert _same(tracker.add(1, box=BOX), _single_add(bundle, FRAMES[7]))


def _single_add(bundle: LoadedBundle, frame: npt.NDArray[np.uint8]) -> Result:
    tracker = bundle.tracker()
    tracker.step(frame)
    return tracker.add(1, box=BOX)


def test_reset_starts_over_and_takes_another_size(bundle: LoadedBundle) -> None:
    tracker = bundle.tracker()
    first = _run(tracker, 4)
    with pytest.raises(PromptError, match=r"frame of \(240, 320\).*reset\(\)"):
        tracker.step(np.zeros((100, 120, 3), np.uint8))
    tracker.reset()
    assert tracker.frame is None
    assert tracker.ids == ()
    tracker.step(np.zeros((100, 120, 3), np.uint8))
    tracker.reset()
    assert all(map(_same, first, _run(tracker, 4)))


def test_image_mode_answers_like_a_first_prompt(bundle: LoadedBundle) -> None:
    image = bundle.image().set(FRAMES[2])
    assert _same(image.predict(box=BOX), _single_add(bundle, FRAMES[2]))
    clicked = image.predict(points=[(150, 110)])
    assert clicked.masks.shape == (1, 240, 320)
    assert _same(image.predict(box=BOX), _single_add(bundle, FRAMES[2]))
    with pytest.raises(PromptError):
        image.predict()
    small = image.set(FRAMES[0][:100, :120].copy()).predict(box=(10, 10, 60, 60))
    assert small.masks.shape == (1, 100, 120)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.step(FRAMES[0].astype(np.float32)), "uint8"),
        (lambda t: t.step(FRAMES[0][..., 0]), r"\[H, ?W, ?3\]"),
        (lambda t: t.step(FRAMES[0][:-1]), "frame of"),
        (lambda t: t.add(1, box=BOX), "new object id"),
        (lambda t: t.add(0, box=BOX), "object id"),
        (lambda t: t.add(2), "a box, at least one point"),
        (lambda t: t.add(2, box=(10, 10, 400, 50)), "<= x <= 320"),
        (lambda t: t.add(2, box=(50, 10, 20, 50)), "x0 < x1"),
        (lambda t: t.add(2, points=[(np.nan, 4)]), "finite|NaN|nan"),
        (lambda t: t.add(2, points=[(1, 2)], labels=[5]), "label"),
        (lambda t: t.add(2, mask=np.zeros((5, 5), bool)), r"240"),
        (lambda t: t.add(2, mask=np.zeros((240, 320), np.float32)), "bool"),
        (lambda t: t.correct(9, box=BOX), "tracked object id"),
        (lambda t: t.correct(1, box=BOX, append=True), "append"),
        (lambda t: t.remove(9), "tracked object id"),
    ],
)
def test_bad_input_is_refused_and_loses_nothing(bundle: LoadedBundle, call: Any, message: str) -> None:
    tracker = bundle.tracker()
    _run(tracker, 5)
    with pytest.raises(PromptError, match=message):
        call(tracker)
    assert tracker.frame == 4
    assert _same(tracker.step(FRAMES[5]), _run(bundle.tracker(), 6)[-1])


@pytest.mark.parametrize("prune", [Prune(), Prune(policy="mask", keep=0.1)], ids=["dense", "mask"])
def test_results_are_the_callers_to_write_into(bundle: LoadedBundle, prune: Prune) -> None:
    tracker, untouched = bundle.tracker(prune=prune), bundle.tracker(prune=prune)
    for t, frame in enumerate(FRAMES[:6]):
        results = [own.step(frame) if t else (own.step(frame), own.add(1, box=BOX))[1] for own in (tracker, untouched)]
        assert _same(*results), t
        written = results[0]
        for array in (written.masks, written.low_res_logits, written.scores, written.ious, written.visible):
            array[...] = -7
        if written.tokens is not None:
            written.tokens.scores[...] = -7


def test_prompts_need_a_frame(bundle: LoadedBundle) -> None:
    with pytest.raises(PromptError, match="step"):
        bundle.tracker().add(1, box=BOX)
    with pytest.raises(PromptError, match="set"):
        bundle.image().predict(box=BOX)


@pytest.mark.parametrize("role", [r for r in BASE_ROLES if r is not GraphRole.MASK_PROMPT])
def test_a_failed_step_can_be_repeated(bundle: LoadedBundle, role: GraphRole) -> None:
    class Failing:
        name = "failing"
        broken = False

        def run(self, asked: GraphRole, inputs: Any) -> dict[str, Any]:
            if self.broken and asked is role:
                raise BackendError("out of memory")
            return bundle.backend.run(asked, inputs)

    backend = Failing()
    tracker = Tracker(backend, bundle.spec, prune=Prune(policy="mask", keep=0.1))
    _run(tracker, 9)
    backend.broken = True
    with pytest.raises(BackendError):
        tracker.step(FRAMES[9])
    backend.broken = False
    assert tracker.frame == 8
    expected = _run(bundle.tracker(prune=Prune(policy="mask", keep=0.1)), 11)
    assert _same(tracker.step(FRAMES[9]), expected[9])
    assert _same(tracker.step(FRAMES[10]), expected[10])


@pytest.mark.parametrize("options", [{"max_prompt_frames": 0}, {"fill_hole_area": -1}, {"memory_budget_mb": 0}])
def test_options_are_checked(bundle: LoadedBundle, options: dict[str, int]) -> None:
    with pytest.raises(PromptError, match=next(iter(options))):
        bundle.tracker(**options)  # type: ignore[arg-type]


@pytest.fixture
def noisy() -> Iterator[npt.NDArray[np.uint8]]:
    yield np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)


def test_results_stay_valid_after_later_steps(bundle: LoadedBundle, noisy: npt.NDArray[np.uint8]) -> None:
    tracker = bundle.tracker()
    result = _run(tracker, 9)[-1]
    copy = result.low_res_logits.copy(), result.masks.copy(), result[1].copy()
    tracker.step(noisy)
    tracker.step(noisy)
    assert np.array_equal(result.low_res_logits, copy[0])
    assert np.array_equal(result.masks, copy[1])
    assert np.array_equal(result[1], copy[2])
    with pytest.raises(PromptError, match=r"an id of \[1\]"):
        result[2]


def test_unknown_backend_is_an_error(bundle_micro: Path) -> None:
    with pytest.raises(FastSam2Error, match="tensorflow"):
        fastsam2.load(bundle_micro, backend="tensorflow")
    with pytest.raises(BackendError, match="threads"):
        fastsam2.load(bundle_micro, threads=0)
