"""Prompts and tracking in a finished clip, as the official predictor does it: any frame, any direction, any number of passes.

    prompt ─► pending ─┐ finish_prompts: memory of prompted frames
                       ▼
    track ─────────► outputs and memory of every frame and object, kept for the whole clip

Mirrors facebookresearch/sam2 @2b90b9f `sam2/sam2_video_predictor.py`. Official "conditioning frames" are prompt frames here. The official
code holds an object's outputs in two dictionaries, of prompt frames and of others; here it is one, as no frame stays in both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec
from fastsam2.errors import PromptError, StateError, expected
from fastsam2.runtime.backends.protocol import Backend, Float
from fastsam2.runtime.clip import ClipFrames
from fastsam2.runtime.device import Tensor
from fastsam2.runtime.memory_bank import ClipMemory
from fastsam2.runtime.postprocess import fill_holes
from fastsam2.runtime.selection import UNBOUNDED, Selection
from fastsam2.runtime.stages import DEFAULT_MEMORY_BUDGET_MB, Decoded, Features, Stages
from fastsam2.runtime.timing import StageTimer

CACHED_FRAMES = 4  # frames whose image features are kept; the official predictor keeps one

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Output:
    """What is known of one object on one frame.

    Attributes:
        logits: float32 [L, L], holes filled.
        score: object score logit; the object is visible when > 0.
        pointer: float32 [C].
    """

    logits: Float
    score: float
    pointer: Float


@dataclass(slots=True)
class ClipObject:
    """Everything held of one object.

    Attributes:
        memory: of every frame in `outputs`; knows which of them are prompt frames.
        outputs: frame -> what is known of the object there.
        pending: answers to prompts given since the last tracking, without memory yet: on prompt frames (True), to corrections (False).
        points: frame -> points float32 [1, n, 2] in model pixels and labels int32 [1, n] given there.
        masks: frames on which a mask was given.
        tracked: frame -> whether tracking came through it backwards in time.
    """

    memory: ClipMemory
    outputs: dict[int, Output] = field(default_factory=dict)
    pending: dict[bool, dict[int, Output]] = field(default_factory=lambda: {False: {}, True: {}})
    points: dict[int, tuple[Float, Labels]] = field(default_factory=dict)
    masks: set[int] = field(default_factory=set)
    tracked: dict[int, bool] = field(default_factory=dict)

    def is_prompt_frame(self, frame: int) -> bool:
        """Whether the memory of a frame counts as a prompt."""
        held = self.memory.frames.get(frame)
        return held is not None and held.prompt

    @property
    def prompt_frames(self) -> list[int]:
        """Frames whose memory counts as a prompt."""
        return [t for t, held in self.memory.frames.items() if held.prompt]

    @property
    def prompted_frames(self) -> list[int]:
        """Frames with a prompt of the caller, ascending."""
        return sorted({*self.points, *self.masks})

    def output(self, frame: int, *, as_prompt: bool) -> Output | None:
        """The newest answer on a frame: to a pending prompt of that kind, or what is held."""
        return self.pending[as_prompt].get(frame) or self.outputs.get(frame)


class Clip:
    """A clip and the objects in it.

    Args:
        frames: of the clip.

    Attributes:
        frames: as given.
        objects: by id, in the order they were added.
        features: frame -> image features of the frames looked at last.
    """

    def __init__(self, frames: ClipFrames) -> None:
        self.frames = frames
        self.objects: dict[Hashable, ClipObject] = {}
        self.features: OrderedDict[int, Features] = OrderedDict()

    def check_frame_index(self, frame: int) -> int:
        """The index of a frame as an int.

        Raises:
            PromptError: if the clip has no such frame.
        """
        if isinstance(frame, bool) or not isinstance(frame, int | np.integer) or not 0 <= frame < len(self.frames):
            raise PromptError(expected(f"a frame index from 0 to {len(self.frames) - 1}", repr(frame), "Give a frame of the clip"))
        return int(frame)


class ClipTracker:
    """Answers prompts and tracks objects in clips. Options have the official names, and may be set at any time.

    Args:
        backend: where graphs run.
        spec: model sizes.
        fill_hole_area: background holes of at most this many low-resolution pixels are filled; 0 fills none.
        clear_non_cond_mem_around_input: forget an object's memories near a frame on which it is prompted, but those of prompt frames.
        add_all_frames_to_correct_as_cond: a corrected frame's memory counts as a prompt frame.
        max_cond_frames_in_attn: most prompt frames an object attends to; -1 for no limit.
        memory_budget_mb: estimated activations of one batch of objects, MiB.
    """

    def __init__(
        self,
        backend: Backend,
        spec: ModelSpec,
        *,
        fill_hole_area: int = 0,
        clear_non_cond_mem_around_input: bool = False,
        add_all_frames_to_correct_as_cond: bool = False,
        max_cond_frames_in_attn: int = UNBOUNDED,
        memory_budget_mb: int = DEFAULT_MEMORY_BUDGET_MB,
    ) -> None:
        self.spec = spec
        self.fill_hole_area = fill_hole_area
        self.clear_non_cond_mem_around_input = clear_non_cond_mem_around_input
        self.add_all_frames_to_correct_as_cond = add_all_frames_to_correct_as_cond
        self.max_cond_frames_in_attn = max_cond_frames_in_attn
        self.timer = StageTimer()
        self._stages = Stages(backend, spec, self.timer, memory_budget_mb=memory_budget_mb)

    def new_object(self) -> ClipObject:
        """An object nothing is known of."""
        return ClipObject(ClipMemory(self.spec, self._stages.device))

    def counts_as_prompt(self, known: ClipObject, frame: int) -> bool:
        """Whether a prompt on a frame makes it a prompt frame: it was not tracked yet, or corrections count as prompts."""
        return frame not in known.tracked or self.add_all_frames_to_correct_as_cond

    def prompt_points(self, clip: Clip, known: ClipObject, frame: int, points: Float, labels: Labels) -> None:
        """Answer points on a frame, all that are to be in force there; the answer is pending until `finish_prompts`.

        Args:
            clip: of the object.
            known: the object.
            frame: 0-based.
            points: float32 [1, n, 2] in model pixels.
            labels: int32 [1, n].

        Raises:
            StateError: if a tracked frame is corrected and the object has no prompt frame left.
        """
        as_prompt = self.counts_as_prompt(known, frame)
        previous = known.output(frame, as_prompt=as_prompt)
        features = self._features(clip, frame)
        conditioned = None
        if frame in known.tracked:
            selection = self._selection(clip, known, frame, reverse=known.tracked[frame])
            conditioned = self._stages.condition(features, [known.memory], [selection])
        decoded = self._stages.answer(
            features, points, labels, conditioned=conditioned, previous_logits=None if previous is None else previous.logits
        )
        known.pending[as_prompt][frame] = self._outputs(decoded)[0]
        known.points[frame] = (points, labels)
        known.masks.discard(frame)

    def prompt_mask(self, clip: Clip, known: ClipObject, frame: int, mask: Float) -> None:
        """Adopt a mask, float32 [S, S] of 0 and 1, on a frame; pending until `finish_prompts`."""
        decoded = self._stages.adopt_mask(self._features(clip, frame), mask[None])
        known.pending[self.counts_as_prompt(known, frame)][frame] = self._outputs(decoded)[0]
        known.masks.add(frame)
        known.points.pop(frame, None)

    def forget_prompt(self, known: ClipObject, frame: int) -> None:
        """Take back what was prompted on a frame. A prompt frame becomes an ordinary one, with its mask and memory as they are."""
        known.points.pop(frame, None)
        known.masks.discard(frame)
        for answers in known.pending.values():
            answers.pop(frame, None)
        if known.is_prompt_frame(frame):
            known.memory.frames[frame].prompt = False
            known.tracked.pop(frame, None)

    def finish_prompts(self, clip: Clip) -> None:
        """Encode pending answers into memory.

        Raises:
            StateError: if there is no object, or one without a prompt frame. Nothing was changed.
            BackendError: if graphs have no room for as many prompt frames of an object. Nothing was changed.
        """
        if not clip.objects:
            raise StateError(expected("at least one prompted object", "none", "Call add_new_points_or_box() or add_new_mask() first"))
        for object_id, known in clip.objects.items():
            if not known.prompt_frames and not known.pending[True]:
                got = f"object id {object_id!r} without any"
                raise StateError(expected("a prompt for every object", got, "Prompt it on a frame, or call remove_object()"))
        limit = len(clip.frames) if self.max_cond_frames_in_attn == UNBOUNDED else self.max_cond_frames_in_attn
        most = max(len({*known.prompt_frames, *known.pending[True]}) for known in clip.objects.values())
        self._stages.check_prompt_frames(min(most, limit), option="max_cond_frames_in_attn")
        for known in clip.objects.values():
            for as_prompt in (False, True):
                for frame, output in list(known.pending[as_prompt].items()):
                    if as_prompt or not known.is_prompt_frame(frame):  # the official predictor drops corrections of prompt frames, too
                        self._keep(clip, frame, [known], [output], prompted=True, as_prompt=as_prompt)
                    self._clear_around(known, frame)
                    del known.pending[as_prompt][frame]  # last: what is interrupted is done again

    def track(self, clip: Clip, frame: int, ids: Iterable[Hashable], *, reverse: bool) -> Float:
        """Track objects on a frame; those with a prompt there keep its answer.

        Args:
            clip: of the objects.
            frame: 0-based.
            ids: B objects.
            reverse: from later frames to earlier ones.

        Returns:
            float32 [B, L, L]: their logits.

        Raises:
            StateError: if an object has no prompt frame left, or was removed.
        """
        wanted = list(ids)
        if gone := [i for i in wanted if i not in clip.objects]:
            raise StateError(expected(f"objects {wanted}, with which tracking began", f"{gone} removed since", "Begin tracking again"))
        objects = [clip.objects[i] for i in wanted]
        following = [known for known in objects if not known.is_prompt_frame(frame)]
        if following:
            features = self._features(clip, frame)
            selections = [self._selection(clip, known, frame, reverse=reverse) for known in following]
            for members, _, decoded in self._stages.track(features, [known.memory for known in following], selections):
                self._keep(clip, frame, [following[i] for i in members], self._outputs(decoded), raw_logits=decoded.logits)
        for known in objects:
            if known.is_prompt_frame(frame):
                self._clear_around(known, frame)
            known.tracked[frame] = reverse
        return np.stack([known.outputs[frame].logits for known in objects])

    def _features(self, clip: Clip, frame: int) -> Features:
        features = clip.features.pop(frame, None) or self._stages.encode_image(clip.frames[frame])
        clip.features[frame] = features
        if len(clip.features) > CACHED_FRAMES:
            clip.features.popitem(last=False)
        return features

    def _selection(self, clip: Clip, known: ClipObject, frame: int, *, reverse: bool) -> Selection:
        if not known.prompt_frames:
            todo = "Prompt a frame that was not tracked, or call reset_state()"
            raise StateError(expected(f"a prompt frame to reach frame {frame} from", "an object whose prompts were cleared", todo))
        limit = self.max_cond_frames_in_attn
        return known.memory.selection(frame, max_prompt_frames=limit, reverse=reverse, num_frames=len(clip.frames))

    def _outputs(self, decoded: Decoded) -> list[Output]:
        logits, scores, pointers = self._stages.device.fetch(decoded.logits, decoded.score, decoded.pointer)
        filled = fill_holes(logits, self.fill_hole_area)
        return [Output(own.copy(), float(score), pointer.copy()) for own, score, pointer in zip(filled, scores, pointers, strict=True)]

    def _keep(
        self,
        clip: Clip,
        frame: int,
        objects: list[ClipObject],
        outputs: list[Output],
        *,
        raw_logits: Tensor | None = None,
        prompted: bool = False,
        as_prompt: bool = False,
    ) -> None:
        """Hold outputs of a frame and encode them into memory, from `raw_logits` where a frame was only tracked."""
        logits = np.stack([output.logits for output in outputs]) if raw_logits is None else raw_logits
        scores = np.array([output.score for output in outputs], np.float32)
        rows = self._stages.encode_memory(self._features(clip, frame), logits, scores, np.full(len(objects), prompted))
        for row, (known, output) in enumerate(zip(objects, outputs, strict=True)):
            known.memory.write(frame, rows[row], output.pointer, prompt=as_prompt)
            known.outputs[frame] = output

    def _clear_around(self, known: ClipObject, frame: int) -> None:
        if not self.clear_non_cond_mem_around_input:
            return
        for t in range(frame - self.spec.num_maskmem, frame + self.spec.num_maskmem + 1):
            if not known.is_prompt_frame(t):
                known.memory.frames.pop(t, None)
                known.outputs.pop(t, None)
