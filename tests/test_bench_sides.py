"""The two sides of the benchmark. Oracles: the official predictor on the whole clip; the original of every copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastsam2.benchmarks.bench_case import worst_iou
from fastsam2.benchmarks.bench_frames import box_in, store_frames
from fastsam2.benchmarks.bench_frames import make_frames as drawn_frames
from fastsam2.benchmarks.official_weights import Weights, build_official, official_weights
from fastsam2.benchmarks.sides import Masks, Official, Ours, Side
from fastsam2.bundle import Manifest, read_manifest
from fastsam2.config import Prune
from fastsam2.enums import PrunePolicy
from fastsam2.errors import BundleError, ExportError
from fastsam2.runtime.loaded import LoadedBundle, load
from tests.bare_nano import bare_nano

SIZE = (96, 160)
FRAMES = 22
MASK = Prune(policy=PrunePolicy.MASK, keep=0.25)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    source, stored = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("stored")
    for t, frame in enumerate(drawn_frames(FRAMES, SIZE)):
        Image.fromarray(frame).save(source / f"{t}.png")
    found, size = store_frames(str(source), FRAMES, stored)
    assert size == SIZE
    return found


@pytest.fixture(scope="module")
def module(bundle_micro: Path, micro_config: Path) -> Any:
    manifest = read_manifest(bundle_micro)
    return build_official(official_weights(manifest, model=str(micro_config)), manifest)


@pytest.fixture(scope="module")
def micro(bundle_micro: Path) -> LoadedBundle:
    return load(bundle_micro, threads=1)


def track(side: Side, files: Sequence[Path]) -> list[Masks]:
    masks = [side.prompt(side.decode(files[0]), box_in(SIZE))]
    return masks + advance(side, files[1:])


def advance(side: Side, files: Sequence[Path]) -> list[Masks]:
    return [side.step(side.decode(file)) for file in files]


def whole_clip(module: Any, files: Sequence[Path], folder: Path) -> list[Masks]:
    for t, file in enumerate(files):
        shutil.copyfile(file, folder / f"{t:05d}.jpg")
    state = module.init_state(str(folder))
    module.add_new_points_or_box(state, 0, 1, box=np.array(box_in(SIZE), np.float32))
    return [(logits[:, 0] > 0).numpy() for _, _, logits in module.propagate_in_video(state)]


def test_both_sides_say_what_the_official_predictor_says(module: Any, micro: LoadedBundle, files: list[Path], tmp_path: Path) -> None:
    truth = whole_clip(module, files, tmp_path)
    assert 0.01 < np.mean(truth) < 0.95
    assert not np.array_equal(truth[1], truth[-1])
    for have, want in zip(track(Official(module, files[0], frames=FRAMES), files), truth, strict=True):
        np.testing.assert_array_equal(have, want)
    assert min(map(worst_iou, track(Ours(micro, Prune()), files), truth)) >= 0.999


@pytest.fixture(scope="module")
def sides(module: Any, micro: LoadedBundle, files: list[Path]) -> dict[str, Side]:
    """Each after 18 frames, saved."""
    out: dict[str, Side] = {
        "official": Official(module, files[0], frames=FRAMES),
        "ours": Ours(micro, Prune()),
        "pruned": Ours(micro, MASK),
    }
    for side in out.values():
        track(side, files[:18])
        side.save()
    return out


@pytest.mark.parametrize("name", ["official", "ours", "pruned"])
def test_copies_track_like_their_original_and_leave_it_alone(sides: dict[str, Side], files: list[Path], name: str) -> None:
    check_copies(sides[name], files[18:])


def check_copies(side: Side, files: Sequence[Path]) -> None:
    side.restore()
    alone = advance(side, files)
    assert alone[0].any()
    side.restore()
    for object_id in (2, 3):
        side.copy_object(object_id)
    together = advance(side, files)
    assert [len(masks) for masks in together] == [3] * len(files)
    for want, have in zip(alone, together, strict=True):
        for row in have:
            np.testing.assert_array_equal(row, want[0])
    side.restore()
    np.testing.assert_array_equal(advance(side, files), alone)


def test_copies_take_memory_of_their_own(sides: dict[str, Side]) -> None:
    official, pruned = sides["official"], sides["pruned"]
    assert isinstance(official, Official)
    assert isinstance(pruned, Ours)
    for side in (official, pruned):
        side.restore()
        side.copy_object(2)
    one, two = (official.state["output_dict_per_obj"][i]["non_cond_frame_outputs"][17] for i in (0, 1))
    assert one["maskmem_features"].data_ptr() != two["maskmem_features"].data_ptr()
    assert one["maskmem_pos_enc"][0].data_ptr() == two["maskmem_pos_enc"][0].data_ptr(), "positional codes are shared, as officially"
    first, second = (pruned.tracker._objects[i].memory.frames for i in (1, 2))
    assert first.keys() == second.keys()
    rows = [(first[t].rows, second[t].rows) for t in first if first[t].rows is not None]
    assert len(rows) == 7
    assert not any(np.shares_memory(np.asarray(a), np.asarray(b)) for a, b in rows)


def test_the_compiled_form_has_every_part_compiled(
    bundle_micro: Path, micro_config: Path, files: list[Path], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def keep(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        assert options["mode"] == "max-autotune"
        compiled.append(function.__self__)  # type: ignore[attr-defined]
        return function

    monkeypatch.setattr(torch, "compile", keep)
    manifest = read_manifest(bundle_micro)
    other = build_official(official_weights(manifest, model=str(micro_config)), manifest)
    masks = track(Official(other, files[0], frames=FRAMES, compiled=True), files[:6])
    parts = (other.memory_encoder, other.memory_attention, other.sam_prompt_encoder, other.sam_mask_decoder, other.image_encoder)
    assert {id(part) for part in compiled} == {id(part) for part in parts}
    np.testing.assert_array_equal(masks, track(Official(module, files[0], frames=FRAMES), files[:6]))


def test_half_precision_is_autocast(module: Any, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()
    forward = module.forward_image

    def spied(image: torch.Tensor) -> Any:
        seen.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return forward(image)

    monkeypatch.setattr(module, "forward_image", spied)
    half = track(Official(module, files[0], frames=FRAMES, half=True), files[:3])
    assert seen == {(True, torch.bfloat16)}
    seen.clear()
    exact = track(Official(module, files[0], frames=FRAMES), files[:3])
    assert {on for on, _ in seen} == {False}
    assert worst_iou(np.concatenate(half), np.concatenate(exact)) > 0.8


def manifest_of(origin: dict[str, Any]) -> Manifest:
    manifest = read_manifest(bare_nano())
    return manifest.model_copy(update={"origin": manifest.origin.model_copy(update=origin)})


def test_weights_are_those_of_the_bundle(tmp_path: Path, micro_config: Path) -> None:
    nano = official_weights(manifest_of({}))
    assert [Path(p).name for p in (nano.model, nano.checkpoint)] == ["nano.yaml", "nano.pt"]
    seeded = {"model": "sam2.1_hiera_tiny", "checkpoint": "random:3", "checkpoint_sha256": None}
    assert official_weights(manifest_of(seeded)) == Weights("sam2.1_hiera_tiny", "random:3")
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    file = {"model": "sam2.1_hiera_tiny", "checkpoint": "mine.pt"}
    for origin, given, what in (
        ({}, {"checkpoint": str(other)}, "others in .*other.pt"),
        (seeded, {"checkpoint": "random:4"}, r"\(random:3\), got others in random:4"),
        (file, {}, "with --checkpoint"),
        ({**file, "model": "mine.yaml"}, {}, "with --config"),
    ):
        with pytest.raises(BundleError, match=what):
            official_weights(manifest_of(origin), **given)
    with pytest.raises(ExportError, match="no file"):
        official_weights(manifest_of({}), checkpoint=str(tmp_path / "missing.pt"))
    assert official_weights(manifest_of(file), checkpoint=nano.checkpoint).checkpoint == nano.checkpoint, "a file may have another name"


def test_a_model_of_other_sizes_is_refused(micro_config: Path) -> None:
    with pytest.raises(BundleError, match=r"hidden_dim.*128"):
        build_official(Weights(str(micro_config), "random:2"), read_manifest(bare_nano()))


def test_an_installed_package_says_that_it_has_no_weights_of_nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastsam2.benchmarks import official_weights as module_

    monkeypatch.setattr(module_, "PACKAGE", tmp_path)
    with pytest.raises(BundleError, match="clone of fastsam2"):
        official_weights(manifest_of({}))
