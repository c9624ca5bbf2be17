"""A drop-in for Meta's video predictor: `from fastsam2 import build_sam2_video_predictor` in place of `from sam2.build_sam import ...`.

    config, checkpoint ─► cached bundle ─► SAM2VideoPredictor: init_state, add_new_points_or_box, propagate_in_video, ...

Mirrors the interface of facebookresearch/sam2 @2b90b9f `sam2/build_sam.py` and `sam2/sam2_video_predictor.py`; what differs is listed in
`docs/drop_in.md`. Masks are torch tensors where torch is installed, else `HostTensor`.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam2.builtin import builtin_bundles, bundle_path
from fastsam2.bundle_cache import cached_bundle, is_bundle
from fastsam2.contracts import NO_OBJECT_LOGIT
from fastsam2.enums import BackendName
from fastsam2.errors import BackendError, BundleError, ExportError, PromptError, StateError, expected
from fastsam2.predictor_options import PredictorOptions, backend_of, read_options
from fastsam2.runtime.backends.protocol import Float
from fastsam2.runtime.clip import load_clip
from fastsam2.runtime.clip_tracker import Clip, ClipObject, ClipTracker
from fastsam2.runtime.host_device import HOST
from fastsam2.runtime.host_tensor import HostTensor, on_host
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.postprocess import resize_logits
from fastsam2.runtime.preprocess import mask_to_input, soft_mask_to_input
from fastsam2.runtime.prompts import official_points
from fastsam2.runtime.stages import DEFAULT_MEMORY_BUDGET_MB

if TYPE_CHECKING:
    import torch

    Tensor = torch.Tensor | HostTensor

State = dict[str, Any]

_CLIP = "clip"  # key of our part of an inference state
_OVERLAP_LOGIT = -10.0  # official ceiling of logits where another object wins


def build_sam2_video_predictor(
    config_file: str | os.PathLike[str] | None,
    ckpt_path: str | os.PathLike[str] | None = None,
    device: object = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
    **kwargs: Any,
) -> SAM2VideoPredictor:
    """A predictor of a checkpoint, as the official function of this name.

    Args:
        config_file: an official config (`configs/sam2.1/sam2.1_hiera_t.yaml`), the path of a config, or a bundle folder; None with a bundle
            as `ckpt_path`.
        ckpt_path: a checkpoint, which is exported once into the cache (see `fastsam2.bundle_cache`); or a bundle folder or the name of a
            built-in bundle, for which neither torch nor sam2 is needed.
        device: None, "cpu" or `torch.device("cpu")` for the CPU; "cuda" or "cuda:1" for that GPU, with the first of the GPU backends that
            is ready (`fastsam2 doctor`). What the predictor answers lies on the host in both cases.
        mode: only "eval".
        hydra_overrides_extra: `++model.NAME=VALUE` for the options of `PredictorOptions`.
        apply_postprocessing: as officially, but holes are filled only if `fill_hole_area` is given. A bundle folder always has it.
        vos_optimized: no effect; officially it compiles the model and changes no mask.
        **kwargs: options of `PredictorOptions` by name; `threads`: CPU threads, None for every core; `memory_budget_mb` as in `Tracker`.

    Raises:
        ExportError: if the checkpoint cannot be exported.
        BundleError: if a bundle is damaged, or does not have what was asked for.
        BackendError: if nothing runs on that device here.
        PromptError: if an option is unknown or out of range.
    """
    backend, gpu = backend_of(device)
    if mode != "eval":
        raise PromptError(expected('mode "eval"', repr(mode), "Train with the official package"))
    threads, budget = kwargs.pop("threads", None), kwargs.pop("memory_budget_mb", DEFAULT_MEMORY_BUDGET_MB)
    options = read_options(hydra_overrides_extra, kwargs, postprocessing=apply_postprocessing)
    folder = _given_bundle(config_file, ckpt_path)
    if folder is None:
        if config_file is None or ckpt_path is None:
            got = f"config_file={config_file!r}, ckpt_path={ckpt_path!r}"
            raise ExportError(expected("a config and a checkpoint, or a bundle folder", got, "Give both, or what `fastsam2 export` wrote"))
        size = options.image_size
        folder = cached_bundle(str(config_file), str(ckpt_path), image_size=size, postprocessing=apply_postprocessing)
        bundle = load(folder, backend=backend.value, threads=threads, gpu=gpu)
    else:
        bundle = load(folder, backend=backend.value, threads=threads, gpu=gpu)
        _check_bundle(bundle, folder, config_file, options, postprocessing=apply_postprocessing)
    return SAM2VideoPredictor(bundle, options, memory_budget_mb=budget)


class SAM2VideoPredictor(ClipTracker):
    """Tracks objects in finished clips through the official interface; made by `build_sam2_video_predictor`.

    The options `fill_hole_area`, `non_overlap_masks`, `clear_non_cond_mem_around_input`, `add_all_frames_to_correct_as_cond` and
    `max_cond_frames_in_attn` are attributes and may be set at any time.

    Args:
        bundle: the model.
        options: see there.
        memory_budget_mb: see `Tracker`.
    """

    training = False

    def __init__(
        self, bundle: LoadedBundle, options: PredictorOptions | None = None, *, memory_budget_mb: int = DEFAULT_MEMORY_BUDGET_MB
    ) -> None:
        options = options or PredictorOptions()
        super().__init__(
            bundle.backend,
            bundle.spec,
            fill_hole_area=options.fill_hole_area,
            clear_non_cond_mem_around_input=options.clear_non_cond_mem_around_input,
            add_all_frames_to_correct_as_cond=options.add_all_frames_to_correct_as_cond,
            max_cond_frames_in_attn=options.max_cond_frames_in_attn,
            memory_budget_mb=memory_budget_mb,
        )
        self.non_overlap_masks = options.non_overlap_masks
        self.image_size = bundle.spec.image_size

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
        """A predictor of official weights, downloaded from the Hugging Face hub.

        Args:
            model_id: for example "facebook/sam2.1-hiera-tiny".
            **kwargs: of `build_sam2_video_predictor`.

        Raises:
            ExportError: if there is no such model, or it cannot be downloaded or exported.
        """
        from fastsam2.export.checkpoints import HUB, MODELS

        ids = [known.hub_id for known in MODELS.values()]
        if model_id not in ids:
            raise ExportError(expected(f"a model id of {ids}", repr(model_id), "Use build_sam2_video_predictor() for a checkpoint"))
        return build_sam2_video_predictor(model_id, HUB, **kwargs)

    @property
    def device(self) -> Any:
        """Where its answers lie: `torch.device("cpu")`, or "cpu" without torch."""
        return torch_module().device("cpu") if torch_module() else "cpu"

    @property
    def _on_cpu(self) -> bool:
        return self._stages.device is HOST

    def eval(self) -> SAM2VideoPredictor:
        """This predictor: it is never in training mode."""
        return self

    def to(self, device: object = None) -> SAM2VideoPredictor:
        """This predictor, if it runs there.

        Raises:
            BackendError: if it does not.
        """
        if device is not None and (backend_of(device)[0] is BackendName.ONNXRUNTIME) != self._on_cpu:
            todo = f"Build it with device={str(device)!r}: a predictor cannot move"
            raise BackendError(expected(f"a predictor on {device}", f"one on {'the CPU' if self._on_cpu else 'a GPU'}", todo))
        return self

    def cpu(self) -> SAM2VideoPredictor:
        """This predictor."""
        return self

    def cuda(self, device: object = None) -> SAM2VideoPredictor:
        """This predictor, if it was built for a GPU; as `to`."""
        return self.to("cuda" if device is None else device)

    def init_state(
        self,
        video_path: object,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
    ) -> State:
        """Open a clip.

        Args:
            video_path: a folder of JPEG files named by frame number, a video file, uint8 [T, H, W, 3] RGB, or a list of such frames.
            offload_video_to_cpu: no effect; frames are always held by the host, as uint8.
            offload_state_to_cpu: no effect; memories are always held by the host, as bfloat16.
            async_loading_frames: load a folder in the background.

        Returns:
            The state that the other methods take, with the official keys num_frames, video_height, video_width, obj_ids, obj_id_to_idx,
            obj_idx_to_id, images, device and storage_device.

        Raises:
            VideoError: if the clip cannot be read.
            PromptError: if an array is no RGB frame.
        """
        frames = load_clip(video_path, self.image_size, background=async_loading_frames)
        state: State = {
            _CLIP: Clip(frames),
            "images": frames,
            "num_frames": len(frames),
            "video_height": frames.size[0],
            "video_width": frames.size[1],
            "offload_video_to_cpu": offload_video_to_cpu,
            "offload_state_to_cpu": offload_state_to_cpu,
            "device": self.device,
            "storage_device": self.device,
        }
        _name_objects(state)
        return state

    def add_new_points_or_box(
        self,
        inference_state: State,
        frame_idx: int,
        obj_id: Hashable,
        points: Any = None,
        labels: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: Any = None,
    ) -> tuple[int, list[Hashable], Tensor]:
        """Prompt an object with points or a box.

        Args:
            inference_state: from `init_state`.
            frame_idx: 0-based.
            obj_id: anything hashable; a new one starts a new object.
            points: numbers [n, 2] or [1, n, 2], x and y in video pixels.
            labels: [n] or [1, n]: 1 on the object, 0 off it; 2 and 3 are corners of a box.
            clear_old_points: forget the points given on this frame before.
            normalize_coords: coordinates are in video pixels; otherwise in 0..1.
            box: numbers [4]: x0, y0, x1, y1.

        Returns:
            frame_idx; the ids of all objects; their logits on this frame, float32 [B, 1, H, W], -1024 for an object not known there.

        Raises:
            PromptError: if an argument is not legal. The state is unchanged.
            StateError: if a tracked frame is corrected and the object has no prompt frame left. The state is unchanged.
        """
        clip: Clip = inference_state[_CLIP]
        frame = clip.check_frame_index(frame_idx)
        scale = clip.frames.size if normalize_coords else (1, 1)
        if box is not None and not clear_old_points:
            raise PromptError(expected("clear_old_points=True with a box", False, "A box comes before any point: give it first"))
        coordinates, kinds = official_points(on_host(points), on_host(labels), on_host(box), size=scale, image_size=self.image_size)
        known = clip.objects.get(obj_id) or self.new_object()
        if not clear_old_points and frame in known.points:
            coordinates = np.concatenate([known.points[frame][0], coordinates], axis=1)
            kinds = np.concatenate([known.points[frame][1], kinds], axis=1)
        self.prompt_points(clip, known, frame, coordinates, kinds)
        return self._prompted(inference_state, frame, obj_id, known)

    def add_new_points(self, *args: Any, **kwargs: Any) -> tuple[int, list[Hashable], Tensor]:
        """The old name of `add_new_points_or_box`."""
        return self.add_new_points_or_box(*args, **kwargs)

    def add_new_mask(self, inference_state: State, frame_idx: int, obj_id: Hashable, mask: Any) -> tuple[int, list[Hashable], Tensor]:
        """Prompt an object with a mask [h, w] of any size, not zero on the object; of a tensor, at least 0.5 after resizing.

        Otherwise as `add_new_points_or_box`.
        """
        clip: Clip = inference_state[_CLIP]
        frame = clip.check_frame_index(frame_idx)
        given = np.asarray(on_host(mask))
        if hasattr(mask, "detach"):  # officially what is no tensor becomes bool
            resized = soft_mask_to_input(given.astype(np.float32), self.image_size)
        else:
            resized = mask_to_input(given.astype(np.bool_), self.image_size)
        known = clip.objects.get(obj_id) or self.new_object()
        self.prompt_mask(clip, known, frame, resized)
        return self._prompted(inference_state, frame, obj_id, known)

    def propagate_in_video_preflight(self, inference_state: State) -> None:
        """Encode the prompts given so far into memory; `propagate_in_video` does it by itself.

        Raises:
            StateError: if there is no object, or one without a prompt. The state is unchanged.
        """
        self.finish_prompts(inference_state[_CLIP])

    def propagate_in_video(
        self,
        inference_state: State,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[int, list[Hashable], Tensor]]:
        """Track all objects from frame to frame.

        Args:
            inference_state: from `init_state`.
            start_frame_idx: the first frame; None for the earliest prompt frame.
            max_frame_num_to_track: frames after the first; None for all.
            reverse: from later frames to earlier ones.

        Yields:
            the frame's index; the ids of all objects; their logits, float32 [B, 1, H, W].

        Raises:
            StateError: if there is no object, or one without a prompt.
            PromptError: if tracking would begin outside of the clip.
            VideoError: if a frame loaded in the background cannot be read.
        """
        clip: Clip = inference_state[_CLIP]
        self.finish_prompts(clip)
        ids: list[Hashable] = inference_state["obj_ids"]
        last = len(clip.frames) - 1
        start = min(t for known in clip.objects.values() for t in known.prompt_frames) if start_frame_idx is None else start_frame_idx
        count = len(clip.frames) if max_frame_num_to_track is None else max_frame_num_to_track
        if reverse:
            order = range(start, max(start - count, 0) - 1, -1) if start > 0 else range(0)
        else:
            order = range(start, min(start + count, last) + 1)
        for index in order:
            logits = self.track(clip, clip.check_frame_index(index), ids, reverse=reverse)
            yield index, ids, self._video_masks(clip, resize_logits(logits, clip.frames.size))

    def clear_all_prompts_in_frame(
        self, inference_state: State, frame_idx: int, obj_id: Hashable, need_output: bool = True
    ) -> tuple[int, list[Hashable], Tensor] | None:
        """Take back an object's prompts on a frame; its mask and memory there stay, as if the frame had only been tracked.

        Args:
            inference_state: from `init_state`.
            frame_idx: 0-based.
            obj_id: of the object; an unknown one is added without a prompt, as officially.
            need_output: answer like `add_new_points_or_box`; otherwise with None.

        Raises:
            PromptError: if there is no such frame.
        """
        clip: Clip = inference_state[_CLIP]
        frame = clip.check_frame_index(frame_idx)
        known = clip.objects.get(obj_id) or self.new_object()
        self.forget_prompt(known, frame)
        _name_objects(inference_state, obj_id, known)
        if not need_output:
            return None
        return frame, inference_state["obj_ids"], self._pending_masks(clip, frame)

    def remove_object(
        self, inference_state: State, obj_id: Hashable, strict: bool = False, need_output: bool = True
    ) -> tuple[list[Hashable], list[tuple[int, Tensor]]]:
        """Forget an object.

        Args:
            inference_state: from `init_state`.
            obj_id: of the object.
            strict: an unknown id is an error.
            need_output: answer with the masks of the others on the frames where the object was prompted.

        Returns:
            the ids of the remaining objects; (frame index, float32 [B, 1, H, W]) of those frames, ascending.

        Raises:
            StateError: if the id is unknown and `strict`.
        """
        clip: Clip = inference_state[_CLIP]
        known = clip.objects.get(obj_id)
        if known is None:
            if strict:
                raise StateError(expected(f"an object id of {list(clip.objects)}", repr(obj_id), "Leave strict out to ignore unknown ids"))
            return inference_state["obj_ids"], []
        del clip.objects[obj_id]
        _name_objects(inference_state)
        frames = known.prompted_frames if need_output and clip.objects else []
        return inference_state["obj_ids"], [(frame, self._pending_masks(clip, frame)) for frame in frames]

    def reset_state(self, inference_state: State) -> None:
        """Forget every object and prompt; the clip stays open."""
        inference_state[_CLIP].objects.clear()
        _name_objects(inference_state)

    def _prompted(self, state: State, frame: int, obj_id: Hashable, known: ClipObject) -> tuple[int, list[Hashable], Tensor]:
        _name_objects(state, obj_id, known)
        clip: Clip = state[_CLIP]
        return frame, state["obj_ids"], self._pending_masks(clip, frame, as_prompt=self.counts_as_prompt(known, frame))

    def _pending_masks(self, clip: Clip, frame: int, *, as_prompt: bool | None = None) -> Tensor:
        """What is known of every object on a frame, pending prompts included: official `_consolidate_temp_output_across_obj`."""
        if as_prompt is None:
            as_prompt = any(frame in known.pending[True] for known in clip.objects.values())
        masks = np.full((len(clip.objects), *clip.frames.size), NO_OBJECT_LOGIT, np.float32)
        for mask, known in zip(masks, clip.objects.values(), strict=True):
            if (output := known.output(frame, as_prompt=as_prompt)) is not None:
                mask[:] = resize_logits(output.logits[None], clip.frames.size)[0]
        return self._video_masks(clip, masks)

    def _video_masks(self, clip: Clip, logits: Float) -> Tensor:
        """Float32 [B, H, W] at video resolution as the caller gets it, [B, 1, H, W]; written to."""
        if self.non_overlap_masks and len(logits) > 1:
            winner = logits.argmax(axis=0)
            for index, own in enumerate(logits):
                np.minimum(own, np.float32(_OVERLAP_LOGIT), out=own, where=winner != index)
        module = torch_module()
        answer: Tensor = logits[:, None].view(HostTensor) if module is None else module.from_numpy(logits[:, None])
        return answer


@lru_cache(maxsize=1)
def torch_module() -> Any:
    """The package torch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def _name_objects(state: State, obj_id: Hashable = None, known: ClipObject | None = None) -> None:
    """Hold an object under its id, and bring the keys of a state up to date."""
    clip: Clip = state[_CLIP]
    if known is not None:
        clip.objects[obj_id] = known
    state["obj_ids"] = list(clip.objects)
    state["obj_id_to_idx"] = {known_id: index for index, known_id in enumerate(clip.objects)}
    state["obj_idx_to_id"] = dict(enumerate(clip.objects))


def _given_bundle(config: str | os.PathLike[str] | None, checkpoint: str | os.PathLike[str] | None) -> Path | None:
    """The bundle folder among the two, or None. Names of built-in bundles are as good as folders."""
    folders = [bundle_path(given) if given in builtin_bundles() else given for given in (config, checkpoint) if given is not None]
    found = [Path(folder) for folder in folders if is_bundle(folder)]
    if checkpoint is not None and found and not is_bundle(folders[-1]):
        raise ExportError(expected("no checkpoint beside a bundle", repr(checkpoint), "A bundle holds its weights: leave ckpt_path out"))
    return found[-1] if found else None


def _check_bundle(
    bundle: LoadedBundle, folder: Path, config: str | os.PathLike[str] | None, options: PredictorOptions, *, postprocessing: bool
) -> None:
    from fastsam2.export.checkpoints import MODELS, model_name  # loads neither torch nor sam2

    name, size = bundle.spec.name, bundle.spec.image_size
    asked = name if config is None else model_name(str(config))
    if asked != name and asked in MODELS and name in MODELS:
        raise BundleError(expected(f"a bundle of {asked}", f"{folder}, which is {name}", "Give the bundle and the config of one model"))
    if options.image_size not in (None, size):
        wanted = f"a bundle for {options.image_size} px"
        raise BundleError(expected(wanted, f"{folder}, made for {size} px", "Export one with --image-size"))
    if not postprocessing:
        todo = "Leave apply_postprocessing out, or give the config and the checkpoint instead of a bundle"
        raise BundleError(expected("apply_postprocessing with a bundle, whose graphs contain it", False, todo))
