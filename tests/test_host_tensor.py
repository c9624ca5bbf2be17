"""fastsam2.runtime.host_tensor. Oracle: the same calls on a torch tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastsam2.errors import BackendError
from fastsam2.runtime.host_tensor import HostTensor, on_host

VALUES = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
CALLS = {
    "as in the official notebook": lambda t: (t[1] > 0.0).cpu().numpy(),
    "as in vos_inference": lambda t: (t > 0.0)[0, 0].cpu().numpy(),
    "comparison, squeezed": lambda t: (t[0] > 0).squeeze().cpu().numpy(),
    "bool": lambda t: (t * (t > 0)).bool().numpy(),
    "float": lambda t: (t > 0).float().detach().numpy(),
    "to": lambda t: t.to("cpu", non_blocking=True).clone().numpy(),
    "unsqueeze": lambda t: t.unsqueeze(0).numpy(),
    "item": lambda t: np.array(t[0, 0, 0, 0].item()),
    "dim": lambda t: np.array([t.dim(), len(t), *t.shape]),
    "sum": lambda t: np.asarray(t.sum()),
    "any": lambda t: np.asarray((t > 3).any()),
}


@pytest.mark.parametrize("name", CALLS)
def test_answers_as_a_torch_tensor(name: str) -> None:
    wanted, got = CALLS[name](torch.from_numpy(VALUES)), CALLS[name](VALUES.view(HostTensor))
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_numpy_shares_memory_and_clone_does_not() -> None:
    tensor = VALUES.copy().view(HostTensor)
    tensor.numpy()[:] = 1
    copy: Any = tensor.clone()
    copy[:] = 2
    assert isinstance(copy, HostTensor)
    assert (tensor == 1).all()


def test_does_not_leave_the_host() -> None:
    with pytest.raises(BackendError, match="Install torch"):
        VALUES.view(HostTensor).to("cuda")


def test_on_host() -> None:
    assert on_host(None) is None
    assert on_host([[1, 2]]) == [[1, 2]]
    assert np.array_equal(on_host(torch.ones(2, requires_grad=True)), np.ones(2))
