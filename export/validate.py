"""An exported graph in ONNX Runtime against the official torch code, on several sizes of every dynamic axis.

Oracle: the unmodified methods of facebookresearch/sam2 @2b90b9f (`SAM2Base.forward_image`, `MemoryAttention.forward`, `_forward_sam_heads`,
`_use_mask_as_output`, `_encode_new_memory`), fed with the same random inputs. The official memory attention knows whole frames only, so
subsets of rows or queries and pooled ones are compared with an official run whose rotation tables are replaced by gathered ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort
import torch
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_utils import get_1d_sine_pe

from fastsam2.config import ModelSpec
from fastsam2.contracts import GRAPHS, graph_spec
from fastsam2.deviation import relative_rms
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import ExportError, expected
from fastsam2.export.rewrites import position_tables
from fastsam2.export.to_onnx import example_inputs

# Root mean square of (ONNX - torch) / std(torch) over an output. Float32 rounding gives 1e-7 to 2e-5 (torch against float64 no less); a
# missing rotation, a shifted table or a permuted weight gives 1e-2 to 1. The largest element is no measure: on unit-variance random rows
# softmax amplifies single elements to 3e-4 in torch's own float32 arithmetic.
TOLERANCE = 1e-3


def _cases(role: GraphRole, spec: ModelSpec) -> list[dict[str, int]]:
    n = spec.tokens
    match role:
        case GraphRole.IMAGE_ENCODER:
            return [{}]
        case GraphRole.MEMORY_ATTENTION:
            return [{"B": 1, "M": 2 * n, "P": 1}, {"B": 3, "M": n // 3 + 7, "P": 18}]
        case GraphRole.QUERY_ATTENTION:
            return [{"B": 1, "K": n, "M": 2 * n, "P": 1}, {"B": 3, "K": n // 4 + 3, "M": n // 3 + 7, "P": 18}]
        case GraphRole.MASK_DECODER:
            return [{"B": 1, "Q": 1}, {"B": 3, "Q": 3}]
        case _:
            return [{"B": 1}, {"B": 3}]


def check_graph(model: Any, spec: ModelSpec, role: GraphRole, target: ExportTarget, path: Path) -> dict[str, float]:
    """Compare one graph with torch.

    Args:
        model: the official model it was exported from.
        spec: its sizes.
        role: which graph.
        target: which form.
        path: the ONNX file.

    Returns:
        Output name -> root mean square difference divided by the standard deviation of torch's output, the worst of the sizes tried.

    Raises:
        ExportError: beyond `TOLERANCE`, naming the output.
    """
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        raise _refused(role, target, error) from error
    table = graph_spec(role, target)
    names = [t.name for t in table.outputs]
    worst = dict.fromkeys(names, 0.0)
    for seed, sizes in enumerate(_cases(role, spec)):
        inputs = example_inputs(spec, role, target, sizes, seed)
        if "memory_bias" in inputs:
            inputs["memory_bias"][:, ::5] = -1e4
        with torch.inference_mode():
            oracle = _ORACLES[role](model, spec, **inputs)
        try:
            got = session.run(names, {k: v.numpy() for k, v in inputs.items()})
        except Exception as error:
            raise _refused(role, target, error) from error
        for name, want, have in zip(names, oracle, got, strict=True):
            deviation = relative_rms(have, want.numpy())
            worst[name] = max(worst[name], deviation)
            if not deviation <= TOLERANCE:
                raise ExportError(
                    expected(
                        f"{role.value} ({target.value}) output {name} within {TOLERANCE:g} of torch, relative to its spread",
                        f"{deviation:.3g} at sizes {sizes}",
                        "The exported graph is wrong for this checkpoint or this torch version; please report both",
                    )
                )
    return worst


def check_samples(wrapper: torch.nn.Module, role: GraphRole, samples: Iterable[np.ndarray[Any, Any]], path: Path) -> float:
    """Compare a graph with one input and one output, which does not depend on the target, with the module it was made from.

    Args:
        wrapper: the module, float32, eval.
        role: which graph.
        samples: inputs, all of one dtype; see `contracts.GRAPHS[role]`.
        path: the ONNX file.

    Returns:
        Root mean square difference / standard deviation of torch's output, the worst of all samples.

    Raises:
        ExportError: if the graph does not run in ONNX Runtime, or differs by more than `TOLERANCE`.
    """
    table, worst = GRAPHS[role], 0.0
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        raise _refused(role, ExportTarget.ONNXRUNTIME, error) from error
    for sample in samples:
        with torch.inference_mode():
            want = wrapper(torch.from_numpy(sample)).numpy().astype(np.float64)
        try:
            (have,) = session.run([table.outputs[0].name], {table.inputs[0].name: sample})
        except Exception as error:
            raise _refused(role, ExportTarget.ONNXRUNTIME, error) from error
        deviation = float("inf") if have.shape != want.shape else float(np.sqrt(np.mean(np.square(want - have))) / max(want.std(), 1e-12))
        worst = max(worst, deviation)
    if not worst <= TOLERANCE:
        raise ExportError(
            expected(
                f"{role.value} within {TOLERANCE:g} of torch, relative to its spread",
                f"{worst:.3g}",
                "The exported graph is wrong for this checkpoint or this torch version; please report both",
            )
        )
    return worst


def _refused(role: GraphRole, target: ExportTarget, error: Exception) -> ExportError:
    return ExportError(
        expected(
            f"{role.value} ({target.value}) to run in ONNX Runtime {ort.__version__}",
            f"{type(error).__name__}: {error}",
            "Export with the torch and onnxruntime versions of pyproject.toml",
        )
    )


def _image_encoder(model: Any, spec: ModelSpec, *, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    mean, std = torch.tensor((0.485, 0.456, 0.406))[:, None, None], torch.tensor((0.229, 0.224, 0.225))[:, None, None]
    fpn = model.forward_image((pixels.float() / 255.0 - mean) / std)["backbone_fpn"]
    return fpn[2].flatten(2).transpose(1, 2), fpn[0], fpn[1]


def _memory_attention(model: Any, spec: ModelSpec, *, tokens: torch.Tensor, **memory: torch.Tensor) -> tuple[torch.Tensor, ...]:
    queries = [(tokens[0], _grid_code(model, spec), None)] * len(memory["memory"])
    return (torch.stack(_official_attention(model, spec, queries, **memory)),)


def _query_attention(
    model: Any, spec: ModelSpec, *, tokens: torch.Tensor, query_position: torch.Tensor, source: torch.Tensor, **memory: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    attention, code = model.memory_attention, _grid_code(model, spec)
    cells, codes = _with_pooled(tokens[0], spec), _with_pooled(code, spec)
    queries = [(cells[own], codes[own], own) for own in query_position]
    with mock.patch.object(attention, "norm", torch.nn.Identity()):
        attended = _official_attention(model, spec, queries, **memory)
    weight = 0.1 if attention.pos_enc_at_input else 0.0
    outputs = []
    for (own, own_code, _), result, taken in zip(queries, attended, source, strict=True):
        x = tokens[0] + weight * code
        x[taken >= 0] += (result - own - weight * own_code)[taken[taken >= 0]]
        outputs.append(attention.norm(x))
    return (torch.stack(outputs),)


def _grid_code(model: Any, spec: ModelSpec) -> torch.Tensor:
    code: torch.Tensor = model.image_encoder.neck.position_encoding(torch.zeros(1, 1, spec.grid, spec.grid))[0].flatten(1).T
    return code


def _with_pooled(rows: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """[N, C] and the means of 2x2 cells after them."""
    pooled = torch.nn.functional.avg_pool2d(rows.T.unflatten(1, (spec.grid, spec.grid)), 2)
    return torch.cat([rows, pooled.flatten(1).T])


def _official_attention(
    model: Any,
    spec: ModelSpec,
    queries: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]],
    *,
    memory: torch.Tensor,
    position: torch.Tensor,
    age: torch.Tensor,
    pointers: torch.Tensor,
    pointer_offset: torch.Tensor,
    memory_bias: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """`MemoryAttention.forward` for each object: its queries [K, C], their codes, and their table rows, None for the whole grid."""
    memory_code = model.memory_encoder.position_encoding
    grid = torch.zeros(1, 1, spec.grid, spec.grid)
    table = position_tables.sine_table(spec.grid, spec.memory_dim, temperature=memory_code.temperature, scale=memory_code.scale)
    table[: spec.tokens] = memory_code(grid).flatten(2)[0].T
    outputs = []
    for b, (own, own_code, query_position) in enumerate(queries):
        code = table[position[b]] + model.maskmem_tpos_enc[age[b].long(), 0, 0]
        pointer_rows = pointers[b].reshape(-1, 1, spec.memory_dim)
        pointer_code = torch.zeros(pointers.shape[1], spec.memory_dim)
        if spec.pointer_offsets:
            pointer_code = model.obj_ptr_tpos_proj(get_1d_sine_pe(pointer_offset[b], dim=spec.hidden_dim))
        pointer_code = pointer_code.repeat_interleave(spec.pointer_tokens, dim=0)
        rows = torch.cat([memory[b][:, None], pointer_rows])
        codes = torch.cat([code, pointer_code])[:, None]
        bias = None if memory_bias is None else memory_bias[b]
        with _GatheredRotation(model, position[b], spec, bias, query_position):
            out = model.memory_attention(
                curr=own[:, None],
                curr_pos=own_code[:, None],
                memory=rows,
                memory_pos=codes,
                num_obj_ptr_tokens=pointer_rows.shape[0],
            )
        outputs.append(out[:, 0])
    return outputs


class _GatheredRotation:
    """While active, official cross-attention rotates key i by the angles of table row `position[i]` and adds `bias` to its logit.

    With `query_position` queries are rotated by those table rows, in self-attention too, which is left alone without.
    """

    def __init__(
        self, model: Any, position: torch.Tensor, spec: ModelSpec, bias: torch.Tensor | None, query_position: torch.Tensor | None
    ) -> None:
        self.layers = [layer.cross_attn_image for layer in model.memory_attention.layers]
        rope: RoPEAttention = self.layers[0]
        width = rope.internal_dim // rope.num_heads
        theta = position_tables.recover_theta(rope.freqs_cis, width)
        cos, sin = position_tables.rotary_tables(spec.grid, width, theta=theta)
        table = torch.complex(cos, sin)
        table[: spec.tokens] = rope.compute_cis(end_x=spec.grid, end_y=spec.grid)
        self.own = [] if query_position is None else [layer.self_attn for layer in model.memory_attention.layers]
        self.query, self.key, self.bias = table[: spec.tokens] if query_position is None else table[query_position], table[position], bias

    def __enter__(self) -> None:
        for rope in self.layers:
            rope.forward = lambda q, k, v, num_k_exclude_rope=0, rope=rope: self._forward(rope, q, k, v, num_k_exclude_rope)
        for rope in self.own:
            rope.forward = lambda q, k, v, rope=rope: self._among_queries(rope, q, k, v)

    def __exit__(self, *_: object) -> None:
        for rope in (*self.layers, *self.own):
            del rope.forward

    def _among_queries(self, rope: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = _turn(rope.q_proj(q), self.query), _turn(rope.k_proj(k), self.query), rope.v_proj(v)
        out: torch.Tensor = rope.out_proj((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
        return out

    def _forward(self, rope: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, excluded: int) -> torch.Tensor:
        q, k, v = rope.q_proj(q), rope.k_proj(k), rope.v_proj(v)
        rotated = k.shape[1] - excluded
        k = torch.cat([_turn(k[:, :rotated], self.key), k[:, rotated:]], dim=1)
        logits = _turn(q, self.query) @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if self.bias is not None:
            logits = logits + self.bias
        out: torch.Tensor = rope.out_proj(logits.softmax(-1) @ v)
        return out


def _turn(x: torch.Tensor, cis: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * cis).flatten(-2)


def _mask_decoder(
    model: Any,
    spec: ModelSpec,
    *,
    conditioned: torch.Tensor,
    high_res_0: torch.Tensor,
    high_res_1: torch.Tensor,
    points: torch.Tensor,
    labels: torch.Tensor,
    mask_prompt: torch.Tensor,
    has_mask: torch.Tensor,
    multimask: torch.Tensor,
    first_frame: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    rows = []
    for b in range(conditioned.shape[0]):
        features = conditioned[b : b + 1] + model.no_mem_embed * first_frame[b]
        _, _, ious, logits, _, pointer, score = model._forward_sam_heads(
            backbone_features=features.transpose(1, 2).reshape(1, -1, spec.grid, spec.grid),
            point_inputs={"point_coords": points[b : b + 1], "point_labels": labels[b : b + 1]},
            mask_inputs=mask_prompt[b : b + 1] if has_mask[b] else None,
            high_res_features=[high_res_0, high_res_1],
            multimask_output=bool(multimask[b]),
        )
        rows.append((logits, ious.max(dim=1).values, pointer, score[:, 0]))
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _mask_prompt(
    model: Any, spec: ModelSpec, *, tokens: torch.Tensor, high_res_0: torch.Tensor, high_res_1: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    batch = mask.shape[0]
    _, _, _, logits, _, pointer, score = model._use_mask_as_output(
        tokens.transpose(1, 2).reshape(1, -1, spec.grid, spec.grid).expand(batch, -1, -1, -1),
        [high_res_0.expand(batch, -1, -1, -1), high_res_1.expand(batch, -1, -1, -1)],
        mask,
    )
    return logits, pointer, score[:, 0]


def _memory_encoder(
    model: Any, spec: ModelSpec, *, tokens: torch.Tensor, low_res_logits: torch.Tensor, object_score: torch.Tensor, prompted: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    size = (spec.image_size, spec.image_size)
    rows = []
    for b in range(low_res_logits.shape[0]):
        features, _ = model._encode_new_memory(
            current_vision_feats=[tokens.transpose(0, 1)],
            feat_sizes=[(spec.grid, spec.grid)],
            pred_masks_high_res=torch.nn.functional.interpolate(low_res_logits[b : b + 1], size=size, mode="bilinear", align_corners=False),
            object_score_logits=object_score[b].reshape(1, 1),
            is_mask_from_pts=bool(prompted[b]),
        )
        rows.append(features.flatten(2).transpose(1, 2))
    return (torch.cat(rows),)


_ORACLES: dict[GraphRole, Any] = {
    GraphRole.IMAGE_ENCODER: _image_encoder,
    GraphRole.MEMORY_ATTENTION: _memory_attention,
    GraphRole.QUERY_ATTENTION: _query_attention,
    GraphRole.MASK_DECODER: _mask_decoder,
    GraphRole.MASK_PROMPT: _mask_prompt,
    GraphRole.MEMORY_ENCODER: _memory_encoder,
}
