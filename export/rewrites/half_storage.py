"""Weights that float16 holds exactly are stored as float16: half the file, the same numbers.

    float32 initializer w  ->  float16 initializer w_half, w = Cast(w_half, float32)

Runtimes fold the Cast when they load the graph, so nothing is computed in half precision. Weights that would lose a bit stay as they are:
official checkpoints are hardly touched, a checkpoint that was rounded to float16 (the built-in nano) is halved.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

_LEAST_ELEMENTS = 256  # below, the Cast node would cost more bytes than it saves


def store_half(path: Path) -> None:
    """Rewrite one ONNX file in place.

    Args:
        path: a graph without external data.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path, load_external_data=False)
    kept, casts = [], []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and int(np.prod(weight.dims)) >= _LEAST_ELEMENTS:
            values = numpy_helper.to_array(weight)
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if np.array_equal(half.astype(np.float32), values):
                name = f"{weight.name}_half"
                casts.append(helper.make_node("Cast", [name], [weight.name], name=f"{weight.name}_to_float", to=TensorProto.FLOAT))
                kept.append(numpy_helper.from_array(half, name))
                continue
        kept.append(weight)
    if not casts:
        return
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    onnx.save(model, path)
