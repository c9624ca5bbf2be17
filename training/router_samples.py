"""What the router learns from: rows written by the dense tracker, and the attention they received once they could be pruned.

    clip ─ dense tracking, prompted with the first masks ─► frame t: tokens, mask, score, IoU, text        what the router sees
                                                            frames t+2 ..: attention of their queries ─┐
                                                            to the rows of t ◄─────────────────────────┘   what it should rank by

Rows of the newest frame and of prompt frames are not pruned by default, so attention they receive as such does not count, and prompt frames
give no samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsam2.benchmarks.datasets import Clip, Mask
from fastsam2.config import ModelSpec
from fastsam2.runtime.backends.protocol import Float
from fastsam2.runtime.host_device import HOST
from fastsam2.runtime.memory_bank import ClipMemory
from fastsam2.runtime.policies.mask import cell_coverage
from fastsam2.runtime.preprocess import frame_to_pixels, mask_to_input
from fastsam2.runtime.stages import Decoded, Features, Stages
from fastsam2.runtime.timing import StageTimer
from fastsam2.runtime.tracker import DEFAULT_MAX_PROMPT_FRAMES
from fastsam2.training.attention_mass import AttentionTap

Encode = Callable[[Sequence[str]], Float]
"""Texts -> float32 [T, E]."""

_LEAST_STEPS = 2  # that read a frame's rows after it was the newest; fewer (at a clip's end) make a noisy target


@dataclass(frozen=True, slots=True)
class Samples:
    """n rows-to-be-ranked, float16 where that is exact enough to train on.

    Attributes:
        tokens: float16 [F, N, C] of the frames that have samples.
        frame: int64 [n], index into tokens.
        logits: float16 [n, L, L].
        score: float32 [n].
        iou: float32 [n].
        text: float32 [n, E], zeros without text.
        has_text: bool [n].
        target: float32 [n, N], sums to 1.
    """

    tokens: npt.NDArray[np.float16]
    frame: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float16]
    score: Float
    iou: Float
    text: Float
    has_text: npt.NDArray[np.bool_]
    target: Float

    def __len__(self) -> int:
        return len(self.frame)

    def save(self, file: Path) -> None:
        """Write to an .npz file, which appears when it is complete."""
        partial = file.with_name(f"{file.stem}.partial.npz")
        np.savez(partial, **{f.name: getattr(self, f.name) for f in fields(self)})
        partial.replace(file)

    @classmethod
    def load(cls, file: Path) -> Samples:
        """Read what `save` wrote."""
        with np.load(file) as held:
            return cls(**{f.name: held[f.name] for f in fields(cls)})

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        """All samples of several."""
        starts = np.cumsum([0, *(len(p.tokens) for p in parts)])
        columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls) if f.name != "frame"}
        return cls(frame=np.concatenate([p.frame + start for p, start in zip(parts, starts[:-1], strict=True)]), **columns)


@dataclass(slots=True)
class _Written:
    """One object's rows of one frame: what was known when they were written, and the attention they have received since."""

    frame: int
    logits: Float
    score: float
    iou: float
    object_id: int
    prompted: bool
    mass: npt.NDArray[np.float64]
    steps: int = 0


def query_weight(logits: Float, grid: int) -> Float:
    """How much each query's attention counts: half of the weight on cells the object covers or touches, half on all alike.

    Every query reads the memory, but a row matters as far as it decides the object's mask. An object that is not visible leaves only the
    even half, doubled.

    Args:
        logits: float32 [B, L, L] of the frame whose tokens are the queries.
        grid: g.

    Returns:
        float32 [B, N], sums to 1.
    """
    weights = np.full((len(logits), grid * grid), 1.0 / grid**2, np.float32)
    for row, own in zip(weights, logits, strict=True):
        wide = np.pad(cell_coverage(own, grid), 1)
        tall = np.maximum(np.maximum(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
        near = np.maximum(np.maximum(tall[:-2], tall[1:-1]), tall[2:]).reshape(-1)
        if (total := float(near.sum())) > 0.5:  # cells
            row[:] = 0.5 * row + 0.5 * near / total
    return weights


class Recorder:
    """Tracks a clip densely and keeps what the router learns from.

    The loop is that of `runtime/tracker.py` without corrections, so masks are the tracker's.

    Args:
        tap: backend that hands out what memory_attention attended to.
        spec: model sizes.
        encode: texts -> embeddings; None where objects are to have no description.
    """

    def __init__(self, tap: AttentionTap, spec: ModelSpec, *, encode: Encode | None = None) -> None:
        self.tap, self.spec, self.encode = tap, spec, encode
        self.stages = Stages(tap, spec, StageTimer())
        self.logits: list[dict[int, Float]] = []
        self.mass: dict[tuple[int, int], Float] = {}

    def record(self, clip: Clip, *, frames: int | None = None) -> Samples | None:
        """Track a clip.

        Args:
            clip: its objects are prompted with their masks on the frame where they first show.
            frames: read at most so many.

        Returns:
            Its samples; None where the clip is too short, or shows nothing. `logits` then holds each frame's answers by object id,
            and `mass` the attention that rows received after their frame was the newest, float32 [N] by (object id, frame).
        """
        count = len(clip.frames) if frames is None else min(frames, len(clip.frames))
        memories: dict[int, ClipMemory] = {}
        tokens: dict[int, npt.NDArray[np.float16]] = {}
        open_rows: dict[tuple[int, int], _Written] = {}
        self.logits = []
        self.tap.take()
        for t in range(count):
            features = self.stages.encode_image(frame_to_pixels(clip.frames[t], self.spec.image_size))
            answers = self._track(t, features, memories, open_rows)
            starting = [i for i, first in clip.first.items() if first == t]
            masks = clip.masks(t) if starting else {}
            for object_id in starting:
                answers[object_id] = self._prompt(features, masks[object_id])
                memories[object_id] = ClipMemory(self.spec, HOST)
            self.logits.append({i: answer.logits[0] for i, answer in answers.items()})
            if not answers:
                continue
            self._write(t, features, answers, memories, starting=starting)
            tokens[t] = features.tokens[0].astype(np.float16)
            for object_id, answer in answers.items():
                known = (answer.logits[0], float(answer.score[0]), float(answer.iou[0]), object_id, object_id in starting)
                open_rows[object_id, t] = _Written(t, *known, np.zeros(self.spec.tokens))
        self.mass = {key: w.mass.astype(np.float32) for key, w in open_rows.items()}
        return self._samples(clip, tokens, [w for w in open_rows.values() if w.steps >= _LEAST_STEPS and not w.prompted])

    def _track(
        self, t: int, features: Features, memories: dict[int, ClipMemory], open_rows: dict[tuple[int, int], _Written]
    ) -> dict[int, Decoded]:
        """Answers of all objects on frame t; adds the attention that rows of earlier frames received."""
        ids, held = list(memories), list(memories.values())
        selections = [m.selection(t, max_prompt_frames=DEFAULT_MAX_PROMPT_FRAMES) for m in held]
        answers: dict[int, Decoded] = {}
        for members, _, decoded in self.stages.track(features, held, selections) if ids else ():
            weight = query_weight(np.asarray(decoded.logits), self.spec.grid)
            start = 0
            for call in self.tap.take():
                stop = start + len(call.conditioned)
                mass = call.mass(weight[start:stop])
                for own, member in zip(mass, members[start:stop], strict=True):
                    self._credit(own, ids[member], selections[member].rows, open_rows)
                start = stop
            for row, member in enumerate(members):
                one = slice(row, row + 1)
                answers[ids[member]] = Decoded(decoded.logits[one], decoded.iou[one], decoded.pointer[one], decoded.score[one])
        return {i: answers[i] for i in ids}

    def _credit(self, mass: Float, object_id: int, rows: Sequence[tuple[int, int]], open_rows: dict[tuple[int, int], _Written]) -> None:
        for place, (frame, age) in enumerate(rows):
            written = open_rows.get((object_id, frame))
            if written is not None and age > 0:  # age 0 is the newest frame, which stays dense
                written.mass += mass[place * self.spec.tokens : (place + 1) * self.spec.tokens]
                written.steps += 1

    def _prompt(self, features: Features, mask: Mask) -> Decoded:
        return self.stages.adopt_mask(features, mask_to_input(mask, self.spec.image_size)[None])

    def _write(
        self, t: int, features: Features, answers: dict[int, Decoded], memories: dict[int, ClipMemory], *, starting: Sequence[int]
    ) -> None:
        rows = self.stages.encode_memory(
            features,
            np.concatenate([a.logits for a in answers.values()]),
            np.concatenate([a.score for a in answers.values()]),
            np.array([i in starting for i in answers]),
        )
        for row, (object_id, answer) in enumerate(answers.items()):
            memory = memories[object_id]
            memory.write(t, rows[row], answer.pointer[0].copy(), prompt=object_id in starting)
            gone = t + 1 - self.spec.max_object_pointers  # nothing of this frame is read any more
            if gone in memory.frames and not memory.frames[gone].prompt:
                del memory.frames[gone]

    def _samples(self, clip: Clip, tokens: dict[int, npt.NDArray[np.float16]], written: list[_Written]) -> Samples | None:
        if not written:
            return None
        used = sorted({w.frame for w in written})
        place = {t: i for i, t in enumerate(used)}
        texts = {i: clip.expressions.get(i, ()) for i in {w.object_id for w in written}} if self.encode is not None else {}
        text = np.zeros((len(written), self.spec.text_dim), np.float32)
        has_text = np.zeros(len(written), np.bool_)
        if self.encode is not None:
            for object_id, own in texts.items():
                if not own:
                    continue
                embedded = self.encode(list(own))
                for row, w in enumerate(written):
                    if w.object_id == object_id:
                        text[row], has_text[row] = embedded[w.frame % len(embedded)], True
        mass = np.stack([w.mass for w in written])
        return Samples(
            tokens=np.stack([tokens[t] for t in used]),
            frame=np.array([place[w.frame] for w in written], np.int64),
            logits=np.stack([w.logits for w in written]).astype(np.float16),
            score=np.array([w.score for w in written], np.float32),
            iou=np.array([w.iou for w in written], np.float32),
            text=text,
            has_text=has_text,
            target=(mass / mass.sum(axis=1, keepdims=True)).astype(np.float32),
        )
