"""Splits of benchmarks, on miniature folders in their layouts. Oracle: what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam2.benchmarks.protocols import PROTOCOLS, Counted, Lifetime, counted, prompts
from fastsam2.benchmarks.splits import Split, open_split
from fastsam2.enums import Dataset
from fastsam2.errors import VideoError
from tests import eval_folders as folders


def frames_of(split: Split, video: str) -> dict[int, tuple[int, ...]]:
    clip = split.clip(video)
    return counted(split.protocol, clip, prompts(split.protocol, clip), split.lifetimes.get(video))


def test_davis(tmp_path: Path) -> None:
    truth = folders.write_davis(tmp_path)
    split = open_split("davis", tmp_path)
    assert (split.name, split.videos, split.private) == ("val", ("bear", "ant"), False), "the list's videos, in its order"
    clip = split.clip("bear")
    assert prompts(split.protocol, clip) == {1: 0, 2: 0}
    assert frames_of(split, "bear") == {1: (1, 2, 3), 2: (1, 2, 3)}, "neither the first nor the last"
    assert split.written(clip) == (0, 1, 2, 3, 4)
    np.testing.assert_array_equal(clip.masks(3)[2], truth["bear"][3] == 2)


def test_davis_test_dev_is_private(tmp_path: Path) -> None:
    folders.write_davis(tmp_path, "test-dev")
    split = open_split("davis", tmp_path, "test-dev")
    assert split.private and split.clip("ant").annotated == (0,)
    with pytest.raises(VideoError, match=r"ImageSets/2017/val\.txt, got no such file.*A root of davis holds ImageSets/2017/val\.txt"):
        open_split("davis", tmp_path)


@pytest.mark.parametrize("at_the_top", [False, True])
def test_sav(tmp_path: Path, at_the_top: bool) -> None:
    folders.write_sav(tmp_path)
    split = open_split("sav", tmp_path / "sav_val" if at_the_top else tmp_path)
    clip = split.clip("sav_000001")
    assert (split.videos, len(clip.frames), clip.annotated) == (("sav_000001",), 14, (0, 4, 8, 12))
    assert prompts(split.protocol, clip) == {1: 0, 2: 0, 3: 8}, "folders 000, 001, 002; the last is first seen on an annotated frame"
    assert frames_of(split, "sav_000001") == dict.fromkeys((1, 2, 3), (4, 8))
    assert split.written(clip) == clip.annotated
    assert (clip.masks(0)[1] & clip.masks(0)[2]).any(), "masks may overlap"


def test_sav_first_and_last_are_those_of_the_objects_own_folder(tmp_path: Path) -> None:
    """As the official evaluator lists the files of each object."""
    folders.write_sav(tmp_path)
    (tmp_path / "sav_val/Annotations_6fps/sav_000001/000/00000.png").unlink()
    split = open_split("sav", tmp_path)
    assert prompts(split.protocol, split.clip("sav_000001"))[1] == 4
    assert frames_of(split, "sav_000001") == {1: (8,), 2: (4, 8), 3: (4, 8)}


@pytest.mark.parametrize(("split", "private"), [("valid", True), ("train", False)])
def test_mose(tmp_path: Path, split: str, private: bool) -> None:
    folders.write_mose(tmp_path, split)
    found = open_split("mose", tmp_path, split)
    assert (found.private, found.videos) == (private, ("0a1b2c3d", "9f8e7d6c"))
    clip = found.clip("9f8e7d6c")
    assert prompts(found.protocol, clip) == {1: 0}, "the object that comes later is not part of the task"
    if not private:
        assert frames_of(found, "9f8e7d6c") == {1: (1, 2)}
    assert found.written(clip) == (0, 1, 2, 3)


@pytest.mark.parametrize("folder", ["val", "valid"])
def test_lvos(tmp_path: Path, folder: str) -> None:
    folders.write_lvos(tmp_path, folder=folder)
    split = open_split("lvos", tmp_path)
    clip = split.clip("abCD1234")
    assert clip.frame_names[:2] == ("00000001", "00000006")
    assert prompts(split.protocol, clip) == {1: 0, 2: 2}
    assert frames_of(split, "abCD1234") == {1: (1, 2, 3, 4, 5), 2: (3, 4)}, "strictly between first and last of each"
    assert split.unseen is None
    (tmp_path / folder / "unseen_videos.txt").write_text("R3UJGYwy\nK3OUeINk\n")
    assert open_split("lvos", tmp_path / folder).unseen == {"R3UJGYwy", "K3OUeINk"}


def test_lvos_test_has_only_prompts(tmp_path: Path) -> None:
    folders.write_lvos(tmp_path, "test")
    split = open_split("lvos", tmp_path, "test")
    assert split.private and prompts(split.protocol, split.clip("abCD1234")) == {1: 0, 2: 2}
    assert split.written(split.clip("abCD1234")) == tuple(range(7))


def test_lifetime_counts_as_the_toolkit() -> None:
    """`for ii in range(start, end, 5)` without positions 0 and frame_nums - 1."""
    assert Lifetime(1, 31, 7).inner == (6, 11, 16, 21, 26)
    assert Lifetime(11, 33, 5).inner == (16, 21, 26), "an end off the grid: frame_nums names the last"
    assert Lifetime(1, 6, 2).inner == ()


def test_ytvos_valid(tmp_path: Path) -> None:
    truth = folders.write_ytvos(tmp_path)
    split = open_split("ytvos", tmp_path, "valid")
    clip = split.clip("003234408d")
    assert split.private and clip.annotated == (0, 2)
    assert prompts(split.protocol, clip) == {1: 0, 2: 2}
    assert [clip.frame_names[t] for t in split.written(clip)] == ["00000", "00005", "00010", "00015", "00020"], "frames of meta.json only"
    assert prompts(split.protocol, split.clip("0062f687f1")) == {4: 0}, "ids are colours"
    np.testing.assert_array_equal(clip.masks(2)[2], truth["003234408d"][2] == 2)


@pytest.mark.parametrize("above", ["", "all_frames"])
def test_ytvos_with_all_frames(tmp_path: Path, above: str) -> None:
    """Frames of another folder, masks and meta.json of valid."""
    folders.write_ytvos(tmp_path, all_frames=True)
    if above:
        (tmp_path / above).mkdir()
        (tmp_path / "valid_all_frames").rename(tmp_path / above / "valid_all_frames")
    split = open_split("ytvos", tmp_path, "valid_all_frames")
    clip = split.clip("003234408d")
    assert len(clip.frames) == 30 and prompts(split.protocol, clip) == {1: 0, 2: 10}
    assert split.written(clip) == (0, 5, 10, 15, 20)


def test_ytvos_train_is_scored_after_each_prompt(tmp_path: Path) -> None:
    folders.write_ytvos(tmp_path, "train")
    assert frames_of(open_split("ytvos", tmp_path), "003234408d") == {1: (1, 2, 3, 4, 5), 2: (3, 4, 5)}


def test_plain_folders(tmp_path: Path) -> None:
    folders.write_folder(tmp_path)
    split = open_split("folder", tmp_path)
    assert split.videos == ("one", "two")
    assert frames_of(split, "two") == {1: (1, 2, 3), 2: (2, 3)}


def test_videos_and_texts(tmp_path: Path) -> None:
    folders.write_lvos(tmp_path)
    texts = {"videos": {"R3UJGYwy": {"objects": {"1": {"frame_range": {}, "caption": " a running man"}}}}}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    split = open_split("lvos", tmp_path, videos=["R3UJGYwy"], expressions=tmp_path / "texts.json")
    assert split.videos == ("R3UJGYwy",) and split.clip("R3UJGYwy").expressions == {1: ("a running man",)}
    with pytest.raises(VideoError, match=r"videos of lvos val, such as \['R3UJGYwy', 'abCD1234'\], got 'R3'"):
        open_split("lvos", tmp_path, videos=["R3"])
    with pytest.raises(VideoError, match=r"texts for videos of lvos val.*texts of others"):
        open_split("lvos", tmp_path, videos=["abCD1234"], expressions=tmp_path / "texts.json")


def test_every_protocol_is_complete() -> None:
    assert set(PROTOCOLS) == set(Dataset)
    for dataset, protocol in PROTOCOLS.items():
        assert protocol.public and (protocol.counted is Counted.LIFETIME) == (dataset is Dataset.LVOS)
        assert protocol.separate == (dataset is Dataset.SAV)


Write = Callable[[Path], object]


def _without(write: Write, *files: str) -> Write:
    """The data set without these files."""

    def write_rest(root: Path) -> None:
        write(root)
        for file in files:
            (root / file).unlink()

    return write_rest


def _davis_without_frames(root: Path) -> None:
    folders.write_davis(root)
    (root / "JPEGImages").rename(root / "images")


def _davis_without_a_video(root: Path) -> None:
    folders.write_davis(root)
    (root / "ImageSets/2017/val.txt").write_text("bear\nbee\n")


def _davis_of_nothing(root: Path) -> None:
    folders.write_davis(root)
    folders.write_palette(root / "Annotations/480p/bear", {"00000": np.zeros(folders.SIZE, np.uint8)})


def _lvos(change: Callable[[Any], None]) -> Write:
    """LVOS whose meta file was changed: video -> what it says of it."""

    def write(root: Path) -> None:
        folders.write_lvos(root)
        file = root / "val/val_meta.json"
        meta = json.loads(file.read_text())
        change(meta["videos"])
        file.write_text(json.dumps(meta))

    return write


def _ytvos(root: Path) -> None:
    folders.write_ytvos(root, "train")


_davis_without_a_frame = _without(folders.write_davis, "Annotations/480p/bear/00002.png")
_davis_without_the_first = _without(folders.write_davis, "Annotations/480p/bear/00000.png")
_lvos_without_meta = _without(folders.write_lvos, "val/val_meta.json")
_lvos_without_a_frame = _without(folders.write_lvos, "val/Annotations/abCD1234/00000016.png")
_lvos_other_meta = _lvos(lambda videos: videos.pop("R3UJGYwy"))
_lvos_broken_meta = _lvos(lambda videos: videos.update(abCD1234={"objects": {"1": {}}}))
_lvos_without_an_object = _lvos(lambda videos: videos["abCD1234"]["objects"].update({"7": videos["abCD1234"]["objects"]["1"]}))
_ytvos_without_a_frame = _without(_ytvos, "train/JPEGImages/003234408d/00010.jpg", "train/Annotations/003234408d/00010.png")


def _nothing(root: Path) -> None:
    (root / "JPEGImages").mkdir()


@pytest.mark.parametrize(
    ("dataset", "write", "message"),
    [
        ("davis", _nothing, r"ImageSets/2017/val\.txt, got no such file or folder\. A root of davis holds ImageSets/2017/val\.txt, JPEG"),
        ("davis", _davis_without_frames, r"JPEGImages/480p, got no such file or folder\. A root of davis"),
        ("davis", _davis_without_a_video, r"the folder .*JPEGImages/480p/bee of video bee, got none"),
        ("davis", _davis_without_a_frame, r"the annotation 00002\.png of bear, got 4 of 5 frames annotated"),
        ("davis", _davis_without_the_first, r"an annotation of the first frame 00000 of bear, got one of frame 00001 first"),
        ("davis", _davis_of_nothing, r"a mask that is not empty to prompt with in bear"),
        ("sav", _nothing, r"sav_val\.txt, got no such file.*Annotations_6fps/<video>/<object>"),
        ("mose", _nothing, r"Annotations, got no such file.*A root of mose holds JPEGImages/<video>"),
        ("lvos", _lvos_without_meta, r"val_meta\.json, got no such file"),
        ("lvos", _lvos_other_meta, r"video R3UJGYwy in .*val_meta\.json, got 1 others"),
        ("lvos", _lvos_broken_meta, r'"frame_range".*at videos\.abCD1234 of .*KeyError'),
        ("lvos", _lvos_without_a_frame, r"the annotation 00000016\.png of abCD1234, got none, though object 1 is scored there"),
        ("lvos", _lvos_without_an_object, r"a mask of object 7 of abCD1234"),
        ("ytvos", _nothing, r"meta\.json, got no such file"),
        ("ytvos", _ytvos_without_a_frame, r"frame 00010 of 003234408d in"),
        ("folder", _nothing, r"videos of folder in .*, got none\. A root of folder holds <video>/frames"),
    ],
)
def test_what_is_not_the_layout_is_refused(tmp_path: Path, dataset: str, write: Write, message: str) -> None:
    write(tmp_path)
    with pytest.raises(VideoError, match=message):
        for video in (split := open_split(dataset, tmp_path)).videos:
            frames_of(split, video)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"a data set of \['davis', 'sav', 'mose', 'lvos', 'ytvos', 'folder'\], got 'coco'"):
        open_split("coco", tmp_path)
    with pytest.raises(VideoError, match=r"a split of \['val', 'train', 'test-dev', 'test-challenge'\], got 'valid'"):
        open_split("davis", tmp_path, "valid")
    with pytest.raises(VideoError, match=r"no split of folder, got 'val'"):
        open_split("folder", tmp_path, "val")
    with pytest.raises(VideoError, match=r"the folder of davis, got .*nowhere, which is no folder\. A root of davis holds ImageSets"):
        open_split("davis", tmp_path / "nowhere")
