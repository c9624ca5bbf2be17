"""How far one array is from another, as exporting, typing and running graphs all measure it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_FEW = 16  # values with too little of a spread: scores, predicted IoUs


def relative_rms(have: Array, want: Array) -> float:
    """Root mean square difference / standard deviation of `want`; of at most 16 values / their largest magnitude, or 1.

    Args:
        have: what is measured.
        want: the reference, finite.

    Returns:
        0 or more; infinite for another shape, NaN or infinite values.
    """
    if have.shape != want.shape or not np.isfinite(have).all():
        return math.inf
    spread = float(want.std()) if want.size > _FEW else max(float(np.abs(want).max(initial=0)), 1.0)
    return float(np.sqrt(np.mean(np.square(want.astype(np.float64) - have)))) / max(spread, 1e-12)
