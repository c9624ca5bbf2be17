"""When a GPU has come to rest: TensorRT-RTX runs stand-in kernels while it compiles better ones for new shapes, and clocks rise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

QUIET_S = 5.0
MOST_S = 60.0
_FASTER = 0.97  # of the least time so far: what counts as faster


def settle(step: Callable[[], object], *, quiet_s: float = QUIET_S, most_s: float = MOST_S) -> bool:
    """Repeats a step, which ends with a wait, until it has got no faster for some time.

    Args:
        step: at the shapes that are to be measured.
        quiet_s: how long, seconds; 0 does nothing.
        most_s: after which it is given up, seconds.

    Returns:
        Whether it came to rest.
    """
    if quiet_s <= 0:
        return True
    begin = faster = time.perf_counter()
    least = math.inf
    while True:
        start = time.perf_counter()
        step()
        now = time.perf_counter()
        if now - start < _FASTER * least:
            least, faster = now - start, now
        if now - faster >= quiet_s:
            return True
        if now - begin >= most_s:
            return False
