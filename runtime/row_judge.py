"""What the rows of a frame are worth, and how many of them to keep: policy or router, and the guard.

newest frame: features, what is known of every object ─► Judgement: scores, K ─► memory bank; report ─► result
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsam2.config import ModelSpec
from fastsam2.enums import Alarm
from fastsam2.runtime.backends.protocol import Float
from fastsam2.runtime.device import Tensor
from fastsam2.runtime.guard import GuardState, Observation, judge
from fastsam2.runtime.pruning import Pruner, RowContext
from fastsam2.runtime.result import TokenReport
from fastsam2.runtime.stages import Features, Stages


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of one object on the frame to judge.

    Attributes:
        object_id: its id.
        logits: float32 [L, L].
        score: float32 [1], object score, logit.
        iou: float32 [1], predicted IoU.
        seen: the same on the host, for the guard; None without it.
        text: float32 [E], the embedding of its description, or None.
    """

    object_id: int
    logits: Tensor
    score: Tensor
    iou: Tensor
    seen: Observation | None
    text: Float | None


@dataclass(frozen=True, slots=True)
class Cues:
    """What a frame's rows were judged by, as arrays of the device; see `TokenReport`."""

    frame: int
    ids: tuple[int, ...]
    keep: int
    alarms: tuple[Alarm | None, ...]
    scores: tuple[Tensor, ...]
    uncertainty: Tensor | None
    relevance: Tensor | None
    context: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What `report` needs from the device."""
        return (*self.scores, self.uncertainty, self.relevance, self.context)

    def report(self, fetched: Sequence[Any]) -> TokenReport:
        """The same on the host, from `tensors` there."""
        *scores, unsure, relevance, context = fetched
        return TokenReport(self.frame, self.ids, self.keep, self.alarms, np.stack(scores), unsure, relevance, context)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer for one frame.

    Attributes:
        scores: float32 [N] of each object; None for policies without scores.
        keep: K for every object; None where nothing is pruned.
        cues: for the result; None for policies without scores.
        guard: the guard's state after this frame.
    """

    scores: tuple[Tensor | None, ...]
    keep: int | None
    cues: Cues | None
    guard: GuardState


class RowJudge:
    """Judges the rows of every object at once. Holds nothing of them: the guard's state goes in and comes out.

    Args:
        pruner: policy and budgets.
        stages: run the router graph.
        spec: model sizes.
    """

    def __init__(self, pruner: Pruner, stages: Stages, spec: ModelSpec) -> None:
        self.pruner, self.stages, self.spec = pruner, stages, spec

    def judge(self, frame: int, features: Features, objects: Sequence[Judged], guard: GuardState) -> Judgement:
        """Judge a frame.

        Args:
            frame: its index.
            features: of the frame.
            objects: all that are tracked, at least one.
            guard: state after the frame before.
        """
        pruner = self.pruner
        if not pruner.active:
            return Judgement((None,) * len(objects), None, None, guard)
        alarms: dict[int, Alarm] = {}
        if pruner.prune.guard:
            guard, alarms = judge(guard, {o.object_id: o.seen for o in objects if o.seen is not None}, len(pruner.budgets) - 1)
        keep = pruner.budgets[guard.level]
        unsure = routed = None
        scores: tuple[Tensor | None, ...]
        if pruner.routes:
            device = self.stages.device
            logits = device.stack([o.logits for o in objects])
            unsure = device.uncertainty(logits, self.spec.grid)
            routed = self.stages.route(
                features,
                logits=logits,
                scores=device.concatenate([o.score for o in objects]),
                ious=device.concatenate([o.iou for o in objects]),
                uncertainty=unsure,
                texts=[o.text for o in objects],
            )
            scores = tuple(device.copy(routed.scores[row]) for row in range(len(objects)))
        else:
            scores = tuple(pruner.score(RowContext(self.spec, o.object_id, frame, o.logits, pruner.prune.seed)) for o in objects)
        known = tuple(s for s in scores if s is not None)
        if not known:
            return Judgement(scores, keep, None, guard)
        cues = Cues(
            frame=frame,
            ids=tuple(o.object_id for o in objects),
            keep=keep,
            alarms=tuple(alarms.get(o.object_id) for o in objects),
            scores=known,
            uncertainty=unsure,
            relevance=None if routed is None else routed.relevance,
            context=None if routed is None else routed.context,
        )
        return Judgement(scores, keep, cues, guard)
