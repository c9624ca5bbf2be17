"""One script of calls for the Python and the C++ tracker, and what each of them asked of its graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastsam2.config import Prune
from fastsam2.enums import GraphRole
from fastsam2.runtime.backends.protocol import Array, Backend
from fastsam2.runtime.result import MemoryReport, Result, TokenReport
from fastsam2.runtime.tracker import Tracker
from tests.parity.clips import Clip
from tests.parity.scenarios import Action, Event, Scenario

from .native import core

Call = tuple[str, tuple[tuple[str, str, tuple[int, ...], str], ...]]  # role; name, dtype, shape and SHA-256 of every input


class Recorder:
    """A backend that writes down every call, and runs a graph once for the same inputs.

    Args:
        inner: runs the graphs.
        known: answers by call, to be shared among recorders of the same bundle.
    """

    def __init__(self, inner: Backend, known: dict[Call, dict[str, Array]]) -> None:
        self.inner, self.name, self.known = inner, inner.name, known
        self.calls: list[Call] = []

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        call = (role.value, tuple(sorted((name, str(v.dtype), v.shape, _digest(v)) for name, v in inputs.items())))
        self.calls.append(call)
        if call not in self.known:
            self.known[call] = self.inner.run(role, {name: v.copy() for name, v in inputs.items()})
        return self.known[call]

    def run_by_name(self, role: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The same for the C++ tracker."""
        return self.run(GraphRole(role), inputs)


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


class CppTracker:
    """The C++ tracker with the interface of `Tracker`, as far as scripts use it."""

    def __init__(self, backend: Recorder, folder: Path, *, prune: Prune | None = None, **options: Any) -> None:
        prune = prune or Prune()
        native = core().Prune(
            policy=prune.policy.value,
            keep=prune.keep,
            tokens=prune.tokens,
            protect=[p.value for p in prune.protect],
            seed=prune.seed,
            buckets=list(prune.buckets),
            guard=prune.guard,
        )
        self._tracker = core().Tracker(backend.run_by_name, str(folder), native, **options)

    def step(self, frame: Any) -> Result:
        return _result(self._tracker.step(frame))

    def add(self, object_id: int, *, text: Any = None, **prompt: Any) -> Result:
        return _result(self._tracker.add(object_id, core().Prompt(**_given(prompt)), text))

    def correct(self, object_id: int, *, append: bool = False, **prompt: Any) -> Result:
        return _result(self._tracker.correct(object_id, core().Prompt(**_given(prompt)), append))

    def describe(self, object_id: int, text: Any) -> None:
        self._tracker.describe(object_id, text)

    def remove(self, object_id: int) -> None:
        self._tracker.remove(object_id)

    def reset(self) -> None:
        self._tracker.reset()


def _given(prompt: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in prompt.items() if value is not None}


def _result(raw: dict[str, Any]) -> Result:
    tokens, rows = raw["tokens"], raw["rows_held"]
    if tokens is not None:
        tokens = TokenReport(**{**tokens, "ids": tuple(tokens["ids"]), "alarms": tuple(tokens["alarms"])})
    return Result(
        frame=raw["frame"],
        ids=tuple(raw["ids"]),
        masks=raw["masks"],
        visible=raw["scores"] > 0,
        scores=raw["scores"],
        ious=raw["ious"],
        low_res_logits=raw["low_res_logits"],
        memory=MemoryReport(rows=tuple(rows), bytes=tuple(raw["bytes_held"])),
        tokens=tokens,
    )


def play(tracker: Tracker | CppTracker, scenario: Scenario, clip: Clip) -> Iterator[Result]:
    """Every result of a scenario, in the order of the calls."""
    for index, frame in enumerate(clip.frames):
        events = scenario.at(index)
        for event in events:
            if event.action is Action.REMOVE:
                tracker.remove(event.id)
        yield tracker.step(frame)
        for event in events:
            if event.action is Action.ADD:
                yield tracker.add(event.id, **prompt_of(event, clip))
            elif event.action is Action.CORRECT:
                yield tracker.correct(event.id, **prompt_of(event, clip), append=event.append)


def prompt_of(event: Event, clip: Clip) -> dict[str, Any]:
    """Arguments of `Tracker.add` for an event."""
    if event.mask is not None:
        return {"mask": clip.mask(event.frame, event.mask)}
    points = {"points": event.points, "labels": event.labels} if event.points else {}
    return {"box": event.box, **points}


def assert_same(ours: Result, theirs: Result) -> None:
    """Every bit of what the Python tracker said, and of what the C++ tracker said."""
    assert (theirs.frame, theirs.ids) == (ours.frame, ours.ids)
    for name in ("masks", "scores", "ious", "low_res_logits"):
        _assert_bits(getattr(theirs, name), getattr(ours, name), f"{name} on frame {ours.frame}")
    assert (theirs.memory.rows, theirs.memory.bytes) == (ours.memory.rows, ours.memory.bytes), f"frame {ours.frame}"
    assert (ours.tokens is None) == (theirs.tokens is None)
    if ours.tokens is not None and theirs.tokens is not None:
        assert theirs.tokens.ids == ours.tokens.ids and theirs.tokens.keep == ours.tokens.keep
        assert theirs.tokens.frame == ours.tokens.frame
        assert theirs.tokens.alarms == tuple(None if alarm is None else alarm.value for alarm in ours.tokens.alarms)
        for name in ("scores", "uncertainty", "relevance", "context"):
            want, got = getattr(ours.tokens, name), getattr(theirs.tokens, name)
            assert (want is None) == (got is None)
            if want is not None:
                _assert_bits(got, want, f"{name} on frame {ours.frame}")


def _assert_bits(got: Array, want: Array, what: str) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape), what
    assert got.tobytes() == want.tobytes(), f"{np.count_nonzero(got != want)} of {want.size} differ in {what}"
