"""Files a run leaves behind, mask prompts and overlay pictures."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2.errors import PromptError, VideoError
from fastsam2.runtime.outputs import RunWriter, load_mask, mask_from_counts
from fastsam2.runtime.overlay import PALETTE, draw_overlay, palette_index
from fastsam2.runtime.result import Result

SIZE = (36, 50)


def make_result(
    masks: Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_],
    ids: tuple[int, ...],
    *,
    frame: int = 0,
    visible: Sequence[bool] | None = None,
) -> Result:
    count = len(ids)
    return Result(
        frame=frame,
        ids=ids,
        masks=np.array(masks, dtype=bool).reshape(count, *np.shape(masks)[1:]),
        visible=np.ones(count, bool) if visible is None else np.array(visible),
        scores=np.linspace(1.5, 2.5, count, dtype=np.float32),
        ious=np.ones(count, np.float32),
        low_res_logits=np.zeros((count, 4, 4), np.float32),
    )


def box(rows: slice, columns: slice, size: tuple[int, int] = SIZE) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


LEFT, RIGHT = box(slice(4, 30), slice(2, 30)), box(slice(10, 34), slice(20, 48))
FRAME = np.full((*SIZE, 3), 90, np.uint8)


def write_run(out: Path, *, count: int = 3, ids: tuple[int, ...] = (2, 1), **options: Any) -> None:
    writer = RunWriter(out, **{"size": SIZE, "fps": 10.0, "separate": False, "rle": True, **options})
    for i in range(count):
        writer.write(FRAME, make_result([LEFT, RIGHT], ids, frame=i))
    writer.finish({"model": "nano"})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_palette_masks_and_layout(tmp_path: Path) -> None:
    write_run(tmp_path / "new" / "run")
    assert list(tree(tmp_path / "new" / "run")) == [
        "masks/00000.png",
        "masks/00001.png",
        "masks/00002.png",
        "masks.json",
        "overlay.mp4",
        "run.json",
    ]
    with Image.open(tmp_path / "new" / "run" / "masks" / "00002.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == PALETTE.ravel().tolist()
        index = np.asarray(image)
    np.testing.assert_array_equal(index, np.where(RIGHT, 1, np.where(LEFT, 2, 0)))  # id 1 wins, although it was added second


def test_frames_are_numbered_by_the_result(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=False, overlay=False)
    writer.write(FRAME, make_result([LEFT], (255,), frame=41))
    writer.finish({})
    assert list(tree(tmp_path)) == ["masks/00041.png", "run.json"]


@pytest.mark.parametrize("strange", [0, 256, -1])
def test_ids_that_no_palette_holds_are_refused_before_anything_is_written(tmp_path: Path, strange: int) -> None:
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=False, overlay=False)
    with pytest.raises(PromptError, match=rf"ids in 1..255 .*\[{strange}\].*--separate"):
        writer.write(FRAME, make_result([LEFT, RIGHT], (1, strange)))
    assert tree(tmp_path) == {}


def test_separate_masks_keep_overlaps_and_any_id(tmp_path: Path) -> None:
    write_run(tmp_path, ids=(300, 7), count=2, separate=True, rle=False, overlay=False)
    assert list(tree(tmp_path)) == ["masks/007/00000.png", "masks/007/00001.png", "masks/300/00000.png", "masks/300/00001.png", "run.json"]
    for object_id, mask in ((300, LEFT), (7, RIGHT)):
        with Image.open(tmp_path / "masks" / f"{object_id:03d}" / "00001.png") as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), mask * 255)


def test_masks_json(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True, overlay=False)
    writer.write(FRAME, make_result([LEFT, RIGHT], (3, 9), frame=0))
    writer.write(FRAME, make_result([LEFT, np.zeros(SIZE, bool)], (3, 9), frame=1, visible=[True, False]))
    writer.finish({})
    entries = json.loads((tmp_path / "masks.json").read_text())
    assert [(e["frame"], e["id"], e["visible"], e["score"]) for e in entries] == [
        (0, 3, True, 1.5),
        (0, 9, True, 2.5),
        (1, 3, True, 1.5),
        (1, 9, False, 2.5),
    ]
    assert all(list(e) == ["frame", "id", "size", "counts", "score", "visible"] and e["size"] == list(SIZE) for e in entries)
    for entry, mask in zip(entries, [LEFT, RIGHT, LEFT, np.zeros(SIZE, bool)], strict=True):
        np.testing.assert_array_equal(mask_from_counts(entry["counts"], SIZE), mask)


def test_masks_json_of_a_run_without_objects_is_an_empty_list(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True)
    writer.write(FRAME, make_result(np.zeros((0, *SIZE), bool), ()))
    writer.finish({})
    assert json.loads((tmp_path / "masks.json").read_text()) == []


@pytest.mark.parametrize("libx264", [True, False])
@pytest.mark.parametrize("size", [(36, 50), (35, 49)])
def test_overlay_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], libx264: bool) -> None:
    if libx264 and "libx264" not in av.codecs_available:
        pytest.skip("PyAV without libx264")
    if not libx264:
        monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    writer = RunWriter(tmp_path, size=size, fps=30000 / 1001, separate=False, rle=False)
    mask = box(slice(8, 28), slice(8, 40), size)
    for i in range(5):
        writer.write(np.full((*size, 3), 90, np.uint8), make_result([mask], (2,), frame=i))
    writer.finish({})
    facts = json.loads((tmp_path / "run.json").read_text())["outputs"]["overlay"]
    assert facts == {"codec": "libx264" if libx264 else "mpeg4", "fps": 30000 / 1001, "size": [36, 50]}
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264" if libx264 else "mpeg4", "yuv420p")
        assert (stream.height, stream.width, float(stream.average_rate or 0)) == (36, 50, 30000 / 1001)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 5
    np.testing.assert_allclose(frames[-1][14:24, 12:36].reshape(-1, 3).mean(0), [45, 109, 45], atol=8)  # half grey 90, half green 128
    np.testing.assert_allclose(frames[-1][30:, :].reshape(-1, 3).mean(0), 90, atol=8)


def test_run_json_says_what_was_written(tmp_path: Path) -> None:
    write_run(tmp_path, fps=None)
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "model": "nano",
        "outputs": {
            "frames": 3,
            "masks": "palette",
            "rle": True,
            "overlay": {"codec": "libx264" if "libx264" in av.codecs_available else "mpeg4", "fps": 25.0, "size": [36, 50]},
            "tokens": None,
        },
    }


def test_nothing_appears_before_finish(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True)
    writer.write(FRAME, make_result([LEFT], (1,)))
    assert [path.name for path in tmp_path.iterdir()] == [".partial"]
    writer.finish({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "masks.json", "overlay.mp4", "run.json"]


def test_a_later_run_replaces_only_what_runs_own(tmp_path: Path) -> None:
    write_run(tmp_path, count=3)
    (tmp_path / "notes.txt").write_text("mine")
    write_run(tmp_path, count=1, separate=True, rle=False, overlay=False)
    assert list(tree(tmp_path)) == ["masks/001/00000.png", "masks/002/00000.png", "notes.txt", "run.json"]


def test_abort_leaves_the_earlier_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = tree(tmp_path)
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True)
    writer.write(FRAME, make_result([RIGHT], (1,)))
    writer.abort()
    assert tree(tmp_path) == before
    assert not (tmp_path / ".partial").exists()


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True).write(FRAME, make_result([LEFT], (1,), frame=77))
    write_run(tmp_path, count=1)
    assert list(tree(tmp_path)) == ["masks/00000.png", "masks.json", "overlay.mp4", "run.json"]


def test_a_folder_with_somebody_elses_masks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "truth.png").write_bytes(b"precious")
    with pytest.raises(VideoError, match=r"earlier run's run.json, got .*\['masks'\]. Choose another folder"):
        RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=False)
    assert tree(tmp_path) == {"masks/truth.png": b"precious"}


def test_a_failed_move_puts_the_earlier_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    before = tree(tmp_path)
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=True, rle=True)
    writer.write(FRAME, make_result([RIGHT], (1,)))
    move = os.replace

    def failing(source: Path, target: Path) -> None:
        if target == tmp_path / "overlay.mp4" and source.parent.name == ".partial":
            raise OSError(errno.EIO, "I/O error")
        move(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(VideoError, match="I/O error"):
        writer.finish({})
    writer.abort()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("moves", range(8))
def test_an_earlier_run_survives_whatever_stops_the_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """Four files go, four come. After Ctrl-C `abort` puts back what went; after a kill the next run does."""
    write_run(tmp_path)
    before = tree(tmp_path)
    move = os.replace
    for killed in (False, True):
        writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True)
        writer.write(FRAME, make_result([RIGHT], (1,)))
        left = moves

        def stopping(source: Path, target: Path) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            move(source, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", stopping)
            writer.finish({})
        if killed:
            writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True)
            assert {name: data for name, data in tree(tmp_path).items() if not name.startswith(".partial")} == before
        writer.abort()
        assert tree(tmp_path) == before


def test_finish_without_frames_is_refused(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True)
    with pytest.raises(VideoError, match="at least one written frame"):
        writer.finish({})
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(VideoError, match="a folder that can be written"):
            RunWriter(out, size=SIZE, fps=None, separate=False, rle=False)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    before = tree(tmp_path)
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=True)

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", no_space)
        with pytest.raises(VideoError, match=r"No space left on device. Free some space"):
            writer.write(FRAME, make_result([LEFT], (1,)))
    writer.abort()
    assert tree(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_under_the_overlay(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=False)
    (tmp_path / ".partial" / "overlay.mp4").symlink_to("/dev/full")
    with pytest.raises(VideoError, match="No space left"):
        for i in range(3):
            writer.write(FRAME, make_result([LEFT], (1,), frame=i))
        writer.finish({})
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_sizes_must_agree(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, size=SIZE, fps=None, separate=False, rle=False)
    with pytest.raises(VideoError, match=r"height and width \[36, 50\], got frame \[50, 36, 3\]"):
        writer.write(np.zeros((50, 36, 3), np.uint8), make_result([LEFT], (1,)))
    with pytest.raises(VideoError, match=r"masks \[1, 4, 5\]"):
        writer.write(FRAME, make_result([np.ones((4, 5), bool)], (1,)))


def save_mask(path: Path, mode: str) -> npt.NDArray[np.bool_]:
    mask = box(slice(2, 5), slice(1, 7), (8, 10))
    if mode == "P":
        image = Image.fromarray(mask.astype(np.uint8) * np.uint8(3))
        image.putpalette([0, 0, 0] * 256)  # the index counts, not the colour
    elif mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * np.uint16(256))
    elif mode in ("RGB", "RGBA"):
        image = Image.fromarray(np.stack([np.zeros_like(mask), mask, np.zeros_like(mask)], axis=2).astype(np.uint8)).convert(mode)
    else:
        image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).convert(mode)
    image.save(path)
    return mask


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA"])
def test_load_mask(tmp_path: Path, mode: str) -> None:
    mask = save_mask(tmp_path / "m.png", mode)
    loaded = load_mask(tmp_path / "m.png")
    assert loaded.dtype == bool
    np.testing.assert_array_equal(loaded, mask)


def test_masks_that_are_not_masks(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    with pytest.raises(PromptError, match=r"a readable PNG mask, got .*No such file"):
        load_mask(path)
    path.write_text("text")
    with pytest.raises(PromptError, match=r"a readable PNG mask, got .*identify"):
        load_mask(path)
    save_mask(path, "L")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PromptError, match="a readable PNG mask"):
        load_mask(path)
    Image.new("L", (10, 8)).save(path, format="JPEG")
    with pytest.raises(PromptError, match="a PNG mask, got JPEG"):
        load_mask(path)
    Image.new("RGBA", (10, 8), (255, 255, 255, 0)).save(path)
    with pytest.raises(PromptError, match="transparent"):
        load_mask(path)


def test_palette_is_davis() -> None:
    assert PALETTE.dtype == np.uint8
    assert PALETTE.shape == (256, 3)
    known = "000000 800000 008000 808000 000080 800080 008080 808080 400000 c00000 408000 c08000 400080 c00080 408080 c08080 004000"
    assert [bytes(colour).hex() for colour in PALETTE[:17]] == known.split()
    assert len({bytes(colour) for colour in PALETTE}) == 256


def test_palette_index_never_takes_the_background() -> None:
    assert [palette_index(i) for i in (1, 255, 256, 0, 510, 511)] == [1, 255, 1, 255, 255, 1]


def test_overlay_colours() -> None:
    size = (120, 160)
    frame = np.full((*size, 3), 100, np.uint8)
    left, right = box(slice(30, 110), slice(10, 90), size), box(slice(30, 110), slice(60, 150), size)
    picture = draw_overlay(frame, make_result([left, right], (4, 2)), alpha=0.5)
    assert (frame == 100).all()
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[70, 5], [100, 100, 100])
    np.testing.assert_allclose(picture[70, 30], [50, 50, 114], atol=1)  # id 4 is (0, 0, 128)
    np.testing.assert_allclose(picture[70, 120], [50, 114, 50], atol=1)  # id 2 is (0, 128, 0)
    np.testing.assert_allclose(picture[70, 75], [50, 114, 50], atol=1)  # both: the lowest id is on top
    np.testing.assert_array_equal(picture[70, 10], [0, 0, 128])  # outlines are opaque,
    np.testing.assert_array_equal(picture[70, 89], [0, 0, 128])  # also below another object
    plate = picture[15:30, 60:150]  # over the middle of the right object's top
    assert (plate == [0, 128, 0]).all(axis=2).sum() > 20
    assert (plate.min(axis=2) > 200).any()  # the id's white ink


def test_overlay_alpha() -> None:
    mask = box(slice(10, 90), slice(10, 90), (100, 100))
    frame = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    inner = (slice(30, 85), slice(15, 85))
    np.testing.assert_array_equal(draw_overlay(frame, make_result([mask], (1,)), alpha=0.0)[inner], frame[inner])
    assert (draw_overlay(frame, make_result([mask], (1,)), alpha=1.0)[inner] == [128, 0, 0]).all()
    with pytest.raises(PromptError, match=r"alpha in 0..1, got 2"):
        draw_overlay(frame, make_result([mask], (1,)), alpha=2)


def test_overlay_leaves_out_what_is_invisible_or_empty() -> None:
    result = make_result([LEFT, np.zeros(SIZE, bool)], (1, 2), visible=[False, True])
    picture = draw_overlay(FRAME, result)
    np.testing.assert_array_equal(picture, FRAME)
    assert not np.shares_memory(picture, FRAME)


@pytest.mark.parametrize(
    "where", [(slice(0, 1), slice(0, 1)), (slice(None), slice(None)), (slice(35, 36), slice(49, 50)), (slice(0, 1), slice(None))]
)
def test_overlay_at_the_edges(where: tuple[slice, slice]) -> None:
    picture = draw_overlay(FRAME, make_result([box(*where)], (123456,)))
    assert picture.shape == FRAME.shape
    assert not np.array_equal(picture, FRAME)


def test_overlay_refuses_another_size() -> None:
    with pytest.raises(PromptError, match=r"got uint8 \[4, 5, 3\] and masks \[1, 36, 50\]"):
        draw_overlay(np.zeros((4, 5, 3), np.uint8), make_result([LEFT], (1,)))


def test_overlay_is_fast_at_720p() -> None:
    size = (720, 1280)
    y, x = np.mgrid[: size[0], : size[1]]
    blobs = [((y - 350) / 250) ** 2 + ((x - 200 - 290 * i) / 240) ** 2 < 1 for i in range(4)]
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    result = make_result(blobs, (1, 2, 3, 4))
    seconds = []
    for _ in range(7):
        start = time.thread_time()  # the thread's own time: other programs on the machine do not count
        draw_overlay(frame, result)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.03
