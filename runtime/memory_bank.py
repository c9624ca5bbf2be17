"""What is held of one object: memory rows of frames in bfloat16, and object pointers.

In a stream a frame's rows are written dense when the next frame arrives, compacted when the frame is no longer the newest, dropped when no
later step can read them; its pointer lives a little longer. Of a finished clip every frame is kept. The official predictor holds rows in
bfloat16 too, so rounding on write is part of parity (facebookresearch/sam2 @2b90b9f `SAM2VideoPredictor._run_single_frame_inference`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec
from fastsam2.enums import Protect
from fastsam2.runtime.backends.protocol import Array, Float
from fastsam2.runtime.bfloat16 import from_bfloat16, to_bfloat16
from fastsam2.runtime.pruning import Pruner
from fastsam2.runtime.selection import Selection, select


@dataclass(slots=True)
class FrameMemory:
    """Memory of one frame of one object.

    Attributes:
        pointer: float32 [C].
        prompt: the frame counts as a prompt frame.
        rows: uint16 [K, D], bfloat16 bits; None once only the pointer can still be read.
        position: int32 [K], rows of the position tables.
        scores: float32 [N] for the compaction to come; None when compacted or never to be.
        keep: K of that compaction; None for the pruner's own.
        compacted: the rows went through the gather.
    """

    pointer: Float
    prompt: bool
    rows: npt.NDArray[np.uint16] | None
    position: npt.NDArray[np.int32]
    scores: Float | None
    keep: int | None = None
    compacted: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = self.pointer.nbytes + (self.scores.nbytes if self.scores is not None else 0)
        return held if self.rows is None else held + self.rows.nbytes + self.position.nbytes


class Memory:
    """What is held of one object, and what a step reads of it.

    Args:
        spec: model sizes.

    Attributes:
        frames: by index, in the order they were written.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.frames: dict[int, FrameMemory] = {}
        self._grid = np.arange(spec.tokens, dtype=np.int32)

    def selection(self, frame: int, *, max_prompt_frames: int, reverse: bool = False, num_frames: int | None = None) -> Selection:
        """What a step at `frame` reads; arguments as in `select`."""
        return select(
            frame,
            [t for t, m in self.frames.items() if m.prompt],
            [t for t, m in self.frames.items() if not m.prompt],
            num_maskmem=self.spec.num_maskmem,
            max_pointers=self.spec.max_object_pointers,
            max_prompt_frames=max_prompt_frames,
            signed_offsets=self.spec.signed_pointer_offsets,
            reverse=reverse,
            num_frames=num_frames,
        )

    def counts(self, selection: Selection) -> tuple[int, int]:
        """Memory rows M and pointers P of a selection; objects with equal counts run as one batch."""
        return sum(len(self.frames[t].position) for t, _ in selection.rows), len(selection.pointers)

    @property
    def rows_held(self) -> int:
        """Spatial rows held."""
        return sum(len(m.position) for m in self.frames.values() if m.rows is not None)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(m.nbytes for m in self.frames.values())


class ClipMemory(Memory):
    """The memory of one object on every frame of a finished clip: nothing is dropped, so that tracking may run in any direction."""

    def write(self, frame: int, rows: Float, pointer: Float, *, prompt: bool) -> None:
        """Store a frame in place of what was held of it; a prompt frame comes last in the order.

        Args:
            frame: its index.
            rows: float32 [N, D] as memory_encoder gives them.
            pointer: float32 [C].
            prompt: whether the frame counts as a prompt frame.
        """
        held = self.frames.get(frame)
        if held is not None and prompt and not held.prompt:
            del self.frames[frame]
        self.frames[frame] = FrameMemory(pointer, prompt, to_bfloat16(rows), self._grid, None)


class ObjectMemory(Memory):
    """The bounded memory of one object in a stream.

    Args:
        spec: model sizes.
        pruner: decides which rows survive.
        max_prompt_frames: prompt frames read at most; older ones turn into ordinary frames.
    """

    def __init__(self, spec: ModelSpec, pruner: Pruner, *, max_prompt_frames: int) -> None:
        super().__init__(spec)
        self.pruner, self.max_prompt_frames = pruner, max_prompt_frames

    def write(self, frame: int, rows: Float, pointer: Float, *, prompt: bool, scores: Float | None, keep: int | None = None) -> None:
        """Store the newest frame; earlier frames are compacted, demoted and dropped. Writing the same frame again replaces it.

        Args:
            frame: its index.
            rows: float32 [N, D] as memory_encoder gives them.
            pointer: float32 [C].
            prompt: whether the frame counts as a prompt frame.
            scores: what `Pruner.score` or the router gave for this frame.
            keep: rows to keep of it, one of `Pruner.budgets`; None for the least.
        """
        self.frames[frame] = FrameMemory(pointer, prompt, to_bfloat16(rows), self._grid, scores, keep)
        prompts = sorted(t for t, m in self.frames.items() if m.prompt)
        for t in prompts[: -self.max_prompt_frames]:
            self.frames[t].prompt = False
        for t, memory in list(self.frames.items()):
            back = frame + 1 - t  # as seen from the next step
            if not memory.prompt and back >= self.spec.max_object_pointers:
                del self.frames[t]
            elif not memory.prompt and back >= self.spec.num_maskmem:
                memory.rows, memory.scores = None, None
            elif memory.rows is not None and self._due(memory, newest=t == frame):
                memory.rows, memory.position = self.pruner.compact(memory.rows, memory.scores, memory.keep)
                memory.scores, memory.compacted = None, True

    def _due(self, memory: FrameMemory, *, newest: bool) -> bool:
        if not self.pruner.active or memory.compacted:
            return False
        protect = self.pruner.prune.protect
        return not ((memory.prompt and Protect.PROMPT in protect) or (newest and Protect.NEWEST in protect))

    def select(self, frame: int) -> Selection:
        """What a step at `frame` reads."""
        return self.selection(frame, max_prompt_frames=self.max_prompt_frames)


class BatchBuffers:
    """Assembles the memory_attention inputs of a batch in buffers that are reused from step to step.

    Args:
        spec: model sizes.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._flat: dict[str, Array] = {}

    def assemble(self, memories: Sequence[Memory], selections: Sequence[Selection]) -> dict[str, Array]:
        """Inputs memory, position, age, pointers, pointer_offset of `contracts.GRAPHS[MEMORY_ATTENTION]`.

        Args:
            memories: B objects with equal counts.
            selections: what each of them reads.

        Returns:
            Arrays valid until the next call.
        """
        rows, count = memories[0].counts(selections[0])
        batch = len(memories)
        inputs: dict[str, Array] = {
            "memory": self._buffer("memory", (batch, rows, self.spec.memory_dim), np.float32),
            "position": self._buffer("position", (batch, rows), np.int32),
            "age": self._buffer("age", (batch, rows), np.int32),
            "pointers": self._buffer("pointers", (batch, count, self.spec.hidden_dim), np.float32),
            "pointer_offset": self._buffer("pointer_offset", (batch, count), np.float32),
        }
        for b, (memory, selection) in enumerate(zip(memories, selections, strict=True)):
            start = 0
            for t, age in selection.rows:
                held = memory.frames[t]
                assert held.rows is not None, f"frame {t} was dropped while still selectable"
                end = start + len(held.position)
                from_bfloat16(held.rows, out=inputs["memory"][b, start:end])
                inputs["position"][b, start:end] = held.position
                inputs["age"][b, start:end] = age
                start = end
            for p, (t, offset) in enumerate(selection.pointers):
                inputs["pointers"][b, p] = memory.frames[t].pointer
                inputs["pointer_offset"][b, p] = np.float32(offset) / np.float32(selection.pointer_span)
        return inputs

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
        size = int(np.prod(shape))
        flat = self._flat.get(name)
        if flat is None or flat.size < size:
            flat = self._flat[name] = np.empty(size, dtype)
        return flat[:size].reshape(shape)
