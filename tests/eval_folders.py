"""Miniature data sets in the layouts of the benchmarks: small textured pictures in which rectangles move, and their true masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = (72, 96)

Ids = npt.NDArray[np.uint8]
Truth = dict[str, Ids]  # video -> object ids [T, H, W]


def moving(length: int, first: Mapping[int, int], *, size: tuple[int, int] = SIZE, last: Mapping[int, int] | None = None) -> Ids:
    """Object i is a rectangle that enters on frame first[i], moves to the right, and leaves after frame last[i]."""
    ids = np.zeros((length, *size), np.uint8)
    for place, i in enumerate(first):
        top = 4 + 22 * place
        for t in range(first[i], (last or {}).get(i, length - 1) + 1):
            left = 6 + 9 * place + 5 * (t - first[i])
            ids[t, top : top + 18, left : left + 26] = i
    return ids


def pictures(ids: Ids) -> npt.NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3]: a colour for each object, and noise."""
    rng = np.random.default_rng(5)
    colours = rng.integers(60, 250, (256, 3))
    colours[0] = 40
    noise = rng.integers(-25, 26, (*ids.shape[1:], 1))
    return (colours[ids] + noise).clip(0, 255).astype(np.uint8)


def write_frames(folder: Path, ids: Ids, names: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    for name, picture in zip(names, pictures(ids), strict=True):
        Image.fromarray(picture).save(folder / f"{name}.jpg", quality=95)


def write_palette(folder: Path, ids: Mapping[str, Ids]) -> None:
    """One palette PNG per name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in ids.items():
        image = Image.fromarray(one)
        image.putpalette([c for i in range(256) for c in (i * 37 % 256, i * 91 % 256, 255 - i)])
        image.save(folder / f"{name}.png")


def numbers(length: int, *, step: int = 1, start: int = 0, digits: int = 5) -> list[str]:
    return [f"{start + step * t:0{digits}d}" for t in range(length)]


def write_davis(root: Path, split: str = "val", length: int = 5) -> Truth:
    """DAVIS 2017; videos that are not of the split lie beside, as there. Ground truth of test-dev is the first frame's."""
    truth = {"bear": moving(length, {1: 0, 2: 0}), "ant": moving(length, {1: 0})}
    for video, ids in {**truth, "of-another-split": truth["ant"]}.items():
        names = numbers(length)
        write_frames(root / "JPEGImages/480p" / video, ids, names)
        shown = names[:1] if split == "test-dev" else names
        write_palette(root / "Annotations/480p" / video, {n: ids[t] for t, n in enumerate(shown)})
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / f"ImageSets/2017/{split}.txt").write_text("bear\nant\n")
    return truth


def write_sav(root: Path, length: int = 14) -> Truth:
    """SA-V val: 24 frames a second, every fourth annotated, a folder of 0/1 pictures for each object, also where it does not show.

    The second object overlaps the first, which an id per pixel cannot say; the third comes later. The last two frames are not annotated.
    """
    ids = moving(length, {1: 0, 3: 7})
    base = root / "sav_val"
    write_frames(base / "JPEGImages_24fps/sav_000001", ids, numbers(length))
    for folder, masks in {"000": ids == 1, "001": np.roll(ids == 1, 4, axis=1), "002": ids == 3}.items():
        write_palette(
            base / "Annotations_6fps/sav_000001" / folder, {f"{t:05d}": masks[t].astype(np.uint8) for t in range(0, length - 1, 4)}
        )
    (base / "sav_val.txt").write_text("sav_000001\n")
    return {"sav_000001": ids}


def write_mose(root: Path, split: str = "valid", length: int = 4) -> Truth:
    """MOSE: of valid only the first frame is annotated; the second video has an object that comes later, which is not part of the task."""
    truth = {"0a1b2c3d": moving(length, {1: 0, 2: 0}), "9f8e7d6c": moving(length, {1: 0, 2: 2})}
    for video, ids in truth.items():
        names = numbers(length)
        write_frames(root / split / "JPEGImages" / video, ids, names)
        shown = names[:1] if split == "valid" else names
        write_palette(root / split / "Annotations" / video, {n: ids[t] for t, n in enumerate(shown)})
    return truth


def write_lvos(root: Path, split: str = "val", folder: str | None = None, length: int = 7) -> Truth:
    """LVOS: names of eight digits that count in fives from 1; a meta file says when objects are there."""
    truth = {"abCD1234": moving(length, {1: 0, 2: 2}, last={2: length - 2}), "R3UJGYwy": moving(length, {1: 0})}
    base = root / (folder or split)
    meta: dict[str, dict[str, object]] = {}
    for video, ids in truth.items():
        names = numbers(length, step=5, start=1, digits=8)
        write_frames(base / "JPEGImages" / video, ids, names)
        own = {i: np.flatnonzero((ids == i).any(axis=(1, 2))) for i in range(1, ids.max() + 1)}
        shown = {int(f[0]) for f in own.values()} if split == "test" else set(range(length))
        write_palette(base / "Annotations" / video, {names[t]: ids[t] for t in sorted(shown)})
        ranges = {i: {"start": names[f[0]], "end": names[f[-1]], "frame_nums": f"{f[-1] - f[0] + 1}"} for i, f in own.items()}
        meta[video] = {"objects": {str(i): {"frame_range": r} for i, r in ranges.items()}}
    (base / f"{folder or split}_meta.json").write_text(json.dumps({"videos": meta}))
    return truth


def write_ytvos(root: Path, split: str = "valid", length: int = 6, *, all_frames: bool = False) -> Truth:
    """YouTube-VOS: every fifth frame; of valid only the masks that objects begin with; meta.json lists the frames of each object."""
    truth = {"003234408d": moving(length, {1: 0, 2: 2}), "0062f687f1": moving(length, {4: 0})}
    meta: dict[str, dict[str, object]] = {}
    for video, ids in truth.items():
        names = numbers(length, step=5)
        write_frames(root / split / "JPEGImages" / video, ids, names)
        first = {i: int(np.flatnonzero((ids == i).any(axis=(1, 2)))[0]) for i in np.unique(ids).tolist() if i}
        if split == "valid":
            write_palette(root / split / "Annotations" / video, {names[t]: np.where(ids[t] == i, ids[t], 0) for i, t in first.items()})
        else:
            write_palette(root / split / "Annotations" / video, {n: ids[t] for t, n in enumerate(names)})
        # the last frame is not asked for
        meta[video] = {"objects": {str(i): {"category": "toad", "frames": names[t:-1]} for i, t in first.items()}}
        if all_frames:
            dense = np.repeat(ids, 5, axis=0)
            write_frames(root / f"{split}_all_frames/JPEGImages" / video, dense, numbers(len(dense)))
    (root / split / "meta.json").write_text(json.dumps({"videos": meta}))
    return truth


def write_folder(root: Path, length: int = 4, videos: Sequence[str] = ("one", "two")) -> Truth:
    truth = {}
    for k, video in enumerate(videos):
        truth[video] = moving(length, {1: 0, 2: k % 2})
        write_frames(root / video / "frames", truth[video], numbers(length))
        write_palette(root / video / "truth", {n: truth[video][t] for t, n in enumerate(numbers(length))})
    return truth


WRITERS: dict[str, Callable[[Path, str], Truth]] = {
    "davis": write_davis,
    "mose": write_mose,
    "lvos": write_lvos,
    "ytvos": write_ytvos,
}
