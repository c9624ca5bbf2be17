"""Runs whose objects are described from the picture: which, when, and what the record says. Tracker and sources as in test_run."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastsam2.config import Prune
from fastsam2.enums import PrunePolicy
from fastsam2.errors import BundleError, PromptError
from fastsam2.runtime.prompt_args import AUTO_TEXT, TimedPrompt, read_prompts, without_auto
from fastsam2.runtime.window import WindowInput
from tests.test_run import FRAMES, SIZE, Bundle, _run, folder
from tests.test_watch import BOX, FakeWindow

__all__ = ["folder"]  # the fixture

ROUTER = Prune(policy=PrunePolicy.ROUTER, keep=0.05)


class Says:
    """Names what it sees by the frame's grey and the mask's row: "frame 2, row 7"; knows no word for row 5."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def describe(self, image: np.ndarray, mask: np.ndarray) -> str:
        assert image.shape == (*SIZE, 3) and mask.shape == SIZE and mask.dtype == np.bool_
        self.seen.append((int(image[0, 0, 0]) // 40, int(np.flatnonzero(mask.any(1))[0])))
        if self.seen[-1][1] == 5:
            raise PromptError("expected a mask with at least one pixel, got an empty one. Describe the object by hand.")
        return "frame {}, row {}".format(*self.seen[-1])


def described(bundle: Bundle) -> list[tuple[int, int, str]]:
    return [call[1:] for call in bundle.made.calls if call[0] == "describe"]


@pytest.fixture
def bundle() -> Bundle:
    made = Bundle()
    made.manifest = SimpleNamespace(text="a text encoder")
    made.describer = lambda: pytest.fail("the bundle's own describer was asked for")  # type: ignore[attr-defined]
    return made


def test_each_object_without_words_is_described_when_it_is_added(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    prompts = [
        *read_prompts(boxes=["1:1,2,9,9", "2:1,2,9,9@2", "7:1,2,9,9@3"], points=["1:3,4@4"], removals=["7@4"], texts=["2:a cup"]),
        TimedPrompt(id=7, frame=5, box=(1, 2, 9, 9)),
    ]
    says, said = Says(), list[tuple[int, str]]()
    record = _run(
        bundle,
        folder,
        tmp_path / "out",
        prompts,
        prune=ROUTER,
        auto_text=True,
        describer=says,
        on_description=lambda i, words: said.append((i, words)),
        overlay=False,
    )
    assert says.seen == [(0, 1), (3, 7), (5, 7)], "the mask of the object, on the frame of its prompt"
    assert said == [(1, "frame 0, row 1"), (7, "frame 3, row 7"), (7, "frame 5, row 7")]
    assert described(bundle) == [(1, 0, "frame 0, row 1"), (2, 2, "a cup"), (7, 3, "frame 3, row 7"), (7, 5, "frame 5, row 7")]
    calls = [call[:2] for call in bundle.made.calls]
    assert calls.index(("add", 7)) + 1 == calls.index(("describe", 7)), "right after it was added, before the next step judges its rows"
    assert [(o["id"], o["text"], o["auto_text"]) for o in record["objects"]] == [
        (1, "frame 0, row 1", True),
        (2, "a cup", False),
        (7, "frame 3, row 7", True),
        (7, "frame 5, row 7", True),
    ]
    texts = {(p["id"], p["frame"]): p.get("text") for p in record["config"]["prompts"]}
    assert texts == {
        (1, 0): "frame 0, row 1",
        (2, 2): "a cup",
        (7, 3): "frame 3, row 7",
        (1, 4): None,
        (7, 4): None,
        (7, 5): "frame 5, row 7",
    }
    assert record["command"] is None  # object 7 was described in two ways
    assert record["stages_ms"]["describe"]["median"] > 0


def test_one_object_by_its_id(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    says = Says()
    bundle.describer = lambda: says  # type: ignore[attr-defined]
    prompts = read_prompts(boxes=["1:1,2,9,9", "2:1,2,9,9@2"], texts=["2:auto"])
    record = _run(bundle, folder, tmp_path / "out", prompts, prune=ROUTER, overlay=False)
    assert described(bundle) == [(2, 2, "frame 2, row 2")]
    args = shlex.split(record["command"])
    assert args[args.index("--text") + 1] == "2:frame 2, row 2" and args.count("--text") == 1
    assert "text" not in record["objects"][0]


def test_a_correction_can_ask_for_a_new_description(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    prompts = [TimedPrompt(id=1, box=(1, 2, 9, 9), text="a cup"), TimedPrompt(id=1, frame=3, points=((3, 4),), text=AUTO_TEXT)]
    record = _run(bundle, folder, tmp_path / "out", prompts, prune=ROUTER, describer=Says(), overlay=False)
    assert described(bundle) == [(1, 0, "a cup"), (1, 3, "frame 3, row 1")]
    assert (record["objects"][0]["text"], record["objects"][0]["auto_text"]) == ("a cup", False)


def test_what_cannot_be_described_is_tracked_without(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="object 5 on frame 1 is not described: expected a mask with at least one pixel"):
        record = _run(
            bundle,
            folder,
            tmp_path / "out",
            read_prompts(boxes=["5:1,2,9,9@1"]),
            prune=ROUTER,
            auto_text=True,
            describer=Says(),
            overlay=False,
        )
    assert described(bundle) == [] and record["frames"] == FRAMES
    assert record["objects"] == [{"id": 5, "added_frame": 1, "removed_frame": None}]
    assert "--text" not in record["command"] and "text" not in record["config"]["prompts"][0]


def test_drawn_boxes_are_described_when_all_are(bundle: Bundle, folder: Path) -> None:
    for auto_text, wanted in ((True, [(1, 0, "frame 0, row 1"), (2, 1, "frame 1, row 2")]), (False, [(1, 0, "frame 0, row 1")])):
        window = FakeWindow({1: WindowInput(boxes=(BOX,))})
        prompts = read_prompts(points=["3,4"], texts=["1:auto"])
        record = _run(bundle, folder, None, prompts, window=window, prune=ROUTER, auto_text=auto_text, describer=Says())
        assert described(bundle) == wanted
        assert [o.get("text") for o in record["objects"]] == ["frame 0, row 1", "frame 1, row 2" if auto_text else None]


@pytest.mark.parametrize(("prompts", "options"), [(["1:auto"], {}), ([], {"auto_text": True})])
def test_what_descriptions_need_is_asked_for_first(folder: Path, tmp_path: Path, prompts: list[str], options: dict[str, Any]) -> None:
    plan, bundle = read_prompts(boxes=["1,2,9,9"], texts=prompts), Bundle()
    with pytest.raises(PromptError, match="texts with --prune router, got 'auto' with policy mask"):
        _run(bundle, folder, tmp_path / "out", plan, prune=Prune(policy=PrunePolicy.MASK, keep=0.1), **options)
    with pytest.raises(PromptError, match="a bundle with a text encoder"):
        _run(bundle, folder, tmp_path / "out", plan, prune=ROUTER, **options)
    bundle.manifest = SimpleNamespace(text="a text encoder")

    def lacking() -> None:
        raise BundleError("no crop encoder")

    bundle.describer = lacking  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match="no crop encoder"):
        _run(bundle, folder, tmp_path / "out", plan, prune=ROUTER, **options)
    assert not (tmp_path / "out").exists()


def test_the_word_alone_is_about_all_objects() -> None:
    assert without_auto(["2:a cup", " auto ", "1:auto", "autos"]) == (["2:a cup", "1:auto", "autos"], True)
    assert without_auto(["2:auto"]) == (["2:auto"], False)
