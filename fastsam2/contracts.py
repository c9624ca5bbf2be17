"""THE tensor table: names, dtypes, shapes and dynamic axes of every graph, stated once.

The exporter names its inputs and outputs from here, the bundle checks them, the runtime feeds them, and engine builders take their
profiles from the dynamic axes. The graphs of `BASE_ROLES` are in every bundle; `query_attention` is exported when asked for,
`text_encoder`, `crop_encoder`, `router` and `router_gather` are added later. Symbols:

    S image side, g = S/16 grid side, N = g² grid tokens, L = 4g low-resolution side, C hidden width, D memory width, E text width,
    I side of the crop encoder's input (fixed by the model), and the dynamic B objects, K queries or rows kept,
    M memory rows, P object pointers, Q prompt points, T texts.
    R = M + (C/D)·P keys of the memory attention.

Semantics of each value follow facebookresearch/sam2 @2b90b9f `sam2/modeling/sam2_base.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastsam2.config import ModelSpec
from fastsam2.enums import ExportTarget, GraphRole

MANIFEST_VERSION = 2
CLIP_CONTEXT = 77  # token ids per text, fixed by CLIP
MASK_LOGIT_CLAMP = 32.0  # previous logits are clamped to ± this before they become a mask prompt
NO_OBJECT_LOGIT = -1024.0  # every logit of an object that is not visible (official NO_OBJ_SCORE)
LABEL_PADDING, LABEL_NEGATIVE, LABEL_POSITIVE, LABEL_BOX_MIN, LABEL_BOX_MAX = -1, 0, 1, 2, 3

DYNAMIC_AXES = frozenset({"B", "K", "M", "P", "Q", "T", "R"})
STATIC_AXES: Mapping[str, Callable[[ModelSpec], int]] = {
    "1": lambda _: 1,
    "2": lambda _: 2,
    "3": lambda _: 3,
    "S": lambda s: s.image_size,
    "N": lambda s: s.tokens,
    "L": lambda s: s.low_res,
    "L/2": lambda s: s.low_res // 2,
    "C": lambda s: s.hidden_dim,
    "C/4": lambda s: s.hidden_dim // 4,
    "C/8": lambda s: s.hidden_dim // 8,
    "D": lambda s: s.memory_dim,
    "E": lambda s: s.text_dim,
    "I": lambda s: s.crop_size,
    "77": lambda _: CLIP_CONTEXT,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: the ONNX name.
        dtype: numpy dtype name.
        axes: one symbol per dimension, from `STATIC_AXES` or `DYNAMIC_AXES`.
        doc: meaning, unit and range.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]
    doc: str

    def shape(self, spec: ModelSpec) -> tuple[int | str, ...]:
        """Sizes of `spec`'s model; dynamic axes stay symbols."""
        return tuple(a if a in DYNAMIC_AXES else STATIC_AXES[a](spec) for a in self.axes)

    def sized(self, spec: ModelSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape where dynamic axes have these sizes, by symbol; `sizes` may name more axes than the tensor has."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape(spec))

    def dynamic(self) -> dict[int, str]:
        """Dimension index -> symbol of the dynamic axes."""
        return {i: a for i, a in enumerate(self.axes) if a in DYNAMIC_AXES}


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph of a bundle.

    Attributes:
        role: which graph.
        inputs: in positional order.
        outputs: in positional order.
        runs: how often the tracker calls it.
    """

    role: GraphRole
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runs: str

    def input(self, name: str) -> TensorSpec:
        """The input called `name`."""
        return next(t for t in self.inputs if t.name == name)


def _t(name: str, dtype: str, axes: str, doc: str) -> TensorSpec:
    return TensorSpec(name, dtype, tuple(axes.split()), doc)


TOKENS = _t("tokens", "float32", "1 N C", "stride-16 features of the newest frame, without any positional or no-memory embedding")
HIGH_RES_0 = _t("high_res_0", "float32", "1 C/8 L L", "stride-4 features after conv_s0")
HIGH_RES_1 = _t("high_res_1", "float32", "1 C/4 L/2 L/2", "stride-8 features after conv_s1")
LOW_RES_LOGITS = _t("low_res_logits", "float32", "B 1 L L", "mask logits; -1024 everywhere when the object is not visible")
POINTER = _t("pointer", "float32", "B C", "object pointer, no_obj_ptr mixed in when the object is not visible")
OBJECT_SCORE = _t("object_score", "float32", "B", "logit; the object is visible when > 0")

_MEMORY = (
    _t("memory", "float32", "B M D", "memory rows as written by memory_encoder, rounded to bfloat16"),
    _t("position", "int32", "B M", "row of the position tables: 0..N-1 grid, N..N+N/4-1 pooled 2x2 cells, N+N/4 identity"),
    _t("age", "int32", "B M", "row of the temporal table: 0 previous frame, ..., num_maskmem-1 prompt frames"),
    _t("pointers", "float32", "B P C", "object pointers"),
    _t("pointer_offset", "float32", "B P", "frames back, divided by min(frames of the clip, max_object_pointers) - 1"),
)
_ROUTED = (
    TOKENS,
    _t("text", "float32", "B E", "text embedding of each object, unit length; ignored unless has_text"),
    _t("has_text", "bool", "B", "the object has a description"),
    LOW_RES_LOGITS,
    _t("uncertainty", "float32", "B N", "how undecided the mask is in each cell, 0..1"),
    OBJECT_SCORE,
    _t("iou", "float32", "B", "predicted IoU of the mask, 0..1"),
)
_ROUTES = (
    _t(
        "scores",
        "float32",
        "B N",
        "worth of each memory row, with noise that spreads the largest evenly; softmax over the frame, so a frame sums to 1",
    ),
    _t("relevance", "float32", "B N", "cosine of token and projected text, -1..1; 0 without text"),
    _t("context", "float32", "1 N", "how much a token differs from its 3 x 3 neighbourhood, in units of the mean token length"),
)

GRAPHS: Mapping[GraphRole, GraphSpec] = {
    g.role: g
    for g in (
        GraphSpec(
            GraphRole.IMAGE_ENCODER,
            (_t("pixels", "uint8", "1 3 S S", "RGB, already resized to S x S; normalised inside the graph"),),
            (TOKENS, HIGH_RES_0, HIGH_RES_1),
            "once a frame, shared by all objects",
        ),
        GraphSpec(
            GraphRole.MEMORY_ATTENTION,
            (TOKENS, *_MEMORY),
            (_t("conditioned", "float32", "B N C", "tokens conditioned on the memory"),),
            "once a frame per batch of objects with equal M and P",
        ),
        GraphSpec(
            GraphRole.QUERY_ATTENTION,
            (
                TOKENS,
                _t("query_position", "int32", "B K", "row of the position tables: 0..N-1 token, N..N+N/4-1 mean of a 2x2 cell"),
                _t("source", "int32", "B N", "the query whose update each cell takes, 0..K-1; -1 none, the cell passes through"),
                *_MEMORY,
            ),
            (_t("conditioned", "float32", "B N C", "tokens conditioned on the memory, as far as they take a query's update"),),
            "instead of memory_attention, when queries are pruned",
        ),
        GraphSpec(
            GraphRole.MASK_DECODER,
            (
                _t("conditioned", "float32", "B N C", "memory_attention's output, or raw tokens where first_frame"),
                HIGH_RES_0,
                HIGH_RES_1,
                _t("points", "float32", "B Q 2", "x, y in pixels of the S x S input; a box is two points"),
                _t(
                    "labels",
                    "int32",
                    "B Q",
                    "-1 padding, 0 negative, 1 positive, 2 and 3 box corners; one more padding point is added inside",
                ),
                _t("mask_prompt", "float32", "B 1 L L", "previous low-resolution logits clamped to ±32; ignored unless has_mask"),
                _t("has_mask", "bool", "B", "mask_prompt is given"),
                _t("multimask", "bool", "B", "choose among three masks by predicted IoU; otherwise one mask with stability fallback"),
                _t("first_frame", "bool", "B", "conditioned holds raw tokens: add no_mem_embed"),
            ),
            (
                LOW_RES_LOGITS,
                _t("iou", "float32", "B", "predicted IoU of the chosen mask, 0..1"),
                POINTER,
                OBJECT_SCORE,
            ),
            "once a frame per batch; once per prompt",
        ),
        GraphSpec(
            GraphRole.MASK_PROMPT,
            (TOKENS, HIGH_RES_0, HIGH_RES_1, _t("mask", "float32", "B 1 S S", "0 or 1, at the input size")),
            (LOW_RES_LOGITS, POINTER, OBJECT_SCORE),
            "once per mask prompt",
        ),
        GraphSpec(
            GraphRole.MEMORY_ENCODER,
            (TOKENS, LOW_RES_LOGITS, OBJECT_SCORE, _t("prompted", "bool", "B", "the frame was prompted: binarise the mask")),
            (_t("rows", "float32", "B N D", "memory rows, before rounding to bfloat16"),),
            "once a frame per batch",
        ),
        GraphSpec(
            GraphRole.TEXT_ENCODER,
            (_t("ids", "int32", "T 77", "token ids of CLIP: begin, words, end, then padding that nothing attends to"),),
            (_t("text", "float32", "T E", "text embeddings of unit length"),),
            "once a description",
        ),
        GraphSpec(
            GraphRole.CROP_ENCODER,
            (_t("crop", "uint8", "1 3 I I", "RGB, the picture round an object, already resized to I x I; normalised inside the graph"),),
            (_t("crop_embedding", "float32", "1 E", "of unit length; its product with a text embedding is their cosine"),),
            "once an object that is described automatically",
        ),
        GraphSpec(GraphRole.ROUTER, _ROUTED, _ROUTES, "once a frame per batch, when the router prunes"),
        GraphSpec(
            GraphRole.ROUTER_GATHER,
            (
                *_ROUTED,
                _t("rows", "float32", "B N D", "memory rows of the same frame, copied bit for bit"),
                _t("k", "int32", "1", "rows to keep of each object, 1..N; in host memory"),
            ),
            (
                *_ROUTES,
                _t("kept", "float32", "B K D", "the k rows with the largest scores, in their order"),
                _t("index", "int32", "B K", "where they were, ascending: their `position` in the memory attention"),
            ),
            "instead of router, by applications on full TensorRT; the tracker gathers between graphs",
        ),
    )
}
_LATER = (GraphRole.QUERY_ATTENTION, GraphRole.TEXT_ENCODER, GraphRole.CROP_ENCODER, GraphRole.ROUTER, GraphRole.ROUTER_GATHER)
BASE_ROLES = tuple(role for role in GRAPHS if role not in _LATER)
PLUGIN_ROLES: Mapping[GraphRole, GraphRole] = {GraphRole.ROUTER_GATHER: GraphRole.ROUTER}  # with a plugin's layer -> the same without it
SHAPE_INPUTS: Mapping[str, str] = {"k": "K"}  # input whose value is the size of a dynamic axis of the outputs -> that axis

# TensorRT keeps shapes static with padded banks, so its memory attention takes one more input.
MEMORY_BIAS = _t("memory_bias", "float32", "B R", "added to the attention logits of each key: 0, or very negative for rows not to be seen")


def graph_spec(role: GraphRole, target: ExportTarget) -> GraphSpec:
    """The table of one graph as shaped for `target`."""
    spec = GRAPHS[role]
    if role in (GraphRole.MEMORY_ATTENTION, GraphRole.QUERY_ATTENTION) and target is ExportTarget.TENSORRT:
        return GraphSpec(spec.role, (*spec.inputs, MEMORY_BIAS), spec.outputs, spec.runs)
    return spec
