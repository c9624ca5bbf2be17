from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastsam2.export.rewrites.half_storage import store_half


def _linear(path: Path, weight: np.ndarray) -> Path:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return np.asarray(y)


def test_exact_weights_are_halved_and_compute_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = _linear(tmp_path / "g.onnx", rng.standard_normal((64, 96)).astype(np.float16).astype(np.float32))
    x = rng.standard_normal((5, 64)).astype(np.float32)
    before, size = _run(path, x), path.stat().st_size
    store_half(path)
    assert path.stat().st_size < 0.52 * size + 500
    np.testing.assert_array_equal(_run(path, x), before)
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize("value", [1.0001, 1e6, 1e-9])  # a bit too fine, too large, too small for float16
def test_a_weight_that_would_change_stays(tmp_path: Path, value: float) -> None:
    weight = np.ones((64, 96), np.float32)
    weight[3, 4] = value
    path = _linear(tmp_path / "g.onnx", weight)
    before = path.read_bytes()
    store_half(path)
    assert path.read_bytes() == before
