"""Prompts as texts and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastsam2.errors import PromptError
from fastsam2.runtime.prompt_args import (
    TimedPrompt,
    adding,
    combine,
    load_prompts,
    parse_box,
    parse_mask,
    parse_point,
    parse_removal,
    read_prompts,
)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("1,2,3,4", TimedPrompt(id=1, frame=0, box=(1, 2, 3, 4))),
        ("7: 1.5, 2e1,30,.4@12", TimedPrompt(id=7, frame=12, box=(1.5, 20, 30, 0.4))),
        ("-1,2,3,4@3", TimedPrompt(id=1, frame=3, box=(-1, 2, 3, 4))),
    ],
)
def test_boxes(text: str, prompt: TimedPrompt) -> None:
    assert parse_box(text) == prompt


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("1,2", TimedPrompt(id=1, points=((1, 2),), labels=(1,))),
        ("1,2,0", TimedPrompt(id=1, points=((1, 2),), labels=(0,))),
        ("3:1,2,1@4", TimedPrompt(id=3, frame=4, points=((1, 2),), labels=(1,))),
    ],
)
def test_points(text: str, prompt: TimedPrompt) -> None:
    assert parse_point(text) == prompt


@pytest.mark.parametrize(
    ("text", "object_id", "frame", "path"),
    [
        ("m.png", 1, 0, "m.png"),
        ("2:m.png@5", 2, 5, "m.png"),
        ("C:/a@b/m.png", 1, 0, "C:/a@b/m.png"),
        ("2:3:a:b@c.png@4@5", 2, 5, "3:a:b@c.png@4"),
        ("shot@3@0", 1, 0, "shot@3"),
        ("x2:m.png@", 1, 0, "x2:m.png@"),
    ],
)
def test_masks_keep_colons_and_at_signs_of_their_path(text: str, object_id: int, frame: int, path: str) -> None:
    assert parse_mask(text) == TimedPrompt(id=object_id, frame=frame, mask=Path(path))


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a:1,2,3,4", "1,2,3,x", "1,2,3,4@x", "1,2,3,4@-1", "1,2,3,nan", "1:2:1,2,3,4"])
def test_bad_boxes_show_the_form(text: str) -> None:
    with pytest.raises(PromptError, match=r"expected --box \[ID:\]x0,y0,x1,y1\[@FRAME\], got"):
        parse_box(text)


@pytest.mark.parametrize("text", ["", "1", "1,2,2", "1,2,0.5", "1,2,1,1", "1;2", "inf,2", "1,2,"])
def test_bad_points_show_the_form(text: str) -> None:
    with pytest.raises(PromptError, match=r"expected --point \[ID:\]x,y\[,0\|1\]\[@FRAME\], got"):
        parse_point(text)


@pytest.mark.parametrize("text", ["", "2:", "2:@3", "@3"])
def test_bad_masks_show_the_form(text: str) -> None:
    with pytest.raises(PromptError, match=r"expected --mask \[ID:\]M.png\[@FRAME\], got"):
        parse_mask(text)


@pytest.mark.parametrize("text", ["", "2", "2@", "@3", "x@3", "2@3@4", "-2@3"])
def test_bad_removals_show_the_form(text: str) -> None:
    with pytest.raises(PromptError, match="expected --remove ID@FRAME, got"):
        parse_removal(text)


def test_object_zero_is_refused() -> None:
    with pytest.raises(PromptError, match="integer >= 1"):
        parse_box("0:1,2,3,4")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": 1, "frame": -1, "points": ((1, 1),)}, "frame index >= 0"),
        ({"id": 1, "frame": True, "points": ((1, 1),)}, "frame index >= 0"),
        ({"id": 1}, "a box, points or a mask"),
        ({"id": 1, "remove": True, "points": ((1, 1),)}, "a removal alone"),
        ({"id": 1, "points": ((1, 1),), "labels": (1, 0)}, "1 labels"),
    ],
)
def test_illegal_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        TimedPrompt(**values)


def test_same_object_and_frame_become_one_prompt_sorted_by_frame() -> None:
    prompts = read_prompts(
        boxes=["2:1,2,3,4@9", "1,2,3,4"],
        points=["5,6,0", "2:5,6@9", "7,8", "2:1,1@3"],
        masks=["3:m.png@3"],
        removals=["3@9"],
    )
    assert prompts == [
        TimedPrompt(id=1, frame=0, box=(1, 2, 3, 4), points=((5, 6), (7, 8)), labels=(0, 1)),
        TimedPrompt(id=2, frame=3, points=((1, 1),), labels=(1,)),
        TimedPrompt(id=3, frame=3, mask=Path("m.png")),
        TimedPrompt(id=3, frame=9, remove=True),
        TimedPrompt(id=2, frame=9, box=(1, 2, 3, 4), points=((5, 6),), labels=(1,)),
    ]
    assert combine(prompts) == prompts


def test_default_labels_survive_merging() -> None:
    merged = combine([TimedPrompt(id=1, points=((1, 1), (2, 2))), TimedPrompt(id=1, points=((3, 3),), labels=(0,))])
    assert merged == [TimedPrompt(id=1, points=((1, 1), (2, 2), (3, 3)), labels=(1, 1, 0))]


def test_a_removed_object_can_come_back() -> None:
    again = [parse_box("1,2,3,4"), parse_removal("1@5"), parse_box("1,2,3,4@5")]
    assert [(p.frame, p.remove) for p in combine(reversed(again))] == [(0, False), (5, True), (5, False)]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"boxes": ["1,2,3,4", "1:5,6,7,8@0"]}, "at most one box for object 1 on frame 0"),
        ({"boxes": ["1,2,3,4"], "masks": ["m.png"]}, "mask alone.*object 1 on frame 0"),
        ({"points": ["1,2"], "masks": ["m.png"]}, "mask alone"),
        ({"masks": ["a.png", "b.png"]}, "mask alone"),
        ({"removals": ["1@5", "1@5"], "points": ["1,2"]}, "one removal for object 1 on frame 5"),
        ({"removals": ["2@5"], "points": ["1,2"]}, "object 2 to be tracked before frame 5"),
        ({"removals": ["1@5"], "points": ["1,2@5"]}, "object 1 to be tracked before frame 5"),
        ({"removals": ["1@5", "1@6"], "points": ["1,2"]}, "object 1 to be tracked before frame 6"),
    ],
)
def test_contradictions(texts: dict[str, list[str]], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompts(**texts)  # type: ignore[arg-type]


def _write(folder: Path, content: object) -> Path:
    file = folder / "prompts.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def test_json_file(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        [
            {"id": 2, "frame": 3, "box": [1, 2, 3, 4.5], "points": [[5, 6]], "labels": [0]},
            {"id": 1, "mask": "masks/a.png"},
            {"id": 4, "frame": 2, "mask": "/abs.png"},
            {"id": 2, "frame": 14, "remove": True},
        ],
    )
    assert load_prompts(file) == [
        TimedPrompt(id=2, frame=3, box=(1, 2, 3, 4.5), points=((5, 6),), labels=(0,)),
        TimedPrompt(id=1, frame=0, mask=tmp_path / "masks/a.png"),
        TimedPrompt(id=4, frame=2, mask=Path("/abs.png")),
        TimedPrompt(id=2, frame=14, remove=True),
    ]
    assert read_prompts(points=["5:1,1"], file=file)[:2] == [parse_point("5:1,1"), TimedPrompt(id=1, mask=tmp_path / "masks/a.png")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "list of prompts in .*Invalid JSON"),
        ({"id": 1}, "list of prompts in .*valid (array|list)"),
        ([{"id": 1, "points": [[1, 2]]}, {"id": "1", "points": [[1, 2]]}], "entry 1, id"),
        ([{"id": True, "points": [[1, 2]]}], "entry 0, id"),
        ([{"points": [[1, 2]]}], "entry 0, id"),
        ([{"id": 1, "boxes": [1, 2, 3, 4]}], "entry 0, boxes"),
        ([{"id": 1, "box": [1, 2, 3]}], "entry 0, box"),
        ([{"id": 1, "points": [[1, 2, 3]]}], "entry 0, points, 0"),
        ([{"id": 0, "points": [[1, 2]]}], "entry 0: .*integer >= 1"),
        ([{"id": 1, "frame": 1.5, "points": [[1, 2]]}], "entry 0, frame"),
        ([{"id": 1}], "entry 0: .*a box, points or a mask"),
    ],
)
def test_bad_json(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        load_prompts(_write(tmp_path, content))


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"readable prompts file .*No such file"):
        load_prompts(tmp_path / "none.json")


def test_json_and_arguments_round_trip(tmp_path: Path) -> None:
    prompts = read_prompts(
        boxes=["2:1,2.25,3,1e3@9"], points=["0.1,6,0", "7,8"], masks=["3:2:a@b.png@4@3"], removals=["3@9"], file=_write(tmp_path, [])
    )
    assert prompts[0].to_json() == {"id": 1, "frame": 0, "points": [[0.1, 6], [7, 8]], "labels": [0, 1]}
    assert prompts[2].to_json() == {"id": 3, "frame": 9, "remove": True}
    assert prompts[3].to_args() == ["--box", "2:1,2.25,3,1000@9"]
    other = tmp_path / "other"
    other.mkdir()
    relative = [p if p.mask is None else TimedPrompt(id=p.id, frame=p.frame, mask=other / p.mask) for p in prompts]
    assert load_prompts(_write(other, [p.to_json() for p in prompts])) == relative
    options = {"--box": "boxes", "--point": "points", "--mask": "masks", "--remove": "removals"}
    texts: dict[str, list[str]] = {name: [] for name in options.values()}
    for prompt in prompts:
        args = prompt.to_args()
        for option, text in zip(args[::2], args[1::2], strict=True):
            texts[options[option]].append(text)
    assert read_prompts(**texts) == prompts  # type: ignore[arg-type]


def test_a_text_goes_with_the_prompt_that_adds_its_object() -> None:
    plan = read_prompts(boxes=["2:1,2,30,40@3", "2:1,2,30,40@9"], points=["5,6@4"], removals=["2@8"], texts=["2:the red: star", "a cup"])
    assert [(p.id, p.frame, p.text) for p in plan] == [(2, 3, "the red: star"), (1, 4, "a cup"), (2, 8, None), (2, 9, "the red: star")]
    assert adding(plan) == [plan[0], plan[1], plan[3]]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["3:a star"], r"object 3, of \[2\].*--text ID:WORDS"),
        (["2:a star", "2:a cup"], "one --text for an object"),
        (["2: "], "--text .*'2: '"),
        ([""], "--text "),
    ],
)
def test_texts_that_are_refused(texts: list[str], reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        read_prompts(boxes=["2:1,2,30,40"], texts=texts)
    with pytest.raises(PromptError, match="a description with a word"):
        TimedPrompt(id=1, box=(0, 0, 1, 1), text=" ")
