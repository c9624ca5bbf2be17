"""Typed ONNX -> the form handed to the builder. What it computes stays the same.

    memory_bias [B,1,1,R] ─ Expand [B,H,Nq,R] ─► Attention          ─►   memory_bias [B,1,1,R] ─► Attention

ONNX Runtime wants the mask expanded. A fused kernel reads it either way; expanded, it lies in memory first: four objects of tiny (1024 px)
take 1928 MB of activations instead of 986. And Attention nodes are marked decomposable, because one that does not fuse ends the build.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastsam2.engines.precision import mark_decomposable

if TYPE_CHECKING:
    from onnx import ModelProto


def builder_form(typed: Path) -> bytes:
    """What the builder is to parse.

    Args:
        typed: ONNX from `fastsam2.engines.precision.convert`.

    Returns:
        A serialized ONNX model that only TensorRT reads.
    """
    import onnx

    model = onnx.load(typed)
    broadcast_masks(model)
    mark_decomposable(model)
    return bytes(model.SerializeToString())


def broadcast_masks(model: ModelProto) -> None:
    """Take away the Expand nodes between masks [B, 1, 1, R] and the Attention nodes that add them.

    Args:
        model: changed in place.
    """
    from onnx import shape_inference

    graph = model.graph
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.value_info, *inferred.input)}
    makers = {name: node for node in graph.node for name in node.output}
    for attention in graph.node:
        if attention.op_type != "Attention" or len(attention.input) < 4:
            continue
        reader, position = attention, 3
        while (maker := makers.get(reader.input[position])) is not None and maker.op_type == "Cast":
            reader, position = maker, 0
        if maker is not None and maker.op_type == "Expand":
            mask = shapes.get(maker.input[0], ())
            if len(mask) == 4 and mask[3].dim_value != 1:
                reader.input[position] = maker.input[0]
