"""The one seam between the tracker and whatever executes graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastsam2.enums import GraphRole

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float32]


class Backend(Protocol):
    """Executes the graphs of one bundle. Safe to call from several trackers."""

    name: str

    def run(self, role: GraphRole, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one graph once.

        Args:
            role: which graph.
            inputs: every input of `contracts.GRAPHS[role]`, C-contiguous, with its dtype and shape: numpy arrays, or tensors of the
                backend's device where it has an attribute `device` (`runtime.device.Device`).

        Returns:
            Every output by name, on that device or as numpy arrays; they belong to the caller.

        Raises:
            BackendError: if the graph cannot be executed here.
        """
        ...
