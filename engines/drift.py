"""How far a typed graph is from its float32 source, per output, and whether that is within the budget of `engines/drift.toml`.

    typed graph ─ every half tensor float32, rounded through half where an operator writes it ─► ONNX Runtime, float32

The CPU kernels of ONNX Runtime compute most float16 operators in float32 without rounding in between, and lack bfloat16 ones, so the typed
graph itself would show less drift than a GPU, or not run. In the rounded graph every operator reads and writes exactly what half tensors
hold, and accumulates in float32, as tensor cores do. Not in it: the half probabilities inside a fused attention kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from fastsam2.deviation import relative_rms
from fastsam2.engines.precision import BFLOAT16, FLOAT, FLOAT16
from fastsam2.engines.precision_samples import Sample
from fastsam2.enums import GraphRole, Precision
from fastsam2.errors import BackendError, expected, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from onnx import ModelProto

_MOVES = (  # operators that write only values that they read
    *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool", "Neg", "Pad", "Relu"),
    *("Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
)


@cache
def budgets() -> Mapping[str, Any]:
    """The content of `drift.toml`."""
    return tomllib.loads(Path(__file__).with_name("drift.toml").read_text(encoding="utf-8"))


def measure(variant: Path, role: GraphRole, samples: Sequence[Sample]) -> dict[str, float]:
    """Compare a typed graph with the float32 answers of its source.

    Args:
        variant: what `precision.convert` made of the source.
        role: which graph.
        samples: calls of the source, see `precision_samples.samples`.

    Returns:
        Output name -> root mean square difference / standard deviation of the float32 output, the worst of all samples; for outputs of at
        most 16 values divided by the largest magnitude, or 1. Infinite where the variant overflows.

    Raises:
        BackendError: if the rounded graph does not run in ONNX Runtime.
    """
    import onnx

    model = rounded(onnx.load(variant)).SerializeToString()
    names = list(samples[0].outputs)
    try:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        answers = [session.run(names, dict(sample.inputs)) for sample in samples]
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        todo = "Export the bundle again with this release"
        raise BackendError(expected(f"{role.value} to run in ONNX Runtime {ort.__version__}", reason(error), todo)) from error
    worst = dict.fromkeys(names, 0.0)
    for sample, answer in zip(samples, answers, strict=True):
        for name, have in zip(names, answer, strict=True):
            worst[name] = max(worst[name], relative_rms(have, sample.outputs[name]))
    return worst


def check(drift: Mapping[str, float], role: GraphRole, precision: Precision) -> None:
    """Hold the drift of one graph against its budget.

    Args:
        drift: from `measure`.
        role: which graph.
        precision: of the variant.

    Raises:
        BackendError: if an output is beyond the budget, or not finite.
    """
    budget = float(budgets()[role.value][precision.value])
    beyond = {name: value for name, value in drift.items() if not value <= budget}
    if beyond:
        others = [p.value for p in Precision if p is not precision]
        raise BackendError(
            expected(
                f"{role.value} in {precision.value} within {budget:g} of float32, relative to the spread of an output",
                ", ".join(f"{name} {value:.3g}" for name, value in beyond.items()),
                f"Build with --precision {' or '.join(others)}, or accept it with --force",
            )
        )


def rounded(model: ModelProto) -> ModelProto:
    """The float32 graph that computes what a typed graph computes, each half tensor rounded when it is written.

    Args:
        model: typed, without subgraphs; left as it is.
    """
    from onnx import ModelProto, helper, numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for weight in graph.initializer:
        if weight.data_type in (FLOAT16, BFLOAT16):
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for position, name in enumerate(node.output):
            if (half := types[name]) in (FLOAT16, BFLOAT16) and node.op_type not in _MOVES:
                exact, narrow = f"{name}_exact", f"{name}_narrow"
                node.output[position] = exact
                nodes.append(helper.make_node("Cast", [exact], [narrow], name=narrow, to=half))
                nodes.append(helper.make_node("Cast", [narrow], [name], name=name, to=FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return copy
