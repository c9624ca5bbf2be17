"""Scenarios as data: what happens on which frame. The official predictor, the tracker and the command line all run the same list.

Points and boxes are in pixels of the clip's frames. Events of a frame happen in the order given; removals before the frame is tracked,
prompts after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(str, Enum):
    """What an event does to an object."""

    ADD = "add"
    CORRECT = "correct"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One prompt or removal.

    Attributes:
        frame: 0-based.
        id: object id.
        action: what happens.
        box: x0, y0, x1, y1.
        points: (x, y) each, with `labels` 1 positive or 0 negative.
        mask: name of a shape of the clip; its true mask on `frame` is the prompt.
        append: add the points to those already given on this frame instead of replacing them.
    """

    frame: int
    id: int
    action: Action = Action.ADD
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    mask: str | None = None
    append: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Events on a clip and the options they are run with.

    Attributes:
        name: for messages and test ids.
        events: ascending by frame.
        clip: name of a clip fixture.
        corrections_as_prompts: official `add_all_frames_to_correct_as_cond`.
        max_prompt_frames: official `max_cond_frames_in_attn`.
    """

    name: str
    events: tuple[Event, ...]
    clip: str = "wide"
    corrections_as_prompts: bool = False
    max_prompt_frames: int = 4

    def at(self, frame: int) -> tuple[Event, ...]:
        """Events of one frame."""
        return tuple(e for e in self.events if e.frame == frame)

    def alive(self, frame: int) -> tuple[int, ...]:
        """Ids that have a mask on a frame."""
        ids: list[int] = []
        for event in self.events:
            if event.frame <= frame and event.action is Action.REMOVE:
                ids.remove(event.id)
            elif event.frame <= frame and event.id not in ids:
                ids.append(event.id)
        return tuple(ids)


def _click(frame: int, object_id: int, x: float, y: float, *, label: int = 1, action: Action = Action.ADD, append: bool = False) -> Event:
    return Event(frame=frame, id=object_id, action=action, points=((x, y),), labels=(label,), append=append)


_BOX = Event(frame=0, id=1, box=(90.0, 60.0, 210.0, 170.0))
_CORRECT = Action.CORRECT

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(name="box", events=(_BOX,)),
    Scenario(name="click", events=(_click(0, 1, 160, 120),), clip="tall"),
    Scenario(name="mask", events=(Event(frame=0, id=1, mask="disc"),)),
    Scenario(
        name="refined_first_frame",
        events=(_click(0, 1, 150, 110), _click(0, 1, 200, 150, label=0, action=_CORRECT, append=True)),
    ),
    Scenario(name="three_objects", events=(_BOX, _click(0, 2, 200, 140), Event(frame=0, id=7, mask="star"))),
    Scenario(name="correction", events=(_BOX, _click(10, 1, 120, 90, label=0, action=_CORRECT))),
    Scenario(name="mask_correction", events=(_BOX, Event(frame=9, id=1, action=_CORRECT, mask="box"))),
    Scenario(name="late_object", events=(_BOX, _click(8, 2, 220, 100))),
    Scenario(
        name="removed_object",
        events=(_BOX, _click(0, 2, 200, 140), Event(frame=5, id=3, mask="star"), Event(frame=14, id=2, action=Action.REMOVE)),
    ),
    # With a bound of 2, frame 0 is not selected on frames 5 and 6, 2 not on 8, 4 not on 10; all are among the last six there.
    Scenario(
        name="many_prompts",
        events=(
            _BOX,
            _click(2, 1, 130, 100, action=_CORRECT),
            _click(4, 1, 180, 140, label=0, action=_CORRECT),
            Event(frame=7, id=1, action=_CORRECT, box=(100.0, 70.0, 230.0, 180.0)),
            _click(9, 1, 140, 90, action=_CORRECT),
        ),
        corrections_as_prompts=True,
        max_prompt_frames=2,
    ),
)
OCCLUSION = Scenario(name="occlusion", events=(Event(frame=0, id=1, mask="star"),), clip="curtain")
BY_NAME = {s.name: s for s in (*SCENARIOS, OCCLUSION)}
