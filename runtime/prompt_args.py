"""Prompts of a whole run as texts and JSON: command line or file -> one list in the order a run meets them.

    --box [ID:]x0,y0,x1,y1[@FRAME]   --point [ID:]x,y[,0|1][@FRAME]   --mask [ID:]M.png[@FRAME]   --remove ID@FRAME
    --text [ID:]WORDS, for the router; the one word auto has the object described from the picture, without ID every object without words
    --prompts prompts.json           [{"id": 1, "frame": 0, "box": [...], "points": [[x, y]], "labels": [1], "mask": "M.png",
                                       "text": "WORDS"},
                                      {"id": 1, "frame": 14, "remove": true}]

ID is 1 and FRAME is 0 when left out. In a mask's text only a leading integer and ":", and a trailing "@" and integer count: the file
`shot@3` is written `shot@3@0`. A mask named in a JSON file is relative to that file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fastsam2.contracts import LABEL_NEGATIVE, LABEL_POSITIVE
from fastsam2.errors import PromptError, expected
from fastsam2.runtime.prompts import check_object_id

BOX_FORM = "[ID:]x0,y0,x1,y1[@FRAME]"
POINT_FORM = "[ID:]x,y[,0|1][@FRAME]"
MASK_FORM = "[ID:]M.png[@FRAME]"
REMOVE_FORM = "ID@FRAME"
TEXT_FORM = "[ID:]WORDS"
AUTO_TEXT = "auto"  # in place of a description: make one from the picture

_TIMED = re.compile(r"(?:([0-9]+):)?(.*?)(?:@([0-9]+))?", re.DOTALL)
_DESCRIPTION = re.compile(r"(?:([0-9]+):)?(.*)", re.DOTALL)
_REMOVAL = re.compile(r"([0-9]+)@([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPrompt:
    """What is said about one object on one frame. Coordinates and sizes are checked when the video is known (`make_prompt`).

    Args:
        id: object id, >= 1.
        frame: frame index, >= 0. The first of an id adds it, later ones correct it, `remove` ends it.
        box: x0, y0, x1, y1, video pixels.
        points: x, y of each click, video pixels.
        labels: 1 on the object, 0 off it, one per point; all 1 when None.
        mask: picture of the object's mask.
        remove: the object is removed before `frame` is tracked.
        text: what the object is, from `frame` on; read by the router. `AUTO_TEXT` stands for what its mask shows on `frame`.

    Raises:
        PromptError: if id, frame, labels or text are not legal, or a removal comes with a prompt.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    id: int
    frame: int = 0
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] | None = None
    mask: Path | None = None
    remove: bool = False
    text: str | None = None

    def __post_init__(self) -> None:
        check_object_id(self.id)
        if isinstance(self.frame, bool) or not isinstance(self.frame, int) or self.frame < 0:
            raise PromptError(expected("a frame index >= 0", repr(self.frame), "The first frame is 0"))
        if self.labels is not None and len(self.labels) != len(self.points):
            raise PromptError(expected(f"{len(self.points)} labels, one per point", len(self.labels), "Give as many labels as points"))
        if self.text is not None and not self.text.strip():
            raise PromptError(expected("a description with a word", repr(self.text), "Leave it out where there is nothing to say"))
        given = self.box is not None or bool(self.points) or self.mask is not None
        if self.remove and (given or self.text is not None):
            raise PromptError(expected("a removal alone", "a removal with a box, points, mask or text", "Give them separately"))
        if not self.remove and not given:
            raise PromptError(expected("a box, points or a mask", "none", "Give one of them, or remove"))

    def to_json(self) -> dict[str, Any]:
        """The entry of a prompts file that says the same."""
        return {"id": self.id, "frame": self.frame, **_ADAPTER.dump_python([self], mode="json", exclude_defaults=True)[0]}

    def to_args(self) -> list[str]:
        """Command-line arguments that say the same, all but `text`."""
        if self.remove:
            return ["--remove", f"{self.id}@{self.frame}"]
        args = ["--mask", f"{self.id}:{self.mask}@{self.frame}"] if self.mask else []
        if self.box:
            args += ["--box", f"{self.id}:{','.join(map(_number_text, self.box))}@{self.frame}"]
        for (x, y), label in zip(self.points, self.labels or (LABEL_POSITIVE,) * len(self.points), strict=True):
            args += ["--point", f"{self.id}:{_number_text(x)},{_number_text(y)},{label}@{self.frame}"]
        return args


_ADAPTER = TypeAdapter(list[TimedPrompt])


def parse_box(text: str) -> TimedPrompt:
    """`BOX_FORM` -> a box.

    Raises:
        PromptError: if the text has another form.
    """
    return _parse(text, "--box", BOX_FORM, "2:10,20,110,220@14", _box)


def parse_point(text: str) -> TimedPrompt:
    """`POINT_FORM` -> one click; positive when no label is given.

    Raises:
        PromptError: if the text has another form.
    """
    return _parse(text, "--point", POINT_FORM, "2:35,70,0@14", _point)


def parse_mask(text: str) -> TimedPrompt:
    """`MASK_FORM` -> a mask's path, not opened here.

    Raises:
        PromptError: if the text has another form.
    """
    return _parse(text, "--mask", MASK_FORM, "2:masks/cup.png@14", lambda body: {"mask": Path(body)} if body else None)


def parse_removal(text: str) -> TimedPrompt:
    """`REMOVE_FORM` -> a removal.

    Raises:
        PromptError: if the text has another form.
    """
    match = _REMOVAL.fullmatch(text)
    if match is None:
        raise PromptError(expected(f"--remove {REMOVE_FORM}", repr(text), "For example --remove 2@14"))
    return TimedPrompt(id=int(match[1]), frame=int(match[2]), remove=True)


def parse_text(text: str) -> tuple[int, str]:
    """`TEXT_FORM` -> id and description.

    Raises:
        PromptError: if there is no word in it.
    """
    match = _DESCRIPTION.fullmatch(text)
    if match is None or not match[2].strip():
        raise PromptError(expected(f"--text {TEXT_FORM}", repr(text), "For example --text '2:the red striped star'"))
    return int(match[1] or 1), match[2].strip()


def without_auto(texts: Sequence[str]) -> tuple[list[str], bool]:
    """The texts that are about one object, and whether `AUTO_TEXT` without an id is among them, which is about all that have no other."""
    about_one = [text for text in texts if text.strip() != AUTO_TEXT]
    return about_one, len(about_one) < len(texts)


def load_prompts(file: Path) -> list[TimedPrompt]:
    """The prompts of a JSON file, in its order.

    Raises:
        PromptError: if the file cannot be read or is not a list of prompts; says which entry.
    """
    try:
        prompts = _ADAPTER.validate_json(file.read_bytes())
    except OSError as error:
        raise PromptError(expected(f"a readable prompts file {file}", error.strerror, "Check the path")) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"entry {part}" if isinstance(part, int) and not i else f", {part}" for i, part in enumerate(first["loc"]))
        got = f"{where}: {first['msg']}" if where else first["msg"]
        form = 'Write [{"id": 1, "frame": 0, "box": [x0, y0, x1, y1]}, ...] with box, points and labels, or mask; or "remove": true'
        raise PromptError(expected(f"a list of prompts in {file}", got, form)) from error
    return [replace(p, mask=file.parent / p.mask) if p.mask else p for p in prompts]


def read_prompts(
    *,
    boxes: Sequence[str] = (),
    points: Sequence[str] = (),
    masks: Sequence[str] = (),
    removals: Sequence[str] = (),
    texts: Sequence[str] = (),
    file: Path | None = None,
) -> list[TimedPrompt]:
    """All prompts of a command line, combined; order within a frame: boxes, points, masks, then the file's.

    A text goes with every prompt that adds its object.

    Raises:
        PromptError: as the parsers above and `combine`.
    """
    parsers: tuple[tuple[Callable[[str], TimedPrompt], Sequence[str]], ...] = (
        (parse_box, boxes),
        (parse_point, points),
        (parse_mask, masks),
        (parse_removal, removals),
    )
    prompts = [parse(text) for parse, texts in parsers for text in texts]
    return _described(combine(prompts + (load_prompts(file) if file else [])), [parse_text(text) for text in texts])


def adding(plan: Iterable[TimedPrompt]) -> list[TimedPrompt]:
    """The prompts of a combined list that add their object: its first, and its first after a removal."""
    tracked: set[int] = set()
    added = []
    for prompt in plan:
        if prompt.remove:
            tracked.discard(prompt.id)
        elif prompt.id not in tracked:
            tracked.add(prompt.id)
            added.append(prompt)
    return added


def _described(plan: list[TimedPrompt], texts: Sequence[tuple[int, str]]) -> list[TimedPrompt]:
    known = dict(texts)
    if len(known) != len(texts):
        raise PromptError(
            expected("one --text for an object", [f"{i}:{text}" for i, text in texts], "Give different objects different ids")
        )
    added = adding(plan)
    for object_id in known:
        if object_id not in {p.id for p in added}:
            got = f"one for object {object_id}, of {sorted({p.id for p in added})}"
            raise PromptError(expected("a --text for an object that is prompted", got, "Write --text ID:WORDS with the object's id"))
    for prompt in added:
        if prompt.id in known and prompt.text is not None:
            raise PromptError(expected(f"one text for object {prompt.id}", "one in the file and one in --text", "Give one of the two"))
    starts = {(p.id, p.frame) for p in added}
    return [replace(p, text=known[p.id]) if p.id in known and not p.remove and (p.id, p.frame) in starts else p for p in plan]


def combine(prompts: Iterable[TimedPrompt]) -> list[TimedPrompt]:
    """One prompt per object and frame, sorted by frame; within a frame removals first, then the order given.

    Raises:
        PromptError: if one object has two boxes, or a mask and anything else, on one frame; or is removed when it is not tracked.
    """
    merged: dict[tuple[int, bool, int], TimedPrompt] = {}
    for prompt in prompts:
        key = (prompt.frame, not prompt.remove, prompt.id)
        merged[key] = _merge(merged[key], prompt) if key in merged else prompt
    ordered = sorted(merged.values(), key=lambda p: (p.frame, not p.remove))
    tracked: set[int] = set()
    for prompt in ordered:
        if not prompt.remove:
            tracked.add(prompt.id)
        elif prompt.id in tracked:
            tracked.remove(prompt.id)
        else:
            raise PromptError(
                expected(f"object {prompt.id} to be tracked before frame {prompt.frame}", "its removal there", "Add it on an earlier frame")
            )
    return ordered


def _merge(first: TimedPrompt, second: TimedPrompt) -> TimedPrompt:
    where = f"for object {first.id} on frame {first.frame}"
    if first.remove:
        raise PromptError(expected(f"one removal {where}", "two", "Give it once"))
    if first.mask or second.mask:
        raise PromptError(expected(f"one mask alone, or points and a box, {where}", "a mask and something else", "Give one of the two"))
    if first.box and second.box:
        raise PromptError(expected(f"at most one box {where}", "two", "Give different objects different ids: --box 2:x0,y0,x1,y1"))
    if first.text is not None and second.text is not None:
        raise PromptError(expected(f"one text {where}", "two", "Give one of the two"))
    labels = tuple(label for p in (first, second) for label in (p.labels if p.labels is not None else (LABEL_POSITIVE,) * len(p.points)))
    return replace(
        first, box=first.box or second.box, points=first.points + second.points, labels=labels or None, text=first.text or second.text
    )


def _parse(text: str, option: str, form: str, example: str, body_of: Callable[[str], dict[str, Any] | None]) -> TimedPrompt:
    match = _TIMED.fullmatch(text)
    values = body_of(match[2]) if match else None
    if match is None or values is None:
        raise PromptError(expected(f"{option} {form}", repr(text), f"For example {option} {example}"))
    return TimedPrompt(id=int(match[1] or 1), frame=int(match[3] or 0), **values)


def _box(body: str) -> dict[str, Any] | None:
    numbers = _numbers(body)
    return {"box": tuple(numbers)} if numbers and len(numbers) == 4 else None


def _point(body: str) -> dict[str, Any] | None:
    numbers = _numbers(body)
    if not numbers or len(numbers) not in (2, 3):
        return None
    x, y, label = (*numbers, LABEL_POSITIVE)[:3]
    return {"points": ((x, y),), "labels": (int(label),)} if label in (LABEL_NEGATIVE, LABEL_POSITIVE) else None


def _numbers(body: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in body.split(",")]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _number_text(value: float) -> str:
    return repr(float(value)).removesuffix(".0")
