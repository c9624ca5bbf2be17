"""The trackers that are compared, one frame at a time: `Ours`, and `Official`, the predictor of the package sam2 (torch).

    decode(file 0) ─► prompt ─► decode, step, decode, step, ... ─► save ─► copy_object(2), ... ─► decode, step, ... ─► restore ─► ...

Several objects are copies of one that was tracked alone until the memory was full: what a step reads and computes per object is the same,
and filling the memory takes a fraction of the time.
"""

from __future__ import annotations

import copy
import importlib
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.benchmarks.bench_frames import Box
from fastsam2.benchmarks.gpu_tracking import WaitingBackend
from fastsam2.config import Prune
from fastsam2.errors import BackendError, expected
from fastsam2.runtime.device import Device
from fastsam2.runtime.host_device import device_of
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.runtime.memory_bank import FrameMemory, ObjectMemory
from fastsam2.runtime.result import Result
from fastsam2.runtime.tracker import Tracker

OURS, OFFICIAL, COMPILED = "ours", "official", "official-compiled"

Masks = npt.NDArray[np.bool_]


class Side(Protocol):
    """A tracker of one stream. Every call returns when its work is done, on a GPU as well."""

    def decode(self, file: Path) -> Any:
        """What `prompt` and `step` take, of a stored frame."""
        ...

    def prompt(self, frame: Any, box: Box) -> Masks:
        """Take the first frame and add object 1; its mask, bool [1, H, W]."""
        ...

    def step(self, frame: Any) -> Masks:
        """Masks of the next frame, bool [B, H, W] on the host."""
        ...

    def copy_object(self, object_id: int) -> None:
        """Add an object with a copy of the history of object 1."""
        ...

    def save(self) -> None:
        """Remember object 1 and the newest frame."""
        ...

    def restore(self) -> None:
        """Go back to what was saved; other objects are gone."""
        ...


def fill(side: Side, files: Sequence[Path], box: Box) -> None:
    """Track object 1 through these frames, prompted on the first, and save."""
    side.prompt(side.decode(files[0]), box)
    for file in files[1:]:
        side.step(side.decode(file))
    side.save()


def multiply(side: Side, objects: int, *, present: int = 1) -> None:
    """Copy object 1 until there are `objects`, of which `present` are there already."""
    for object_id in range(present + 1, objects + 1):
        side.copy_object(object_id)


class Ours:
    """A tracker of this package.

    Args:
        loaded: the bundle; may be shared.
        prune: which memory it keeps.
        singly: run objects one by one, not in batches.

    Attributes:
        loaded: its bundle.
        tracker: of this side.
        result: of its newest frame.
    """

    def __init__(self, loaded: LoadedBundle, prune: Prune, *, singly: bool = False) -> None:
        self.loaded = loaded
        self.tracker: Tracker = loaded.tracker(prune=prune)
        if singly:
            self.tracker._stages.budget = 0
        self.result: Result
        self._device = device_of(loaded.backend)
        self._saved: tuple[Any, ...] = ()

    def decode(self, file: Path) -> npt.NDArray[np.uint8]:
        """RGB, uint8 [H, W, 3]."""
        with Image.open(file) as image:
            return np.array(image.convert("RGB"))

    def prompt(self, frame: npt.NDArray[np.uint8], box: Box) -> Masks:
        """See `Side.prompt`."""
        self.tracker.step(frame)
        self.result = self.tracker.add(1, box=box)
        return self.result.masks

    def step(self, frame: npt.NDArray[np.uint8]) -> Masks:
        """See `Side.step`."""
        self.result = self.tracker.step(frame)
        return self.result.masks

    def copy_object(self, object_id: int) -> None:
        """See `Side.copy_object`."""
        self.tracker._objects[object_id] = _copied_object(self.tracker._objects[1], self._device)

    def save(self) -> None:
        """See `Side.save`."""
        t = self.tracker
        self._saved = (_copied_object(t._objects[1], self._device), t._frame, t._pixels, t._features, t._tokens, t._guard)

    def restore(self) -> None:
        """See `Side.restore`."""
        t = self.tracker
        known, t._frame, t._pixels, t._features, t._tokens, t._guard = self._saved
        t._objects = {1: _copied_object(known, self._device)}

    def follow(self, other: Ours) -> None:
        """Start from what `other` saved; both have the same way to prune."""
        self._saved, self.tracker._size = other._saved, other.tracker._size
        self.restore()

    def clear_stages(self) -> None:
        """Forget the milliseconds per stage so far."""
        self.tracker._timer.clear()

    def stages_per_frame_ms(self, frames: int) -> dict[str, float]:
        """{stage: milliseconds a frame} over the newest frames; a stage may have run several times in each."""
        timer = self.tracker._timer
        return {stage: sum(timer.samples_ms(stage)) / frames for stage in timer.summary()}

    def read(self) -> tuple[int, int]:
        """Memory rows and pointers of one object that the newest frame was conditioned on."""
        memory = self.tracker._objects[1].memory
        assert self.tracker.frame is not None
        return memory.counts(memory.select(self.tracker.frame))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a GPU is waited for before and after each graph, so that `Tracker.stages_ms` tells their times."""
        stages = self.tracker._stages
        backend = stages.backend
        stages.backend = WaitingBackend(backend)
        try:
            yield
        finally:
            stages.backend = backend


def _copied_object(known: Any, device: Device) -> Any:
    """A tracked object with memory of its own; what the tracker only ever replaces is shared."""
    held: ObjectMemory = known.memory
    memory = copy.copy(held)
    memory.frames = {t: _copied_frame(m, device, shared=m.position is held._grid) for t, m in held.frames.items()}
    return replace(known, memory=memory)


def _copied_frame(frame: FrameMemory, device: Device, *, shared: bool) -> FrameMemory:
    return replace(
        frame,
        pointer=device.copy(frame.pointer),
        rows=None if frame.rows is None else device.copy(frame.rows),
        position=frame.position if shared else device.copy(frame.position),
        scores=None if frame.scores is None else device.copy(frame.scores),
    )


class Official:
    """The official predictor, given one frame at a time: it holds the present frame only, not the clip.

    Args:
        module: from `build_official`; moved to the device.
        first: file of the first frame.
        frames: of the clip; how far away a pointer is encoded depends on them if they are fewer than 16.
        device: torch's name of it.
        half: bfloat16 autocast and TF32, as the official examples run on a GPU; else float32 without TF32.
        compiled: as `build_sam2_video_predictor(vos_optimized=True)` makes it.

    Raises:
        BackendError: if torch cannot use that GPU.
    """

    def __init__(self, module: Any, first: Path, *, frames: int, device: str = "cpu", half: bool = False, compiled: bool = False) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._misc: Any = _without_bars()
        self._device, self._half = device, half
        if device != "cpu":
            if not self._torch.cuda.is_available():
                got = f"torch {self._torch.__version__}, which sees none"
                raise BackendError(expected("a torch that can use the GPU", got, "Install a CUDA build of torch"))
            self._torch.backends.cuda.matmul.allow_tf32 = self._torch.backends.cudnn.allow_tf32 = half
        self.module = module.to(device)
        if compiled:
            compile_official(module)
        self._mean, self._std = (
            self._torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )  # what load_video_frames normalises with
        with tempfile.TemporaryDirectory() as folder, self._autocast():
            shutil.copyfile(first, Path(folder) / "00000.jpg")  # the only suffix it lists; Pillow looks at the content
            self.state: dict[str, Any] = module.init_state(folder)
        self.state["num_frames"] = frames
        self._next = 0
        self._saved: tuple[int, dict[str, Any]] = (0, {})

    def decode(self, file: Path) -> Any:
        """Resized and normalised as by `load_video_frames`, float32 [3, S, S] on the device."""
        image = self._misc._load_img_as_tensor(str(file), self.module.image_size)[0].float()
        image -= self._mean
        image /= self._std
        image = image.to(self._device)
        if self._device != "cpu":
            self._torch.cuda.synchronize()
        return image

    def prompt(self, frame: Any, box: Box) -> Masks:
        """See `Side.prompt`."""
        self.state["images"] = {0: frame}
        with self._autocast():
            self.module.add_new_points_or_box(self.state, 0, 1, box=np.array(box, np.float32))
        return self.step(frame)

    def step(self, frame: Any) -> Masks:
        """See `Side.step`."""
        t, self._next = self._next, self._next + 1
        self.state["images"] = {t: frame}
        with self._autocast():
            _, _, logits = next(iter(self.module.propagate_in_video(self.state, start_frame_idx=t, max_frame_num_to_track=0)))
        masks: Masks = (logits[:, 0] > 0).cpu().numpy()
        return masks

    def copy_object(self, object_id: int) -> None:
        """See `Side.copy_object`."""
        index = self.module._obj_id_to_idx(self.state, object_id)
        for key, own in self._history().items():
            self.state[key][index] = own

    def save(self) -> None:
        """See `Side.save`."""
        self._saved = self._next, self._history()

    def restore(self) -> None:
        """See `Side.restore`."""
        self._next, saved = self._saved
        self.state["cached_features"] = {}
        self.state["obj_id_to_idx"], self.state["obj_idx_to_id"] = OrderedDict({1: 0}), OrderedDict({0: 1})
        self.state["obj_ids"] = [1]
        self.state.update({key: {0: own} for key, own in saved.items()})
        self._saved = self._next, self._history()

    def _history(self) -> dict[str, Any]:
        """What the state holds of object 1, copied but for the positional codes, which the predictor shares as well."""
        shared: dict[int, Any] = {}
        for outputs in self.state["output_dict_per_obj"][0].values():
            for output in outputs.values():
                shared |= {id(code): code for code in output["maskmem_pos_enc"] or ()}
        return {key: copy.deepcopy(own[0], dict(shared)) for key, own in self.state.items() if key.endswith("_per_obj")}

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._half:
            return nullcontext()
        context: AbstractContextManager[Any] = self._torch.autocast(self._device.split(":")[0], dtype=self._torch.bfloat16)
        return context


def compile_official(module: Any) -> None:
    """Turn the official predictor into its `vos_optimized` form, in place.

    Mirrors facebookresearch/sam2 @2b90b9f `sam2/build_sam.py` (vos_optimized) and `sam2/modeling/sam2_base.py` (compile_image_encoder).
    """
    torch: Any = importlib.import_module("torch")
    module.__class__ = importlib.import_module("sam2.sam2_video_predictor").SAM2VideoPredictorVOS
    module._compile_all_components()
    encoder = module.image_encoder
    encoder.forward = torch.compile(encoder.forward, mode="max-autotune", fullgraph=True, dynamic=False)


def _without_bars() -> Any:
    """`sam2.utils.misc`; from now on sam2 draws no progress bars, which would be timed."""
    misc, predictor = (importlib.import_module(f"sam2.{name}") for name in ("utils.misc", "sam2_video_predictor"))
    tqdm = importlib.import_module("tqdm").tqdm
    for module in (misc, predictor):
        module.tqdm = partial(tqdm, disable=True)  # type: ignore[attr-defined]
    return misc
