"""What is held of one object: memory rows of frames in bfloat16, and object pointers.

In a stream a frame's rows are written dense when the next frame arrives, compacted when the frame is no longer the newest, dropped when no
later step can read them; its pointer lives a little longer. Of a finished clip every frame is kept. The official predictor holds rows in
bfloat16 too, so rounding on write is part of parity (facebookresearch/sam2 @2b90b9f `SAM2VideoPredictor._run_single_frame_inference`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastsam2.config import ModelSpec
from fastsam2.enums import Protect
from fastsam2.runtime.device import Device, Reading, Tensor
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

    pointer: Tensor
    prompt: bool
    rows: Tensor | None
    position: Tensor
    scores: Tensor | None
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
        device: where rows are rounded.

    Attributes:
        frames: by index, in the order they were written.
    """

    def __init__(self, spec: ModelSpec, device: Device) -> None:
        self.spec, self.device = spec, device
        self.frames: dict[int, FrameMemory] = {}
        self._grid = device.arange(0, spec.tokens)

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

    def reading(self, selection: Selection) -> Reading:
        """What a selection stands for."""
        frames = []
        for t, age in selection.rows:
            held = self.frames[t]
            assert held.rows is not None, f"frame {t} was dropped while still selectable"
            frames.append((held.rows, held.position, age))
        span = np.float32(selection.pointer_span)
        return Reading(tuple(frames), tuple((self.frames[t].pointer, np.float32(offset) / span) for t, offset in selection.pointers))

    @property
    def rows_held(self) -> int:
        """Spatial rows held."""
        return sum(len(m.position) for m in self.frames.values() if m.rows is not None)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(m.nbytes for m in self.frames.values())


class ClipMemory(Memory):
    """The memory of one object on every frame of a clip, in host memory: nothing is dropped, so tracking may run in any direction."""

    def write(self, frame: int, rows: Tensor, pointer: Tensor, *, prompt: bool) -> None:
        """Store a frame in place of what was held of it; a prompt frame comes last in the order.

        Args:
            frame: its index.
            rows: float32 [N, D] as memory_encoder gives them.
            pointer: float32 [C].
            prompt: whether the frame counts as a prompt frame.
        """
        bits, own_pointer = self.device.fetch(self.device.to_bfloat16(rows), pointer)
        held = self.frames.get(frame)
        if held is not None and prompt and not held.prompt:
            del self.frames[frame]
        self.frames[frame] = FrameMemory(own_pointer, prompt, bits, self._grid, None)


class ObjectMemory(Memory):
    """The bounded memory of one object in a stream.

    Args:
        spec: model sizes.
        pruner: decides which rows survive; its device holds them.
        max_prompt_frames: prompt frames read at most; older ones turn into ordinary frames.
    """

    def __init__(self, spec: ModelSpec, pruner: Pruner, *, max_prompt_frames: int) -> None:
        super().__init__(spec, pruner.device)
        self.pruner, self.max_prompt_frames = pruner, max_prompt_frames

    def write(self, frame: int, rows: Tensor, pointer: Tensor, *, prompt: bool, scores: Tensor | None, keep: int | None = None) -> None:
        """Store the newest frame; earlier frames are compacted, demoted and dropped. Writing the same frame again replaces it.

        Args:
            frame: its index.
            rows: float32 [N, D] as memory_encoder gives them.
            pointer: float32 [C].
            prompt: whether the frame counts as a prompt frame.
            scores: what `Pruner.score` or the router gave for this frame.
            keep: rows to keep of it, one of `Pruner.budgets`; None for the least.
        """
        self.frames[frame] = FrameMemory(pointer, prompt, self.device.to_bfloat16(rows), self._grid, scores, keep)
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
