"""Channel-first layer norm spelled out in six operators -> transpose, LayerNormalization, transpose.

`fused_layer_norm_2d` swaps the forward of the official `LayerNorm2d` (facebookresearch/sam2 @2b90b9f `sam2/modeling/sam2_utils.py`) while
a graph is exported. Same mathematics; the statistics run in one kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_utils import LayerNorm2d


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


@contextmanager
def fused_layer_norm_2d() -> Iterator[None]:
    """While active, `LayerNorm2d` traces to one LayerNormalization node."""
    with mock.patch.object(LayerNorm2d, "forward", _forward):
        yield
