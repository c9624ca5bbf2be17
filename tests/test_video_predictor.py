"""fastsam2.video_predictor: interface, answers and errors. What the masks are is compared in parity/test_video_predictor_parity.py."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam2.build_sam import build_sam2_video_predictor as official_build
from sam2.sam2_video_predictor import SAM2VideoPredictor as OfficialPredictor

import fastsam2
from fastsam2 import builtin, video_predictor
from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError, BundleError, ExportError, FastSam2Error, PromptError, StateError, VideoError
from fastsam2.export import checkpoints
from fastsam2.runtime.clip_tracker import CACHED_FRAMES
from fastsam2.runtime.gpu import driver
from fastsam2.runtime.host_tensor import HostTensor
from fastsam2.video_predictor import SAM2VideoPredictor, build_sam2_video_predictor
from tests.parity.clips import Clip, make_clip

FRAMES, HEIGHT, WIDTH = 8, 240, 320
BOX = [90, 60, 210, 170]
METHODS = (
    "init_state",
    "add_new_points_or_box",
    "add_new_points",
    "add_new_mask",
    "propagate_in_video_preflight",
    "propagate_in_video",
    "clear_all_prompts_in_frame",
    "remove_object",
    "reset_state",
    "from_pretrained",
)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip("interface", 1, frames=FRAMES)


@pytest.fixture(scope="module")
def predictor(bundle_micro: Path) -> SAM2VideoPredictor:
    return build_sam2_video_predictor(None, bundle_micro, threads=1)


@pytest.fixture
def state(predictor: SAM2VideoPredictor, clip: Clip) -> Any:
    return predictor.init_state(clip.frames)


def snapshot(state: Any) -> Any:
    """All that a failed call must leave alone."""
    objects = state["clip"].objects
    return [
        (i, list(o.outputs), {k: list(v) for k, v in o.pending.items()}, {k: v[1].tolist() for k, v in o.points.items()}, set(o.masks))
        for i, o in objects.items()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_arguments_are_the_official_ones(method: str) -> None:
    def arguments(owner: type) -> dict[str, object]:
        return {name: p.default for name, p in inspect.signature(getattr(owner, method)).parameters.items()}

    assert arguments(SAM2VideoPredictor) == arguments(OfficialPredictor)


def test_builder_has_the_official_arguments_but_for_the_device() -> None:
    official = {name: p.default for name, p in inspect.signature(official_build).parameters.items()}
    ours = {name: p.default for name, p in inspect.signature(build_sam2_video_predictor).parameters.items()}
    assert ours == {**official, "device": None, "hydra_overrides_extra": ()}
    assert (fastsam2.build_sam2_video_predictor, fastsam2.SAM2VideoPredictor) == (build_sam2_video_predictor, SAM2VideoPredictor)


def test_state_and_answers_have_the_official_form(predictor: SAM2VideoPredictor, state: Any, clip: Clip) -> None:
    assert (state["num_frames"], state["video_height"], state["video_width"]) == (FRAMES, HEIGHT, WIDTH)
    assert (state["obj_ids"], state["obj_id_to_idx"], len(state["images"])) == ([], {}, FRAMES)
    frame, ids, masks = predictor.add_new_points_or_box(state, frame_idx=2, obj_id="cup", box=BOX)
    assert (frame, ids) == (2, ["cup"])
    assert isinstance(masks, torch.Tensor)
    assert (masks.dtype, tuple(masks.shape)) == (torch.float32, (1, 1, HEIGHT, WIDTH))
    _, ids, masks = predictor.add_new_mask(state, 1, 0, clip.mask(1, "disc") * 255)
    assert ids == state["obj_ids"] == ["cup", 0]
    assert state["obj_id_to_idx"] == {"cup": 0, 0: 1}
    assert state["obj_idx_to_id"] == {0: "cup", 1: 0}
    assert bool((masks[0] == -1024.0).all())
    assert bool((masks[1] > 0).any())
    seen = [(frame, ids, tuple(masks.shape)) for frame, ids, masks in predictor.propagate_in_video(state)]
    assert seen == [(t, ["cup", 0], (2, 1, HEIGHT, WIDTH)) for t in range(1, FRAMES)]
    assert [t for t, _, _ in predictor.propagate_in_video(state, 5, 2, reverse=True)] == [5, 4, 3]
    assert list(predictor.propagate_in_video(state, 0, reverse=True)) == []
    assert list(predictor.propagate_in_video(state, FRAMES + 3)) == []


def test_masks_belong_to_the_caller(predictor: SAM2VideoPredictor, clip: Clip) -> None:
    square = [np.ascontiguousarray(frame[:32, :32]) for frame in clip.frames]  # low-resolution logits need no resizing
    state = predictor.init_state(square)
    masks = predictor.add_new_points_or_box(state, 0, 1, box=[5, 5, 20, 20])[2]
    wanted = masks.clone()
    masks[:] = 7
    _, _, tracked = next(iter(predictor.propagate_in_video(state)))
    assert torch.equal(torch.as_tensor(tracked), torch.as_tensor(wanted))
    tracked[:] = 7
    assert torch.equal(torch.as_tensor(next(iter(predictor.propagate_in_video(state)))[2]), torch.as_tensor(wanted))


@pytest.mark.parametrize(
    "given",
    [
        {"points": np.array([[100, 80], [200, 150]], np.float64), "labels": np.array([1, 0])},
        {"points": torch.tensor([[100, 80], [200, 150]]), "labels": torch.tensor([1, 0], dtype=torch.int32)},
        {"points": [[[100, 80], [200, 150]]], "labels": [[1, 0]]},
        {"points": [[100 / WIDTH, 80 / HEIGHT], [200 / WIDTH, 150 / HEIGHT]], "labels": [1, 0], "normalize_coords": False},
        {"points": [[200, 150]], "labels": [0], "clear_old_points": False},
        {"points": [[100, 80], [200, 150]], "labels": (1.0, 0.0)},
    ],
    ids=["numpy", "torch", "batched", "normalised", "appended", "float labels"],
)
def test_points_may_come_in_any_form(given: dict[str, Any], predictor: SAM2VideoPredictor, state: Any) -> None:
    if given.get("clear_old_points", True):
        predictor.add_new_points(state, 3, 1, [[300, 20]], [1])
        predictor.clear_all_prompts_in_frame(state, 3, 1)
    else:
        predictor.add_new_points(state, 3, 1, [[100, 80]], [1])
    predictor.add_new_points(state, 3, 1, **given)
    points, labels = state["clip"].objects[1].points[3]
    side = predictor.image_size
    np.testing.assert_allclose(points, [[[100 / WIDTH * side, 80 / HEIGHT * side], [200 / WIDTH * side, 150 / HEIGHT * side]]], rtol=1e-6)
    assert (points.dtype, labels.dtype, labels.tolist()) == (np.float32, np.int32, [[1, 0]])


@pytest.mark.parametrize("nothing", [[], np.array([]), torch.empty(0), np.zeros((0, 2))], ids=["list", "numpy", "torch", "no rows"])
def test_no_points_beside_a_box(nothing: Any, predictor: SAM2VideoPredictor, state: Any) -> None:
    alone = predictor.add_new_points_or_box(state, 0, 1, box=BOX)[2]
    both = predictor.add_new_points_or_box(state, 0, 2, points=nothing, labels=[], box=BOX)[2]
    assert torch.equal(torch.as_tensor(both[1]), torch.as_tensor(alone[0]))


def test_bfloat16(predictor: SAM2VideoPredictor, state: Any, clip: Clip) -> None:
    """As tensors are under the autocast of the official examples."""
    corners, mask = torch.tensor(BOX, dtype=torch.bfloat16), torch.from_numpy(clip.mask(0, "disc")).bfloat16()
    for first, second in (
        (predictor.add_new_points_or_box(state, 0, 1, box=BOX), predictor.add_new_points_or_box(state, 0, 2, box=corners)),
        (predictor.add_new_mask(state, 1, 1, clip.mask(0, "disc")), predictor.add_new_mask(state, 1, 2, mask)),
    ):
        assert torch.equal(torch.as_tensor(second[2][1]), torch.as_tensor(first[2][0]))


def test_a_box_comes_before_the_points(predictor: SAM2VideoPredictor, state: Any) -> None:
    predictor.add_new_points_or_box(state, 0, 1, points=[[-5, 500]], labels=[0], box=torch.tensor([BOX]))
    assert state["clip"].objects[1].points[0][1].tolist() == [[2, 3, 0]]


@pytest.mark.parametrize("kind", ["bool", "uint8 255", "float", "tensor", "list"])
def test_masks_may_come_in_any_form(kind: str, predictor: SAM2VideoPredictor, state: Any, clip: Clip) -> None:
    mask = clip.mask(0, "disc")
    wanted = predictor.add_new_mask(state, 0, 1, mask)[2]
    given: Any = {
        "bool": mask,
        "uint8 255": mask.astype(np.uint8) * np.uint8(255),
        "float": mask * 0.25,
        "tensor": torch.from_numpy(mask).float(),
        "list": mask.tolist(),
    }[kind]
    assert torch.equal(torch.as_tensor(predictor.add_new_mask(state, 0, 2, given)[2][1]), torch.as_tensor(wanted[0]))


CALLS: dict[str, tuple[Callable[[Any, Any], Any], type[FastSam2Error], str]] = {
    "labels without points": (lambda p, s: p.add_new_points_or_box(s, 0, 1, labels=[1]), PromptError, "points and labels together"),
    "nothing": (lambda p, s: p.add_new_points_or_box(s, 0, 1), PromptError, "points or a box, got neither"),
    "no point": (lambda p, s: p.add_new_points_or_box(s, 0, 1, np.zeros((0, 2)), []), PromptError, "at least one point"),
    "fewer labels": (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[1, 2], [3, 4]], [1]), PromptError, r"labels \[2\]"),
    "strange label": (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[1, 2]], [7]), PromptError, "labels 0 or 1"),
    "not a number": (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[1, np.nan]], [1]), PromptError, "finite points"),
    "three columns": (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[1, 2, 3]], [1]), PromptError, r"points \[n, 2\]"),
    "ragged": (lambda p, s: p.add_new_points_or_box(s, 0, 1, [[1, 2], [3]], [1, 1]), PromptError, "rows of different lengths"),
    "half a box": (lambda p, s: p.add_new_points_or_box(s, 0, 1, box=[1, 2]), PromptError, r"box \[4\]"),
    "box after points": (lambda p, s: p.add_new_points_or_box(s, 0, 1, box=BOX, clear_old_points=False), PromptError, "give it first"),
    "frame outside": (lambda p, s: p.add_new_points_or_box(s, FRAMES, 1, box=BOX), PromptError, f"from 0 to {FRAMES - 1}, got {FRAMES}"),
    "negative frame": (lambda p, s: p.add_new_mask(s, -1, 1, np.ones((4, 4))), PromptError, "frame index"),
    "text as frame": (lambda p, s: p.clear_all_prompts_in_frame(s, "0", 1), PromptError, "frame index"),
    "3-D mask": (lambda p, s: p.add_new_mask(s, 0, 1, np.ones((1, 4, 4))), PromptError, r"a mask \[H, W\]"),
    "logits of the input's size": (lambda p, s: p.add_new_mask(s, 0, 1, torch.randn(128, 128)), PromptError, "Threshold it"),
    "mask with NaN": (lambda p, s: p.add_new_mask(s, 0, 1, torch.full((4, 4), torch.nan)), PromptError, "finite numbers"),
    "unknown object": (lambda p, s: p.remove_object(s, 77, strict=True), StateError, r"an object id of \[5\], got 77"),
    "start outside": (lambda p, s: list(p.propagate_in_video(s, -1)), PromptError, "frame index"),
    "reverse start outside": (lambda p, s: list(p.propagate_in_video(s, FRAMES, reverse=True)), PromptError, "frame index"),
}


@pytest.mark.parametrize("name", CALLS)
def test_failed_call_says_why_and_changes_nothing(name: str, predictor: SAM2VideoPredictor, state: Any) -> None:
    call, kind, message = CALLS[name]
    predictor.add_new_points_or_box(state, 0, 5, box=BOX)
    predictor.propagate_in_video_preflight(state)
    before = snapshot(state)
    with pytest.raises(kind, match=message) as caught:
        call(predictor, state)
    assert isinstance(caught.value, ValueError if kind is PromptError else RuntimeError)
    assert snapshot(state) == before
    assert state["obj_ids"] == [5]


def test_tracking_without_prompts_is_refused(predictor: SAM2VideoPredictor, state: Any) -> None:
    with pytest.raises(RuntimeError, match="expected at least one prompted object, got none"):
        predictor.propagate_in_video_preflight(state)
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    assert predictor.clear_all_prompts_in_frame(state, 4, 2, need_output=False) is None  # adds the object, as officially
    before = snapshot(state)
    with pytest.raises(StateError, match="object id 2 without any"):
        next(iter(predictor.propagate_in_video(state)))
    assert snapshot(state) == before
    predictor.remove_object(state, 2)
    for _ in predictor.propagate_in_video(state):
        pass
    predictor.clear_all_prompts_in_frame(state, 0, 1)
    with pytest.raises(StateError, match="an object whose prompts were cleared"):
        predictor.add_new_points_or_box(state, 4, 1, [[100, 80]], [1])


def test_an_interrupted_preflight_is_done_again(
    predictor: SAM2VideoPredictor, state: Any, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the memory encoder's runs is interrupted, tracking afterwards is what it is without. Oracle: an undisturbed session."""

    def prompt(given: Any) -> None:
        predictor.add_new_points_or_box(given, 0, 1, box=BOX)
        predictor.add_new_points_or_box(given, 4, 1, points=[[150, 100]], labels=[1])
        predictor.add_new_points_or_box(given, 2, 2, points=[[200, 150]], labels=[1])

    backend, undisturbed = predictor._stages.backend, predictor.init_state(clip.frames)
    prompt(undisturbed)
    expected = list(predictor.propagate_in_video(undisturbed))

    class Interrupted:
        name, left = backend.name, 0

        def run(self, role: GraphRole, inputs: Any) -> Any:
            if role is GraphRole.MEMORY_ENCODER:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
            return backend.run(role, inputs)

    interrupted = Interrupted()
    monkeypatch.setattr(predictor._stages, "backend", interrupted)
    for interrupted.left in (1, 2, 3):
        again = predictor.init_state(clip.frames)
        prompt(again)
        with pytest.raises(KeyboardInterrupt):
            predictor.propagate_in_video_preflight(again)
        got = list(predictor.propagate_in_video(again))
        assert [(t, ids) for t, ids, _ in got] == [(t, ids) for t, ids, _ in expected]
        for (_, _, ours), (_, _, theirs) in zip(got, expected, strict=True):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_an_object_removed_while_tracking_ends_it_with_a_reason(predictor: SAM2VideoPredictor, state: Any) -> None:
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    predictor.add_new_points_or_box(state, 0, 2, [[200, 150]], [1])
    tracking = predictor.propagate_in_video(state)
    next(tracking)
    predictor.remove_object(state, 2)
    with pytest.raises(StateError, match=r"\[2\] removed since. Begin tracking again"):
        next(tracking)
    assert [ids for _, ids, _ in predictor.propagate_in_video(state)] == [[1]] * FRAMES


def test_reset_and_removal_of_the_last_object_empty_the_state(predictor: SAM2VideoPredictor, state: Any) -> None:
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    assert predictor.remove_object(state, 1) == ([], [])
    predictor.add_new_points_or_box(state, 0, 2, box=BOX)
    predictor.reset_state(state)
    assert (state["obj_ids"], state["obj_id_to_idx"], state["obj_idx_to_id"], snapshot(state)) == ([], {}, {}, [])
    assert predictor.remove_object(state, 2) == ([], [])


def test_clip_is_kept_in_bfloat16_and_pictures_are_encoded_once_while_cached(
    predictor: SAM2VideoPredictor, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, encoded = predictor._stages.backend, []

    class Counting:
        name = backend.name

        def run(self, role: GraphRole, inputs: Any) -> Any:
            encoded.append(role)
            return backend.run(role, inputs)

    monkeypatch.setattr(predictor._stages, "backend", Counting())
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    predictor.add_new_points_or_box(state, 0, 2, [[200, 150]], [1])
    for _ in predictor.propagate_in_video(state):
        pass
    assert encoded.count(GraphRole.IMAGE_ENCODER) == FRAMES
    assert encoded.count(GraphRole.MEMORY_ATTENTION) == FRAMES - 1  # both objects in one batch
    assert len(state["clip"].features) == CACHED_FRAMES
    for known in state["clip"].objects.values():
        assert list(known.memory.frames) == list(known.outputs) == list(range(FRAMES))
        assert {held.rows.dtype for held in known.memory.frames.values()} == {np.dtype(np.uint16)}
        assert known.prompt_frames == [0]


@pytest.mark.parametrize("device", ["mps", "cuda:x", torch.device("meta")])
def test_other_devices_are_refused(device: object, bundle_micro: Path, predictor: SAM2VideoPredictor) -> None:
    with pytest.raises(BackendError, match=r'the device "cpu" or "cuda", got'):
        build_sam2_video_predictor(None, bundle_micro, device=device)
    with pytest.raises(BackendError):
        predictor.to(device)


@pytest.mark.parametrize(("device", "gpu"), [("cuda", 0), ("cuda:1", 1), (torch.device("cuda", 2), 2)])
def test_cuda_is_a_gpu_backend_or_an_error(
    device: object, gpu: int, bundle_micro: Path, predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(index: int) -> None:
        asked.append(index)
        raise BackendError("no GPU here")

    monkeypatch.setattr(driver, "PyCudaGpu", refuse)
    with pytest.raises(BackendError, match=rf"tensorrt-rtx.*ready on GPU {gpu}, got none: no GPU here"):
        build_sam2_video_predictor(None, bundle_micro, device=device)
    assert asked == [gpu], "opened once for all that might use it"
    with pytest.raises(BackendError, match="a predictor cannot move"):
        predictor.to(device)


def test_model_methods_of_scripts(predictor: SAM2VideoPredictor) -> None:
    assert predictor.eval().to("cpu").cpu().to(torch.device("cpu")) is predictor
    assert predictor.device == torch.device("cpu")
    assert (predictor.training, predictor.image_size, predictor.fill_hole_area) == (False, 128, 0)
    with pytest.raises(BackendError):
        predictor.cuda()


def test_bundle_in_any_place(bundle_micro: Path, tmp_path: Path) -> None:
    for config, checkpoint in ((None, bundle_micro), (str(bundle_micro), None), ("configs/sam2.1/sam2.1_hiera_t.yaml", str(bundle_micro))):
        overrides = ["++model.fill_hole_area=8", "++model.non_overlap_masks=true"]
        built = build_sam2_video_predictor(config, checkpoint, "cpu", hydra_overrides_extra=overrides, vos_optimized=True, threads=1)
        assert (built.fill_hole_area, built.non_overlap_masks) == (8, True)
    wrong: list[tuple[dict[str, Any], type[FastSam2Error], str]] = [
        ({"config_file": bundle_micro, "ckpt_path": "model.pt"}, ExportError, "leave ckpt_path out"),
        ({"config_file": "sam2.1_hiera_t"}, ExportError, "a config and a checkpoint, or a bundle folder"),
        ({"config_file": None, "ckpt_path": tmp_path / "model.pt"}, ExportError, "a config and a checkpoint, or a bundle folder"),
        ({"config_file": bundle_micro, "image_size": 256}, BundleError, "a bundle for 256 px"),
        ({"config_file": bundle_micro, "apply_postprocessing": False}, BundleError, "config and the checkpoint instead of a bundle"),
        ({"config_file": bundle_micro, "mode": "train"}, PromptError, 'mode "eval"'),
        ({"config_file": bundle_micro, "compile": True}, PromptError, "compile=True"),
    ]
    for arguments, kind, message in wrong:
        with pytest.raises(kind, match=message):
            build_sam2_video_predictor(**arguments)


def test_bundle_of_another_official_model_is_refused(bundle_tiny256_seed0: Path) -> None:
    with pytest.raises(BundleError, match=r"expected a bundle of sam2\.1_hiera_large"):
        build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_l.yaml", bundle_tiny256_seed0)


def test_checkpoint_goes_through_the_cache(bundle_micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def cached(model: str, checkpoint: str, *, image_size: int | None, postprocessing: bool) -> Path:
        asked.append((model, checkpoint, image_size, postprocessing))
        return bundle_micro

    monkeypatch.setattr(video_predictor, "cached_bundle", cached)
    config = "configs/sam2.1/sam2.1_hiera_t.yaml"
    build_sam2_video_predictor(config, tmp_path / "a.pt", threads=1)
    build_sam2_video_predictor(config, "a.pt", apply_postprocessing=False, hydra_overrides_extra=["++model.image_size=512"], threads=1)
    SAM2VideoPredictor.from_pretrained("facebook/sam2.1-hiera-tiny", device="cpu", threads=1)
    assert asked == [
        (config, str(tmp_path / "a.pt"), None, True),
        (config, "a.pt", 512, False),
        ("facebook/sam2.1-hiera-tiny", checkpoints.HUB, None, True),
    ]
    with pytest.raises(ExportError, match=r"facebook/sam2\.1-hiera-tiny"):
        SAM2VideoPredictor.from_pretrained("facebook/sam2.1-hiera-huge")


def test_frames_that_fail_in_the_background_reach_the_caller(predictor: SAM2VideoPredictor, clip: Clip, tmp_path: Path) -> None:
    folder = clip.write_official(tmp_path / "clip")
    (folder / "00005.jpg").write_bytes(b"no picture")
    state = predictor.init_state(str(folder), async_loading_frames=True)
    with pytest.raises(VideoError, match=r"00005\.jpg"):
        predictor.add_new_points_or_box(state, 0, 1, box=BOX)
        list(predictor.propagate_in_video(state))


def test_works_without_torch(bundle_micro: Path, clip: Clip, tmp_path: Path, predictor: SAM2VideoPredictor, state: Any) -> None:
    folder = clip.write_official(tmp_path / "clip")
    code = f"""
import json, sys
sys.modules.update(dict.fromkeys(["torch", "sam2", "onnx", "onnxscript", "hydra"]))
import numpy as np
from fastsam2 import build_sam2_video_predictor
predictor = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", {str(bundle_micro)!r}, device="cpu", threads=1)
state = predictor.init_state(video_path={str(folder)!r})
kinds = [type(predictor.add_new_points_or_box(state, 0, 1, box={BOX})[2]).__name__, predictor.device]
areas = [int((logits[0] > 0.0).cpu().numpy().sum()) for _, _, logits in predictor.propagate_in_video(state)]
print(json.dumps([kinds, areas]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    kinds, areas = json.loads(done.stdout.splitlines()[-1])
    assert kinds == [HostTensor.__name__, "cpu"]
    predictor.add_new_points_or_box(state, 0, 1, box=BOX)
    assert areas == [int((logits > 0.0).sum()) for _, _, logits in predictor.propagate_in_video(state)]


def test_built_in_bundle_by_name(bundle_micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy").symlink_to(bundle_micro)
    monkeypatch.setattr(builtin, "MODELS", tmp_path)
    for arguments in (("toy",), (None, "toy"), ("toy", "toy")):
        assert build_sam2_video_predictor(*arguments, threads=1).image_size == 128
