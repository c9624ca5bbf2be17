"""Oracle: torch's casts between float32 and bfloat16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.errors import InternalError
from fastsam2.runtime.bfloat16 import from_bfloat16, to_bfloat16


def hard_floats() -> npt.NDArray[np.float32]:
    """Random bit patterns, every rounding tie of a few exponents, subnormals, infinities and the largest floats."""
    rng = np.random.default_rng(0)
    bits = np.concatenate(
        [
            rng.integers(0, 2**32, 200_000, np.uint32),
            np.arange(2**16, dtype=np.uint32) << np.uint32(16) | np.uint32(0x8000),
            np.arange(2**16, dtype=np.uint32) << np.uint32(16) | np.uint32(0x7FFF),
            np.arange(2**16, dtype=np.uint32) << np.uint32(16) | np.uint32(0x8001),
            np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32),
        ]
    )
    return bits.view(np.float32)


def test_rounding_equals_torch_in_every_bit() -> None:
    torch = pytest.importorskip("torch")
    values = hard_floats()
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    rounded = to_bfloat16(values)
    number = ~np.isnan(values)
    assert rounded.dtype == np.uint16
    np.testing.assert_array_equal(rounded[number], expected[number])
    assert (rounded[~number] == 0x7FC0).all() and (~number).sum() > 100


def test_widening_equals_torch_for_all_65536_values() -> None:
    torch = pytest.importorskip("torch")
    bits = np.arange(2**16, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    widened = from_bfloat16(bits)
    assert widened.dtype == np.float32
    np.testing.assert_array_equal(widened.view(np.uint32), expected.view(np.uint32))


def test_round_trip_of_bfloat16_is_the_identity() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    number = ~np.isnan(from_bfloat16(bits))
    np.testing.assert_array_equal(to_bfloat16(from_bfloat16(bits))[number], bits[number])


def test_shapes_strides_and_out() -> None:
    values = np.random.default_rng(1).standard_normal((70, 2000)).astype(np.float32)  # more than one block
    bits = to_bfloat16(values)
    np.testing.assert_array_equal(to_bfloat16(values[::2, ::-3]), bits[::2, ::-3])
    buffer = np.zeros((80, 2000), np.float32)
    out = buffer[5:75]
    assert from_bfloat16(bits, out=out) is out
    np.testing.assert_array_equal(buffer[5:75], from_bfloat16(bits))
    assert not buffer[:5].any() and not buffer[75:].any()
    strided = np.zeros((70, 4000), np.float32)
    from_bfloat16(bits, out=strided[:, ::2])
    np.testing.assert_array_equal(strided[:, ::2], from_bfloat16(bits))
    assert to_bfloat16(np.empty((0, 64), np.float32)).shape == from_bfloat16(np.empty((0, 64), np.uint16)).shape == (0, 64)
    assert to_bfloat16(np.float32(1.5).reshape(())).shape == ()


@pytest.mark.parametrize("out", [np.empty((2, 3), np.float32), np.empty((3, 2), np.float64)], ids=["shape", "dtype"])
def test_out_refused(out: npt.NDArray[np.generic]) -> None:
    with pytest.raises(InternalError, match="expected out float32"):
        from_bfloat16(np.zeros((3, 2), np.uint16), out=out)
