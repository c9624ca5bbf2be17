"""The GPU loop on a GPU that is this machine (`fake_gpu`): the same masks as on the host, memory that stops growing, and failures.

Oracle of every mask: the same scenario in host memory, on the same ONNX graphs with one thread.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsam2
from fastsam2 import Prune, Result, Tracker
from fastsam2.bundle import read_manifest
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError, InternalError, PromptError
from fastsam2.runtime.gpu.array import Pool, Staging, _rounded
from fastsam2.runtime.gpu.backend import GpuBackend
from fastsam2.runtime.host_device import HOST
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.video_predictor import SAM2VideoPredictor
from tests.fake_gpu import FakeGpu, LateEngines, fake_backend
from tests.kernel_host.driver import compile_kernels
from tests.kernel_host.harness import COMPILER, NO_COMPILER
from tests.parity.clips import make_clip

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

FRAMES = make_clip("gpu_loop", 24).frames
BOX, OTHER_BOX = (90, 60, 210, 170), (60, 90, 160, 200)
UNPROTECTED: dict[str, Any] = {"keep": 0.25, "protect": ()}
EXACT = [Prune(), *(Prune(policy=policy, **UNPROTECTED) for policy in ("random", "uniform")), Prune(policy="pool2x2", protect=())]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_kernels(tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture(scope="module")
def host(bundle_micro: Path) -> LoadedBundle:
    return fastsam2.load(bundle_micro, threads=1)


@pytest.fixture
def backend(host: LoadedBundle, library: Path) -> GpuBackend:
    return fake_backend(host.folder, host.manifest, library)


def gpu_of(backend: GpuBackend) -> FakeGpu:
    assert isinstance(backend.gpu, FakeGpu)
    return backend.gpu


def scenario(tracker: Tracker, count: int = 10) -> list[Result]:
    """Objects that come late, by box, mask and click; corrections; one that goes."""
    results = []
    for t, frame in enumerate(FRAMES[:count]):
        result = tracker.step(frame)
        if t == 0:
            tracker.add(1, box=BOX)
            result = tracker.add(2, box=OTHER_BOX)
        if t == 3:
            result = tracker.add(5, mask=np.pad(np.ones((60, 70), bool), ((40, 140), (50, 200))))
        if t == 5:
            tracker.correct(1, points=[(150, 100)], labels=[0])
            result = tracker.correct(1, points=[(120, 90)], append=True)
        if t == 7:
            tracker.remove(2)
            result = tracker.add(3, points=[(40, 50)])
        results.append(result)
    return results


def assert_same(ours: list[Result], theirs: list[Result]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.ids == b.ids and a.memory == b.memory
        for name in ("masks", "low_res_logits", "scores", "ious", "visible"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=f"{name} of frame {a.frame}")


@pytest.mark.parametrize("prune", EXACT, ids=lambda prune: prune.policy.value)
def test_every_bit_is_that_of_the_host(host: LoadedBundle, backend: GpuBackend, prune: Prune) -> None:
    ours, theirs = scenario(Tracker(backend, host.spec, prune=prune)), scenario(host.tracker(prune=prune))
    assert max(r.masks.mean() for r in theirs) > 0.05
    assert_same(ours, theirs)


@pytest.mark.parametrize("options", [{"fill_hole_area": 8}, {"corrections_as_prompts": True, "max_prompt_frames": 2}], ids=str)
def test_options_of_the_tracker(host: LoadedBundle, backend: GpuBackend, options: dict[str, Any]) -> None:
    assert_same(scenario(Tracker(backend, host.spec, **options)), scenario(host.tracker(**options)))


def test_rows_by_mask_are_the_hosts(host: LoadedBundle, backend: GpuBackend) -> None:
    """The device's tanh may put a cell that lies on a level's border on its other side: nine of ten reports are equal in every row."""
    prune = Prune(policy="mask", **UNPROTECTED)
    ours, theirs = scenario(Tracker(backend, host.spec, prune=prune)), scenario(host.tracker(prune=prune))
    equal = [
        np.array_equal(a.tokens.kept, b.tokens.kept)
        for a, b in zip(ours, theirs, strict=True)
        if a.tokens is not None and b.tokens is not None
    ]
    assert len(equal) == 9 and sum(equal) >= 8


def test_the_router_and_its_guard(library: Path) -> None:
    """On nano, which has a router and descriptions. Scores differ by the rounding of the uncertainty only."""
    loaded = fastsam2.load("nano", threads=1)
    backend = fake_backend(loaded.folder, loaded.manifest, library)
    on_gpu = LoadedBundle(loaded.folder, loaded.manifest, backend)
    prune = Prune(policy="router", guard=True, **UNPROTECTED)
    results = []
    for bundle in (on_gpu, loaded):
        tracker = bundle.tracker(prune=prune)
        tracker.step(FRAMES[0])
        tracker.add(1, box=BOX, text="a red star")
        results.append([tracker.step(f) for f in FRAMES[1:4]])
    for ours, theirs in zip(*results, strict=True):
        assert ours.tokens is not None and theirs.tokens is not None
        assert (ours.tokens.keep, ours.tokens.alarms) == (theirs.tokens.keep, theirs.tokens.alarms)
        for name in ("scores", "uncertainty", "relevance", "context"):
            np.testing.assert_allclose(getattr(ours.tokens, name), getattr(theirs.tokens, name), atol=2e-6, err_msg=name)
        assert np.mean(ours.masks == theirs.masks) > 0.999


def test_graphs_of_the_tensorrt_form_in_chunks(host: LoadedBundle, library: Path) -> None:
    """These take a bias for each key, and an engine takes so many objects at once. Masks differ by rounding."""
    backend = fake_backend(host.folder, host.manifest, library, target=ExportTarget.TENSORRT, most=2)
    ours, theirs = scenario(Tracker(backend, host.spec)), scenario(host.tracker())
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.low_res_logits - b.low_res_logits).max() < 1e-3
        assert np.mean(a.masks != b.masks) < 1e-3
    assert isinstance(backend.engines, LateEngines)
    assert set(backend.engines.objects) == {1, 2}


def test_prompt_frames_that_the_engines_have_no_room_for_are_refused_before_the_first_frame(
    host: LoadedBundle, backend: GpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LateEngines, "max_prompt_frames", lambda self: 2)
    with pytest.raises(BackendError, match=r"room for 3 prompt frames .* got room for 2\. Build .*--max-prompt-frames 3"):
        Tracker(backend, host.spec, corrections_as_prompts=True, max_prompt_frames=3)
    Tracker(backend, host.spec, corrections_as_prompts=True, max_prompt_frames=2)
    Tracker(backend, host.spec, max_prompt_frames=3)  # an object has one prompt frame where corrections are none


def test_a_finished_clip(host: LoadedBundle, backend: GpuBackend) -> None:
    """The drop-in keeps its memory on the host, whatever runs the graphs."""
    from fastsam2.runtime.clip_tracker import Clip, ClipTracker
    from fastsam2.runtime.preprocess import frame_to_pixels

    logits = []
    for runs in (backend, host.backend):
        tracker = ClipTracker(runs, host.spec)
        clip = Clip([frame_to_pixels(f, host.spec.image_size) for f in FRAMES[:6]])  # type: ignore[arg-type]
        clip.objects["a"] = tracker.new_object()
        points = np.array([[[50, 30], [100, 90]]], np.float32)
        tracker.prompt_points(clip, clip.objects["a"], 2, points, np.array([[2, 3]], np.int32))
        tracker.finish_prompts(clip)
        logits.append([tracker.track(clip, t, ["a"], reverse=reverse) for reverse, t in ((False, 3), (False, 4), (True, 1), (True, 0))])
        assert all(isinstance(m.rows, np.ndarray) for m in clip.objects["a"].memory.frames.values())
    np.testing.assert_array_equal(*logits)


def test_frames_before_an_objects_prompt_on_engines_with_room_for_one_pointer_at_least(
    host: LoadedBundle, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines have no profile without pointers, so there is one that nothing attends to. Oracle: the host, where there is none."""
    backend = fake_backend(host.folder, host.manifest, library, target=ExportTarget.TENSORRT)
    enqueue, pointers = LateEngines.enqueue, []

    def insist(self: LateEngines, role: GraphRole, inputs: Any, outputs: Any) -> None:
        if role is GraphRole.MEMORY_ATTENTION:
            pointers.append(inputs["pointers"].shape[1])
        enqueue(self, role, inputs, outputs)

    monkeypatch.setattr(LateEngines, "enqueue", insist)
    answers = []
    for bundle in (LoadedBundle(host.folder, host.manifest, backend), host):
        predictor = SAM2VideoPredictor(bundle)
        state = predictor.init_state(list(FRAMES[:5]))
        predictor.add_new_points_or_box(state, 0, 1, box=BOX)
        predictor.add_new_points_or_box(state, 2, 7, box=OTHER_BOX)
        answers.append(np.stack([np.asarray(logits) for _, _, logits in predictor.propagate_in_video(state)]))
    ours, theirs = answers
    assert pointers == [1, 1, 1, 2, 3, 4], "object 7 on frames 0 and 1 has none"
    assert np.abs(ours - theirs).max() < 1e-3
    assert (theirs[0, 1] != theirs[0, 0]).any()


def test_the_drop_in_refuses_prompt_frames_that_the_engines_have_no_room_for(
    host: LoadedBundle, backend: GpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LateEngines, "max_prompt_frames", lambda self: 1)
    predictor = SAM2VideoPredictor(LoadedBundle(host.folder, host.manifest, backend))
    state = predictor.init_state(list(FRAMES[:5]))
    for frame in (0, 2):
        predictor.add_new_points_or_box(state, frame, 1, box=BOX)
    with pytest.raises(BackendError, match=r"room for 2 prompt frames .* got room for 1\. .*max_cond_frames_in_attn=1"):
        next(iter(predictor.propagate_in_video(state)))
    assert set(state["clip"].objects[1].pending[True]) == {0, 2}
    predictor.max_cond_frames_in_attn = 1
    assert len(list(predictor.propagate_in_video(state))) == 5


def test_the_drop_in_on_a_gpu(host: LoadedBundle, backend: GpuBackend, tmp_path: Path) -> None:
    answers = []
    for bundle in (LoadedBundle(host.folder, host.manifest, backend), host):
        predictor = SAM2VideoPredictor(bundle)
        state = predictor.init_state(str(make_clip("gpu_loop", 24, frames=5).write_official(tmp_path / bundle.backend.name)))
        predictor.add_new_points_or_box(state, 0, 7, box=BOX)
        answers.append([np.asarray(logits) for _, _, logits in predictor.propagate_in_video(state)])
        on_gpu = bundle is not host
        assert predictor.to("cuda" if on_gpu else "cpu") is predictor
        with pytest.raises(BackendError, match="a predictor cannot move"):
            predictor.to("cpu" if on_gpu else "cuda")
    np.testing.assert_array_equal(*answers)


def test_steady_state_allocates_nothing_and_waits_once(host: LoadedBundle, backend: GpuBackend) -> None:
    """Pointers grow until the sixteenth frame. Uploads: the frame, the table of the memory, and whether objects were prompted."""
    gpu, tracker = gpu_of(backend), Tracker(backend, host.spec, prune=Prune(policy="uniform", keep=0.25))
    tracker.step(FRAMES[0])
    tracker.add(1, box=BOX)
    tracker.add(2, box=OTHER_BOX)
    for frame in FRAMES[1:20]:
        tracker.step(frame)
    for frame in FRAMES[20:]:
        gpu.calls.clear()
        tracker.step(frame)
        counted = {name: gpu.count(name) for name in ("allocate", "release", "pinned", "synchronize")}
        assert counted == {"allocate": 0, "release": 0, "pinned": 0, "synchronize": 1}
        assert gpu.calls[-1][0] == "synchronize"
        first_download = next(i for i, (name, _) in enumerate(gpu.calls) if name == "download")
        assert {name for name, _ in gpu.calls[first_download:-1]} == {"download"}, "nothing comes back before all is enqueued"
    roles = [name for name, _ in gpu.calls if name in {role.value for role in GraphRole}]
    assert roles == ["memory_encoder", "image_encoder", "memory_attention", "mask_decoder"]


@pytest.mark.parametrize("early", [True, False], ids=["early", "late"])
def test_the_next_frame_goes_up_beside_this_one(host: LoadedBundle, library: Path, early: bool) -> None:
    """Whenever the copy happens, masks are the host's; a frame that does not come as announced is uploaded in its turn."""
    backend = fake_backend(host.folder, host.manifest, library, early=early)
    gpu, tracker, other = gpu_of(backend), Tracker(backend, host.spec), Tracker(backend, host.spec)
    reference, frames = host.tracker(), [f.copy() for f in FRAMES]
    for runs in (tracker, other, reference):
        runs.step(frames[0], upcoming=frames[1])
        runs.add(1, box=BOX)
    for t in range(1, 9):
        gpu.calls.clear()
        upcoming = frames[t + 5] if t == 4 else frames[t + 1]
        ours, theirs = tracker.step(frames[t], upcoming=upcoming), reference.step(frames[t])
        assert_same([ours, other.step(frames[t], upcoming=frames[t + 1])], [theirs, theirs])
        assert gpu.count("upload_beside") == (2 if t > 1 else 0), "the first two are uploaded in their turn"
        nbytes = frames[t].nbytes
        assert gpu.calls.count(("upload", nbytes)) == (2 if t == 1 else 1 if t == 5 else 0)
    gpu.calls.clear()
    with pytest.raises(PromptError, match=r"expected a frame of \(240, 320\)"):
        tracker.step(frames[9], upcoming=frames[9][:-1])
    assert gpu.calls == [("synchronize", 0)] and tracker.frame == 8, "nothing was enqueued"


def test_frames_without_objects_take_no_memory(host: LoadedBundle, backend: GpuBackend) -> None:
    """Every step ends with a wait, after which page-locked memory is used again."""
    gpu, tracker = gpu_of(backend), Tracker(backend, host.spec)
    for frame in FRAMES[:3]:
        tracker.step(frame)
    gpu.calls.clear()
    for _ in range(40):
        tracker.step(FRAMES[1])
    assert gpu.count("pinned") == gpu.count("allocate") == 0


def test_memory_is_bounded_and_comes_back(host: LoadedBundle, backend: GpuBackend) -> None:
    tracker = Tracker(backend, host.spec)
    results = scenario(tracker, 24)
    bank = sum(results[-1].memory.bytes)
    tracker.reset()
    del results
    gc.collect()
    constants = sum(a.block.nbytes for a in {id(c.block): c for c in backend.device._constants.values()}.values())
    assert bank > 0 and backend.device.pool.used_bytes == constants
    backend.close()
    gpu = gpu_of(backend)
    assert not gpu.held and gpu.calls[-1][0] == "close"


def test_a_step_that_fails_changes_nothing(host: LoadedBundle, backend: GpuBackend) -> None:
    gpu, tracker = gpu_of(backend), Tracker(backend, host.spec)
    tracker.step(FRAMES[0])
    tracker.add(1, box=BOX)
    before = tracker.step(FRAMES[1])
    gpu.fails = "an illegal address"
    for _ in range(2):
        with pytest.raises(BackendError, match=r"an illegal address.*Start again"):
            tracker.step(FRAMES[2])
        with pytest.raises(BackendError, match="an illegal address"):
            tracker.add(2, box=OTHER_BOX)
    assert tracker.ids == (1,) and tracker.frame == before.frame
    gpu.fails = ""
    assert tracker.step(FRAMES[2]).frame == before.frame + 1


def test_steps_that_fail_hold_no_page_locked_memory(host: LoadedBundle, backend: GpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that cannot run fails before the wait that ends a step."""
    gpu, tracker = gpu_of(backend), Tracker(backend, host.spec)
    tracker.step(FRAMES[0])
    tracker.add(1, box=BOX)

    def fail(*_: Any) -> None:
        raise BackendError("no memory for it")

    with monkeypatch.context() as patched:
        patched.setattr(LateEngines, "enqueue", fail)
        gpu.calls.clear()
        for _ in range(50):
            with pytest.raises(BackendError, match="no memory for it"):
                tracker.step(np.tile(FRAMES[1], (1, 1, 1)))
            with pytest.raises(BackendError, match="no memory for it"):
                tracker.add(2, box=OTHER_BOX)
        assert gpu.count("pinned") == 0
    assert tracker.step(FRAMES[1]).ids == (1,)


def test_memory_that_runs_out_is_said_and_what_lies_idle_is_given_back_first(host: LoadedBundle, backend: GpuBackend) -> None:
    gpu, tracker = gpu_of(backend), Tracker(backend, host.spec)
    scenario(tracker, 6)
    tracker.reset()
    gc.collect()
    gpu.limit = sum(len(held) for held in gpu.held.values()) + 1024
    gpu.calls.clear()
    tracker.step(np.zeros((300, 500, 3), np.uint8))  # no size of before fits
    tracker.add(1, box=BOX)
    assert gpu.count("release") > 0
    gpu.limit = 0
    with pytest.raises(BackendError, match="Track fewer objects"):
        for frame in np.zeros((9, 300, 500, 3), np.uint8):
            tracker.step(frame)


def test_what_is_no_input_of_a_graph_is_refused(host: LoadedBundle, backend: GpuBackend) -> None:
    side = host.spec.image_size
    for inputs, message in (
        ({}, "image_encoder takes"),
        ({"pixels": np.zeros((1, 3, side, side), np.float32)}, "pixels of image_encoder is uint8"),
        ({"pixels": np.zeros((1, 3, side, side + 1), np.uint8)}, "pixels of image_encoder is uint8"),
    ):
        with pytest.raises(InternalError, match=message):
            backend.run(GraphRole.IMAGE_ENCODER, inputs)
    manifest = read_manifest(host.folder)
    bare = manifest.model_copy(update={"graphs": tuple(g for g in manifest.graphs if g.role is not GraphRole.MASK_PROMPT)})
    backend.engines._manifest = bare  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="graph mask_prompt on onnxruntime-cpu"):
        backend.run(GraphRole.MASK_PROMPT, {})


def test_views_and_joins(backend: GpuBackend) -> None:
    """Oracle: numpy, for every operation on arrays that the loop composes."""
    device = backend.device
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 11.5
    array = device.put(values)
    other = device.put(values[0] * 2)
    pairs = [
        (array[1], values[1]),
        (array[1:2], values[1:2]),
        (array[0][2], values[0][2]),
        (array.reshape((3, -1)), values.reshape(3, -1)),
        (device.stack([array[0], array[1]]), values),
        (device.stack([array[1], array[0]]), values[::-1]),
        (device.stack([array[0], other]), np.stack([values[0], values[0] * 2])),
        (device.concatenate([array[0], other]), np.concatenate([values[0], values[0] * 2])),
        (device.copy(array[1]), values[1]),
        (device.clamp(array, 3), np.clip(values, -3, 3)),
        (device.full((2, 3), -1, np.int32), np.full((2, 3), -1, np.int32)),
        (device.full((5,), True, np.bool_), np.ones(5, np.bool_)),
        (device.arange(3, 9), np.arange(3, 9, dtype=np.int32)),
        (device.to_bfloat16(array), HOST.to_bfloat16(values)),
    ]
    for have, (_, want) in zip(device.fetch(*(tensor for tensor, _ in pairs)), pairs, strict=True):
        np.testing.assert_array_equal(have, want)
        assert have.dtype == want.dtype
    assert device.stack([array[0], array[1]]).block is array.block
    assert device.stack([array[1], array[0]]).block is not array.block
    assert device.fetch(None) == (None,)
    assert device.full((2, 3), -1, np.int32) is device.full((2, 3), -1, np.int32)
    for key in (2, -1, slice(0, 2, -1)):
        with pytest.raises(InternalError, match="consecutive elements"):
            array[key]
    with pytest.raises(InternalError, match="cannot become"):
        array.reshape((5, 5))


def test_pool_and_staging() -> None:
    gpu = FakeGpu()
    pool, staging = Pool(gpu), Staging(gpu)
    first = pool.empty((100,), np.float32, "a")
    view = first[10:20]
    del first
    assert pool.empty((100,), np.float32, "a").address != view.address - 40, "memory of a view is in use"
    address = view.address - 40
    del view
    assert pool.empty((90,), np.float32, "a").address == address
    assert pool.empty((90,), np.float32, "b").address != address
    assert (pool.allocations, pool.used_bytes, pool.held_bytes) == (3, 0, 1536)
    a, b = staging.array((3,), np.uint8), staging.array((2, 5), np.float64)
    assert b.ctypes.data >= a.ctypes.data + 3 and b.ctypes.data % 8 == 0
    staging.reset()
    assert staging.array((3,), np.uint8).ctypes.data == a.ctypes.data, "used again"

    def step(size: int) -> None:
        for _ in range(3):
            staging.array((size,), np.uint8)
        staging.reset()

    for size in range(1_000_000, 9_000_000, 1_000_000):  # what a step needs grows from step to step
        step(size)
        step(size)
        gpu.calls.clear()
        step(size)
        assert gpu.calls == []
    assert sum(map(len, staging._pieces)) == pytest.approx(3 * 8_000_000, abs=200), "what a step needs, and no more"


def test_sizes_waste_an_eighth_at_most() -> None:
    for size in (0, 1, 511, 512, 513, 4095, 10_000, 1_000_001, 123_456_789):
        rounded = _rounded(size)
        assert size <= rounded <= max(512, size * 9 / 8 + 512) and rounded % 512 == 0
