"""The router and the compaction of the frame it ranks, in one graph for full TensorRT.

    router:  ... ─► scores, relevance, context        ─►   router:  ... ─► scores, relevance, context
                                                             scores, rows, k ─ TopKGather ─► kept, index

The router's own nodes, weights, inputs and outputs stay as they are. TopKGather is not of the ONNX standard: TensorRT takes it from a
plugin (`kernels/plugin/`); ONNX Runtime and TensorRT-RTX do not know it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from fastsam2.config import ModelSpec
from fastsam2.contracts import TensorSpec, graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.kernels.onnx_op import append_top_k_gather


def router_gather(router: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """The graph of `GraphRole.ROUTER_GATHER`.

    Args:
        router: graph of `GraphRole.ROUTER`; left as it is.
        spec: sizes of the model.

    Raises:
        ExportError: if the router's scores or the model's memory rows are not what the operator takes.
    """
    table = graph_spec(GraphRole.ROUTER_GATHER, ExportTarget.TENSORRT)
    model = onnx.ModelProto()
    model.CopyFrom(router)
    known = {value.name for value in router.graph.input}
    model.graph.input.extend(_value_info(tensor, spec) for tensor in table.inputs if tensor.name not in known)
    append_top_k_gather(model, scores="scores", rows="rows", k="k", kept="kept", index="index")
    onnx.checker.check_model(model, full_check=True)
    return model


def _value_info(tensor: TensorSpec, spec: ModelSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape(spec))
