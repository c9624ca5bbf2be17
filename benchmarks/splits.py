"""Official splits of benchmarks -> the clips of one, and what its lists and meta files say of them.

    davis   ImageSets/2017/SPLIT.txt   JPEGImages/480p/VIDEO/*.jpg   Annotations/480p/VIDEO/*.png
    sav     sav_SPLIT/: sav_SPLIT.txt  JPEGImages_24fps/VIDEO/*.jpg  Annotations_6fps/VIDEO/OBJECT/*.png
    mose    SPLIT/:                    JPEGImages/VIDEO/*.jpg        Annotations/VIDEO/*.png
    lvos    SPLIT/: SPLIT_meta.json    JPEGImages/VIDEO/*.jpg        Annotations/VIDEO/*.png
    ytvos   SPLIT/: meta.json          JPEGImages/VIDEO/*.jpg        Annotations/VIDEO/*.png       SPLIT_all_frames/JPEGImages/VIDEO/*.jpg
    folder  VIDEO/frames/*             VIDEO/truth/*.png

The root may be the folder above the split's own, or that folder. Sources of the layouts: the READMEs of facebookresearch/sam2
`sav_dataset/`, henghuiding/MOSE-api and LingyiHongfd/LVOS; davisvideochallenge/davis2017-evaluation `davis2017/davis.py`; for YouTube-VOS
hkchengrex/Cutie `cutie/config/eval_config.yaml` and its reader of meta.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastsam2.benchmarks.datasets import Clip, Expressions, open_clip, read_expressions, subfolders
from fastsam2.benchmarks.protocols import PROTOCOLS, Lifetime, Protocol
from fastsam2.enums import Dataset
from fastsam2.errors import VideoError, expected

ALL_FRAMES = "_all_frames"  # ends the name of a split of YouTube-VOS with every frame of its videos, not every fifth
UNSEEN = "unseen_videos.txt"  # comes with the evaluation toolkit of LVOS

_LAYOUTS = {
    Dataset.DAVIS: "ImageSets/2017/{split}.txt, JPEGImages/480p/<video>/*.jpg and Annotations/480p/<video>/*.png",
    Dataset.SAV: "sav_{split}.txt, JPEGImages_24fps/<video>/*.jpg, Annotations_6fps/<video>/<object>/*.png, at the top or in sav_{split}/",
    Dataset.MOSE: "JPEGImages/<video>/*.jpg and Annotations/<video>/*.png in {split}/ or at the top",
    Dataset.LVOS: "{split}_meta.json, JPEGImages/<video>/*.jpg and Annotations/<video>/*.png in {split}/ or at the top",
    Dataset.YTVOS: "{split}/meta.json, {split}/JPEGImages/<video>/*.jpg and {split}/Annotations/<video>/*.png, and for all frames "
    "{split}_all_frames/JPEGImages/<video>/*.jpg",
    Dataset.FOLDER: "<video>/frames/*.jpg or *.png and <video>/truth/*.png",
}


@dataclass(frozen=True, slots=True)
class Split:
    """Videos of one split; nothing of them is read before `clip`.

    Attributes:
        dataset: of which benchmark.
        name: of the split; "" for plain folders.
        pictures: video -> folder of its frames, by name.
        masks: video -> folder of its masks.
        texts: video -> object id -> texts.
        required: video -> names of the frames that are asked for; videos left out have all their frames asked for.
        objects: video -> ids of its objects; only where a meta file lists them.
        lifetimes: video -> object id -> when it is there; only where the benchmark says so.
        unseen: videos whose categories are in no training split; None where the data set does not tell.
    """

    dataset: Dataset
    name: str
    pictures: Mapping[str, Path]
    masks: Mapping[str, Path]
    texts: Expressions = field(default_factory=dict)
    required: Mapping[str, frozenset[str]] = field(default_factory=dict)
    objects: Mapping[str, frozenset[int]] = field(default_factory=dict)
    lifetimes: Mapping[str, Mapping[int, Lifetime]] = field(default_factory=dict)
    unseen: frozenset[str] | None = None

    @property
    def protocol(self) -> Protocol:
        """Of the benchmark."""
        return PROTOCOLS[self.dataset]

    @property
    def private(self) -> bool:
        """Whether only prompts are published, no ground truth."""
        return self.name in self.protocol.private

    @property
    def videos(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(self.pictures)

    def clip(self, video: str) -> Clip:
        """One of the videos.

        Raises:
            VideoError: if it is incomplete.
        """
        pictures, masks = self.pictures[video], self.masks[video]
        for folder in (pictures, masks):
            if not folder.is_dir():
                raise VideoError(expected(f"the folder {folder} of video {video}", "none", _layout_text(self.dataset, self.name)))
        clip = open_clip(video, pictures, masks, separate=self.protocol.separate, texts=self.texts.get(video))
        lacking = sorted(self.required.get(video, frozenset()) - set(clip.frame_names))
        if lacking:
            raise VideoError(expected(f"frame {lacking[0]} of {video} in {pictures}", "none", "Complete the data set"))
        return clip

    def written(self, clip: Clip) -> tuple[int, ...]:
        """Indices of the frames whose masks a submission holds: those asked for; of SA-V the annotated ones, the others are not read."""
        if self.dataset is Dataset.SAV:
            return clip.annotated
        wanted = self.required.get(clip.name)
        return tuple(t for t, name in enumerate(clip.frame_names) if wanted is None or name in wanted)


def open_split(
    dataset: Dataset | str,
    root: Path,
    split: str | None = None,
    *,
    videos: Sequence[str] | None = None,
    expressions: Path | None = None,
) -> Split:
    """The videos of a split; lists and meta files are read now.

    Args:
        dataset: which benchmark.
        root: its folder, or the split's own.
        split: None takes the one whose ground truth is published, the validation split if there are two.
        videos: the ones wanted, by name; None takes all.
        expressions: JSON file for `read_expressions`.

    Raises:
        VideoError: if there is no such benchmark or split, files of its layout are missing, or texts are of another data set.
    """
    try:
        dataset = Dataset(dataset)
    except ValueError as error:
        raise VideoError(expected(f"a data set of {[d.value for d in Dataset]}", repr(dataset), "Pick one of those names")) from error
    protocol = PROTOCOLS[dataset]
    name = protocol.public[0] if split is None else split
    if name not in protocol.splits:
        known = [s for s in protocol.splits if s]
        what = f"a split of {known}" if known else f"no split of {dataset.value}"
        raise VideoError(expected(what, repr(split), "Pick one of those names, or leave it out"))
    if not root.is_dir():
        raise VideoError(expected(f"the folder of {dataset.value}", f"{root}, which is no folder", _layout_text(dataset, name)))
    found = _READERS[dataset](root, name)
    names = found.videos if videos is None else tuple(dict.fromkeys(videos))
    for video in names:
        if video not in found.pictures:
            some = f"videos of {dataset.value} {name}, such as {list(found.videos[:3])}"
            raise VideoError(expected(some, repr(video), "Take names of this split"))
    if not names:
        raise VideoError(expected(f"videos of {dataset.value} in {root}", "none", _layout_text(dataset, name)))
    texts = {} if expressions is None else read_expressions(expressions)
    if texts and not texts.keys() & set(names):
        got = f"texts of others, such as {sorted(texts)[:3]}"
        raise VideoError(expected(f"texts for videos of {dataset.value} {name}, such as {list(names[:3])}", got, "Name this split's file"))
    return replace(found, pictures={v: found.pictures[v] for v in names}, masks={v: found.masks[v] for v in names}, texts=texts)


def _davis(root: Path, split: str) -> Split:
    return _listed(Dataset.DAVIS, split, root / f"ImageSets/2017/{split}.txt", root / "JPEGImages/480p", root / "Annotations/480p")


def _sav(root: Path, split: str) -> Split:
    base = _base(root, f"sav_{split}")
    return _listed(Dataset.SAV, split, base / f"sav_{split}.txt", base / "JPEGImages_24fps", base / "Annotations_6fps")


def _listed(dataset: Dataset, split: str, names: Path, pictures: Path, masks: Path) -> Split:
    """Videos named by a text file, one a line."""
    for needed in (names, pictures, masks):
        _need(needed, dataset, split)
    videos = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
    return Split(dataset, split, {v: pictures / v for v in videos}, {v: masks / v for v in videos})


def _mose(root: Path, split: str) -> Split:
    return _all_in(Dataset.MOSE, split, _base(root, split))


def _lvos(root: Path, split: str) -> Split:
    base = _base(root, "valid" if split == "val" and (root / "valid").is_dir() else split)
    metas = [base / f"{name}_meta.json" for name in ((split, "valid") if split == "val" else (split,))]
    meta = next((file for file in metas if file.is_file()), metas[0])
    _need(meta, Dataset.LVOS, split)
    lifetimes: dict[str, dict[int, Lifetime]] = {}

    def read(video: str, objects: Mapping[str, Any]) -> None:
        ranges = {int(i): entry["frame_range"] for i, entry in objects.items()}
        lifetimes[video] = {i: Lifetime(int(r["start"]), int(r["end"]), int(r["frame_nums"])) for i, r in ranges.items()}

    _read_meta(meta, read, '{"frame_range": {"start", "end", "frame_nums"}}')
    found = _all_in(Dataset.LVOS, split, base)
    unlisted = sorted(found.pictures.keys() - lifetimes.keys())
    if unlisted and split in PROTOCOLS[Dataset.LVOS].public:
        raise VideoError(expected(f"video {unlisted[0]} in {meta}", f"{len(lifetimes)} others", "Take meta file and videos of one release"))
    unseen = base / UNSEEN
    listed = frozenset(unseen.read_text(encoding="utf-8").split()) if unseen.is_file() else None
    return replace(found, objects={v: frozenset(own) for v, own in lifetimes.items()}, lifetimes=lifetimes, unseen=listed)


def _ytvos(root: Path, split: str) -> Split:
    short = split.removesuffix(ALL_FRAMES)
    base = _base(root, short)
    _need(base / "meta.json", Dataset.YTVOS, short)
    required: dict[str, frozenset[str]] = {}
    ids: dict[str, frozenset[int]] = {}

    def read(video: str, objects: Mapping[str, Any]) -> None:
        ids[video] = frozenset(int(i) for i in objects)
        required[video] = frozenset(str(name) for entry in objects.values() for name in entry["frames"])

    _read_meta(base / "meta.json", read, '{"frames": ["00000", ...]}')
    pictures = base / "JPEGImages"
    if split != short:
        folders = [above / split / "JPEGImages" for above in (root, root / "all_frames", root.parent)]
        pictures = next((folder for folder in folders if folder.is_dir()), folders[0])
    for needed in (pictures, base / "Annotations"):
        _need(needed, Dataset.YTVOS, short)
    masks = base / "Annotations"
    videos = sorted(required)
    return Split(Dataset.YTVOS, split, {v: pictures / v for v in videos}, {v: masks / v for v in videos}, required=required, objects=ids)


def _folder(root: Path, split: str) -> Split:
    videos = [v for v in subfolders(root) if (v / "frames").is_dir()]
    return Split(Dataset.FOLDER, split, {v.name: v / "frames" for v in videos}, {v.name: v / "truth" for v in videos})


_READERS = {
    Dataset.DAVIS: _davis,
    Dataset.SAV: _sav,
    Dataset.MOSE: _mose,
    Dataset.LVOS: _lvos,
    Dataset.YTVOS: _ytvos,
    Dataset.FOLDER: _folder,
}


def _base(root: Path, name: str) -> Path:
    """The split's own folder."""
    return root / name if (root / name).is_dir() else root


def _all_in(dataset: Dataset, split: str, base: Path) -> Split:
    """Every video of a folder."""
    pictures, masks = base / "JPEGImages", base / "Annotations"
    for needed in (pictures, masks):
        _need(needed, dataset, split)
    videos = [v.name for v in subfolders(pictures)]
    return Split(dataset, split, {v: pictures / v for v in videos}, {v: masks / v for v in videos})


def _read_meta(file: Path, read: Any, form: str) -> None:
    """Calls read(video, objects) for {"videos": {video: {"objects": objects}}}."""
    place = "videos"
    try:
        for video, entry in json.loads(file.read_text(encoding="utf-8"))["videos"].items():
            place = f"videos.{video}"
            read(video, entry["objects"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"objects {form} at {place} of {file}"
        raise VideoError(expected(what, f"{type(error).__name__}: {error}", "Copy the data set's own meta file again")) from error


def _need(path: Path, dataset: Dataset, split: str) -> None:
    if not path.exists():
        raise VideoError(expected(str(path), "no such file or folder", _layout_text(dataset, split)))


def _layout_text(dataset: Dataset, split: str) -> str:
    return f"A root of {dataset.value} holds {_LAYOUTS[dataset].format(split=split.removesuffix(ALL_FRAMES))}"
