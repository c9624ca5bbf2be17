"""How much attention each memory row receives, read off a bundle's own memory_attention graph.

    memory_attention.onnx ─ queries, keys of its cross-attentions as extra outputs ─► softmax(q kᵀ · scale) ─ sum over queries ─► mass [B,M]

The graph stays as it is: attention nodes are fused and never hand out their weights, so the weights are computed again from what goes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from fastsam2.bundle import read_manifest
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError, expected
from fastsam2.runtime.backends.protocol import Array, Backend, Float

_OP, _DOMAIN = "MultiHeadAttention", "com.microsoft"
_QUERIES_AT_ONCE = 512  # 512 x 28,736 weights at 1024 px are 59 MB


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """One attention node over the memory.

    Attributes:
        query, key, value, output: names of its tensors.
        heads: how many.
        scale: of the logits; None for 1 / sqrt(width of a head).
    """

    query: str
    key: str
    value: str
    output: str
    heads: int
    scale: float | None


@dataclass(frozen=True, slots=True)
class Attended:
    """One call of the graph.

    Attributes:
        conditioned: float32 [B, N, C], the graph's own output.
        rows: M, memory rows; the keys after them are pointers.
        layers: queries [B, N, W] and keys [B, R, W] of each layer, float32.
        nodes: the nodes they belong to.
    """

    conditioned: Float
    rows: int
    layers: tuple[tuple[Float, Float], ...]
    nodes: tuple[CrossAttention, ...]

    def mass(self, weight: Float | None = None) -> Float:
        """Attention received by each key, pointers included.

        Args:
            weight: float32 [B, N], how much each query counts; None for 1 each.

        Returns:
            float32 [B, R], mean over layers and heads of the sum over queries; each object's sum is the sum of its weights.
        """
        first = self.layers[0][1]
        total = np.zeros(first.shape[:2], np.float64)
        for (query, key), node in zip(self.layers, self.nodes, strict=True):
            counts = np.ones(query.shape[:2], np.float32) if weight is None else weight
            for b in range(len(query)):
                total[b] += _received(query[b], key[b], counts[b], node)
        return (total / len(self.layers)).astype(np.float32)


def attention_weights(query: Float, key: Float, node: CrossAttention) -> Float:
    """softmax(q kᵀ · scale) of one object: query [n, W], key [R, W] -> float32 [heads, n, R]."""
    width = query.shape[-1] // node.heads
    scale = np.float32(width**-0.5 if node.scale is None else node.scale)
    q = query.reshape(len(query), node.heads, width).transpose(1, 0, 2)
    k = key.reshape(len(key), node.heads, width).transpose(1, 2, 0)
    logits = np.matmul(q, k) * scale
    logits -= logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits, out=logits)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _received(query: Float, key: Float, counts: Float, node: CrossAttention) -> npt.NDArray[np.float64]:
    total = np.zeros(len(key), np.float64)
    for start in range(0, len(query), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        weights = attention_weights(query[part], key, node)
        total += np.einsum("hnr,n->r", weights, counts[part], optimize=True) / node.heads
    return total


class AttentionTap:
    """A backend that runs every graph of another one, and memory_attention with its queries and keys handed out.

    Args:
        folder: the bundle.
        backend: runs the other graphs.
        threads: CPU threads of memory_attention; None for every core.

    Raises:
        BundleError: if the bundle has no memory_attention for ONNX Runtime, or its attention nodes are not of the form exported here.
    """

    def __init__(self, folder: Path, backend: Backend, *, threads: int | None = None) -> None:
        self.name = backend.name
        self.backend = backend
        manifest = read_manifest(folder, verify=False)
        file = Path(folder) / manifest.graph(GraphRole.MEMORY_ATTENTION, ExportTarget.ONNXRUNTIME).file.path
        model, self.nodes = with_taps(file)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._calls: list[Attended] = []

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`; what memory_attention attended to waits for `take`."""
        if role is not GraphRole.MEMORY_ATTENTION:
            return self.backend.run(role, inputs)
        attended = self.attend(inputs)
        self._calls.append(attended)
        return {"conditioned": attended.conditioned}

    def attend(self, inputs: Mapping[str, Array]) -> Attended:
        """Run memory_attention once, with the inputs of `contracts.GRAPHS[MEMORY_ATTENTION]`."""
        names = [name for node in self.nodes for name in (node.query, node.key)]
        conditioned, *tapped = self._session.run(["conditioned", *dict.fromkeys(names)], dict(inputs))
        by_name = dict(zip(dict.fromkeys(names), tapped, strict=True))
        layers = tuple((by_name[node.query], by_name[node.key]) for node in self.nodes)
        return Attended(conditioned, inputs["memory"].shape[1], layers, self.nodes)

    def tensors(self, inputs: Mapping[str, Array], names: list[str]) -> list[Array]:
        """Any tensors of a cross-attention node, by name."""
        values: list[Array] = self._session.run(names, dict(inputs))
        return values

    def take(self) -> list[Attended]:
        """The calls since the last `take`, in order; forgets them."""
        calls, self._calls = self._calls, []
        return calls


def with_taps(file: Path) -> tuple[onnx.ModelProto, tuple[CrossAttention, ...]]:
    """The graph with query, key, value and output of every cross-attention as further outputs.

    Args:
        file: memory_attention for the onnxruntime target. A cross-attention is told by its number of keys, which is a symbol: it depends on
            M and P, while self-attention reads N tokens.

    Returns:
        The changed model; its cross-attentions, first layer first.

    Raises:
        BundleError: if there are none.
    """
    model = onnx.load(str(file))
    graph = model.graph
    dims = {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.input, *graph.output)}
    nodes = []
    for node in graph.node:
        if (
            node.op_type != _OP
            or node.domain != _DOMAIN
            or not (len(dims.get(node.input[1], ())) == 3 and dims[node.input[1]][1].dim_param)
        ):
            continue
        attributes = {a.name: a for a in node.attribute}
        scale = attributes["scale"].f if "scale" in attributes and attributes["scale"].f else None
        nodes.append(CrossAttention(node.input[0], node.input[1], node.input[2], node.output[0], int(attributes["num_heads"].i), scale))
    if not nodes:
        what = f"{_DOMAIN}.{_OP} nodes over the memory rows in {file}"
        raise BundleError(expected(what, "none", "Export the bundle again with `fastsam2 export --target onnxruntime`"))
    present = {output.name for output in graph.output}
    for name in dict.fromkeys(n for c in nodes for n in (c.query, c.key, c.value, c.output)):
        if name not in present:
            graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model, tuple(nodes)
