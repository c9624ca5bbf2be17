"""Every host operation of the C++ core gives the bits of its Python definition, on shapes and values that tracking seldom meets."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import pytest

from fastsam2.builtin import bundle_path
from fastsam2.config import Prune
from fastsam2.enums import PrunePolicy
from fastsam2.errors import BundleError, FastSam2Error, PromptError
from fastsam2.kernels.reference import top_k_gather
from fastsam2.runtime.bfloat16 import to_bfloat16
from fastsam2.runtime.guard import GuardState, Observation, judge
from fastsam2.runtime.host_device import HOST
from fastsam2.runtime.policies.mask import mask_scores
from fastsam2.runtime.postprocess import fill_holes, masks_from_logits
from fastsam2.runtime.preprocess import frame_to_pixels, mask_to_input
from fastsam2.runtime.uncertainty import uncertainty
from fastsam2.spread import uniform_scores

from .native import core, needs_native

pytestmark = [needs_native, pytest.mark.xdist_group("cpp")]

SIZES = [(1, 1), (64, 64), (64, 100), (100, 64), (63, 65), (240, 320), (280, 200), (7, 301), (301, 7), (128, 97), (97, 128)]
PILLOW = int(PIL.__version__.split(".")[0])


def smooth(rng: np.random.Generator, batch: int, side: int) -> npt.NDArray[np.float32]:
    """Logits with blobs, exact zeros and saturated values."""
    logits = rng.normal(size=(batch, side, side)).cumsum(axis=1).cumsum(axis=2).astype(np.float32)
    logits[:, : side // 4, : side // 4] = 0.0
    logits[0] *= 0.1
    return np.clip(logits, -40, 40)


@pytest.mark.skipif(PILLOW < 13, reason=f"Pillow {PIL.__version__} orders the two passes of a resize by another rule than Pillow 13")
@pytest.mark.parametrize("size", SIZES)
def test_pixels(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for side in (64, 96):
        np.testing.assert_array_equal(core().pixels(frame, side), frame_to_pixels(frame, side))


@pytest.mark.skipif(PILLOW < 13, reason=f"Pillow {PIL.__version__} orders the two passes of a resize by another rule than Pillow 13")
def test_pixels_round_the_order_of_passes() -> None:
    """The height first where it shrinks by more than twice as many pixels as the width: sizes on both sides of that."""
    rng = np.random.default_rng(1)
    for width in (50, 63, 64, 65, 80, 99):
        turn = 64 + 2 * (width - 64)
        for height in {max(turn + d, 1) for d in (-1, 0, 1, 2)} | {63, 65}:
            frame = rng.integers(0, 256, (height, width, 3), np.uint8)
            np.testing.assert_array_equal(core().pixels(frame, 64), frame_to_pixels(frame, 64), err_msg=f"{width} x {height}")


@pytest.mark.parametrize("size", SIZES)
def test_mask_prompts(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    y, x = np.mgrid[: size[0], : size[1]]
    round_one = np.hypot(y - size[0] / 2, x - size[1] / 3) < min(size) / 3
    for mask in (rng.random(size) < 0.5, round_one, np.zeros(size, np.bool_), np.ones(size, np.bool_), (x + y) % 2 == 0):
        for side in (64, 96):
            np.testing.assert_array_equal(core().mask_to_input(mask, side), mask_to_input(mask, side))


@pytest.mark.parametrize("size", SIZES)
def test_masks(size: tuple[int, int]) -> None:
    logits = smooth(np.random.default_rng(3), 4, 64)
    logits[1], logits[2] = -1024.0, 5.0
    np.testing.assert_array_equal(core().masks(logits, *size), masks_from_logits(logits, size))


@pytest.mark.parametrize("area", [1, 4, 30, 10_000])
def test_hole_filling(area: int) -> None:
    pytest.importorskip("cv2", reason="hole filling in Python needs OpenCV")
    rng = np.random.default_rng(4)
    for share in (0.2, 0.5, 0.8, 1.0, 0.0):
        logits = np.where(rng.random((64, 64)) < share, 1.0, rng.choice([-1.0, 0.0], (64, 64))).astype(np.float32)
        np.testing.assert_array_equal(core().fill_holes(logits, area), fill_holes(logits[None], area)[0])


def test_bfloat16() -> None:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 2**32, 1 << 18, np.uint32).view(np.float32)  # every kind of float: denormal, infinite, NaN
    values = np.concatenate([values, np.array([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -0.0, np.inf, -np.inf, np.nan], np.float32)])
    np.testing.assert_array_equal(core().to_bfloat16(values), to_bfloat16(values))


@pytest.mark.parametrize("keep", [1, 2, 17, 255, 256])
def test_top_k_gather(keep: int) -> None:
    rng = np.random.default_rng(6)
    rows = rng.integers(0, 2**16, (256, 16), np.uint16)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 1.0, -1.0], np.float32)
    for scores in (rng.random(256, np.float32), rng.choice(special, 256).astype(np.float32), np.zeros(256, np.float32)):
        want_rows, want_index = top_k_gather(scores[None], rows[None], keep)
        got_rows, got_index = core().top_k_gather(rows, scores, keep)
        np.testing.assert_array_equal(got_index, want_index[0])
        np.testing.assert_array_equal(got_rows, want_rows[0])


@pytest.mark.parametrize("grid", [2, 8, 64])
def test_pooling(grid: int) -> None:
    rows = to_bfloat16(np.random.default_rng(7).normal(size=(grid * grid, 16)).astype(np.float32))
    np.testing.assert_array_equal(core().pool_2x2(rows, grid), HOST.pool_2x2(rows, grid))


@pytest.mark.parametrize("grid", [2, 4, 6, 8, 12, 40, 64])  # image sizes are multiples of 32, so a grid is even
def test_scores_of_policies(grid: int) -> None:
    np.testing.assert_array_equal(core().uniform_scores(grid), uniform_scores(grid))
    logits = smooth(np.random.default_rng(grid), 3, 4 * grid)
    for one in logits:
        np.testing.assert_array_equal(core().mask_scores(one, grid), mask_scores(one, grid))
    for batch in (logits, logits[:1]):
        np.testing.assert_array_equal(core().uncertainty(batch, grid), uncertainty(batch, grid))


@pytest.mark.parametrize("entropy", [(0, 1, 0), (-5, 7, 23), (2**62, 2**40, 2**33 + 1), (1, 2**63 - 1, 9)])
@pytest.mark.parametrize("tokens", [1, 2, 64, 4096])
def test_random_scores(entropy: tuple[int, int, int], tokens: int) -> None:
    """Oracle: numpy's own generator."""
    want = np.random.default_rng([value % 2**64 for value in entropy]).permutation(tokens)
    np.testing.assert_array_equal(core().random_scores(*entropy, tokens), want)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("tokens", [16, 64, 256, 1024, 1600, 4096])
def test_budgets(tokens: int, guard: bool) -> None:
    for keep in (None, 0.001, 0.02, 0.05, 0.07, 0.1, 0.3, 1.0):
        assert core().budgets(native_prune(keep=keep, guard=guard), tokens) == list(
            Prune(policy=PrunePolicy.MASK, keep=keep, guard=guard).budgets(tokens)
        )
    for rows in (1, 2, tokens // 3, tokens):
        assert core().budgets(native_prune(tokens=rows), tokens) == [Prune(policy=PrunePolicy.MASK, tokens=rows).rows(tokens)]


@pytest.mark.parametrize("seed", range(20))
def test_guard(seed: int) -> None:
    """Two objects that drift, jump, go out of sight and are prompted; limits are met from both sides in some of it."""
    rng = np.random.default_rng(seed)
    frames: list[dict[int, Observation]] = []
    for t in range(60):
        known = (1, 2) if 10 < t < 50 else (1,)
        lasting = rng.choice([0.01, 1.0, 1.0, 1.0, 2.2])  # of this frame
        frames.append(
            {
                i: Observation(
                    score=float(np.float32(rng.normal(5, 2 + 2 * (t // 20)))),
                    iou=float(np.float32(rng.uniform(0.4, 0.9))),
                    area=float(np.float32(0.02 * i * lasting * rng.uniform(0.7, 1.3))),
                    prompted=bool(rng.random() < 0.05),
                )
                for i in known
            }
        )
    state, want = GuardState(), []
    for observed in frames:
        state, alarms = judge(state, observed, levels=3)
        want.append((state.level, {i: a.value for i, a in alarms.items()}))
    got = core().guard([{i: (o.score, o.iou, o.area, float(o.prompted)) for i, o in frame.items()} for frame in frames], 3)
    assert got == want
    assert len({level for level, _ in want}) > 1
    assert len({a for _, alarms in want for a in alarms.values()}) > 1, "more than one kind of alarm"


def native_prune(
    *,
    policy: str = "mask",
    keep: float | None = None,
    tokens: int | None = None,
    guard: bool = False,
    buckets: tuple[float, ...] | None = None,
) -> object:
    ladder = list(Prune().buckets if buckets is None else buckets)
    return core().Prune(policy=policy, keep=keep, tokens=tokens, protect=[], seed=0, buckets=ladder, guard=guard)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0.0},
        {"keep": float("nan")},
        {"keep": 1.5},
        {"tokens": 0},
        {"tokens": 10**6},
        {"keep": 0.5, "tokens": 5},
        {"policy": "dense", "keep": 0.5},
        {"policy": "pool2x2", "keep": 0.5},
        {"policy": "dense", "guard": True},
        {"buckets": (0.5, 0.25, 1.0)},
        {"buckets": (0.5,)},
        {"buckets": ()},
        {"policy": "nonsense"},
    ],
    ids=str,
)
def test_options_that_python_refuses_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(PromptError):
        Prune(**{"policy": PrunePolicy.MASK, **options}).budgets(4096)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"^expected .+, got .+\. .+\.$"):
        core().budgets(native_prune(**options), 4096)  # type: ignore[arg-type]


def _edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


MANIFEST_EDITS = {
    "version": ('"manifest_version": 2', '"manifest_version": 3'),
    "version_text": ('"manifest_version": 2', '"manifest_version": "2"'),
    "size": ('"image_size": ', '"image_size": 1'),
    "unknown": ('"model": {', '"model": {"extra": 1, '),
    "unknown_top": ('"model": {', '"extra": 1, "model": {'),
    "renamed": ('"name": "tokens"', '"name": "token"'),
    "dtype": ('"dtype": "float32"', '"dtype": "float16"'),
    "outside": ('"path": "', '"path": "../'),
    "hash": ('"sha256": "', '"sha256": "0'),
    "missing_file": (".onnx", ".onn"),
    "role": ('"role": "mask_decoder"', '"role": "mask_prompt"'),
    "truncated": ("}\n", ""),
    "no_model": ('"model"', '"modell"'),
}


@pytest.mark.parametrize("edit", MANIFEST_EDITS)
def test_manifests_that_python_refuses_are_refused(edit: str, tmp_path: Path) -> None:
    from fastsam2.bundle import read_manifest

    folder = shutil.copytree(bundle_path("nano"), tmp_path / "bundle")
    manifest = folder / "manifest.json"
    old, new = MANIFEST_EDITS[edit]
    text = manifest.read_text()
    manifest.write_text(text.rstrip()[:-1] if edit == "truncated" else _edited(text, old, new))
    for read in (read_manifest, core().read_manifest):
        with pytest.raises(BundleError, match=r"^expected .+, got (.|\n)+\. .+\.$"):
            read(folder if read is read_manifest else str(folder))


def test_altered_files_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(bundle_path("nano"), tmp_path / "bundle")
    assert core().read_manifest(str(folder)) == "nano.yaml"
    graph = folder / "mask_decoder.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    assert core().read_manifest(str(folder), verify=False) == "nano.yaml"
    with pytest.raises(BundleError, match="altered since export"):
        core().read_manifest(str(folder))
    graph.write_bytes(content[:-1])
    with pytest.raises(FastSam2Error, match="truncated"):
        core().read_manifest(str(folder), verify=False)
