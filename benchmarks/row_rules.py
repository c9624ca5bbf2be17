"""Rules that stand in for the router graph, so that one cue at a time can be measured through the tracker's own code.

tracker ─ Prune(policy=router) ─► RuleBackend ─ router inputs ─► rule ─► scores [B, N]
                                        └─ every other graph ─► the bundle's backend
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from fastsam2.config import ModelSpec
from fastsam2.enums import GraphRole
from fastsam2.errors import InternalError, expected
from fastsam2.runtime.backends.protocol import Array, Backend, Float
from fastsam2.runtime.policies.mask import cell_coverage
from fastsam2.spread import even_noise, uniform_scores

Rule = Callable[[Mapping[str, Array]], Float]
"""Inputs of `contracts.GRAPHS[ROUTER]` -> scores float32 [B, N]; only their order matters."""

_OWN = 0.5  # coverage from which a cell belongs to the object
_LEAST_MASS = 1e-12
_LEAST_SCORE = 1e-30  # of a softmax in float32
_R2 = (0.7548776662466927, 0.5698402909980532)  # 1/p and 1/p² of the plastic number p
_TIE = 1e-4  # the even spread decides between cells that a cue does not tell apart


class FeatureCache:
    """A backend that encodes each frame once, for trackers that go through the same clip one after another.

    Args:
        backend: runs the graphs.
    """

    def __init__(self, backend: Backend) -> None:
        self.name, self.backend = backend.name, backend
        self._known: dict[bytes, dict[str, Array]] = {}

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`; features are remembered by their pixels and must not be written to."""
        if role is not GraphRole.IMAGE_ENCODER:
            return self.backend.run(role, inputs)
        key = hashlib.sha1(np.ascontiguousarray(inputs["pixels"]).data, usedforsecurity=False).digest()
        if key not in self._known:
            self._known[key] = self.backend.run(role, inputs)
        return dict(self._known[key])


class RuleBackend:
    """A backend whose router is a rule.

    Args:
        backend: runs every other graph.
        rule: scores rows.
    """

    def __init__(self, backend: Backend, rule: Rule) -> None:
        self.name, self.backend, self.rule = backend.name, backend, rule

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        if role is not GraphRole.ROUTER:
            return self.backend.run(role, inputs)
        scores = np.asarray(self.rule(inputs), np.float32)
        nothing = np.zeros_like(scores)
        return {"scores": scores, "relevance": nothing, "context": nothing[:1]}


def mask_and_uncertainty(spec: ModelSpec) -> Rule:
    """How much of a cell the object covers, plus how undecided the mask is there; an even spread over the rest."""
    spread = _TIE * uniform_scores(spec.grid) / spec.tokens

    def rule(inputs: Mapping[str, Array]) -> Float:
        covered = np.stack([cell_coverage(logits[0], spec.grid).reshape(-1) for logits in inputs["low_res_logits"]])
        return np.asarray(covered + inputs["uncertainty"] + spread, np.float32)

    return rule


def mask_sample(spec: ModelSpec) -> Rule:
    """A sample as the router takes one, without training: a third each from the object, from what is near it and from the ground.

    "Near" is within two cells of the object's; what is not there leaves its third to the others.
    """
    noise = even_noise(spec.grid)

    def rule(inputs: Mapping[str, Array]) -> Float:
        scores = []
        for logits in inputs["low_res_logits"]:
            own = cell_coverage(logits[0], spec.grid) >= _OWN
            wide = cv2.dilate(own.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.bool_)
            density = sum(part / max(int(part.sum()), 1) for part in (own, wide & ~own, ~wide))
            scores.append(np.log(np.asarray(density, np.float32).reshape(-1)) + noise)
        return np.stack(scores)

    return rule


def relevance(backend: Backend, spec: ModelSpec) -> Rule:
    """Cosine of token and projected description, as the bundle's own router works it out, and nothing else."""
    spread = _TIE * uniform_scores(spec.grid) / spec.tokens

    def rule(inputs: Mapping[str, Array]) -> Float:
        return np.asarray(backend.run(GraphRole.ROUTER, inputs)["relevance"] + spread, np.float32)

    return rule


def forecast(backend: Backend, spec: ModelSpec, *, noise: float = 1.0, power: float = 1.0, turned: bool = False) -> Rule:
    """What the bundle's own router foretells, with another noise than its own.

    Args:
        backend: runs the router.
        spec: model sizes.
        noise: weight of the even noise: 1 is what the router does, 0 keeps the rows with the most attention foretold.
        power: of the shares foretold: less than 1 evens them out, for more of the ground.
        turned: move the noise over the grid from call to call (one call a frame), so that frames keep other cells of the ground. The steps
            are those of the R2 sequence, whose points fill a square evenly.
    """
    own = even_noise(spec.grid)
    calls = itertools.count()

    def rule(inputs: Mapping[str, Array]) -> Float:
        share = np.log(np.maximum(backend.run(GraphRole.ROUTER, inputs)["scores"], _LEAST_SCORE)) - own
        call = next(calls) if turned else 0
        down, right = (int(spec.grid * (call * step % 1)) for step in _R2)
        moved = np.roll(own.reshape(spec.grid, spec.grid), (down, right), axis=(0, 1)).reshape(-1)
        return np.asarray(power * share + noise * moved, np.float32)

    return rule


class Foresight:
    """The attention each row is going to receive, recorded beforehand from a dense run: what no policy can know.

    Args:
        mass: float32 [N] by (object id, frame), as recorded.
        spec: model sizes.
        sample: take a sample in proportion to the attention, as the router does, instead of the rows with the most of it.

    Attributes:
        frame: whose rows are judged next; the caller sets it before every step.
        ids: objects in the tracker's order.
    """

    def __init__(self, mass: Mapping[tuple[int, int], Float], spec: ModelSpec, *, sample: bool = False) -> None:
        self.mass, self.spec, self.sample = mass, spec, sample
        self.frame = 0
        self.ids: Sequence[int] = ()

    def __call__(self, inputs: Mapping[str, Array]) -> Float:
        """Scores of all objects at once.

        Raises:
            InternalError: if the tracker asks for some of the objects only.
        """
        count = len(inputs["low_res_logits"])
        if count != len(self.ids):
            raise InternalError(expected(f"all {len(self.ids)} objects in one batch", count, "Raise the tracker's memory budget"))
        spread = _TIE * uniform_scores(self.spec.grid) / self.spec.tokens
        known = [self.mass[i, self.frame] for i in self.ids]
        if self.sample:
            return np.stack([np.log(np.maximum(own, _LEAST_MASS)) + even_noise(self.spec.grid) for own in known])
        return np.stack([own / max(float(own.max()), 1e-12) + spread for own in known]).astype(np.float32)
