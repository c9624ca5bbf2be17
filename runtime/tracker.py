"""The streaming loop: frames in, masks out, objects added, corrected and removed at any time, bounded memory for any length.

Semantics follow facebookresearch/sam2 @2b90b9f `SAM2VideoPredictor` (one object at a time in a finished clip), for a stream: prompts
refer to the newest frame, and what was written for an earlier frame is never changed. A frame's memory is encoded when the next frame
arrives, so a correction costs one decoder run and never leaves two versions of a frame's memory behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec, Prune
from fastsam2.errors import PromptError, expected
from fastsam2.runtime.backends.protocol import Backend, Float
from fastsam2.runtime.device import Tensor, ends_with_a_wait
from fastsam2.runtime.guard import GuardState, Observation
from fastsam2.runtime.host_device import device_of
from fastsam2.runtime.memory_bank import ObjectMemory
from fastsam2.runtime.postprocess import check_hole_area, fill_holes
from fastsam2.runtime.preprocess import checked_size, mask_to_input
from fastsam2.runtime.prompts import Prompt, check_object_id, make_prompt, to_model_points
from fastsam2.runtime.pruning import Pruner
from fastsam2.runtime.query_pruning import QueryPruner
from fastsam2.runtime.result import MemoryReport, Result, TokenReport
from fastsam2.runtime.row_judge import Cues, Judged, Judgement, RowJudge
from fastsam2.runtime.stages import DEFAULT_MEMORY_BUDGET_MB, Decoded, Features, Stages
from fastsam2.runtime.timing import StageTimer

DEFAULT_MAX_PROMPT_FRAMES = 4


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What is known of one object on the newest frame; replaced as a whole, so a failed call changes nothing.

    Attributes:
        logits: float32 [L, L], holes filled: the answer, and the mask prompt of a correction.
        memory_logits: float32 [L, L] to encode into memory; unfilled on frames that were only tracked.
        score, iou: float32 [1].
        pointer: float32 [C].
        prompted: a prompt was given on this frame.
        as_prompt: its memory counts as a prompt frame.
        conditioned: float32 [1, N, C] from the memories before this frame; None on the object's first frame.
        points: float32 [1, n, 2] and labels int32 [1, n] given on this frame so far, in model pixels.
    """

    logits: Tensor
    memory_logits: Tensor
    score: Tensor
    iou: Tensor
    pointer: Tensor
    prompted: bool
    as_prompt: bool
    conditioned: Tensor | None
    points: Float | None = None
    labels: npt.NDArray[np.int32] | None = None


@dataclass(slots=True)
class _Object:
    memory: ObjectMemory
    newest: _Outcome
    seen: Observation | None  # the newest outcome, on the host; None without the guard, which asks for it
    text: Float | None  # float32 [E], embedding of its description


class Describes(Protocol):
    """Turns descriptions into embeddings; `fastsam2.runtime.text.TextEncoder` is one."""

    def encode(self, texts: Sequence[str]) -> Float:
        """Embeddings of T texts, float32 [T, E], unit length."""
        ...


class Tracker:
    """Tracks objects through a stream of frames of one size. Not for use from several threads at once.

    Args:
        backend: where graphs run; may be shared with other trackers. Frames, features and memory stay on its device.
        spec: model sizes.
        prune: which memory rows and queries to keep; the default keeps all.
        corrections_as_prompts: a corrected frame's memory counts as a prompt frame (official `add_all_frames_to_correct_as_cond`).
        max_prompt_frames: most prompt frames an object attends to (official `max_cond_frames_in_attn`); older ones become ordinary frames.
        fill_hole_area: background holes of at most this many low-resolution pixels are filled; 0 fills none.
        memory_budget_mb: estimated activations of one batch of objects, MiB.
        texts: encodes descriptions; None where the bundle has no text encoder.

    Raises:
        PromptError: if an option is out of range.
        BackendError: if corrections may become more prompt frames than the engines have room for, or holes cannot be filled here.
    """

    def __init__(
        self,
        backend: Backend,
        spec: ModelSpec,
        *,
        prune: Prune | None = None,
        corrections_as_prompts: bool = False,
        max_prompt_frames: int = DEFAULT_MAX_PROMPT_FRAMES,
        fill_hole_area: int = 0,
        memory_budget_mb: int = DEFAULT_MEMORY_BUDGET_MB,
        texts: Describes | None = None,
    ) -> None:
        if max_prompt_frames < 1:
            raise PromptError(expected("max_prompt_frames >= 1", max_prompt_frames, f"The default is {DEFAULT_MAX_PROMPT_FRAMES}"))
        check_hole_area(fill_hole_area)
        self.spec = spec
        self._device = device_of(backend)
        self._uploads = self._device.frame_uploads()
        self.pruner = Pruner(prune or Prune(), spec, self._device)
        self._query_pruner = QueryPruner(self.pruner.prune, spec)
        self.corrections_as_prompts = corrections_as_prompts
        self.max_prompt_frames = max_prompt_frames
        self.fill_hole_area = fill_hole_area
        self._timer = StageTimer()
        self._stages = Stages(backend, spec, self._timer, memory_budget_mb=memory_budget_mb)
        self._stages.check_prompt_frames(max_prompt_frames if corrections_as_prompts else 1)
        self._judge = RowJudge(self.pruner, self._stages, spec)
        self._texts = texts
        self._objects: dict[int, _Object] = {}
        self._frame: int | None = None
        self._size: tuple[int, int] | None = None
        self._pixels: Tensor | None = None
        self._features: Features | None = None
        self._guard = GuardState()
        self._tokens: TokenReport | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the tracked objects, in the order they were added."""
        return tuple(self._objects)

    @property
    def frame(self) -> int | None:
        """Index of the newest frame, None before the first."""
        return self._frame

    def stages_ms(self) -> dict[str, dict[str, float]]:
        """{stage: {median, p90}} in milliseconds per call, over the newest calls."""
        return self._timer.summary()

    @ends_with_a_wait
    def step(self, frame: npt.NDArray[np.uint8], *, upcoming: npt.NDArray[np.uint8] | None = None) -> Result:
        """Take the next frame and track every object on it.

        Args:
            frame: uint8 [H, W, 3] RGB, of the same size on every step.
            upcoming: the frame of the next step, if it is there already: a GPU gets it while it computes this one. It is read during this
                call; give the same array, unchanged, to the next step.

        Returns:
            Masks of all objects; an empty result while there are none.

        Raises:
            PromptError: if a frame has another dtype, shape or size. The tracker is unchanged.
            BackendError: if a graph cannot run. The frame was not taken and can be given again.
        """
        size = checked_size(frame, self._size)
        if upcoming is not None:
            checked_size(upcoming, size)
        with self._timer.stage("preprocess"):
            pixels = self._device.pixels(self._uploads.take(frame), self.spec.image_size)
        index = 0 if self._frame is None else self._frame + 1
        features, outcomes, judgement = None, {}, None
        if self._objects:
            judgement = self._write_memories()
            features = self._stages.encode_image(pixels)
            outcomes = self._track(index, features)
        if upcoming is not None:
            self._uploads.ahead(upcoming)
        result, seen = self._result(index, size, outcomes, None if judgement is None else judgement.cues)
        for object_id, outcome in outcomes.items():
            self._objects[object_id].newest, self._objects[object_id].seen = outcome, seen.get(object_id)
        self._frame, self._size, self._pixels, self._features = index, size, pixels, features
        self._tokens = result.tokens
        self._guard = GuardState() if judgement is None else judgement.guard
        return result

    @ends_with_a_wait
    def add(
        self,
        object_id: int,
        *,
        box: npt.ArrayLike | None = None,
        points: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        text: str | None = None,
    ) -> Result:
        """Start tracking an object from the newest frame on.

        Args:
            object_id: a positive integer not in use.
            box: x0, y0, x1, y1 in video pixels.
            points: [n, 2] x, y in video pixels.
            labels: [n]; 1 on the object, 0 off it; all 1 when left out.
            mask: bool [H, W]; instead of box and points.
            text: what the object is, for the router; see `describe`.

        Returns:
            Masks of all objects on the newest frame.

        Raises:
            PromptError: if there is no frame yet, the id is in use, or prompt or text are not legal. The tracker is unchanged.
        """
        prompt = self._prompt(box=box, points=points, labels=labels, mask=mask)
        object_id = check_object_id(object_id)
        if object_id in self._objects:
            todo = "Use correct() for it, or remove() it first"
            raise PromptError(expected("a new object id", f"{object_id}, which is being tracked", todo))
        embedding = None if text is None else self._embedding(text)
        outcome = self._answer(prompt, previous=None, append=False)
        result, seen = self._result_with(object_id, outcome)
        memory = ObjectMemory(self.spec, self.pruner, max_prompt_frames=self.max_prompt_frames)
        self._objects[object_id] = _Object(memory, outcome, seen, embedding)
        return result

    @ends_with_a_wait
    def correct(
        self,
        object_id: int,
        *,
        box: npt.ArrayLike | None = None,
        points: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        append: bool = False,
    ) -> Result:
        """Correct an object on the newest frame. Points refine its present mask; a mask replaces it.

        Args:
            object_id: a tracked object.
            box: as in `add`.
            points: as in `add`.
            labels: as in `add`.
            mask: as in `add`.
            append: keep the points given on this frame before, and add these.

        Returns:
            Masks of all objects on the newest frame.

        Raises:
            PromptError: if the id is unknown or the prompt is not legal. The tracker is unchanged.
        """
        prompt = self._prompt(box=box, points=points, labels=labels, mask=mask)
        known = self._known(object_id)
        if append and (box is not None or mask is not None):
            todo = "A box must come before any point: give it with append=False"
            raise PromptError(expected("points with append", "a box or a mask", todo))
        outcome = self._answer(prompt, previous=self._with_all_queries(known), append=append)
        result, known.seen = self._result_with(object_id, outcome)
        known.newest = outcome
        return result

    def describe(self, object_id: int, text: str | None) -> None:
        """Say what an object is; the router prefers memory rows that fit the description, from the newest frame on.

        Args:
            object_id: a tracked object.
            text: a short phrase, such as "the red striped star"; None takes the description back.

        Raises:
            PromptError: if the id is unknown, the text is empty, the rows are not chosen by the router, or the bundle has no text encoder.
        """
        known = self._known(object_id)
        known.text = None if text is None else self._embedding(text)

    def remove(self, object_id: int) -> None:
        """Stop tracking an object and free its memory.

        Raises:
            PromptError: if the id is unknown.
        """
        self._known(object_id)
        del self._objects[object_id]

    def reset(self) -> None:
        """Forget every object and frame; the next frame has index 0 and may have another size."""
        self._objects.clear()
        self._frame = self._size = self._pixels = self._features = self._tokens = None
        self._guard = GuardState()
        self._uploads.clear()

    def _prompt(self, **given: npt.ArrayLike | None) -> Prompt:
        if self._size is None:
            todo = "Call step(frame) first: prompts refer to the newest frame"
            raise PromptError(expected("a frame before the first prompt", "none", todo))
        return make_prompt(**given, frame_size=self._size)

    def _known(self, object_id: int) -> _Object:
        if object_id not in self._objects:
            raise PromptError(expected(f"a tracked object id of {list(self._objects)}", repr(object_id), "Use add() for a new object"))
        return self._objects[object_id]

    def _answer(self, prompt: Prompt, *, previous: _Outcome | None, append: bool) -> _Outcome:
        """Outcome of a prompt on the newest frame; `previous` is the object's outcome on it, None for a new object."""
        features = self._newest_features()
        conditioned = previous.conditioned if previous is not None else None
        as_prompt = conditioned is None or self.corrections_as_prompts or (previous is not None and previous.as_prompt)
        if prompt.mask is not None:
            decoded = self._stages.adopt_mask(features, mask_to_input(prompt.mask, self.spec.image_size)[None])
            return self._outcome(decoded, 0, prompted=True, as_prompt=as_prompt, conditioned=conditioned)
        assert self._size is not None
        points, labels = to_model_points(prompt, self._size, self.spec.image_size)
        if append and previous is not None and previous.points is not None and previous.labels is not None:
            points = np.concatenate([previous.points, points], axis=1)
            labels = np.concatenate([previous.labels, labels], axis=1)
        decoded = self._stages.answer(
            features, points, labels, conditioned=conditioned, previous_logits=None if previous is None else previous.logits
        )
        return self._outcome(decoded, 0, prompted=True, as_prompt=as_prompt, conditioned=conditioned, points=points, labels=labels)

    def _with_all_queries(self, known: _Object) -> _Outcome:
        """What is known of an object, all tokens conditioned: a correction goes where tracking failed, maybe for want of a query."""
        outcome = known.newest
        if not self._query_pruner.active or outcome.prompted:
            return outcome
        assert self._frame is not None
        whole = self._stages.condition(self._newest_features(), [known.memory], [known.memory.select(self._frame)])
        return replace(outcome, conditioned=whole)

    def _newest_features(self) -> Features:
        if self._features is None:
            assert self._pixels is not None
            self._features = self._stages.encode_image(self._pixels)
        return self._features

    def _embedding(self, text: str) -> Float:
        if not self.pruner.routes:
            raise PromptError(expected("no text without the router", repr(text), "Prune with policy router: only it reads descriptions"))
        if self._texts is None:
            raise PromptError(expected("a bundle with a text encoder", "one without", "Add one with `fastsam2 add-text`, or give no text"))
        embedding: Float = self._texts.encode([text])[0]
        return embedding

    def _write_memories(self) -> Judgement:
        """Encode the newest frame into every object's memory. Doing it twice gives the same state."""
        assert self._frame is not None
        features, objects = self._newest_features(), list(self._objects.items())
        rows = self._stages.encode_memory(
            features,
            self._device.stack([o.newest.memory_logits for _, o in objects]),
            self._device.concatenate([o.newest.score for _, o in objects]),
            np.array([o.newest.prompted for _, o in objects]),
        )
        judged = [Judged(i, o.newest.memory_logits, o.newest.score, o.newest.iou, o.seen, o.text) for i, o in objects]
        judgement = self._judge.judge(self._frame, features, judged, self._guard)
        for row, ((_, known), scores) in enumerate(zip(objects, judgement.scores, strict=True)):
            newest, keep = known.newest, judgement.keep
            known.memory.write(self._frame, rows[row], newest.pointer, prompt=newest.as_prompt, scores=scores, keep=keep)
        return judgement

    def _track(self, index: int, features: Features) -> dict[int, _Outcome]:
        """Outcomes of all objects on a new frame."""
        ids, memories = list(self._objects), [o.memory for o in self._objects.values()]
        outcomes: dict[int, _Outcome] = {}
        queries = None
        if self._query_pruner.active:
            with self._timer.stage("query_pruning"):
                tokens, *logits = self._device.fetch(features.tokens, *(o.newest.memory_logits for o in self._objects.values()))
                queries = self._query_pruner.choose(tokens, logits)
        for members, conditioned, decoded in self._stages.track(features, memories, [m.select(index) for m in memories], queries):
            for row, member in enumerate(members):
                own = conditioned[row : row + 1]
                outcomes[ids[member]] = self._outcome(decoded, row, prompted=False, as_prompt=False, conditioned=own)
        return outcomes

    def _outcome(
        self,
        decoded: Decoded,
        row: int,
        *,
        prompted: bool,
        as_prompt: bool,
        conditioned: Tensor | None,
        points: Float | None = None,
        labels: npt.NDArray[np.int32] | None = None,
    ) -> _Outcome:
        raw = filled = decoded.logits[row]
        if self.fill_hole_area:
            filled = self._device.put(fill_holes(self._device.fetch(raw)[0][None], self.fill_hole_area)[0])
        return _Outcome(
            logits=filled,
            memory_logits=filled if prompted else raw,
            score=decoded.score[row : row + 1],
            iou=decoded.iou[row : row + 1],
            pointer=self._device.copy(decoded.pointer[row]),
            prompted=prompted,
            as_prompt=as_prompt,
            conditioned=conditioned,
            points=points,
            labels=labels,
        )

    def _result_with(self, object_id: int, outcome: _Outcome) -> tuple[Result, Observation | None]:
        """The newest frame's result with one outcome that is not kept yet, and what the guard has to know of that outcome."""
        assert self._frame is not None
        assert self._size is not None
        outcomes = {i: o.newest for i, o in self._objects.items()} | {object_id: outcome}
        result, seen = self._result(self._frame, self._size, outcomes, None)
        return replace(result, tokens=self._tokens), seen.get(object_id)

    def _result(
        self, frame: int, size: tuple[int, int], outcomes: Mapping[int, _Outcome], cues: Cues | None
    ) -> tuple[Result, dict[int, Observation]]:
        """Outcomes of a frame on the host: its result, and each for the guard if there is one. The only place that waits for the device."""
        newest, device = list(outcomes.values()), self._device
        report = None
        with self._timer.stage("postprocess"):
            if newest:
                logits = device.stack([o.logits for o in newest])
                numbers = [device.stack(own).reshape((-1,)) for own in ([o.score for o in newest], [o.iou for o in newest])]
                judged = () if cues is None else cues.tensors
                masks, logits, scores, ious, *fetched = device.fetch(device.masks(logits, size), logits, *numbers, *judged)
                report = None if cues is None else cues.report(fetched)
            else:
                device.fetch()  # every step ends with a wait, after which memory of copies is used again
                side = self.spec.low_res
                masks, logits = np.zeros((0, *size), np.bool_), np.zeros((0, side, side), np.float32)
                scores = ious = np.zeros(0, np.float32)
        known = [self._objects.get(i) for i in outcomes]
        held = tuple(o.memory.rows_held if o is not None else 0 for o in known)
        result = Result(
            frame=frame,
            ids=tuple(outcomes),
            masks=masks,
            visible=scores > 0,
            scores=scores,
            ious=ious,
            low_res_logits=logits,
            memory=MemoryReport(
                rows=held,
                share=tuple(rows / (self.spec.num_maskmem * self.spec.tokens) for rows in held),
                bytes=tuple(o.memory.nbytes if o is not None else 0 for o in known),
            ),
            tokens=report,
        )
        if not self.pruner.prune.guard:
            return result, {}
        return result, {
            i: Observation(float(scores[row]), float(ious[row]), float(np.mean(logits[row] > 0)), outcome.prompted)
            for row, (i, outcome) in enumerate(outcomes.items())
        }
