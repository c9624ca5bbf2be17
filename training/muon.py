"""Muon for CPUs: `torch.optim.Muon` orthogonalises in bfloat16, which takes a CPU without bfloat16 units some thirty times as long.

Each matrix moves along its momentum made orthogonal, so that weak directions of the gradient count as much as strong ones (Jordan et al.
2024, kellerjordan.github.io/posts/muon); the step is scaled to the size of an Adam step (Liu et al. 2025, arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz step, from the first source
_STEPS = 5
_ADAM_SIZE = 0.2  # root mean square of a typical Adam step, from the second source
_LEAST_SIDE = 16  # narrower ones (biases as columns, one-output heads) have nothing to balance
_EMBEDDINGS = ("embed", "token", "pos_", "no_")  # tables looked up, not multiplied


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for the weights that `matrices` names.

    Args:
        params: weights of two or more dimensions; seen as [first, all others].
        lr: step size on the scale of Adam's.
        momentum: share of the old momentum kept; Nesterov's form.
        weight_decay: decoupled, per unit of `lr`.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * _ADAM_SIZE * math.sqrt(max(update.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of [m, n] `matrix` and singular values near 1 (0.7 to 1.2); zero stays zero."""
    a, b, c = _COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights Muon suits: both sides of at least 16, and no table of embeddings."""
    return [
        p
        for name, p in model.named_parameters()
        if p.ndim > 1 and min(p.flatten(1).shape) >= _LEAST_SIDE and not any(word in name for word in _EMBEDDINGS)
    ]
