"""Decoding, order, rotation and errors of files and folders. Oracle of rotation: OpenCV's own autorotation."""

from __future__ import annotations

import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fastsam2.errors import PromptError, VideoError
from fastsam2.runtime import video
from fastsam2.runtime.video import open_video
from tests.videos import (
    HEIGHT,
    QUARTER_TURNS,
    WIDTH,
    Array,
    corner_names,
    counting,
    level,
    numbers,
    quadrants,
    set_matrix,
    write_video,
)


def test_file_gives_every_frame_in_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", counting(12), fps=20)
    with open_video(str(path)) as source:
        assert (source.size, source.fps, source.frame_count, source.stems) == ((HEIGHT, WIDTH), 20.0, 12, None)
        assert (source.live, source.dropped, source.source) == (False, 0, str(path))
        frames = list(source)
    assert numbers(frames) == list(range(12))
    assert all(f.dtype == np.uint8 and f.shape == (HEIGHT, WIDTH, 3) and f.flags.c_contiguous for f in frames)


def test_max_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", counting(6))
    with open_video(str(path), max_frames=4) as source:
        assert source.frame_count == 4
        assert numbers(source) == [0, 1, 2, 3]
    with open_video(str(path), max_frames=99) as source:
        assert source.frame_count == 6
        assert len(list(source)) == 6
    with pytest.raises(PromptError, match="max_frames"):
        open_video(str(path), max_frames=0)


def test_closed_source_ends(tmp_path: Path) -> None:
    source = open_video(str(write_video(tmp_path / "clip.mp4", counting(6))))
    next(source)
    source.close()
    source.close()
    assert list(source) == []
    assert source.frame_count == 6


@pytest.mark.parametrize(
    ("clockwise", "expected"),
    [
        (0, ["red", "green", "blue", "white"]),
        (90, ["blue", "red", "white", "green"]),
        (180, ["white", "blue", "green", "red"]),
        (270, ["green", "white", "red", "blue"]),
    ],
)
def test_phone_rotation_is_honoured(tmp_path: Path, clockwise: int, expected: list[str]) -> None:
    cv2 = pytest.importorskip("cv2", reason="the oracle of rotation is opencv-python-headless")
    path = set_matrix(write_video(tmp_path / "phone.mp4", [quadrants()] * 3), *QUARTER_TURNS[clockwise])
    with open_video(str(path)) as source:
        assert source.size == ((HEIGHT, WIDTH) if clockwise in (0, 180) else (WIDTH, HEIGHT))
        frames = list(source)
    assert [corner_names(frame) for frame in frames] == [expected] * 3
    assert all(frame.flags.c_contiguous for frame in frames)
    ok, oracle = cv2.VideoCapture(str(path)).read()
    assert ok
    assert corner_names(oracle[:, :, ::-1]) == expected


def test_mirrored_video_is_honoured(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "selfie.mp4", [quadrants()])
    assert corner_names(next(open_video(str(set_matrix(clip, -1, 0, 0, 1))))) == ["green", "red", "white", "blue"]
    assert corner_names(next(open_video(str(set_matrix(clip, 0, -1, -1, 0))))) == ["white", "green", "blue", "red"]


def test_slanted_rotation_is_refused(tmp_path: Path) -> None:
    path = set_matrix(write_video(tmp_path / "slanted.mp4", [quadrants()]), 1, 1, -1, 1)
    with pytest.raises(VideoError, match=r"quarter turns, got -?45"):
        open_video(str(path))


def test_frame_count_is_unknown_without_an_index_and_exact_after_the_end(tmp_path: Path) -> None:
    with open_video(str(write_video(tmp_path / "clip.mkv", counting(7)))) as source:
        assert source.frame_count is None
        assert numbers(source) == list(range(7))
        assert source.frame_count == 7


def test_container_that_lies_about_its_length(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", counting(7), codec="mpeg4")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, 1000)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 1000)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 1000
    with open_video(str(path)) as source:
        assert source.frame_count is None
        assert numbers(source) == list(range(7))


def test_truncated_file_raises_with_the_frame_number(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", counting(20))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    seen: list[Array] = []
    with pytest.raises(VideoError) as caught, open_video(str(path)) as source:
        seen.extend(source)
    assert 3 < len(seen) < 20
    assert f"whole frame {len(seen)} in {path}" in str(caught.value)
    assert f"--frames {len(seen)}, in Python max_frames={len(seen)}." in str(caught.value)
    with open_video(str(path), max_frames=len(seen)) as source:
        assert numbers(source) == list(range(len(seen)))


def uneven_video(path: Path, times: list[float]) -> Path:
    """Pictures at these seconds, in a container without a rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *counting(1)[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for seconds, picture in zip(times, counting(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_times_of_frames(tmp_path: Path) -> None:
    times = [0.5, 0.54, 0.6, 2.0, 2.013]
    with open_video(str(uneven_video(tmp_path / "clip.mkv", times))) as source:
        assert source.time is None
        seen = [source.time for _ in source]
    np.testing.assert_allclose(seen, np.array(times) - 0.5, atol=1e-9)
    with open_video(str(save_counting(tmp_path / "frames", ["0.png", "1.png"]))) as source:
        assert [source.time for _ in source] == [None, None]


def test_a_rate_that_is_only_a_clock_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", counting(2), fps=1000)
    with open_video(str(path)) as source:
        assert source.fps is None


def test_damaged_packet_ends_a_recording_and_is_skipped_live(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", counting(12))
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][5]
        assert packet.pos is not None
        data = bytearray(path.read_bytes())
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    with open_video(str(path)) as source, pytest.raises(VideoError, match=r"whole frame 5 in .*--frames 5, in Python max_frames=5"):
        list(source)
    container = av.open(str(path))
    frames = numbers(frame for frame, _ in video._decoded(container, container.streams.video[0], "camera", live=True))
    assert len(frames) == 11
    assert frames[:5] == [0, 1, 2, 3, 4]


def test_frame_that_the_decoder_calls_corrupt_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    path = write_video(tmp_path / "clip.avi", [np.roll(noise, i, 1) for i in range(20)], codec="mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(VideoError, match=r"whole frame \d+ in .*clip.avi, got a damaged one"), open_video(str(path)) as source:
        list(source)


def broken_source(kind: str, folder: Path) -> str:
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("this is not a video\n" * 200)
    elif kind == "terminal":
        path = folder / "notes.txt"
        path.write_text("this is not a video\n" * 200)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "sound":
        path = folder / "sound.wav"
        with wave.open(str(path), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(16000))
    elif kind == "header":
        data = write_video(path, counting(9)).read_bytes()
        path.write_bytes(data[: data.index(b"mdat") + 12])
    elif kind == "folder":
        path = folder / "frames"
        path.mkdir()
        (path / "readme.txt").write_text("no frames yet")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist. Check the path"),
        ("text", "a readable video at .*Invalid data.* Check that"),
        ("terminal", "a video stream in .*got a tty file without one"),
        ("empty", "a readable video at .* Check that"),
        ("sound", "a video stream in .*got a wav file without one. Give a file with video"),
        ("header", "frame .*header.mp4.* Check that it plays"),
        ("folder", "images .* in .*frames, got none. Give a folder"),
    ],
)
def test_unusable_source_says_what_to_do(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        open_video(broken_source(kind, tmp_path))


def test_unknown_scheme() -> None:
    with pytest.raises(VideoError, match=r"expected a URL of .*rtsp.*, got ftp://host/clip.mp4"):
        open_video("ftp://host/clip.mp4")


def save_counting(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(np.full((8, 10, 3), level(i), np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.jpg", "10.BMP", "0100.webp"],  # by number although "0100" < "1" and "10" < "2"
        ["frame1.png", "frame2.tif", "frame10.png"],  # numbers in names are numbers
        ["a1_9.png", "a1_10.png", "a2.png", "b.png"],
        ["00.png", "1.png", "a.jpeg"],
    ],
)
def test_folder_order(tmp_path: Path, names: list[str]) -> None:
    folder = save_counting(tmp_path / "frames", names)
    (folder / "._1.png").write_bytes(b"metadata of a file system")
    (folder / "notes.txt").write_text("not a frame")
    with open_video(str(folder)) as source:
        assert source.stems == [name.split(".")[0] for name in names]
        assert (source.frame_count, source.fps, source.live, source.size) == (len(names), None, False, (8, 10))
        assert numbers(source) == list(range(len(names)))


def test_folder_with_max_frames(tmp_path: Path) -> None:
    with open_video(str(save_counting(tmp_path / "frames", ["0.png", "1.png", "2.png"])), max_frames=2) as source:
        assert (source.frame_count, source.stems) == (2, ["0", "1"])
        assert numbers(source) == [0, 1]


@pytest.mark.parametrize(("one", "two"), [("01.png", "1.png"), ("a.png", "a.jpg")])
def test_two_files_for_one_frame_are_refused(tmp_path: Path, one: str, two: str) -> None:
    with pytest.raises(VideoError, match=rf"one image per frame, got both .*{one[0]}.*Remove one"):
        open_video(str(save_counting(tmp_path / "frames", [one, two])))


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = save_counting(tmp_path / "frames", ["5.png", "6.png"])
    Image.new("RGB", (10, 9)).save(folder / "7.png")
    with open_video(str(folder)) as source, pytest.raises(VideoError, match=r"frames of 10x8 .* got 10x9 at frame 2 \(7\)"):
        list(source)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_image_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (10, 8), (255, 255, 255)).convert(mode).save(tmp_path / "0.png")
    frame = next(open_video(str(tmp_path)))
    assert frame.shape == (8, 10, 3)
    assert (frame == 255).all()


def test_deep_and_animated_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 10), 40000, np.uint16)).save(tmp_path / "0.png")
    with pytest.raises(VideoError, match="one 8-bit picture per file, got mode I;16"):
        open_video(str(tmp_path))
    (tmp_path / "0.png").unlink()
    Image.new("RGB", (10, 8)).save(tmp_path / "0.tif", save_all=True, append_images=[Image.new("RGB", (10, 8), 1)])
    with pytest.raises(VideoError, match="2 pictures in"):
        open_video(str(tmp_path))


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(quadrants()).save(tmp_path / "0.jpg", exif=exif, quality=95)
    with open_video(str(tmp_path)) as source:
        assert source.size == (WIDTH, HEIGHT)
        assert corner_names(next(source)) == ["blue", "red", "white", "green"]


def test_damaged_image_names_file_and_number(tmp_path: Path) -> None:
    folder = save_counting(tmp_path / "frames", ["0.png", "1.png"])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 10, 3), np.uint8)).save(folder / "2.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:150])
    with open_video(str(folder)) as source, pytest.raises(VideoError, match=r"image as frame 2, got .*2\.png"):
        list(source)
