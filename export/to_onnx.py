"""One official model and one graph role -> one ONNX file with the names, dtypes and dynamic axes of `fastsam2.contracts`."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsam2.config import ModelSpec
from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import InternalError
from fastsam2.export.rewrites.attention import fused
from fastsam2.export.rewrites.layer_norm import fused_layer_norm_2d
from fastsam2.export.wrappers.image_encoder import ImageEncoderGraph
from fastsam2.export.wrappers.mask_decoder import MaskDecoderGraph
from fastsam2.export.wrappers.mask_prompt import MaskPromptGraph
from fastsam2.export.wrappers.memory_attention import MemoryAttentionGraph
from fastsam2.export.wrappers.memory_encoder import MemoryEncoderGraph
from fastsam2.export.wrappers.query_attention import QueryAttentionGraph

OPSET = 23  # first opset with Attention
_EXAMPLE = {"B": 2, "K": 7, "M": 3, "P": 5, "Q": 4, "T": 2}  # none is 1, which torch.export would freeze; M in frames

_SHAPED_BY_TARGET = (
    GraphRole.IMAGE_ENCODER,
    GraphRole.MEMORY_ATTENTION,
    GraphRole.QUERY_ATTENTION,
    GraphRole.MASK_DECODER,
    GraphRole.MASK_PROMPT,
)


def depends_on_target(role: GraphRole) -> bool:
    """Whether the ONNX of `role` differs between export targets."""
    return role in _SHAPED_BY_TARGET


def build_wrapper(model: Any, spec: ModelSpec, role: GraphRole, target: ExportTarget) -> nn.Module:
    """The torch module that is exported as `role`, in evaluation mode."""
    match role:
        case GraphRole.IMAGE_ENCODER:
            wrapper: nn.Module = ImageEncoderGraph(model)
        case GraphRole.MEMORY_ATTENTION:
            wrapper = MemoryAttentionGraph(model, spec, target)
        case GraphRole.QUERY_ATTENTION:
            wrapper = QueryAttentionGraph(model, spec, target)
        case GraphRole.MASK_DECODER:
            wrapper = MaskDecoderGraph(model, spec)
        case GraphRole.MASK_PROMPT:
            wrapper = MaskPromptGraph(model, spec)
        case GraphRole.MEMORY_ENCODER:
            wrapper = MemoryEncoderGraph(model, spec)
        case _:
            raise InternalError(f"{role.value} is not made from a SAM 2 model")
    return wrapper.eval()


def example_inputs(spec: ModelSpec, role: GraphRole, target: ExportTarget, sizes: dict[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random legal inputs of a graph.

    Args:
        spec: model sizes.
        role: graph.
        target: export target.
        sizes: value of each dynamic axis; R follows from M and P.
        seed: of the random generator.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {**sizes, "R": sizes.get("M", 0) + spec.pointer_tokens * sizes.get("P", 0)}
    limits = {"position": spec.table_rows - 1, "age": spec.num_maskmem, "ids": 256}  # the smallest CLIP vocabulary has all bytes
    inputs: dict[str, torch.Tensor] = {}
    for tensor in graph_spec(role, target).inputs:
        shape = tensor.sized(spec, sizes)
        match tensor.name, tensor.dtype:
            case "pixels" | "crop", _:
                value = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            case "labels", _:
                value = torch.randint(-1, 4, shape, generator=generator, dtype=torch.int32)
            case "points", _:
                value = torch.rand(shape, generator=generator) * spec.image_size
            case "mask", _:
                value = (torch.rand(shape, generator=generator) > 0.7).float()
            case "pointer_offset", _:
                value = torch.rand(shape, generator=generator) * 3
            case "low_res_logits" | "mask_prompt", _:
                value = torch.randn(shape, generator=generator) * 8
            case "text", _:
                value = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
            case "uncertainty" | "iou", _:
                value = torch.rand(shape, generator=generator)
            case "query_position", _:  # no table row twice
                value = torch.stack([torch.randperm(spec.table_rows - 1, generator=generator)[: shape[1]] for _ in range(shape[0])]).int()
            case "source", _:
                value = torch.randint(-1, sizes["K"], shape, generator=generator, dtype=torch.int32)
            case _, "bool":
                value = torch.rand(shape, generator=generator) > 0.5
            case _, "int32":
                value = torch.randint(0, limits[tensor.name], shape, generator=generator, dtype=torch.int32)
            case _:
                value = torch.randn(shape, generator=generator)
        inputs[tensor.name] = value
    return inputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.onnx._internal.exporter")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export_graph(wrapper: nn.Module, spec: ModelSpec, role: GraphRole, target: ExportTarget, path: Path) -> None:
    """Write the ONNX file of one graph.

    Args:
        wrapper: module with the inputs and outputs of `role`, on the CPU, float32; see `build_wrapper`.
        spec: sizes of the model.
        role: which graph.
        target: for which consumer.
        path: file to write.
    """
    table = graph_spec(role, target)
    sizes = {**_EXAMPLE, "M": _EXAMPLE["M"] * 17}
    inputs = example_inputs(spec, role, target, sizes)
    axes: dict[str, Any] = {name: torch.export.Dim(name, min=1) for name in ("B", "K", "M", "P", "Q", "T")}
    axes["R"] = torch.export.Dim.AUTO  # derived from M and P inside the graph
    dynamic = {t.name: {i: axes[a] for i, a in t.dynamic().items()} for t in table.inputs}
    with torch.no_grad(), fused(target), fused_layer_norm_2d(), _quiet():
        torch.onnx.export(
            wrapper.eval(),
            tuple(inputs.values()),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            dynamic_shapes=tuple(dynamic.values()),
            input_names=[t.name for t in table.inputs],
            output_names=[t.name for t in table.outputs],
            verbose=False,
        )
