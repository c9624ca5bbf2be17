"""Folders of annotated videos -> clips, whatever the layout. Frames and masks are decoded when they are asked for.

    DAVIS   JPEGImages/480p/<video>/*.jpg       Annotations/480p/<video>/*.png           pixels are object ids
    MOSE    JPEGImages/<video>/*.jpg            Annotations/<video>/*.png                pixels are object ids; YouTube-VOS too
    SA-V    JPEGImages_24fps/<video>/*.jpg      Annotations_6fps/<video>/<object>/*.png  one picture per object, every fourth frame
    plain   <video>/frames/*.jpg or *.png       <video>/truth/*.png                      pixels are object ids

Annotations belong to the frames of the same number. Ground truth has no void label: every colour but 0 is an object, as in
`benchmarks/score.py`. Texts come from JSON files in the form of Ref-DAVIS, Ref-YouTube-VOS, MeViS and LVOS (`read_expressions`). Splits,
and what a benchmark asks on them, are in `benchmarks/splits.py` and `benchmarks/protocols.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.errors import VideoError, expected

Frame = npt.NDArray[np.uint8]  # [H, W, 3] RGB
Mask = npt.NDArray[np.bool_]  # [H, W]
Expressions = Mapping[str, Mapping[int, tuple[str, ...]]]  # video -> object id -> texts

_PICTURES = (".jpg", ".jpeg", ".png")


class Layout(str, Enum):
    """How a data set lies in its folder."""

    DAVIS = "davis"
    MOSE = "mose"
    SAV = "sa-v"
    PLAIN = "plain"


_FOLDERS = {
    Layout.DAVIS: (Path("JPEGImages/480p"), Path("Annotations/480p")),
    Layout.SAV: (Path("JPEGImages_24fps"), Path("Annotations_6fps")),
    Layout.MOSE: (Path("JPEGImages"), Path("Annotations")),
}
_KNOWN = "JPEGImages/480p (DAVIS), JPEGImages (MOSE), JPEGImages_24fps (SA-V), or <video>/frames and <video>/truth"


class Clip:
    """One annotated video.

    Args:
        name: of the video.
        frames: its pictures, uint8 [H, W, 3] RGB of one size; a list, or something that decodes on access.
        annotated: indices of the frames that have masks, ascending.
        read: index of an annotated frame -> masks bool [H, W] by object id; objects that do not show may be left out or empty.
        expressions: object id -> texts that describe it.
        frame_names: names of the frames' files without suffix; None numbers them 00000, 00001, ...
        pictured: object id -> indices of the frames on which it has a mask picture of its own; None where pictures show all objects.
    """

    def __init__(
        self,
        name: str,
        frames: Sequence[Frame],
        *,
        annotated: Sequence[int],
        read: Callable[[int], Mapping[int, Mask]],
        expressions: Mapping[int, Sequence[str]] | None = None,
        frame_names: Sequence[str] | None = None,
        pictured: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.name, self.frames, self.annotated = name, frames, tuple(annotated)
        self._read = read
        self.expressions = {i: tuple(texts) for i, texts in (expressions or {}).items()}
        self.frame_names = tuple(f"{t:05d}" for t in range(len(frames))) if frame_names is None else tuple(frame_names)
        self._pictured = None if pictured is None else {i: tuple(own) for i, own in pictured.items()}

    def annotated_of(self, object_id: int) -> tuple[int, ...]:
        """Indices of the frames whose annotation covers an object, whether it shows there or not; ascending."""
        return self.annotated if self._pictured is None else self._pictured.get(object_id, ())

    def masks(self, frame: int) -> dict[int, Mask]:
        """Masks of the objects that show on an annotated frame, by id.

        Raises:
            VideoError: if the frame has no masks, or they cannot be read.
        """
        if frame not in self.annotated:
            what = f"an annotated frame of {self.name} ({len(self.annotated)} of {len(self.frames)})"
            raise VideoError(expected(what, frame, "See `Clip.annotated`"))
        return {i: mask for i, mask in self._read(frame).items() if mask.any()}

    @cached_property
    def first(self) -> dict[int, int]:
        """Object id -> first frame it shows on, where a tracker is told of it. Reads every mask of the clip once."""
        found: dict[int, int] = {}
        for frame in self.annotated:
            for object_id in self.masks(frame):
                found.setdefault(object_id, frame)
        return dict(sorted(found.items()))

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the objects, ascending."""
        return tuple(self.first)

    @classmethod
    def of_arrays(cls, name: str, frames: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], captions: Sequence[str] = ()) -> Clip:
        """A clip in memory.

        Args:
            name: of the clip.
            frames: uint8 [T, H, W, 3].
            truth: uint8 [T, H, W], object ids.
            captions: of objects 1, 2, ...
        """

        def read(frame: int) -> dict[int, Mask]:
            return _by_id(truth[frame])

        return cls(name, list(frames), annotated=range(len(frames)), read=read, expressions={i: [c] for i, c in enumerate(captions, 1)})


class PictureFrames(Sequence[Frame]):
    """Pictures of a folder, decoded when asked for and not kept.

    Args:
        files: in order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> PictureFrames: ...
    def __getitem__(self, index: int | slice) -> Frame | PictureFrames:
        if isinstance(index, slice):
            return PictureFrames(self.files[index])
        with _picture(self.files[index]) as image:
            return np.asarray(image.convert("RGB"))

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of a picture, without decoding it."""
        with _picture(self.files[index]) as image:
            return image.height, image.width


def open_dataset(
    root: Path | str,
    *,
    layout: Layout | str | None = None,
    videos: Iterable[str] | None = None,
    expressions: Path | str | None = None,
) -> list[Clip]:
    """The clips of a data set, by name; only names are read now.

    Args:
        root: its folder.
        layout: how it lies there; None finds out.
        videos: names of the ones wanted, for example of a validation list; None takes all.
        expressions: JSON file for `read_expressions`.

    Raises:
        VideoError: if the folder is no data set of this layout, a wanted video or its annotation is missing, an annotation has no frame of
            its number, or the texts are of another data set.
    """
    root = Path(root)
    if not root.is_dir():
        raise VideoError(expected("the folder of a data set", f"{root}, which is no folder", f"Name one that holds {_KNOWN}"))
    chosen = find_layout(root) if layout is None else _layout(layout)
    pictures, masks = _video_folders(root, chosen)
    names = sorted(pictures) if videos is None else list(videos)
    for name in names:
        if name not in pictures:
            raise VideoError(expected(f"videos of {root}, such as {sorted(pictures)[:3]}", repr(name), "Take names of this data set"))
        if name not in masks:
            raise VideoError(expected(f"annotations of video {name} in {root}", "none", "Complete the data set, or name only other videos"))
    texts = {} if expressions is None else read_expressions(Path(expressions))
    if texts and not texts.keys() & set(names):
        got = f"texts of others, such as {sorted(texts)[:3]}"
        raise VideoError(expected(f"texts for videos of {root}, such as {names[:3]}", got, "Name the file of the same split"))
    separate = chosen is Layout.SAV
    return [open_clip(name, pictures[name], masks[name], separate=separate, texts=texts.get(name)) for name in names]


def find_layout(root: Path) -> Layout:
    """Which layout a folder has.

    Raises:
        VideoError: if none; says what was looked for.
    """
    for layout, (pictures, masks) in _FOLDERS.items():
        if (root / pictures).is_dir() and (root / masks).is_dir():
            return layout
    if any((video / "frames").is_dir() and (video / "truth").is_dir() for video in subfolders(root)):
        return Layout.PLAIN
    held = sorted(p.name for p in root.iterdir())[:4]
    raise VideoError(expected(f"in {root}: {_KNOWN}, with its annotations", f"a folder with {held}", "Name the folder above those"))


def read_expressions(file: Path) -> dict[str, dict[int, tuple[str, ...]]]:
    """Texts of a referring data set: {"videos": {name: {"expressions": {key: {"exp": text, "obj_id": id}}}}}.

    An id may be a number, its digits, or a list of one; a text about several objects together describes none of them and is left out. LVOS
    writes {"videos": {name: {"objects": {id: {"caption": text}}}}} instead.

    Returns:
        video -> object id -> texts, in the file's order.

    Raises:
        VideoError: if the file cannot be read or has another form; names the place.
    """
    todo = "Use the meta_expressions.json of Ref-DAVIS, Ref-YouTube-VOS or MeViS, or the expression_meta.json of LVOS"
    try:
        raw: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VideoError(expected("a readable JSON file of texts", f"{file} ({error})", todo)) from error
    found: dict[str, dict[int, tuple[str, ...]]] = {}
    place = "videos"
    try:
        for name, video in raw["videos"].items():
            texts: dict[int, tuple[str, ...]] = {}
            place = f"videos.{name}"
            if "expressions" not in video and "objects" in video:
                found[name] = {int(i): (str(entry["caption"]).strip(),) for i, entry in video["objects"].items()}
                continue
            for key, entry in video["expressions"].items():
                place = f"videos.{name}.expressions.{key}"
                given = entry["obj_id"]
                if isinstance(given, list) and len(given) != 1:
                    continue
                object_id = int(given[0] if isinstance(given, list) else given)
                texts[object_id] = (*texts.get(object_id, ()), str(entry["exp"]).strip())
            found[name] = texts
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f'{{"exp": text, "obj_id": id}} at {place} of {file}'
        raise VideoError(expected(what, f"{type(error).__name__}: {error}", todo)) from error
    return found


def _layout(layout: Layout | str) -> Layout:
    try:
        return Layout(layout)
    except ValueError as error:
        raise VideoError(expected(f"a layout of {[x.value for x in Layout]}", repr(layout), "Pick one of those names")) from error


def _video_folders(root: Path, layout: Layout) -> tuple[dict[str, Path], dict[str, Path]]:
    """Video -> folder of its pictures, and of its masks."""
    if layout is Layout.PLAIN:
        videos = [v for v in subfolders(root) if (v / "frames").is_dir()]
        pictures = {v.name: v / "frames" for v in videos}
        masks = {v.name: v / "truth" for v in videos if (v / "truth").is_dir()}
    else:
        of_pictures, of_masks = (root / part for part in _FOLDERS[layout])
        pictures, masks = ({v.name: v for v in subfolders(folder)} if folder.is_dir() else {} for folder in (of_pictures, of_masks))
    if not pictures:
        where = "<video>/frames" if layout is Layout.PLAIN else _FOLDERS[layout][0]
        raise VideoError(expected(f"videos in {root}/{where}", "none", f"Name the folder of a data set: {_KNOWN}"))
    return pictures, masks


def open_clip(name: str, pictures: Path, masks: Path, *, separate: bool = False, texts: Mapping[int, Sequence[str]] | None = None) -> Clip:
    """One video; only names are read now.

    Args:
        name: of the video.
        pictures: folder of its frames, whose names are numbers.
        masks: folder of PNGs named like frames, whose pixels are object ids; or of folders of such PNGs.
        separate: masks has a folder per object, 000 for the first, which gets id 1 because trackers take positive ids.
        texts: object id -> texts that describe it.

    Raises:
        VideoError: if there are no frames or no annotations, a name is no number, or an annotation has no frame of its number.
    """
    files = _numbered(pictures, _PICTURES)
    if not files:
        raise VideoError(expected(f"pictures {list(_PICTURES)} in {pictures}", "none", "Complete the data set"))
    index = {number: i for i, number in enumerate(files)}
    objects = {int(f.name) + 1: f for f in subfolders(masks) if f.name.isdecimal()} if separate else {0: masks}
    found: dict[int, dict[int, Path]] = {}
    for object_id, folder in objects.items():
        for number, file in _numbered(folder, (".png",)).items():
            if number not in index:
                what = f"a frame {number} in {pictures} for {file}"
                raise VideoError(expected(what, f"frames {min(index)} to {max(index)}, {len(index)} of them", "Complete the data set"))
            found.setdefault(index[number], {})[object_id] = file
    if not found:
        raise VideoError(expected(f"PNG annotations in {masks}", "none", "Complete the data set, or leave this video out"))
    frames = PictureFrames(list(files.values()))

    def read(frame: int) -> dict[int, Mask]:
        size = frames.size(frame)
        masks: dict[int, Mask] = {}
        for object_id, file in found[frame].items():
            ids = _ids(file, size)
            masks |= {object_id: ids != 0} if object_id else _by_id(ids)
        return masks

    return Clip(
        name,
        frames,
        annotated=sorted(found),
        read=read,
        expressions=texts,
        frame_names=[file.stem for file in frames.files],
        pictured={i: [t for t in sorted(found) if i in found[t]] for i in objects} if separate else None,
    )


@contextmanager
def _picture(file: Path) -> Generator[Image.Image, None, None]:
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:
        raise VideoError(expected("a readable picture", f"{file} ({error})", "Copy or extract it again")) from error


def _by_id(ids: npt.NDArray[np.uint8]) -> dict[int, Mask]:
    return {i: ids == i for i in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)).tolist() if i}


def _ids(file: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            mode, ids = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise VideoError(expected("a readable PNG mask", f"{file} ({error})", "Copy or extract it again")) from error
    if mode not in ("P", "L", "1"):
        raise VideoError(expected("a palette PNG whose pixels are object ids", f"mode {mode} in {file}", "Use the original annotation"))
    if ids.shape != size:
        got = f"{list(ids.shape)} in {file}"
        raise VideoError(expected(f"a mask of its frame's height and width {list(size)}", got, "Use pictures and annotations of one size"))
    return ids.astype(np.uint8)


def subfolders(folder: Path) -> list[Path]:
    """Folders inside a folder, by name; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _numbered(folder: Path, suffixes: Sequence[str]) -> dict[int, Path]:
    """Number -> file, ascending."""
    found: dict[int, Path] = {}
    for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and not f.name.startswith(".")):
        if not (file.stem.isascii() and file.stem.isdecimal()):
            raise VideoError(expected("files whose names are frame numbers, such as 00000.jpg", file, "Rename or remove it"))
        if int(file.stem) in found:
            raise VideoError(expected("one file per frame number", f"{found[int(file.stem)].name} and {file.name}", "Remove one of them"))
        found[int(file.stem)] = file
    return dict(sorted(found.items()))
