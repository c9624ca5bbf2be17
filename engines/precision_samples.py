"""What the drift of a typed graph is measured on: the bundle's own graphs track two drawn objects for three frames.

    frame 0 ─ a click on each object ─► memory ─► frame 1 ─► memory ─► frame 2

Random tensors would do for single operators, but not for a chain: what attention attends to, which of three masks is chosen and where a
mask ends decide how far rounding carries. Every graph runs in float32 in ONNX Runtime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fastsam2.bundle import Manifest
from fastsam2.config import IMAGE_STRIDE, LOW_RES_STRIDE, ModelSpec
from fastsam2.contracts import CLIP_CONTEXT, LABEL_PADDING, LABEL_POSITIVE, graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError, expected, reason

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One call of a graph; tensors by the names of `fastsam2.contracts`.

    Attributes:
        inputs: what it was given.
        outputs: what the float32 graph answered.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


FRAMES = 3
_OBJECTS = 2  # a disc and a square
_CENTRES = np.array([[0.32, 0.30], [0.68, 0.68]])  # x, y on frame 0, as a share of the side
_STEP = np.array([[0.04, 0.02], [-0.03, 0.01]])  # a frame
_RADIUS = 0.16


def draw(side: int, frame: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """One picture of the clip.

    Args:
        side: of the square, pixels.
        frame: 0 is the first.

    Returns:
        RGB uint8 [1, 3, side, side], masks bool [2, 1, side, side].
    """
    y, x = np.mgrid[:side, :side] / side
    ground = 0.45 + 0.2 * np.sin(9 * x + 4 * y) * np.cos(7 * y - 2 * x)
    picture = np.stack([ground, ground * 0.9, 1 - ground])
    masks = np.empty((_OBJECTS, 1, side, side), np.bool_)
    for index, (cx, cy) in enumerate(_CENTRES + frame * _STEP):
        dx, dy = x - cx, y - cy
        masks[index, 0] = np.hypot(dx, dy) < _RADIUS if index == 0 else np.maximum(abs(dx), abs(dy)) < _RADIUS
        stripes = 0.5 + 0.5 * np.sign(np.sin(60 * (dx + (1 - 2 * index) * dy)))
        colour = np.stack([0.9 - 0.7 * index + 0.1 * stripes, 0.2 + 0.3 * stripes, 0.1 + 0.6 * index * stripes])
        picture = np.where(masks[index], colour, picture)
    noise = np.random.default_rng(frame).normal(0, 0.02, picture.shape)
    return np.clip((picture + noise) * 255, 0, 255).astype(np.uint8)[None], masks


def samples(folder: Path, manifest: Manifest) -> dict[GraphRole, list[Sample]]:
    """Calls of every graph that the bundle has for the target `tensorrt`: of the last frame, and of the prompted one where that differs.

    Args:
        folder: of the bundle.
        manifest: of the bundle.

    Raises:
        BackendError: if a graph does not run in ONNX Runtime.
        BundleError: if the bundle lacks a graph for the target.
    """
    return _Clip(Path(folder), manifest).record()


class _Clip:
    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest, self.spec = folder, manifest, manifest.model
        self.roles = {g.role for g in manifest.graphs if g.target is ExportTarget.TENSORRT}
        self.calls: dict[GraphRole, list[Sample]] = {}
        self.sessions: dict[GraphRole, Any] = {}

    def record(self) -> dict[GraphRole, list[Sample]]:
        """See `samples`."""
        rows: list[Array] = []
        pointers: list[Array] = []
        for frame in range(FRAMES):
            features = self._frame(frame, rows, pointers)
        self._others(features, rows[:-1], pointers[:-1])
        once = (GraphRole.IMAGE_ENCODER, GraphRole.MEMORY_ATTENTION)
        return {role: calls[-1:] if role in once else [calls[0], *calls[1:][-1:]] for role, calls in self.calls.items()}

    def _frame(self, frame: int, rows: list[Array], pointers: list[Array]) -> Mapping[str, Array]:
        """Tracks one frame and appends to its memory; returns the image features."""
        spec = self.spec
        features = self._run(GraphRole.IMAGE_ENCODER, {"pixels": draw(spec.image_size, frame)[0]})
        tokens = features["tokens"]
        conditioned = np.repeat(tokens, _OBJECTS, axis=0)
        if frame:
            conditioned = self._run(GraphRole.MEMORY_ATTENTION, {"tokens": tokens, **_memory(spec, rows, pointers)})["conditioned"]
        answer = self._run(GraphRole.MASK_DECODER, {"conditioned": conditioned, **features, **_prompt(spec, frame)})
        rows.append(self._run(GraphRole.MEMORY_ENCODER, {**features, **answer, "prompted": np.full(_OBJECTS, frame == 0)})["rows"])
        pointers.append(answer["pointer"])
        return features

    def _others(self, features: Mapping[str, Array], rows: list[Array], pointers: list[Array]) -> None:
        """Calls the graphs that such a clip does not need, as far as they are there, with the last frame and the memory before it."""
        spec, answer = self.spec, self.calls[GraphRole.MASK_DECODER][-1].outputs
        masks = draw(spec.image_size, FRAMES - 1)[1].astype(np.float32)
        self._run(GraphRole.MASK_PROMPT, {**features, "mask": masks})
        if GraphRole.QUERY_ATTENTION in self.roles:
            self._run(GraphRole.QUERY_ATTENTION, {**features, **_half_the_queries(spec), **_memory(spec, rows, pointers)})
        if GraphRole.ROUTER in self.roles:
            self._run(GraphRole.ROUTER, {**features, **answer, **_for_router(spec, answer["low_res_logits"])})
        if GraphRole.CROP_ENCODER in self.roles:
            self._run(GraphRole.CROP_ENCODER, {"crop": draw(spec.crop_size, 0)[0]})
        if self.manifest.text is not None:
            self._run(GraphRole.TEXT_ENCODER, {"ids": _ids(self.folder / self.manifest.text.tokenizer.path)})

    def _run(self, role: GraphRole, offered: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs of one call, which is recorded; `offered` may hold more than the graph takes."""
        table = graph_spec(role, ExportTarget.TENSORRT)
        inputs = {t.name: offered[t.name] for t in table.inputs}
        names = [t.name for t in table.outputs]
        file = self.folder / self.manifest.graph(role, ExportTarget.TENSORRT).file.path
        try:
            if role not in self.sessions:
                self.sessions[role] = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            outputs = dict(zip(names, self.sessions[role].run(names, inputs), strict=True))
        except Exception as error:  # ONNX Runtime raises its own unrelated classes
            todo = "Export the bundle again with this release"
            raise BackendError(expected(f"{file} to run in ONNX Runtime {ort.__version__}", reason(error), todo)) from error
        self.calls.setdefault(role, []).append(Sample(inputs, outputs))
        return outputs


def _ids(tokenizer: Path) -> npt.NDArray[np.int32]:
    """Two texts of 3 and 6 tokens, [2, 77]; begin and end are the last two ids of every CLIP vocabulary."""
    end = max(json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"].values())
    ids = np.full((2, CLIP_CONTEXT), end, np.int32)
    for row, words in zip(ids, (3, 6), strict=True):
        row[: 1 + words] = [end - 1, *np.random.default_rng(words).integers(0, end - 1, words)]
    return ids


def _prompt(spec: ModelSpec, frame: int) -> dict[str, Array]:
    """Prompt inputs of the mask decoder: a click on each object on frame 0, later the padding point."""
    points = _CENTRES * spec.image_size if frame == 0 else np.zeros((_OBJECTS, 2))
    return {
        "points": points[:, None].astype(np.float32),
        "labels": np.full((_OBJECTS, 1), LABEL_POSITIVE if frame == 0 else LABEL_PADDING, np.int32),
        "mask_prompt": np.zeros((_OBJECTS, 1, spec.low_res, spec.low_res), np.float32),
        "has_mask": np.zeros(_OBJECTS, np.bool_),
        "multimask": np.full(_OBJECTS, frame == 0 or spec.multimask_for_tracking),
        "first_frame": np.full(_OBJECTS, frame == 0),
    }


def _memory(spec: ModelSpec, rows: list[Array], pointers: list[Array]) -> dict[str, Array]:
    """Memory inputs after the frames so far: the prompted one and those that follow it."""
    from onnx import TensorProto, helper

    bfloat16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    frames, n = len(rows), spec.tokens
    ages = [spec.num_maskmem - 1, *range(frames - 2, -1, -1)]
    offsets = np.arange(frames, 0, -1, dtype=np.float32) / (spec.max_object_pointers - 1)
    keys = frames * (n + spec.pointer_tokens)
    return {
        "memory": np.concatenate(rows, axis=1).astype(bfloat16).astype(np.float32),
        "position": np.tile(np.arange(n, dtype=np.int32), (_OBJECTS, frames)),
        "age": np.tile(np.repeat(np.array(ages, np.int32), n), (_OBJECTS, 1)),
        "pointers": np.stack(pointers, axis=1),
        "pointer_offset": np.tile(offsets, (_OBJECTS, 1)),
        "memory_bias": np.zeros((_OBJECTS, keys), np.float32),
    }


def _half_the_queries(spec: ModelSpec) -> dict[str, Array]:
    """Every second token is a query; its update goes to itself and to nothing else."""
    chosen = np.arange(0, spec.tokens, 2, dtype=np.int32)
    source = np.full(spec.tokens, -1, np.int32)
    source[chosen] = np.arange(len(chosen))
    return {"query_position": np.tile(chosen, (_OBJECTS, 1)), "source": np.tile(source, (_OBJECTS, 1))}


def _for_router(spec: ModelSpec, logits: Array) -> dict[str, Array]:
    """Inputs that no graph makes: unit-length texts of which the first counts, and 4p(1-p) of each cell's mean logit."""
    text = np.random.default_rng(0).standard_normal((_OBJECTS, spec.text_dim)).astype(np.float32)
    side = IMAGE_STRIDE // LOW_RES_STRIDE
    cells = logits.reshape(_OBJECTS, spec.grid, side, spec.grid, side).mean(axis=(2, 4), dtype=np.float32)
    return {
        "text": text / np.linalg.norm(text, axis=1, keepdims=True),
        "has_text": np.arange(_OBJECTS) == 0,
        "uncertainty": (1 - np.square(np.tanh(cells / 2))).reshape(_OBJECTS, spec.tokens),
    }
