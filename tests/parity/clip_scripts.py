"""Calls on a video predictor, written once and run on the official one and on the drop-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .clips import Clip
from .compare import Run, Track
from .scenarios import SCENARIOS, Action, Event, Scenario

PASS = 1000  # frame 7 of the third pass is recorded as frame 2007
MIDDLE = 12

Peek = Callable[[Any, int, int], tuple[npt.NDArray[np.float32], float]]  # state, object id, frame -> low-resolution logits, score


@dataclass(slots=True)
class Session:
    """A predictor at work on a clip, and what it said.

    Attributes:
        predictor: either one.
        state: of the clip.
        clip: for mask prompts.
        peek: reads what the predictor holds of an object on a frame.
        run: every frame of every pass.
        answers: ids and masks [B, H, W] of every call that returns them.
    """

    predictor: Any
    state: Any
    clip: Clip
    peek: Peek
    run: Run = field(default_factory=dict)
    answers: list[tuple[list[int], npt.NDArray[np.float32]]] = field(default_factory=list)
    passes: int = 0

    def box(self, frame: int, object_id: int, *corners: float) -> None:
        """Prompt with a box, x0, y0, x1, y1."""
        self._answered(self.predictor.add_new_points_or_box(self.state, frame_idx=frame, obj_id=object_id, box=list(corners)))

    def click(self, frame: int, object_id: int, x: float, y: float, label: int = 1, *, clear: bool = True) -> None:
        """Prompt with a point."""
        points, labels = np.array([[x, y]], np.float32), np.array([label], np.int32)
        self._answered(
            self.predictor.add_new_points_or_box(self.state, frame, object_id, points=points, labels=labels, clear_old_points=clear)
        )

    def mask(self, frame: int, object_id: int, shape: str) -> None:
        """Prompt with the true mask of a shape."""
        self._answered(self.predictor.add_new_mask(self.state, frame, object_id, self.clip.mask(frame, shape)))

    def clear(self, frame: int, object_id: int) -> None:
        """Take a prompt back."""
        self._answered(self.predictor.clear_all_prompts_in_frame(self.state, frame, object_id))

    def remove(self, object_id: int) -> None:
        """Remove an object."""
        ids, updated = self.predictor.remove_object(self.state, object_id)
        for frame, masks in sorted(updated, key=lambda entry: int(entry[0])):
            self._answered((frame, ids, masks))

    def track(self, start: int | None = None, count: int | None = None, *, reverse: bool = False) -> None:
        """One pass."""
        options = {"start_frame_idx": start, "max_frame_num_to_track": count, "reverse": reverse}
        for frame, ids, masks in self.predictor.propagate_in_video(self.state, **options):
            assert tuple(masks.shape) == (len(ids), 1, *self.clip.frames.shape[1:3])
            for row, object_id in enumerate(ids):
                low_res, score = self.peek(self.state, object_id, frame)
                self.run[PASS * self.passes + frame, object_id] = Track(low_res.copy(), score, masks[row, 0].cpu().numpy().copy())
        self.passes += 1

    def _answered(self, answer: Any) -> None:
        _, ids, masks = answer
        assert str(masks.dtype).endswith("float32")
        self.answers.append((list(ids), masks[:, 0].cpu().numpy().copy()))


@dataclass(frozen=True, slots=True)
class Script:
    """Calls in order.

    Attributes:
        name: for test ids.
        calls: makes them.
        clip: name of a clip fixture.
        options: attributes of the predictor.
    """

    name: str
    calls: Callable[[Session], None]
    clip: str = "wide"
    options: dict[str, Any] = field(default_factory=dict)


def _prompt(session: Session, event: Event) -> None:
    if event.mask is not None:
        session.mask(event.frame, event.id, event.mask)
    elif event.box is not None:
        session.box(event.frame, event.id, *event.box)
    else:
        ((x, y),), (label,) = event.points, event.labels
        session.click(event.frame, event.id, x, y, label, clear=not event.append)


def _from_scenario(scenario: Scenario) -> Script:
    """New objects are prompted before the first pass; each later event is followed by a pass from its frame on."""
    starts = {event.id: event.frame for event in scenario.events if event.action is Action.ADD}

    def calls(session: Session) -> None:
        later = [e for e in scenario.events if e.action is Action.REMOVE or e.frame != starts[e.id]]
        for event in scenario.events:
            if event not in later:
                _prompt(session, event)
        session.track()
        for event in later:
            if event.action is Action.REMOVE:
                session.remove(event.id)
            else:
                _prompt(session, event)
            session.track(event.frame if scenario.corrections_as_prompts else event.frame + 1, 5)

    options = {
        "add_all_frames_to_correct_as_cond": scenario.corrections_as_prompts,
        "max_cond_frames_in_attn": scenario.max_prompt_frames,
    }
    return Script(scenario.name, calls, scenario.clip, options)


def reverse_after_forward(session: Session) -> None:
    """The second pass reads memories of the first, the third overwrites both."""
    session.box(MIDDLE, 1, 90, 60, 210, 170)
    session.track(MIDDLE)
    session.track(MIDDLE, reverse=True)
    session.click(4, 1, 150, 100, 0)  # a correction of a frame that was tracked backwards
    session.track(18, 10, reverse=True)


def there_and_back(session: Session) -> None:
    """The first half is tracked last, with the memories of the second."""
    session.box(MIDDLE, 1, 90, 60, 210, 170)
    session.track(MIDDLE)
    session.track(MIDDLE, reverse=True)


def again_from_the_middle(session: Session) -> None:
    """A correction, and passes that overwrite parts of the first."""
    session.box(0, 1, 90, 60, 210, 170)
    session.track()
    session.click(10, 1, 120, 90, 0)
    session.track(11, 6)
    session.track(6, 8)  # overwrites the correction
    session.click(0, 1, 130, 100, 0)  # of a prompt frame: answered, but dropped by the next pass
    session.track(0, 4)


def prompts_cleared(session: Session) -> None:
    """Prompts taken back before and after they were tracked, and given again."""
    session.box(0, 1, 90, 60, 210, 170)
    session.click(9, 1, 160, 120)
    session.click(0, 2, 200, 140)
    session.clear(9, 1)
    session.click(9, 1, 150, 110)
    session.click(9, 1, 200, 150, 0, clear=False)
    session.track()
    session.clear(9, 1)
    session.track(7, 8)  # through the frame, as if it had never been prompted
    session.clear(0, 2)
    session.click(0, 2, 180, 120)  # the frame counts as not tracked, but its mask is still fed back
    session.track(0, 12)


def objects_come_and_go(session: Session) -> None:
    """Objects are added and removed between passes."""
    session.box(0, 5, 90, 60, 210, 170)
    session.track(count=10)
    session.click(8, 2, 220, 100)
    session.mask(3, 9, "star")
    session.track(3)
    session.click(12, 5, 120, 90, 0)
    session.remove(5)
    session.remove(77)
    session.track(8, 6)
    session.remove(2)
    session.remove(9)
    assert session.state["obj_ids"] == []
    session.click(2, 5, 160, 120)
    session.predictor.reset_state(session.state)
    session.box(1, 3, 100, 70, 230, 180)
    session.track(count=6)


def prompt_in_the_future(session: Session) -> None:
    """Frames before the only prompt, forwards and backwards in time: memory without a pointer."""
    session.box(20, 1, 90, 60, 210, 170)
    session.track(14)
    session.track(19, 6, reverse=True)
    session.click(2, 2, 160, 120)
    session.track(8, reverse=True)


def short_clip(session: Session) -> None:
    """Both directions of a clip with fewer frames than pointers."""
    session.box(0, 1, 90, 60, 210, 170)
    session.track()
    session.click(6, 1, 150, 110)
    session.track(7)
    session.track(11, reverse=True)


def corrected(session: Session) -> None:
    """A correction of a tracked frame next to others."""
    session.box(0, 1, 90, 60, 210, 170)
    session.click(0, 2, 200, 140)
    session.track()
    session.click(10, 1, 120, 90, 0)
    session.track(11)


OWN = (
    Script("reverse_after_forward", reverse_after_forward),
    Script("again_from_the_middle", again_from_the_middle),
    Script("prompts_cleared", prompts_cleared),
    Script("objects_come_and_go", objects_come_and_go),
    Script("prompt_in_the_future", prompt_in_the_future),
    Script("short_clip", short_clip, clip="short"),
    Script("memory_cleared_around_prompts", corrected, options={"clear_non_cond_mem_around_input": True}),
)
THERE_AND_BACK = Script("there_and_back", there_and_back)
NO_OVERLAP = Script("without_overlap", corrected, options={"non_overlap_masks": True})
SCRIPTS = {script.name: script for script in (*map(_from_scenario, SCENARIOS), *OWN)}
