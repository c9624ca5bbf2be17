"""Readers of data sets, on folders of a few small pictures that each test writes. Oracle throughout: the arrays that were written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2.benchmarks.datasets import Clip, Layout, PictureFrames, open_dataset, read_expressions
from fastsam2.errors import VideoError

SIZE = (12, 16)

Ids = npt.NDArray[np.uint8]


def truth(*objects: int) -> Ids:
    """Object i fills rows 2i to 2i + 1."""
    ids = np.zeros(SIZE, np.uint8)
    for i in objects:
        ids[2 * i : 2 * i + 2] = i
    return ids


def picture(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), value, np.uint8)).save(file)


def palette(file: Path, ids: Ids) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("P")
    image.putpalette([c for i in range(256) for c in (i * 37 % 256, i * 91 % 256, 255 - i)])
    image.putdata(ids.ravel().tolist())
    image.save(file)


def write_davis(root: Path) -> None:
    for name, count in (("bear", 3), ("ant", 2)):
        for t in range(count):
            picture(root / "JPEGImages/480p" / name / f"{t:05d}.jpg", 10 * t + 5)
            palette(root / "Annotations/480p" / name / f"{t:05d}.png", truth(1, 2) if t else truth(1))


def write_mose(root: Path) -> None:
    for t in (0, 5, 10):
        picture(root / "JPEGImages/0a" / f"{t:05d}.jpg", t)
    palette(root / "Annotations/0a/00000.png", truth(3))


def write_sav(root: Path) -> None:
    for t in range(9):
        picture(root / "JPEGImages_24fps/sav_1" / f"{t:05d}.jpg", t)
    for t in (0, 4, 8):
        for i in (0, 1):
            shown = truth(2) > 0 if i == 0 else (truth(4) > 0 if t >= 4 else np.zeros(SIZE, bool))
            palette(root / "Annotations_6fps/sav_1" / f"{i:03d}" / f"{t:05d}.png", shown.astype(np.uint8) * 255)


def write_plain(root: Path) -> None:
    for t in range(2):
        picture(root / "mine/frames" / f"{t}.png", 100 + t)
        palette(root / "mine/truth" / f"{t}.png", truth(1))


WRITERS: dict[Layout, Callable[[Path], None]] = {
    Layout.DAVIS: write_davis,
    Layout.MOSE: write_mose,
    Layout.SAV: write_sav,
    Layout.PLAIN: write_plain,
}


def only(clips: list[Clip]) -> Clip:
    assert len(clips) == 1
    return clips[0]


@pytest.mark.parametrize("layout", Layout)
def test_a_layout_is_found_and_can_be_named(tmp_path: Path, layout: Layout) -> None:
    WRITERS[layout](tmp_path)
    found, named = open_dataset(tmp_path), open_dataset(tmp_path, layout=layout.value)
    assert [c.name for c in found] == [c.name for c in named] == sorted(c.name for c in found)
    for a, b in zip(found, named, strict=True):
        assert (a.annotated, a.first, len(a.frames)) == (b.annotated, b.first, len(b.frames))


def test_davis(tmp_path: Path) -> None:
    write_davis(tmp_path)
    ant, bear = open_dataset(tmp_path)
    assert (ant.name, bear.name) == ("ant", "bear")
    assert (len(ant.frames), len(bear.frames)) == (2, 3)
    assert bear.annotated == (0, 1, 2)
    assert bear.first == {1: 0, 2: 1}
    assert bear.ids == (1, 2)
    for t, frame in enumerate(bear.frames):
        assert frame.shape == (*SIZE, 3)
        assert frame.dtype == np.uint8
        assert abs(int(frame[0, 0, 0]) - (10 * t + 5)) <= 1  # JPEG
    masks = bear.masks(2)
    assert set(masks) == {1, 2}
    for i, mask in masks.items():
        np.testing.assert_array_equal(mask, truth(1, 2) == i)
    assert set(bear.masks(0)) == {1}


def test_mose_annotates_frames_by_number(tmp_path: Path) -> None:
    """Frames 0, 5, 10 have indices 0, 1, 2; only the first is annotated, with an id that is not 1."""
    write_mose(tmp_path)
    palette(tmp_path / "Annotations/0a/00010.png", truth(3, 5))
    clip = only(open_dataset(tmp_path))
    assert clip.annotated == (0, 2)
    assert clip.first == {3: 0, 5: 2}
    np.testing.assert_array_equal(clip.masks(2)[5], truth(5) == 5)


def test_sav_has_a_folder_per_object(tmp_path: Path) -> None:
    """Folder 000 is object 1, because trackers take positive ids; an object that does not show yet begins later."""
    write_sav(tmp_path)
    clip = only(open_dataset(tmp_path))
    assert len(clip.frames) == 9
    assert clip.annotated == (0, 4, 8)
    assert clip.first == {1: 0, 2: 4}
    assert set(clip.masks(0)) == {1}
    np.testing.assert_array_equal(clip.masks(4)[1], truth(2) == 2)
    np.testing.assert_array_equal(clip.masks(8)[2], truth(4) == 4)


def test_plain_folders_are_lossless(tmp_path: Path) -> None:
    write_plain(tmp_path)
    clip = only(open_dataset(tmp_path))
    assert clip.first == {1: 0}
    assert [int(f[3, 3, 1]) for f in clip.frames] == [100, 101]


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    """Broken files are met when they are read, and named then."""
    write_davis(tmp_path)
    (tmp_path / "JPEGImages/480p/bear/00001.jpg").write_bytes(b"no picture")
    (tmp_path / "Annotations/480p/bear/00002.png").write_bytes(b"no picture")
    _, bear = open_dataset(tmp_path)
    assert bear.frames[0].shape == (*SIZE, 3)
    assert isinstance(bear.frames[1:], PictureFrames)
    with pytest.raises(VideoError, match=r"readable picture, got .*00001\.jpg"):
        bear.frames[1]
    with pytest.raises(VideoError, match=r"readable PNG mask, got .*00002\.png"):
        bear.masks(2)


def test_videos_can_be_chosen(tmp_path: Path) -> None:
    write_davis(tmp_path)
    assert only(open_dataset(tmp_path, videos=["bear"])).name == "bear"
    with pytest.raises(VideoError, match=r"videos of .*'ant', 'bear'.*got 'bee'"):
        open_dataset(tmp_path, videos=["bear", "bee"])


def test_clips_of_arrays() -> None:
    ids = np.stack([truth(1), truth(1, 2)])
    clip = Clip.of_arrays("drawn", np.zeros((2, *SIZE, 3), np.uint8), ids, ["red star", "blue bar"])
    assert clip.first == {1: 0, 2: 1}
    assert clip.expressions == {1: ("red star",), 2: ("blue bar",)}
    np.testing.assert_array_equal(clip.masks(1)[2], ids[1] == 2)
    with pytest.raises(VideoError, match=r"an annotated frame of drawn \(2 of 2\), got 2"):
        clip.masks(2)


def expressions(*entries: tuple[str, object]) -> dict[str, object]:
    return {"videos": {"bear": {"expressions": {str(k): {"exp": text, "obj_id": i} for k, (text, i) in enumerate(entries)}}}}


def test_expressions_in_the_forms_in_use(tmp_path: Path) -> None:
    """Ref-DAVIS and Ref-YouTube-VOS write digits, MeViS lists; a text about two objects describes neither."""
    write_davis(tmp_path)
    file = tmp_path / "meta_expressions.json"
    file.write_text(json.dumps(expressions(("a brown bear ", "1"), ("the stone", 2), ("the bear", [1]), ("both", [1, 2]))))
    assert read_expressions(file) == {"bear": {1: ("a brown bear", "the bear"), 2: ("the stone",)}}
    ant, bear = open_dataset(tmp_path, expressions=file)
    assert ant.expressions == {}
    assert bear.expressions == {1: ("a brown bear", "the bear"), 2: ("the stone",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a readable JSON file of texts"),
        ('{"clips": {}}', "at videos of .*KeyError"),
        (json.dumps(expressions(("a bear", "one"))), r"at videos\.bear\.expressions\.0 of .*ValueError"),
        ('{"videos": {"bear": {"expressions": {"0": {"exp": "a bear"}}}}}', r"at videos\.bear\.expressions\.0 of .*obj_id"),
        ('{"videos": {"cat": {"expressions": {"0": {"exp": "a cat", "obj_id": 1}}}}}', r"texts for videos of .*got texts of others.*cat"),
    ],
)
def test_expressions_that_do_not_fit_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write_davis(tmp_path)
    file = tmp_path / "texts.json"
    file.write_text(content)
    with pytest.raises(VideoError, match=message):
        open_dataset(tmp_path, expressions=file)


def _wrong_size(root: Path) -> None:
    palette(root / "Annotations/480p/bear/00001.png", np.ones((4, 4), np.uint8))


def _colours(root: Path) -> None:
    picture(root / "Annotations/480p/bear/00001.png", 3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(_wrong_size, r"height and width \[12, 16\], got \[4, 4\]"), (_colours, r"palette PNG .*got mode RGB in .*00001\.png")],
)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    write_davis(tmp_path)
    spoil(tmp_path)
    bear = open_dataset(tmp_path)[1]
    with pytest.raises(VideoError, match=message):
        bear.masks(1)
    with pytest.raises(VideoError, match=message):
        _ = bear.first


def _no_annotation(root: Path) -> None:
    write_davis(root)
    picture(root / "JPEGImages/480p/cat/00000.jpg", 1)


def _empty_annotation(root: Path) -> None:
    _no_annotation(root)
    (root / "Annotations/480p/cat").mkdir()


def _annotation_without_frame(root: Path) -> None:
    write_davis(root)
    palette(root / "Annotations/480p/bear/00007.png", truth(1))


def _named_by_words(root: Path) -> None:
    write_davis(root)
    picture(root / "JPEGImages/480p/bear/last.jpg", 1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: picture(root / "frames/0.jpg", 1), r"JPEGImages/480p \(DAVIS\).*got a folder with \['frames'\]"),
        (_no_annotation, "annotations of video cat in .*got none"),
        (_empty_annotation, "PNG annotations in .*cat, got none"),
        (_annotation_without_frame, r"a frame 7 in .*got frames 0 to 2, 3 of them"),
        (_named_by_words, r"frame numbers, such as 00000\.jpg, got .*last\.jpg"),
    ],
)
def test_a_wrong_root_is_refused(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path)
    with pytest.raises(VideoError, match=message):
        open_dataset(tmp_path)


def test_a_missing_root_or_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"the folder of a data set, got .*nowhere, which is no folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(VideoError, match=r"a layout of \['davis', 'mose', 'sa-v', 'plain'\], got 'coco'"):
        open_dataset(tmp_path, layout="coco")
    with pytest.raises(VideoError, match=r"videos in .*JPEGImages, got none"):
        open_dataset(tmp_path, layout="mose")
