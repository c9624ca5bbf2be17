"""What the rows of a frame are worth, and how many of them to keep: policy or router, and the guard.

newest frame: features, what is known of every object ─► Judgement: scores, K ─► memory bank; report ─► result
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastsam2.config import ModelSpec
from fastsam2.enums import Alarm
from fastsam2.runtime.backends.protocol import Float
from fastsam2.runtime.guard import GuardState, Observation, judge
from fastsam2.runtime.pruning import Pruner, RowContext
from fastsam2.runtime.result import TokenReport
from fastsam2.runtime.stages import Features, Stages
from fastsam2.runtime.uncertainty import uncertainty


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of one object on the frame to judge.

    Attributes:
        object_id: its id.
        logits: float32 [L, L].
        score: object score, logit.
        iou: predicted IoU.
        prompted: the frame was prompted.
        text: float32 [E], the embedding of its description, or None.
    """

    object_id: int
    logits: Float
    score: float
    iou: float
    prompted: bool
    text: Float | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer for one frame.

    Attributes:
        scores: float32 [N] of each object; None for policies without scores.
        keep: K for every object; None where nothing is pruned.
        report: for the result; None for policies without scores.
        guard: the guard's state after this frame.
    """

    scores: tuple[Float | None, ...]
    keep: int | None
    report: TokenReport | None
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
            seen = {o.object_id: Observation(o.score, o.iou, float(np.mean(o.logits > 0)), o.prompted) for o in objects}
            guard, alarms = judge(guard, seen, len(pruner.budgets) - 1)
        keep = pruner.budgets[guard.level]
        unsure = routed = None
        scores: tuple[Float | None, ...]
        if pruner.routes:
            logits = np.stack([o.logits for o in objects])
            unsure = uncertainty(logits, self.spec.grid)
            routed = self.stages.route(
                features,
                logits=logits,
                scores=np.array([o.score for o in objects], np.float32),
                ious=np.array([o.iou for o in objects], np.float32),
                uncertainty=unsure,
                texts=[o.text for o in objects],
            )
            scores = tuple(routed.scores)
        else:
            scores = tuple(pruner.score(RowContext(self.spec, o.object_id, frame, o.logits, pruner.prune.seed)) for o in objects)
        known = [s for s in scores if s is not None]
        if not known:
            return Judgement(scores, keep, None, guard)
        stacked = np.stack(known)
        report = TokenReport(
            frame=frame,
            ids=tuple(o.object_id for o in objects),
            keep=keep,
            alarms=tuple(alarms.get(o.object_id) for o in objects),
            scores=stacked,
            uncertainty=unsure,
            relevance=None if routed is None else routed.relevance,
            context=None if routed is None else routed.context,
        )
        return Judgement(scores, keep, report, guard)
