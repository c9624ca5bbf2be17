"""fastsam2.runtime.clip. Oracle of order and pixels: facebookresearch/sam2 `load_video_frames`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sam2.utils.misc import load_video_frames

from fastsam2.errors import PromptError, VideoError
from fastsam2.runtime.clip import ClipFrames, load_clip
from tests.parity.clips import Clip, make_clip
from tests.videos import write_video

SIZE = 64


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip("loading", 5, frames=12)


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    return clip.write_official(tmp_path / "clip")


def pixels(frames: ClipFrames) -> np.ndarray[Any, Any]:
    return np.concatenate([frames[i] for i in range(len(frames))])


def test_folder_gives_the_official_pixels_in_the_official_order(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"{int(file.stem)}{'.JPEG' if int(file.stem) % 2 else '.jpg'}")  # 10.jpg sorts before 2.jpg by name
    (folder / "notes.txt").write_text("not a frame")
    (folder / "0.png").write_bytes((folder / "0.jpg").read_bytes())
    official, height, width = load_video_frames(str(folder), SIZE, True, img_mean=(0, 0, 0), img_std=(1, 1, 1))
    ours = load_clip(folder, SIZE)
    assert ours.size == (height, width) == (240, 320)
    assert np.array_equal(pixels(ours), torch.round(official * 255).numpy().astype(np.uint8))


def test_exif_rotation_is_ignored_as_officially(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "0.jpg", exif=exif)
    assert load_clip(str(tmp_path), SIZE).size == load_video_frames(str(tmp_path), SIZE, True)[1:] == (20, 40)


def test_array_list_and_background_loading_give_the_same(folder: Path, clip: Clip) -> None:
    wanted = pixels(load_clip(folder, SIZE))
    assert np.array_equal(pixels(load_clip(clip.frames, SIZE)), wanted)
    assert np.array_equal(pixels(load_clip(list(clip.frames), SIZE)), wanted)
    loading = load_clip(folder, SIZE, background=True)
    assert np.array_equal(loading[11], wanted[11:])
    assert np.array_equal(pixels(loading), wanted)


def test_video_file(clip: Clip, tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", list(clip.frames[:4]))
    frames = load_clip(str(file), SIZE)
    assert (len(frames), frames.size) == (4, (240, 320))
    assert np.abs(pixels(frames).astype(int) - pixels(load_clip(clip.frames[:4], SIZE))).mean() < 20


def test_a_frame_that_the_background_cannot_read_is_reported_by_any_later_one(folder: Path) -> None:
    (folder / "00007.jpg").write_bytes(b"no picture")
    frames = load_clip(folder, SIZE, background=True)
    deadline = time.monotonic() + 20
    with pytest.raises(VideoError, match=r"00007\.jpg"):
        while time.monotonic() < deadline:
            _ = frames[0]
    with pytest.raises(VideoError, match=r"00007\.jpg"):
        _ = frames[11]
    with pytest.raises(VideoError, match=r"00007\.jpg"):
        load_clip(folder, SIZE)


def test_frames_of_another_size_are_refused(folder: Path, clip: Clip) -> None:
    Image.new("RGB", (30, 20)).save(folder / "00003.jpg")
    with pytest.raises(VideoError, match="expected frames of 320x240 pixels as the first one, got 30x20 at frame 3"):
        load_clip(folder, SIZE)
    with pytest.raises(VideoError, match="30x20 at frame 1"):
        load_clip([clip.frames[0], np.zeros((20, 30, 3), np.uint8)], SIZE)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="which does not exist"):
        load_clip(str(tmp_path / "missing"), SIZE)
    with pytest.raises(VideoError, match=r"JPEG files .* got none\. Extract them: ffmpeg"):
        load_clip(str(tmp_path), SIZE)
    Image.new("RGB", (30, 20)).save(tmp_path / "first.jpg")
    with pytest.raises(VideoError, match="named by frame number"):
        load_clip(str(tmp_path), SIZE)
    for wrong in (b"bytes", 3, None, np.zeros((4, 4), np.uint8)):
        with pytest.raises(VideoError, match="expected a folder of JPEG frames, a video file, or RGB frames"):
            load_clip(wrong, SIZE)
    with pytest.raises(VideoError, match="at least one frame"):
        load_clip([], SIZE)
    with pytest.raises(PromptError, match="uint8"):
        load_clip(np.zeros((2, 4, 4, 3), np.float32), SIZE)
