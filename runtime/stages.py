"""The model's stages as functions of arrays, wherever the backend keeps them: no state but a timer, so that all trackers compose them.

Objects are batched; a batch larger than the memory budget allows is run in chunks, which gives bit-identical results on ONNX Runtime CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec
from fastsam2.contracts import LABEL_PADDING, MASK_LOGIT_CLAMP
from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError, PromptError, expected
from fastsam2.runtime.backends.protocol import Backend, Float
from fastsam2.runtime.device import Tensor
from fastsam2.runtime.host_device import device_of
from fastsam2.runtime.memory_bank import Memory
from fastsam2.runtime.query_pruning import Queries
from fastsam2.runtime.selection import Selection
from fastsam2.runtime.timing import StageTimer

DEFAULT_MEMORY_BUDGET_MB = 4096


@dataclass(frozen=True, slots=True)
class Features:
    """Outputs of image_encoder for one frame: tokens [1, N, C], high_res_0 [1, C/8, L, L], high_res_1 [1, C/4, L/2, L/2]."""

    tokens: Tensor
    high_res_0: Tensor
    high_res_1: Tensor


@dataclass(frozen=True, slots=True)
class Decoded:
    """Masks of B objects: logits [B, L, L], iou [B], pointer [B, C], score [B]."""

    logits: Tensor
    iou: Tensor
    pointer: Tensor
    score: Tensor


@dataclass(frozen=True, slots=True)
class Routed:
    """What the router says of the rows of B objects: scores [B, N] that sum to 1, relevance [B, N], context [N]."""

    scores: Tensor
    relevance: Tensor
    context: Tensor


def activation_bytes(role: GraphRole, spec: ModelSpec, rows: int = 0, queries: int = 0) -> int:
    """Estimated peak bytes of one object inside a graph: the widest live tensors, float32.

    Args:
        role: a graph that is batched over objects.
        spec: model sizes.
        rows: memory rows the object reads, for memory_attention and query_attention.
        queries: K, for query_attention.
    """
    pixels = spec.image_size**2
    if role is GraphRole.MEMORY_ATTENTION:
        # keys before and after rotation, their codes, and the 8x wide hidden layer of the feed-forward block
        return 4 * (rows * (2 * spec.hidden_dim + 4 * spec.memory_dim) + spec.tokens * 14 * spec.hidden_dim)
    if role is GraphRole.QUERY_ATTENTION:
        # the same with fewer queries, and the whole frame before and after the last norm
        return 4 * (rows * (2 * spec.hidden_dim + 4 * spec.memory_dim) + (queries * 14 + spec.tokens * 4) * spec.hidden_dim)
    if role is GraphRole.MASK_DECODER:
        # three C/8-wide maps at low resolution, three C/4-wide maps at half of it, eight copies of the tokens
        return 4 * (spec.low_res**2 * (3 * spec.hidden_dim // 8 + 3 * spec.hidden_dim // 16 + 8) + spec.tokens * 8 * spec.hidden_dim)
    if role is GraphRole.ROUTER:
        return 4 * (
            spec.low_res**2 * 2 + spec.tokens * spec.hidden_dim
        )  # the mask's probabilities, features and hidden layer of every cell
    # the mask at full size three times, the first convolution twice, the 4x wide hidden layer of the fuser twice
    return 4 * (pixels * 5 + spec.tokens * 10 * spec.hidden_dim)


class Stages:
    """Runs stages on a backend.

    Args:
        backend: where graphs run; its device holds every array but prompts.
        spec: model sizes.
        timer: collects milliseconds by graph name.
        memory_budget_mb: bound on the estimated activations of one batch in one graph, MiB; at least one object always runs. Each graph
            of ONNX Runtime keeps its own arena, so a process may hold about three times that (`fastsam2 bench` measures it).

    Raises:
        PromptError: if the budget is not positive.
    """

    def __init__(self, backend: Backend, spec: ModelSpec, timer: StageTimer, *, memory_budget_mb: int = DEFAULT_MEMORY_BUDGET_MB) -> None:
        if memory_budget_mb < 1:
            raise PromptError(expected("memory_budget_mb >= 1", memory_budget_mb, f"The default is {DEFAULT_MEMORY_BUDGET_MB}"))
        self.backend, self.spec, self.timer = backend, spec, timer
        self.budget = memory_budget_mb * 2**20
        self.device = device_of(backend)
        self._read = self.device.memory_reader(spec)

    def check_prompt_frames(self, count: int, *, option: str = "max_prompt_frames") -> None:
        """Finds out before memory is read whether graphs have room for `count` prompt frames of an object.

        Args:
            count: prompt frames.
            option: what limits them where the caller is.

        Raises:
            BackendError: if they do not.
        """
        room = self.device.max_prompt_frames()
        if room is not None and count > room:
            todo = f"Build them again with --max-prompt-frames {count}, or give {option}={room}: older ones become ordinary frames"
            raise BackendError(expected(f"engines with room for {count} prompt frames of an object", f"room for {room}", todo))

    def chunks(self, role: GraphRole, count: int, rows: int = 0, queries: int = 0) -> list[slice]:
        """Split `count` objects into batches within the budget, and within what the graph takes at once."""
        size = max(1, self.budget // activation_bytes(role, self.spec, rows, queries))
        size = min(size, self.device.max_objects(role) or size)
        return [slice(i, min(i + size, count)) for i in range(0, count, size)]

    def encode_image(self, pixels: Tensor) -> Features:
        """Features of a frame, from uint8 [1, 3, S, S]."""
        return Features(**self._run(GraphRole.IMAGE_ENCODER, {"pixels": pixels}))

    def condition(
        self, features: Features, memories: Sequence[Memory], selections: Sequence[Selection], queries: Sequence[Queries] | None = None
    ) -> Tensor:
        """Tokens conditioned on the memory of each object, float32 [B, N, C]. All objects must have equal counts.

        Args:
            features: of the frame.
            memories: of B objects.
            selections: what each of them reads.
            queries: of each object, equally many; None for all tokens.
        """
        rows, _ = memories[0].counts(selections[0])
        role = GraphRole.MEMORY_ATTENTION if queries is None else GraphRole.QUERY_ATTENTION
        parts = []
        for part in self.chunks(role, len(memories), rows, 0 if queries is None else len(queries[0].position)):
            readings = [m.reading(s) for m, s in zip(memories[part], selections[part], strict=True)]
            inputs = {"tokens": features.tokens, **self._read(readings)}
            if queries is not None:
                inputs["query_position"] = np.stack([q.position for q in queries[part]])
                inputs["source"] = np.stack([q.source for q in queries[part]])
            parts.append(self._run(role, inputs)["conditioned"])
        return self.device.concatenate(parts)

    def decode(
        self,
        features: Features,
        conditioned: Tensor,
        *,
        multimask: bool,
        first_frame: bool = False,
        points: Float | None = None,
        labels: npt.NDArray[np.int32] | None = None,
        previous_logits: Tensor | None = None,
    ) -> Decoded:
        """Masks of B objects.

        Args:
            features: of the frame.
            conditioned: float32 [B, N, C]; raw tokens with `first_frame`.
            multimask: choose among three masks.
            first_frame: see `contracts`.
            points: float32 [B, Q, 2] in model pixels; None for a frame without prompts.
            labels: int32 [B, Q].
            previous_logits: float32 [B, L, L], already clamped, or None.
        """
        side, full = self.spec.low_res, self.device.full
        parts = []
        for part in self.chunks(GraphRole.MASK_DECODER, len(conditioned)):
            n = part.stop - part.start
            inputs: dict[str, Tensor] = {
                "conditioned": conditioned[part],
                "high_res_0": features.high_res_0,
                "high_res_1": features.high_res_1,
                "points": full((n, 1, 2), 0, np.float32) if points is None else points[part],
                "labels": full((n, 1), LABEL_PADDING, np.int32) if labels is None else labels[part],
                "mask_prompt": (full((n, side, side), 0, np.float32) if previous_logits is None else previous_logits[part]).reshape(
                    (n, 1, side, side)
                ),
                "has_mask": full((n,), previous_logits is not None, np.bool_),
                "multimask": full((n,), multimask, np.bool_),
                "first_frame": full((n,), first_frame, np.bool_),
            }
            out = self._run(GraphRole.MASK_DECODER, inputs)
            parts.append((out["low_res_logits"].reshape((n, side, side)), out["iou"], out["pointer"], out["object_score"]))
        return Decoded(*(self.device.concatenate(column) for column in zip(*parts, strict=True)))

    def track(
        self,
        features: Features,
        memories: Sequence[Memory],
        selections: Sequence[Selection],
        queries: Sequence[Queries | None] | None = None,
    ) -> Iterator[tuple[list[int], Tensor, Decoded]]:
        """Masks of B objects on a frame without prompts, in batches of objects with equally long histories.

        Args:
            features: of the frame.
            memories: of each object.
            selections: what each of them reads.
            queries: of each object, equally many; None for all tokens.

        Yields:
            which of the objects, n of them; their conditioned tokens, float32 [n, N, C]; their masks.
        """
        own = [None] * len(memories) if queries is None else queries
        groups: dict[tuple[int, int, bool], list[int]] = {}
        for index, (memory, selection) in enumerate(zip(memories, selections, strict=True)):
            groups.setdefault((*memory.counts(selection), own[index] is None), []).append(index)
        for members in groups.values():
            chosen = [q for q in (own[i] for i in members) if q is not None]  # of all members or of none
            conditioned = self.condition(features, [memories[i] for i in members], [selections[i] for i in members], chosen or None)
            yield members, conditioned, self.decode(features, conditioned, multimask=self._multimask(0, first_frame=False))

    def answer(
        self,
        features: Features,
        points: Float,
        labels: npt.NDArray[np.int32],
        *,
        conditioned: Tensor | None,
        previous_logits: Tensor | None,
    ) -> Decoded:
        """Mask of one object that is prompted with points.

        Args:
            features: of the frame.
            points: float32 [1, n, 2] in model pixels.
            labels: int32 [1, n].
            conditioned: float32 [1, N, C]; None where nothing is remembered of the object yet.
            previous_logits: float32 [L, L], what was said of the object on this frame before, or None.
        """
        first = conditioned is None
        return self.decode(
            features,
            features.tokens if conditioned is None else conditioned,
            multimask=self._multimask(labels.shape[1], first_frame=first),
            first_frame=first,
            points=points,
            labels=labels,
            previous_logits=None if previous_logits is None else self._as_prompt(previous_logits),
        )

    def _as_prompt(self, logits: Tensor) -> Tensor:
        clamped: Tensor = self.device.clamp(logits, MASK_LOGIT_CLAMP).reshape((1, *logits.shape))
        return clamped

    def _multimask(self, points: int, *, first_frame: bool) -> bool:
        """Official `SAM2Base._use_multimask`."""
        in_range = self.spec.multimask_min_points <= points <= self.spec.multimask_max_points
        return in_range and (first_frame or self.spec.multimask_for_tracking)

    def adopt_mask(self, features: Features, mask: Float) -> Decoded:
        """A given mask, float32 [B, S, S] of 0 and 1, becomes the output; its predicted IoU is 1."""
        count, side = len(mask), self.spec.low_res
        inputs: dict[str, Tensor] = {
            "tokens": features.tokens,
            "high_res_0": features.high_res_0,
            "high_res_1": features.high_res_1,
            "mask": np.ascontiguousarray(mask[:, None]),
        }
        out = self._run(GraphRole.MASK_PROMPT, inputs)
        iou = self.device.full((count,), 1, np.float32)
        return Decoded(out["low_res_logits"].reshape((count, side, side)), iou, out["pointer"], out["object_score"])

    def encode_memory(self, features: Features, logits: Tensor, scores: Tensor, prompted: npt.NDArray[np.bool_]) -> Tensor:
        """Memory rows float32 [B, N, D] of logits [B, L, L], scores [B] and prompted [B]."""
        parts, side = [], self.spec.low_res
        for part in self.chunks(GraphRole.MEMORY_ENCODER, len(logits)):
            inputs: dict[str, Tensor] = {
                "tokens": features.tokens,
                "low_res_logits": logits[part].reshape((-1, 1, side, side)),
                "object_score": scores[part],
                "prompted": prompted[part],
            }
            parts.append(self._run(GraphRole.MEMORY_ENCODER, inputs)["rows"])
        return self.device.concatenate(parts)

    def route(
        self,
        features: Features,
        *,
        logits: Tensor,
        scores: Tensor,
        ious: Tensor,
        uncertainty: Tensor,
        texts: Sequence[Float | None],
    ) -> Routed:
        """What the memory rows of B objects are worth.

        Args:
            features: of the frame.
            logits: float32 [B, L, L].
            scores: float32 [B], object scores.
            ious: float32 [B].
            uncertainty: float32 [B, N].
            texts: text embedding of each object, float32 [E], or None.
        """
        text = np.zeros((len(texts), self.spec.text_dim), np.float32)
        for row, embedding in enumerate(texts):
            if embedding is not None:
                text[row] = embedding
        given = np.array([embedding is not None for embedding in texts])
        parts, side = [], self.spec.low_res
        for part in self.chunks(GraphRole.ROUTER, len(logits)):
            inputs: dict[str, Tensor] = {
                "tokens": features.tokens,
                "text": text[part],
                "has_text": given[part],
                "low_res_logits": logits[part].reshape((-1, 1, side, side)),
                "uncertainty": uncertainty[part],
                "object_score": scores[part],
                "iou": ious[part],
            }
            out = self._run(GraphRole.ROUTER, inputs)
            parts.append((out["scores"], out["relevance"]))
        merged, relevance = (self.device.concatenate(column) for column in zip(*parts, strict=True))
        return Routed(merged, relevance, out["context"][0])

    def _run(self, role: GraphRole, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with self.timer.stage(role.value):
            return self.backend.run(role, inputs)
