"""The folders that servers and evaluators read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2.benchmarks.protocols import PROTOCOLS
from fastsam2.benchmarks.submission import PARTIAL, new_video, object_label, video_folder
from fastsam2.enums import Dataset
from fastsam2.errors import VideoError
from fastsam2.runtime.overlay import PALETTE

IDS = np.zeros((6, 8), np.uint8)
IDS[1:3, 2:5], IDS[4:, :] = 1, 255
MASKS: dict[int, npt.NDArray[np.bool_]] = {1: IDS == 1, 3: np.ones((6, 8), np.bool_)}


def files_in(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*.png"))


@pytest.mark.parametrize(
    ("dataset", "wanted"),
    [
        ("davis", ["bear/00000.png", "bear/00001.png"]),
        ("mose", ["bear/00000.png", "bear/00001.png"]),
        ("folder", ["bear/00000.png", "bear/00001.png"]),
        ("ytvos", ["Annotations/bear/00000.png", "Annotations/bear/00001.png"]),
        ("lvos", ["Annotations/bear/00000.png", "Annotations/bear/00001.png"]),
        ("sav", ["bear/000/00000.png", "bear/000/00001.png", "bear/002/00000.png", "bear/002/00001.png"]),
    ],
)
def test_layout_of_each_benchmark(tmp_path: Path, dataset: str, wanted: list[str]) -> None:
    protocol = PROTOCOLS[Dataset(dataset)]
    with new_video(tmp_path, protocol, "bear") as masks:
        for name in ("00000", "00001"):
            masks.write(name, MASKS, IDS)
            assert not video_folder(tmp_path, protocol, "bear").exists(), "a video appears as a whole"
    assert files_in(tmp_path) == wanted
    for file in map(tmp_path.joinpath, wanted):
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("P", (8, 6))
            palette = image.getpalette() or []
            assert palette[3:6] == PALETTE[1].tolist() == [128, 0, 0], "of DAVIS"
            pixels = np.asarray(image)
        own = MASKS[int(file.parent.name) + 1].astype(np.uint8) if protocol.separate else IDS
        np.testing.assert_array_equal(pixels, own)


def test_a_video_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    protocol = PROTOCOLS[Dataset.DAVIS]
    with new_video(tmp_path, protocol, "bear") as masks:
        masks.write("00000", MASKS, IDS)
    with pytest.raises(ZeroDivisionError), new_video(tmp_path, protocol, "bear") as masks:
        masks.write("00009", MASKS, IDS)
        _ = 1 / 0
    assert files_in(tmp_path) == ["bear/00000.png"]
    with new_video(tmp_path, protocol, "bear") as masks:
        masks.write("00007", MASKS, IDS)
    assert files_in(tmp_path) == ["bear/00007.png"], "the new one replaces it"
    assert not list((tmp_path / PARTIAL).iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoError, match="a folder that can be written at"), new_video(tmp_path / "file", PROTOCOLS[Dataset.MOSE], "bear"):
        pass


def test_objects_have_the_names_of_the_benchmark() -> None:
    assert [object_label(i, separate=True) for i in (1, 12)] == ["000", "011"]
    assert [object_label(i, separate=False) for i in (1, 12)] == ["1", "12"]
