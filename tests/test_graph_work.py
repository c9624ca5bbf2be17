"""What graphs cost. Oracles: products written out by hand, and torch's own count on the official modules."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastsam2.benchmarks.graph_work import Work, graph_work, timed_work, work_of
from fastsam2.bundle import FileEntry, read_manifest
from fastsam2.config import ModelSpec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError
from fastsam2.export.checkpoints import build_model
from tests.bare_nano import bare_nano

ROOT = Path(__file__).parents[1]
NANO = bare_nano()
Shapes = dict[str, tuple[int, ...]]


def save(
    file: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[str | int]],
    outputs: list[str],
    weights: dict[str, Any] | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), file)
    return file


def floats(*shape: int, kind: type = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, kind)


def node(kind: str, inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


PRODUCTS: dict[str, tuple[onnx.NodeProto, Shapes, Shapes, int]] = {
    "matrices in batches": (node("MatMul", "x w"), {"x": (3, 5, 7)}, {"w": (7, 11)}, 3 * 5 * 7 * 11),
    "matrix and vector": (node("MatMul", "x w"), {"x": (5, 7)}, {"w": (7,)}, 5 * 7),
    "both turned": (node("Gemm", "x w b", transA=1, transB=1), {"x": (7, 5)}, {"w": (11, 7), "b": (11,)}, 5 * 7 * 11),
    "strided convolution": (
        node("Conv", "x w", strides=[2, 2], pads=[1] * 4),
        {"x": (2, 4, 8, 8)},
        {"w": (6, 4, 3, 3)},
        2 * 6 * 16 * 36,
    ),
    "convolution of groups": (node("Conv", "x w", group=4), {"x": (1, 4, 8, 8)}, {"w": (4, 1, 3, 3)}, 4 * 36 * 9),
    "spreading convolution": (node("ConvTranspose", "x w", strides=[2, 2]), {"x": (2, 4, 8, 8)}, {"w": (4, 6, 2, 2)}, 2 * 4 * 64 * 6 * 4),
    "attention": (
        node("Attention", "q k v", q_num_heads=2, kv_num_heads=2),
        {"q": (3, 5, 8), "k": (3, 9, 8), "v": (3, 9, 12)},
        {},
        3 * 5 * 9 * (8 + 12),
    ),
    "attention with shared keys": (
        node("Attention", "q k v", q_num_heads=4, kv_num_heads=2),
        {"q": (3, 5, 16), "k": (3, 9, 8), "v": (3, 9, 12)},
        {},
        3 * 4 * 5 * 9 * (4 + 6),
    ),
    "attention of rank four": (node("Attention", "q k v"), {"q": (3, 2, 5, 4), "k": (3, 2, 9, 4), "v": (3, 2, 9, 6)}, {}, 6 * 45 * (4 + 6)),
    "attention of ONNX Runtime": (
        node("MultiHeadAttention", "q k v", domain="com.microsoft", num_heads=2),
        {"q": (3, 5, 8), "k": (3, 9, 8), "v": (3, 9, 12)},
        {},
        3 * 5 * 9 * (8 + 12),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_on_paper(name: str, tmp_path: Path) -> None:
    operator, inputs, weights, products = PRODUCTS[name]
    axes: dict[str, list[str | int]] = {key: [f"{key}{i}" for i in range(len(shape))] for key, shape in inputs.items()}
    file = save(tmp_path / "graph.onnx", [operator], axes, ["y"], {key: floats(*shape) for key, shape in weights.items()})
    work = graph_work(file, inputs)
    assert work.multiply_adds == products
    assert work.input_bytes == 4 * sum(map(math.prod, inputs.values()))
    assert work.weight_bytes == 4 * sum(map(math.prod, weights.values()))


def test_bytes_are_those_on_paper(tmp_path: Path) -> None:
    """Weights stored in half precision and used in single; a table of which rows are gathered; shapes computed from shapes; views."""
    nodes = [
        node("Cast", "half", "w", to=TensorProto.FLOAT),
        node("Shape", "x", "rows", start=0, end=1),
        node("Squeeze", "rows", "count"),
        node("Range", "zero count one", "index"),
        node("Gather", "table index", "position", axis=0),  # [B, 8]
        node("Add", "x position", "moved"),
        node("Concat", "rows two four", "shape", axis=0),
        node("Reshape", "moved shape", "pairs"),
        node("MatMul", "pairs w", "y"),
    ]
    constants: dict[str, Any] = {"zero": np.int64(0), "one": np.int64(1), "two": np.array([2]), "four": np.array([4])}
    weights = {"half": floats(4, 6, kind=np.float16), "table": floats(100, 8), **constants}
    file = save(tmp_path / "graph.onnx", nodes, {"x": ["B", 8]}, ["y"], weights)
    b = 3
    assert graph_work(file, {"x": (b, 8)}) == Work(
        multiply_adds=b * 2 * 4 * 6,
        weight_bytes=4 * (4 * 6) + 4 * b * 8,
        input_bytes=4 * b * 8,
        output_bytes=4 * b * 2 * 6,
        activation_bytes=4 * b * (8 + (8 + 8 + 8) + (8 + 12)),  # Gather writes, Add reads two and writes, MatMul reads and writes
    )
    assert graph_work(file, {"x": (b, 8)}).least_bytes == 4 * (24 + 8 * b) + 4 * 8 * b + 4 * 12 * b


@pytest.mark.parametrize(
    ("kind", "domain", "inputs"),
    [("Einsum", "", "x"), ("FusedMatMul", "com.microsoft", "x x"), ("MatMul", "somebodys", "x x"), ("MatMulInteger", "", "x x")],
)
def test_an_operator_that_nobody_counted_is_refused(kind: str, domain: str, inputs: str, tmp_path: Path) -> None:
    file = save(tmp_path / "graph.onnx", [node(kind, inputs, domain=domain, equation="ab->ab")], {"x": [4, 4]}, ["y"])
    with pytest.raises(BundleError, match=rf"{kind} .*PRODUCT_FREE"):
        graph_work(file, {"x": (4, 4)})


def test_attention_with_a_cache_is_refused(tmp_path: Path) -> None:
    """Its keys are more than the third input says."""
    shape: list[str | int] = [1, 2, 5, 4]
    operator = helper.make_node("Attention", ["q", "k", "v", "", "a", "b"], ["y", "c", "d"])
    file = save(tmp_path / "graph.onnx", [operator], dict.fromkeys("qkvab", shape), ["y"])
    with pytest.raises(BundleError, match="Attention"):
        graph_work(file, dict.fromkeys("qkvab", (1, 2, 5, 4)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"shapes of \['x'\].*got \[\]"),
        ({"x": (3, 8), "z": (1,)}, r"shapes of \['x'\].*got \['x', 'z'\]"),
        ({"x": (3, 9)}, r"a shape for x \['B', 8\].*got \(3, 9\)"),
        ({"x": (8,)}, r"a shape for x"),
        ({"x": (3, 8)}, "shapes that fit together"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(inputs: Shapes, message: str, tmp_path: Path) -> None:
    file = save(tmp_path / "graph.onnx", [node("MatMul", "x w")], {"x": ["B", 8]}, ["y"], {"w": floats(7, 2)})
    with pytest.raises(BundleError, match=message):
        graph_work(file, inputs)


def test_a_shape_that_depends_on_data_is_refused(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "n", to=TensorProto.INT64), node("Expand", "w n", "y")]
    file = save(tmp_path / "graph.onnx", nodes, {"x": [2]}, ["y"], {"w": floats(1)})
    with pytest.raises(BundleError, match="a shape of y"):
        graph_work(file, {"x": (2,)})


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_text("not a graph")
    for file in (tmp_path / "graph.onnx", tmp_path / "none.onnx"):
        with pytest.raises(BundleError, match="an ONNX model in"):
            graph_work(file, {})


def torch_multiply_adds(call: Callable[[], object]) -> int:
    """Attention by its definition: torch counts no fused one on a CPU."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


OBJECTS, FRAMES, POINTERS = 3, 2, 5


@pytest.fixture(scope="module")
def nano() -> Any:
    return build_model(str(ROOT / "training/nano.yaml"), str(ROOT / "training/nano.pt")).module


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return read_manifest(NANO, verify=False).model


@pytest.fixture(scope="module")
def counted(spec: ModelSpec) -> dict[str, int]:
    works = work_of(NANO, read_manifest(NANO, verify=False), objects=OBJECTS, rows=FRAMES * spec.tokens, pointers=POINTERS)
    return {name: work["multiply_adds"] for name, work in works.items()}


def test_the_image_encoder_costs_what_torch_counts(nano: Any, spec: ModelSpec, counted: dict[str, int]) -> None:
    theirs = torch_multiply_adds(lambda: nano.forward_image(torch.zeros(1, 3, spec.image_size, spec.image_size)))
    assert counted["image_encoder"] == theirs > 1e9


def test_memory_attention_costs_what_torch_counts_less_what_the_rewrites_save(nano: Any, spec: ModelSpec, counted: dict[str, int]) -> None:
    """Values are projected after the attention, and the first layer's queries, which no memory has reached, are shared by all objects."""
    b, n, c, d, layers = OBJECTS, spec.tokens, spec.hidden_dim, spec.memory_dim, nano.memory_attention.num_layers
    p = spec.pointer_tokens * POINTERS
    r = FRAMES * n + p
    tokens, memory = torch.zeros(n, b, c), torch.zeros(r, b, d)
    theirs = torch_multiply_adds(
        lambda: nano.memory_attention(curr=[tokens], curr_pos=[tokens], memory=memory, memory_pos=memory, num_obj_ptr_tokens=p)
    )
    absorbed = layers * b * (n * r * (c - d) + r * d * c + n * c * (c - d))
    shared = (b - 1) * (2 * n * n * c + 5 * n * c * c)
    pointer_offsets = b * POINTERS * c * d  # inside the graph, outside the official module
    assert counted["memory_attention"] == theirs - absorbed - shared + pointer_offsets


def test_the_memory_encoder_costs_what_torch_counts_less_what_objects_share(nano: Any, spec: ModelSpec, counted: dict[str, int]) -> None:
    """The projection of the image's features."""
    b, c, g, s = OBJECTS, spec.hidden_dim, spec.grid, spec.image_size
    theirs = torch_multiply_adds(lambda: nano.memory_encoder(torch.zeros(b, c, g, g), torch.zeros(b, 1, s, s), skip_mask_sigmoid=True))
    assert counted["memory_encoder"] == theirs - (b - 1) * spec.tokens * c * c


def test_work_of_a_frame(spec: ModelSpec) -> None:
    """Per row of memory: read once, projected to a key, met by every query with key and value, in each layer."""
    manifest, layers = read_manifest(NANO, verify=False), 2
    fewer, more = (work_of(NANO, manifest, objects=1, rows=rows, pointers=16) for rows in (2000, 2001))
    assert list(fewer) == ["image_encoder", "memory_attention", "mask_decoder", "memory_encoder"]
    n, c, d = spec.tokens, spec.hidden_dim, spec.memory_dim
    one, other = fewer.pop("memory_attention"), more.pop("memory_attention")
    assert other["multiply_adds"] - one["multiply_adds"] == layers * (n * (c + d) + d * c)
    assert other["least_bytes"] - one["least_bytes"] == 4 * (d + 2)
    assert fewer == more


def test_graphs_with_their_times() -> None:
    work = {"image_encoder": {"multiply_adds": 7, "least_bytes": 5, "weight_bytes": 3}, "router": {"multiply_adds": 1, "least_bytes": 1}}
    assert timed_work(work, {"decode": 9.0, "image_encoder": 2.5}) == {"image_encoder": {"multiply_adds": 7, "least_bytes": 5, "ms": 2.5}}


def test_graphs_that_take_the_place_of_others(tmp_path: Path, spec: ModelSpec) -> None:
    """A bundle with query_attention counts that one or memory_attention, as asked."""
    manifest = read_manifest(NANO, verify=False)
    entry = manifest.graph(GraphRole.MEMORY_ATTENTION, ExportTarget.ONNXRUNTIME)
    more_inputs: dict[str, list[str | int]] = {"query_position": ["B", "K"], "source": ["B", spec.tokens]}
    model = onnx.load(NANO / entry.file.path)
    for name, axes in more_inputs.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, axes))
    onnx.save(model, tmp_path / "query_attention.onnx")
    for graph in manifest.graphs:
        shutil.copyfile(NANO / graph.file.path, tmp_path / graph.file.path)
    file = FileEntry.of(tmp_path, PurePosixPath("query_attention.onnx"))
    both = manifest.model_copy(
        update={"graphs": (*manifest.graphs, entry.model_copy(update={"role": GraphRole.QUERY_ATTENTION, "file": file}))}
    )
    usual, pruned = (work_of(tmp_path, both, objects=2, rows=100, pointers=3, queries=queries) for queries in (None, 77))
    assert "query_attention" not in usual and "memory_attention" not in pruned
    grown = pruned["query_attention"]["input_bytes"] - usual["memory_attention"]["input_bytes"]
    assert grown == 4 * 2 * (77 + spec.tokens)
