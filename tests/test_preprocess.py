"""Oracles: sam2's own image loader for frames, torch's interpolate for mask prompts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2.errors import PromptError
from fastsam2.runtime.preprocess import check_frame, frame_to_pixels, mask_to_input, soft_mask_to_input

SIZES = [  # mask (H, W) -> model side
    ((720, 1280), 256),  # 6 taps: torch's vectorised loop and its remainder
    ((768, 768), 256),  # exact thirds
    ((512, 512), 256),  # 2x down, many exact ties
    ((480, 854), 512),
    ((540, 960), 512),
    ((1080, 608), 224),
    ((333, 517), 256),
    ((256, 300), 256),  # one side already fits
    ((97, 31), 64),
    ((100, 90), 256),  # up
    ((128, 128), 256),  # 2x up
    ((1, 7), 32),
    ((900, 900), 32),
    ((128, 128), 96),
    ((64, 64), 64),
]
ORACLE = """
import sys, numpy as np, torch
torch.set_num_threads(1)
cases, expected = np.load(sys.argv[1]), {}
for key in cases.files:
    side = int(key.split("-")[1])
    mask = torch.from_numpy(cases[key])[None, None].float()
    resized = torch.nn.functional.interpolate(mask, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    expected[key] = (resized >= 0.5).float()[0, 0].numpy()
    expected["ties-" + key] = (resized == 0.5).sum().numpy()
np.savez(sys.argv[2], capability=torch.backends.cpu.get_cpu_capability(), **expected)
"""


def shapes(height: int, width: int, rng: np.random.Generator) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    y, x = np.mgrid[:height, :width]
    yield "noise", rng.random((height, width)) < 0.5
    yield "ellipse", ((y - height * 0.45) / (height * 0.3)) ** 2 + ((x - width * 0.5) / (width * 0.25)) ** 2 < 1
    yield "box", (y >= height // 5) & (y <= height // 2) & (x >= width // 7) & (x <= width // 2)
    yield "checks", (y // 3 + x // 5) % 2 == 0


def test_mask_equals_torch_in_every_pixel(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    cases: dict[str, npt.NDArray[Any]] = {f"{h}x{w}-{side}-{kind}": mask for (h, w), side in SIZES for kind, mask in shapes(h, w, rng)}
    soft = {f"{h}x{w}-{side}-logits": rng.normal(0.5, 4, (h, w)).astype(np.float32) for (h, w), side in SIZES if (h, w) != (side, side)}
    cases |= soft
    np.savez(tmp_path / "cases.npz", **cases)
    # Other builds of torch's kernel round otherwise, so the oracle is pinned; the choice is made once per process.
    subprocess.run(
        [sys.executable, "-c", ORACLE, tmp_path / "cases.npz", tmp_path / "expected.npz"],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"},
        check=True,
    )
    expected = np.load(tmp_path / "expected.npz")
    if expected["capability"] != "AVX2":
        pytest.skip(f"torch runs its {expected['capability']} kernels here; the resize repeats the AVX2 ones")
    differing = {}
    for key, mask in cases.items():
        resize = soft_mask_to_input if key in soft else mask_to_input
        differing[key] = int((resize(mask, int(key.split("-")[1])) != expected[key]).sum())
    assert {key: n for key, n in differing.items() if n} == {}
    assert sum(int(expected["ties-" + key]) for key in cases) > 10_000  # the cases do hit the hard spot


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float16])
def test_mask_of_any_dtype_and_stride(dtype: npt.DTypeLike) -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:21, 7:33] = True
    expected = mask_to_input(mask, 32)
    assert 0 < expected.sum() < 32 * 32
    assert expected.dtype == np.float32 and expected.flags.c_contiguous
    np.testing.assert_array_equal(mask_to_input(mask.astype(dtype), 32), expected)
    np.testing.assert_array_equal(mask_to_input(np.repeat(mask, 2, axis=1).astype(dtype)[:, ::2], 32), expected)


def test_mask_of_0_and_255_and_mask_that_fits() -> None:
    mask = np.random.default_rng(1).random((32, 32)) < 0.5
    np.testing.assert_array_equal(mask_to_input(mask.astype(np.uint8) * 255, 32), mask.astype(np.float32))
    np.testing.assert_array_equal(mask_to_input(np.zeros((9, 9), bool), 32), np.zeros((32, 32), np.float32))


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((1, 8, 8), bool),
        np.zeros((0, 8), bool),
        np.array([[0.0, np.nan]], np.float32),
        np.array([[0.0, 0.5]], np.float32),
        np.array([[0.0, 255.0]], np.float32),
        np.array([[0, 1, 255]], np.uint8),
        np.array([[0, -1]]),
        np.array([["a", "b"]]),
        np.zeros((2, 2), complex),
        [[0, 1]],
        None,
    ],
    ids=lambda mask: f"{getattr(mask, 'dtype', type(mask).__name__)}{np.shape(mask)}",
)
def test_mask_refused(mask: Any) -> None:
    with pytest.raises(PromptError, match=r"expected a mask .*, got "):
        mask_to_input(mask, 32)


@pytest.mark.parametrize("values", [np.nan, np.inf])
def test_soft_mask_refused(values: float) -> None:
    with pytest.raises(PromptError, match="a mask of finite numbers"):
        soft_mask_to_input(np.array([[0.0, values]], np.float32), 32)
    with pytest.raises(PromptError, match=r"a mask of 0 and 1 .*Threshold it"):
        soft_mask_to_input(np.full((32, 32), 0.7, np.float32), 32)


@pytest.mark.parametrize(("shape", "size"), [((72, 128), 32), ((31, 17), 64), ((64, 64), 64), ((1, 1), 32)])
def test_frame_equals_the_official_loader(shape: tuple[int, int], size: int, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    misc = pytest.importorskip("sam2.utils.misc")
    frame = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(frame).save(tmp_path / "0.png")
    loaded, height, width = misc._load_img_as_tensor(str(tmp_path / "0.png"), size)
    pixels = frame_to_pixels(frame, size)
    assert (height, width) == shape
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 3, size, size) and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels[0] / 255.0, loaded.numpy())


def test_frame_may_be_strided() -> None:
    frame = np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(frame_to_pixels(frame[::-1, ::2], 32), frame_to_pixels(frame[::-1, ::2].copy(), 32))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        Image.new("RGB", (8, 8)),
    ],
    ids=["rgba", "grey", "float", "empty", "pillow"],
)
def test_frame_refused(frame: Any) -> None:
    with pytest.raises(PromptError, match=r"expected .* \[H, W, 3\] in RGB order, got "):
        check_frame(frame)
    with pytest.raises(PromptError):
        frame_to_pixels(frame, 32)
