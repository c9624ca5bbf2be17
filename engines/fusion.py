"""How many attentions of a graph have to come out fused, and whether they did.

    official model at its own size ─► counts of engines/fusion.toml ─┐
    any other ─► sizes of its Attention nodes ─► the rule there ─────┴─► Expectation ─► check_fusion(listing)

An attention that is not fused writes its B x H x Nq x Nk scores to memory: 235 MB an object in the memory attention at 1024 px.
"""

from __future__ import annotations

import ast
import math
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsam2.config import ModelSpec
from fastsam2.engines.layers import Listing
from fastsam2.engines.profiles import Profile
from fastsam2.enums import GraphRole, Precision
from fastsam2.errors import BackendError, ExportError, expected

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from onnx import ModelProto

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True, slots=True)
class AttentionSize:
    """One Attention node at the largest sizes of a profile.

    Attributes:
        node: its name.
        heads: batch times heads.
        queries: of each head.
        keys: of each head.
        width: of queries, keys and values of a head.
        masked: whether a mask is added to the scores.
    """

    node: str
    heads: int
    queries: int
    keys: int
    width: int
    masked: bool


@dataclass(frozen=True, slots=True)
class Expectation:
    """What fusion is asked of an engine.

    Attributes:
        fused: least number of fused attentions.
        attentions: all attentions of the graph.
        unfused: the others, with the reason why they need not be fused.
    """

    fused: int
    attentions: int
    unfused: tuple[tuple[str, str], ...] = ()


@cache
def data() -> dict[str, Any]:
    """The content of `fusion.toml`."""
    return tomllib.loads(Path(__file__).with_name("fusion.toml").read_text(encoding="utf-8"))


def expect(model: ModelProto, spec: ModelSpec, role: GraphRole, precision: Precision, profile: Profile | None) -> Expectation:
    """What fusion is asked of one profile of an engine.

    Args:
        model: float32 ONNX of the bundle; weights are not needed.
        spec: of the model.
        role: which graph.
        precision: of the engine.
        profile: None for a graph of static shapes.

    Raises:
        ExportError: if an Attention node does not say its sizes.
    """
    nodes = [node.name for node in model.graph.node if node.op_type == "Attention"]
    if precision is Precision.FP32:
        return Expectation(0, len(nodes), tuple((name, "float32 is never fused") for name in nodes))
    if (listed := official(spec)) is not None and role.value in listed:
        return Expectation(int(listed[role.value]), int(listed[role.value]))
    sizes = attention_sizes(model, {} if profile is None else profile.sizes)
    unfused = tuple((size.node, why) for size in sizes if (why := why_unfused(size)))
    return Expectation(len(nodes) - len(unfused), len(nodes), unfused)


def official(spec: ModelSpec) -> Mapping[str, Any] | None:
    """The entry of `fusion.toml` for this model at this size, if it has one."""
    return next((m for m in data()["model"] if spec.name in m["names"] and spec.image_size == m["image_size"]), None)


def why_unfused(size: AttentionSize) -> str | None:
    """Why an attention is not fused in half precision, or None when it is."""
    rule = data()["rule"]
    if size.width % rule["width_multiple"] or not rule["width_min"] <= size.width <= rule["width_max"]:
        return f"head width {size.width} is not a multiple of {rule['width_multiple']} in {rule['width_min']}..{rule['width_max']}"
    if not size.masked and size.heads >= rule["unmasked_heads"]:
        return None
    scores = size.heads * size.queries * size.keys
    if scores < rule["scores"]:
        return f"{size.heads} x {size.queries} x {size.keys} scores are fewer than {rule['scores']}"
    return None


def attention_sizes(model: ModelProto, sizes: Mapping[str, tuple[int, int, int]]) -> list[AttentionSize]:
    """The Attention nodes of a graph at the largest of `sizes`, in graph order.

    Args:
        model: with shapes of intermediate tensors, symbols as in `fastsam2.contracts` and sums and products of them.
        sizes: smallest, most likely and largest size of each symbol.

    Raises:
        ExportError: if the queries or keys of a node have no shape [B, H, N, W] that follows from `sizes`.
    """
    graph = model.graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.input, *graph.output)}
    largest = {symbol: value[2] for symbol, value in sizes.items()}
    found = []
    for node in graph.node:
        if node.op_type != "Attention":
            continue
        try:
            query, key = ([_size(d.dim_param or d.dim_value, largest) for d in shapes[name]] for name in node.input[:2])
            batch, heads, queries, width = query
            keys = key[2]
        except (KeyError, ValueError, SyntaxError, IndexError) as error:
            todo = "Export the bundle again with this release"
            raise ExportError(expected(f"the sizes of Attention {node.name}", f"a shape that does not tell ({error})", todo)) from error
        found.append(AttentionSize(node.name, batch * heads, queries, keys, width, len(node.input) > 3 and bool(node.input[3])))
    return found


def _size(dimension: int | str, symbols: Mapping[str, int]) -> int:
    """A dimension as ONNX writes it: a number, a symbol, or a sum or product of such ("4*P + M")."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=symbol):
                return symbols[symbol]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case _:
                raise ValueError(f"{dimension!r}")

    return value(ast.parse(str(dimension), mode="eval").body)


def check_fusion(listing: Listing, expectation: Expectation, role: GraphRole, precision: Precision, *, profile: int = 0) -> None:
    """Hold one profile of an engine against what is expected of it.

    Args:
        listing: of the engine.
        expectation: from `expect`.
        role: which graph.
        precision: of the engine.
        profile: index of the profile.

    Raises:
        BackendError: if fewer attentions are fused.
    """
    fused = listing.fused(profile)
    if len(fused) < expectation.fused:
        named = {source for layer in fused for source in layer.sources}
        seen = {s for layer in listing.layers if layer.profile == profile for s in layer.sources if "attention" in s} - named
        raise BackendError(
            expected(
                f"{expectation.fused} of {expectation.attentions} attentions of {role.value} fused in {precision.value}",
                f"{len(fused)}" + (f"; not fused: {', '.join(sorted(seen))}" if seen else ""),
                "Build with a TensorRT version that fuses them (tensorrt-rtx-cu13 1.7.1 does), or with --precision fp32, where none is",
            )
        )


def check_activation(activation_bytes: int, spec: ModelSpec, role: GraphRole, precision: Precision, profile: Profile | None) -> None:
    """Hold the activation memory of an official model's memory attention against the limit of `fusion.toml`.

    Raises:
        BackendError: if it takes more.
    """
    limit = data()["activation"]
    if precision is Precision.FP32 or role.value != limit["graph"] or profile is None or official(spec) is None:
        return
    objects, frames = profile.sizes["B"][2], profile.sizes["M"][2] / spec.tokens
    allowed = math.floor(limit["mb_per_object"] * 1e6 * objects * max(1.0, frames / limit["frames"]))
    if activation_bytes > allowed:
        raise BackendError(
            expected(
                f"at most {allowed / 1e6:.0f} MB of activations in {role.value} for {objects} objects",
                f"{activation_bytes / 1e6:.0f} MB",
                "Build with a TensorRT version that keeps attention scores out of memory (tensorrt-rtx-cu13 1.7.1 does)",
            )
        )
