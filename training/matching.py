"""Memory that matches from the start: the official modules, begun as a soft nearest-neighbour search, and a loss that makes it a good one.

From random weights, memory attention takes hours to find out that it can compare what it sees with what it remembers, and carry over
where the mask was. `install` writes that rule into the weights (what "mimetic" initialisation does for self-attention, Trockman and
Kolter 2023, arXiv 2305.09828; the rule is that of space-time memory networks, Oh et al. 2019, arXiv 1904.00607): a memory row says in its
first channels what is there and in the others which parts of the cell the mask covers, queries meet keys in what is there, and what is
carried over is the mask. `matching_loss` then trains image features for it, every token of a frame against every token of another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastsam2.training.model import TrainableSam2

_CELLS = 4  # of a token's side: the mask is remembered as coverage of 4 x 4 cells
_GAIN = 4.0  # of a memory row over the table of positions that is added to keys
_SHARP = 18.0  # logit of a token that meets itself
_NEARBY = 3.0  # logit of meeting at the same place
_NEAR_PAIRS = range(3, 11)  # rotary frequencies, 0.42 to 0.06 a token: a hill some six tokens wide
_RIDGE = 1e-3
_LEAST = 1e-4  # probability
_TOKEN = 16  # pixels


@torch.no_grad()
def install(model: TrainableSam2, features: Tensor, masks: Tensor) -> None:
    """Begin memory encoder and cross-attention as a soft nearest-neighbour search.

    Args:
        model: to change.
        features: [n, C, h, w], image features of the lowest level, of some frames.
        masks: float [m, 1, S, S] of 0 and 1, of some objects.
    """
    encoder, attention = model.memory_encoder, model.memory_attention
    remembered = model.mem_dim - _CELLS**2
    rows = features.flatten(2).mT.flatten(0, 1)
    spread, axes = torch.linalg.eigh(torch.cov(rows.T))
    project = (axes[:, -remembered:] * spread[-remembered:].rsqrt()).T
    content = (rows - rows.mean(0)) @ project.T  # whitened: [tokens, remembered]

    for layer in (encoder.pix_feat_proj, encoder.mask_downsampler.encoder[-1], encoder.out_proj):
        layer.weight.zero_()
        layer.bias.zero_()
    encoder.pix_feat_proj.weight[:remembered, :, 0, 0] = project
    encoder.pix_feat_proj.bias[:remembered] = -project @ rows.mean(0)
    encoder.out_proj.weight[:, : model.mem_dim, 0, 0] = _GAIN * torch.eye(model.mem_dim)
    given = masks * model.sigmoid_scale_for_mem_enc + model.sigmoid_bias_for_mem_enc
    seen, cells = encoder.mask_downsampler.encoder[:-1](given).flatten(2).mT.flatten(0, 1), _coverage(masks)
    edges = (cells.amax(1) > 0) & (cells.amin(1) < 1)
    weight = torch.where(edges, 1 / edges.float().mean().clamp(min=1e-3), 1.0)
    fit, offset = _least_squares(seen, cells - 0.5, weight)
    last = encoder.mask_downsampler.encoder[-1]
    last.weight[remembered : model.mem_dim, :, 0, 0], last.bias[remembered : model.mem_dim] = fit, offset
    for block in encoder.fuser.layers:
        block.gamma.fill_(0.01)
    model.maskmem_tpos_enc.zero_()
    model.obj_ptr_proj.layers[-1].weight.mul_(0.3)
    model.obj_ptr_proj.layers[-1].bias.mul_(0.3)

    places = features.shape[-2] * features.shape[-1]
    positions = model.image_encoder.neck.position_encoding(features[:1]).flatten(2).mT.expand(len(features), -1, -1)
    directions = torch.linalg.qr(torch.randn(attention.d_model, _CELLS**2)).Q * rows.std()
    for layer, queries in zip(attention.layers, _queries(model, features.flatten(2).mT, positions), strict=True):
        cross, width = layer.cross_attn_image, layer.cross_attn_image.internal_dim
        meeting, near = _meeting(width, remembered), _near(width)
        scale = math.sqrt(_SHARP * math.sqrt(width) / remembered)
        layer.norm2.weight.fill_(1)
        layer.norm2.bias.zero_()
        disturbed = queries + torch.randn(len(features), places, _CELLS**2).sign() @ directions.T
        fit, offset = _least_squares(layer.norm2(disturbed).flatten(0, 1), scale * content)
        for linear in (cross.q_proj, cross.k_proj, cross.v_proj, cross.out_proj):
            linear.weight.normal_(0, 0.01)
            linear.bias.zero_()
        for linear in (cross.q_proj, cross.k_proj):
            linear.weight[torch.cat([meeting, near])] = 0
            linear.bias[near] = math.sqrt(_NEARBY * math.sqrt(width) / len(near))
        cross.q_proj.weight[meeting], cross.q_proj.bias[meeting] = fit, offset
        cross.k_proj.weight[meeting, torch.arange(remembered)] = scale / _GAIN
        cross.v_proj.weight[: _CELLS**2, remembered:] = torch.eye(_CELLS**2)
        cross.out_proj.weight[:, : _CELLS**2] = directions


def matching_loss(model: TrainableSam2, features: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of who is where, as read from each other frame by matching alone; half of it background, half all that moves.

    Args:
        model: with memory as `install` began it.
        features: [h * w, clips * T, C], of the lowest level, as memory attention gets them.
        positions: the same shape, their table of positions.
        ids: uint8 [clips, T, S, S]; equal ones are the same thing.
    """
    clips, length = ids.shape[:2]
    names, places = torch.unique(ids, return_inverse=True)
    who = functional.one_hot(places, len(names)).float().movedim(-1, 2)  # [clips, T, names, S, S]
    who = functional.avg_pool2d(who.flatten(0, 1), _TOKEN).flatten(2).mT.unflatten(0, (clips, length))  # [clips, T, tokens, names]
    x, where = features.transpose(0, 1), positions.transpose(0, 1)
    counts = who.sum(2)  # [clips, T, names]
    known = (counts[:, :, None] >= 1) & (counts[:, None] >= 1) & ~torch.eye(length, dtype=torch.bool, device=ids.device)[..., None]
    share = who[:, :, None] * (known / counts[:, :, None].clamp(min=1))[:, :, :, None]  # [clips, T, T, tokens, names]
    still, rows = names == 0, _rows(model, x)
    parts = []
    for layer, queries in zip(model.memory_attention.layers, _queries(model, x, where), strict=True):
        q, k = (y.unflatten(0, (clips, length)) for y in _meet(layer, queries, rows))
        logits = torch.einsum("caqd,cbkd->cabqk", q, k) / math.sqrt(layer.cross_attn_image.internal_dim)
        answer = torch.einsum("cabqk,cbkn->cabqn", logits.softmax(-1), who)
        entropy = -(share * (answer + _LEAST).log()).sum(-2)  # a mean over the tokens of each name
        for some in (still, ~still):
            parts.append(entropy[..., some].sum() / known[..., some].sum().clamp(min=1))
    return torch.stack(parts).mean()


def _queries(model: TrainableSam2, x: Tensor, positions: Tensor) -> list[Tensor]:
    """What each layer's queries are made of where nothing is read from the memory: [n, tokens, C] of features of that shape."""
    x, out = x + 0.1 * positions, []
    for layer in model.memory_attention.layers:
        x = layer._forward_sa(x, positions)
        out.append(x)
        x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
    return out


def _rows(model: TrainableSam2, x: Tensor) -> Tensor:
    """What memory rows say is there, [n, tokens, channels], of features [n, tokens, C]."""
    encoder, remembered = model.memory_encoder, model.mem_dim - _CELLS**2
    projected = encoder.pix_feat_proj(x.mT[..., None])[..., 0].mT
    return functional.linear(projected, encoder.out_proj.weight[:remembered, :, 0, 0], encoder.out_proj.bias[:remembered])


def _meet(layer: Any, queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys without positions and masks, [n, tokens, channels] each; only what says what is there learns from them."""
    cross, remembered = layer.cross_attn_image, rows.shape[-1]
    meeting = _meeting(cross.internal_dim, remembered).to(rows.device)
    keys = functional.linear(rows, cross.k_proj.weight[meeting, :remembered], cross.k_proj.bias[meeting])
    return functional.linear(layer.norm2(queries), cross.q_proj.weight[meeting], cross.q_proj.bias[meeting]), keys


def _meeting(width: int, count: int) -> Tensor:
    """The channels of queries and keys with the lowest rotary frequencies, which hardly turn over a frame: half of them each axis's."""
    last = torch.arange(width // 2 - count // 2, width // 2)
    return torch.cat([last, width // 2 + last])


def _near(width: int) -> Tensor:
    """Channels that meet where places do: the real parts of some rotary pairs, both axes."""
    pairs = torch.tensor(_NEAR_PAIRS)
    return 2 * torch.cat([pairs, width // 4 + pairs])


def _coverage(masks: Tensor) -> Tensor:
    """[m, 1, S, S] to the coverage of each token's cells, [m * tokens, 16]."""
    cells = functional.avg_pool2d(masks, _TOKEN // _CELLS)
    return functional.pixel_unshuffle(cells, _CELLS).flatten(2).mT.flatten(0, 1)


def _least_squares(x: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights [out, in] and offsets [out] of the ridge regression of y on x."""
    share = (torch.ones(len(x)) if weight is None else weight)[:, None]
    share = share / share.sum()
    mx, my = (share * x).sum(0), (share * y).sum(0)
    x, y = x - mx, y - my
    gram = (share * x).T @ x
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    fit = torch.linalg.solve(gram, (share * x).T @ y).T
    return fit, my - fit @ mx
