"""Arrays that answer what scripts ask of a torch tensor, for machines without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.errors import BackendError, expected


def on_host(value: Any) -> Any:
    """A torch tensor as an array, bfloat16, which numpy does not have, as float32; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    held = value.detach().cpu()
    return (held.float() if str(value.dtype) == "torch.bfloat16" else held).numpy()


class HostTensor(np.ndarray[Any, np.dtype[Any]]):
    """A numpy array on the host with the methods that scripts call on masks: `(masks[i] > 0.0).cpu().numpy()`."""

    def cpu(self) -> HostTensor:
        """This array: it is on the host."""
        return self

    def detach(self) -> HostTensor:
        """This array: it carries no gradient."""
        return self

    def numpy(self) -> npt.NDArray[Any]:
        """A plain array over the same memory."""
        return np.asarray(self)

    def float(self) -> HostTensor:
        """As float32; this array if it is that already."""
        return self.astype(np.float32, copy=False).view(HostTensor)

    def bool(self) -> HostTensor:
        """True where not zero."""
        return self.astype(np.bool_, copy=False).view(HostTensor)

    def clone(self) -> HostTensor:
        """A copy."""
        return self.copy()

    def unsqueeze(self, dim: int) -> HostTensor:
        """A view with one more dimension of length 1."""
        return np.expand_dims(self, dim).view(HostTensor)

    def dim(self) -> int:
        """Number of dimensions."""
        return self.ndim

    def to(self, device: object = "cpu", *, non_blocking: object = False) -> HostTensor:
        """This array, if `device` is the host.

        Raises:
            BackendError: if it is anything else.
        """
        if str(device) != "cpu":
            raise BackendError(expected('the device "cpu"', repr(device), "Install torch to move masks elsewhere"))
        return self
