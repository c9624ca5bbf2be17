"""Every step of `benchmarks/gpu_check.py` on a GPU that is this machine (`fake_gpu`): what is right is ok, what is wrong is not."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam2.benchmarks import gpu_engines, gpu_tracking
from fastsam2.benchmarks.gpu_engines import accepted, build_and_check, calls, check_engines, graph_inputs
from fastsam2.benchmarks.gpu_kernels import SCALES, SMALL, Case, GuardedDevice, check_case, check_kernels
from fastsam2.benchmarks.gpu_tracking import agreement, compare_masks, make_references, time_tracker
from fastsam2.bundle import Manifest, read_manifest
from fastsam2.contracts import GRAPHS, graph_spec
from fastsam2.engines import trt_compat
from fastsam2.enums import BackendName, ExportTarget, Flavor, GraphRole
from fastsam2.errors import BackendError, BundleError
from fastsam2.kernels.frame_ops import PARAMETERS
from fastsam2.runtime.gpu.driver import Gpu
from fastsam2.runtime.gpu.engines import DeviceTensor
from fastsam2.runtime.host_device import HOST
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.result import Result
from fastsam2.runtime.timing import StageTimer
from tests.fake_gpu import FakeGpu, LateDriver, LateEngines, fake_backend
from tests.fake_tensorrt import EngineInvalidityDiagnostics, EngineValidity
from tests.kernel_host.driver import compile_kernels
from tests.kernel_host.harness import COMPILER, NO_COMPILER
from tests.specs import model_spec
from tests.tensorrt_world import RTX, World

needs_compiler = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
TENSORRT = ExportTarget.TENSORRT
FRAMES = 4


@pytest.fixture(autouse=True)
def engines_run_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_engines, "_REPEATS", 1)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_kernels(tmp_path_factory.mktemp("kernels") / "kernels.so")


@needs_compiler
def test_every_kernel_is_checked(library: Path) -> None:
    gpu = FakeGpu()
    driver = LateDriver(gpu, library)
    found = check_kernels(scales=SMALL, repeats=1, open_gpu=lambda: (gpu, driver))
    assert found["ok"], {name: entry for name, entry in found["cases"].items() if not entry["ok"]}
    entries = {launch.entry for launch in driver.launches}
    assert entries == {*(f"fastsam2_{name}" for name in PARAMETERS), *(f"fastsam2_top_k_gather_{t}" for t in ("float32", "float16"))}
    assert len(found["cases"]) == len(SMALL) * 17
    assert all(entry["ms"] > 0 for entry in found["cases"].values())
    assert gpu.calls[-1] == ("close", 0) and not gpu.held


def test_scales_reach_what_the_loop_runs() -> None:
    assert {scale.rows for scale in SCALES} >= {4096, 16384} and (1080, 1920) in {scale.frame for scale in SCALES}
    assert {scale.dims for scale in SCALES} >= {(64, 256)}


class Meddling(LateDriver):
    """After each rounding to bfloat16, one byte is another. Called with addresses of values and bits, and n."""

    def __init__(self, gpu: FakeGpu, library: Path, where: Callable[[int, int, int], int], every: int) -> None:
        super().__init__(gpu, library)
        self.where, self.every, self.count = where, every, 0

    def launch(self, function: Any, grid: Any, block: Any, shared_bytes: int, stream: Any, parameters: bytes) -> None:
        super().launch(function, grid, block, shared_bytes, stream, parameters)
        if function.entry == "fastsam2_round_bfloat16":
            self.count += 1
            if self.count % self.every == 0:
                byte = ctypes.c_uint8.from_address(self.where(*struct.unpack("PPq", parameters)))
                self.gpu.enqueue("meddle", 0, lambda: setattr(byte, "value", byte.value ^ 1))


MEDDLING: dict[str, tuple[Callable[[int, int, int], int], int, set[str]]] = {
    "before": (lambda values, bits, n: bits - 1, 1, {"inside"}),
    "behind": (lambda values, bits, n: bits + 2 * n, 1, {"inside"}),
    "far behind": (lambda values, bits, n: bits + 2 * n + 511, 1, {"inside"}),
    "wrong": (lambda values, bits, n: bits + 2 * (n // 2), 1, {"equal"}),
    "wrong the second time": (lambda values, bits, n: bits, 2, {"repeats"}),
    "a source": (lambda values, bits, n: values, 2, {"sources"}),
}


@needs_compiler
@pytest.mark.parametrize("name", MEDDLING)
def test_one_byte_fails_a_case(library: Path, name: str) -> None:
    where, every, wrong = MEDDLING[name]
    gpu = FakeGpu()
    device = GuardedDevice(gpu, Meddling(gpu, library, where, every))
    values = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    found = check_case(device, Case("round_bfloat16", (values,), lambda d, v: (d.to_bfloat16(v),)), repeats=0)
    assert not found["ok"]
    assert {key for key in ("inside", "repeats", "sources") if not found[key]} | ({"equal"} if found["equal"] < 1 else set()) == wrong


@needs_compiler
def test_what_is_not_written_fails_a_case(library: Path) -> None:
    gpu = FakeGpu()
    device = GuardedDevice(gpu, LateDriver(gpu, library))
    values = np.frombuffer(b"\xa5" * 400, np.float32)  # what lies in new memory
    (fresh,) = device.fetch(device.clamp(device.put(values), 0.0)) and device.fetch(device.pool.empty((100,), np.float32))
    assert fresh.tobytes() == values.tobytes(), "also where memory is used again"
    half = Case("half", (values,), lambda d, v: (d.clamp(v, 0.0) if d is device else np.zeros_like(v),))
    assert check_case(device, half, repeats=0)["ok"]
    nothing = Case("nothing", (values,), lambda d, v: (d.pool.empty((100,), np.float32) if d is device else np.zeros_like(v),))
    assert check_case(device, nothing, repeats=0)["equal"] == 0
    other = Case("other", (values,), lambda d, v: (v if d is device else HOST.clamp(v, 0.0).astype(np.float64),))
    assert not check_case(device, other, repeats=0)["ok"], "another type"


@pytest.mark.parametrize("target", ExportTarget)
@pytest.mark.parametrize("role", GRAPHS)
def test_inputs_are_legal(role: GraphRole, target: ExportTarget) -> None:
    spec = model_spec()
    for sizes in calls(spec, 3).values():
        inputs = graph_inputs(spec, role, target, sizes)
        known = dict[str, int](sizes)
        for tensor in graph_spec(role, target).inputs:
            array = inputs[tensor.name]
            assert array.dtype == tensor.dtype and array.flags.c_contiguous and array.ndim == len(tensor.axes)
            for axis, size in zip(tensor.shape(spec), array.shape, strict=True):
                assert (known.setdefault(axis, size) if isinstance(axis, str) else axis) == size
        highest = {"position": spec.table_rows - 2, "age": spec.num_maskmem - 1, "query_position": spec.table_rows - 2, "labels": 1}
        assert all(inputs[name].min() >= 0 and inputs[name].max() <= top for name, top in highest.items() if name in inputs)
        assert not inputs.get("memory_bias", np.zeros(1)).any()


class Wrong(LateEngines):
    """What the decoder writes is `spoil`ed after its run."""

    def __init__(self, *args: Any, spoil: Callable[[Any], None]) -> None:
        super().__init__(*args)
        self.spoil = spoil

    def enqueue(self, role: GraphRole, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        super().enqueue(role, inputs, outputs)
        if role is GraphRole.MASK_DECODER:
            logits = outputs["low_res_logits"]
            array = np.ctypeslib.as_array((ctypes.c_float * (logits.nbytes // 4)).from_address(logits.address))
            self.gpu.enqueue("spoil", 0, lambda: self.spoil(array))


def refuse(array: Any) -> None:
    raise BackendError("expected mask_decoder to run, got a reason. Build again.")


def engines_of(gpu: Gpu, folder: Path, manifest: Manifest, spoil: Callable[[Any], None] | None = None) -> LateEngines:
    assert isinstance(gpu, FakeGpu)
    arguments = (gpu, folder, manifest, TENSORRT, 4)
    return LateEngines(*arguments) if spoil is None else Wrong(*arguments, spoil=spoil)


def look(folder: Path, manifest: Manifest, flavor: Flavor, capability: str) -> dict[GraphRole, dict[str, Any]]:
    return {graph.role: {"capability": capability} for graph in manifest.graphs if graph.target is TENSORRT}


def test_engines_are_run_and_compared(bundle_micro: Path) -> None:
    found = check_engines(bundle_micro, RTX, open_gpu=FakeGpu, open_engines=lambda f, m, g, _: engines_of(g, f, m), look=look)
    assert found["ok"] and found["gpu"] == "FAKE GPU, compute capability 9.0"
    assert set(found["graphs"]) == {g.role.value for g in read_manifest(bundle_micro).graphs if g.target is TENSORRT}
    for facts in found["graphs"].values():
        assert facts["capability"] == "9.0" and facts["ok"]
        for call in ("first", "steady"):
            assert facts[call]["difference"] and max(facts[call]["difference"].values()) < 1e-5
    assert found["graphs"]["memory_attention"]["steady"]["sizes"]["B"] == 2


@pytest.mark.parametrize("deserialized", [True, False])
def test_an_engine_with_a_plugins_layer_is_loaded_alone(bundle_micro: Path, deserialized: bool) -> None:
    gather = {GraphRole.ROUTER_GATHER: {"deserialized": deserialized}}
    found = check_engines(
        bundle_micro, RTX, open_gpu=FakeGpu, open_engines=lambda f, m, g, _: engines_of(g, f, m), look=lambda *asked: look(*asked) | gather
    )
    facts = found["graphs"]["router_gather"]
    assert found["ok"] is facts["ok"] is deserialized and "host memory" in facts["skipped"] and not {"first", "error"} & set(facts)
    assert all(other["ok"] for name, other in found["graphs"].items() if name != "router_gather")


def spread(array: Any) -> None:
    array += array.std() / 5


def not_a_number(array: Any) -> None:
    array[7] = np.nan


@pytest.mark.parametrize("spoil", [spread, not_a_number, refuse])
def test_one_wrong_engine_is_named_and_the_others_are_checked(bundle_micro: Path, spoil: Callable[[Any], None]) -> None:
    found = check_engines(bundle_micro, RTX, open_gpu=FakeGpu, open_engines=lambda f, m, g, _: engines_of(g, f, m, spoil), look=look)
    assert not found["ok"]
    assert [name for name, facts in found["graphs"].items() if not facts["ok"]] == ["mask_decoder"]
    decoder = found["graphs"]["mask_decoder"]
    assert ("error" in decoder) == (spoil is refuse)
    if spoil is not refuse:
        assert decoder["steady"]["difference"]["low_res_logits"] > 0.1 and decoder["steady"]["difference"]["pointer"] < 1e-5


@pytest.mark.parametrize("flavor", Flavor)
def test_what_tensorrt_says_of_each_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: Flavor) -> None:
    class Logger:
        WARNING = 2

        def __init__(self, severity: int) -> None:
            self.log: Callable[..., None] = lambda *_: None

    world = World(tmp_path / "bundle", flavor, "9.0")
    world.trt.Logger = Logger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, trt_compat.PACKAGES[flavor].module, world.trt)
    found = accepted(world.folder, world.manifest, flavor, "9.0")
    assert set(found) == {graph.role for graph in world.manifest.graphs}
    assert all(facts["deserialized"] and facts["bytes"] > 7 for facts in found.values())
    answers = {facts.get("validity") for facts in found.values()}
    assert answers == ({"VALID"} if flavor is RTX else {None})
    if flavor is RTX:
        world.trt.validity = EngineValidity.INVALID, EngineInvalidityDiagnostics.UNSUPPORTED_CC
        world.trt.fails.add("deserialize_cuda_engine")
        refused = accepted(world.folder, world.manifest, flavor, "9.0")[GraphRole.MASK_DECODER]
        assert (refused["validity"], refused["diagnosis"], refused["deserialized"]) == ("INVALID", ["UNSUPPORTED_CC"], False)
    with pytest.raises(BundleError, match=r"engines .* for|fastsam2 build"):
        accepted(world.folder, world.manifest, flavor, "7.5")


def test_engines_are_built_into_a_copy_and_checked_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[dict[str, Any]] = []
    monkeypatch.setattr(gpu_engines, "build_engines", lambda bundle, **options: built.append({"bundle": bundle, **options}))
    out = tmp_path / "copy"
    found = build_and_check("nano", RTX, out, check=lambda folder: {"ok": folder == out, "graphs": {}})
    assert found["ok"] and found["bundle"] == str(out) and found["build_seconds"] >= 0
    (call,) = built
    assert (call["bundle"], call["flavor"], call["targets"], call["out"]) == ("nano", RTX, ("current",), out)


class Upside:
    """A backend whose masks are the complement of the right ones."""

    def __init__(self, loaded: LoadedBundle) -> None:
        self.name, self._backend = loaded.backend.name, loaded.backend

    def run(self, role: GraphRole, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = self._backend.run(role, inputs)
        return {name: -array if name == "low_res_logits" else array for name, array in outputs.items()}


class Opener:
    """Bundles on the fake GPU, or on the CPU with one thread; backends it was asked for."""

    def __init__(self, library: Path, *, upside: bool = False) -> None:
        self.library, self.upside, self.asked = library, upside, list[BackendName]()

    def __call__(self, folder: Path, backend: BackendName) -> LoadedBundle:
        self.asked.append(backend)
        loaded = load(folder, threads=1)
        if backend is BackendName.ONNXRUNTIME:
            return loaded
        ours = Upside(loaded) if self.upside else fake_backend(folder, loaded.manifest, self.library)
        return LoadedBundle(folder, loaded.manifest, ours)


@needs_compiler
def test_masks_are_those_of_the_cpu(bundle_micro: Path, library: Path, tmp_path: Path) -> None:
    opener = Opener(library)
    covered = make_references(bundle_micro, frames=FRAMES, store=tmp_path, open_bundle=opener)
    assert covered["ok"] and set(covered["covered"]) == {"dense", "mask 0.05"} and all(0.01 < c < 0.95 for c in covered["covered"].values())
    assert opener.asked == [BackendName.ONNXRUNTIME] * 2
    opener.asked.clear()
    found = compare_masks(bundle_micro, BackendName.ONNXRUNTIME_CUDA, frames=FRAMES, store=tmp_path, open_bundle=opener)
    assert opener.asked == [BackendName.ONNXRUNTIME_CUDA], "the CPU's answers are worked out once"
    assert found["ok"] and found["device"]["name"] == "FAKE GPU"
    assert found["dense"]["iou"] == [1.0] * FRAMES and found["dense"]["iou_min"] == 1 and found["dense"]["logits"] == 0
    assert found["mask 0.05"]["iou_mean"] > 0.99 and found["dense"]["covered"] == covered["covered"]["dense"]


@needs_compiler
def test_other_masks_are_refused(bundle_micro: Path, library: Path, tmp_path: Path) -> None:
    opener = Opener(library, upside=True)
    found = compare_masks(bundle_micro, BackendName.TENSORRT, frames=2, store=tmp_path, open_bundle=opener)
    assert not found["ok"] and found["dense"]["iou_mean"] < 0.6 and found["dense"]["logits"] > 1


def test_agreement_counts_objects_and_frames() -> None:
    masks = np.zeros((2, 4, 4), np.bool_)
    masks[0, :2] = True
    logits = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
    logits[1] = -1024
    other = masks.copy()
    other[0, 1] = False
    results = [
        Result(t, (1, 2), m, np.ones(2, np.bool_), np.ones(2, np.float32), np.ones(2, np.float32), x)
        for t, (m, x) in enumerate([(masks, logits), (other, logits + np.float32([[[2]], [[1024]]]))])
    ]
    found = agreement(results, {f"{name}_{t}": array for t in range(2) for name, array in (("masks", masks), ("logits", logits))})
    assert found["iou"] == [1.0, 0.5] and found["iou_mean"] == pytest.approx(0.875) and found["iou_min"] == 0.5
    assert found["logits"] == pytest.approx(2 / logits[0].std()) and found["visible"] == 1 and found["covered"] == 0.25


@needs_compiler
def test_a_step_and_its_graphs_are_timed(bundle_micro: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    step = gpu_tracking.Tracker.step
    monkeypatch.setattr(gpu_tracking.Tracker, "step", lambda self, frame: taken.append(len(self.ids)) or step(self, frame))
    counts: list[int] = []
    summary = StageTimer.summary
    monkeypatch.setattr(StageTimer, "summary", lambda self: counts.extend(n for _, (n,) in self._rings.values()) or summary(self))
    name = BackendName.ONNXRUNTIME_CUDA
    found = time_tracker(bundle_micro, name, frames=2, objects=3, warm=1, quiet_s=0.0, open_bundle=Opener(library))
    assert found["ok"] and found["device"]["name"] == "FAKE GPU" and "waits" in found["note"]
    assert [(case["objects"], case["prune"]) for case in found["cases"]] == [(n, p) for n in (1, 3) for p in ("dense", "mask 0.05")]
    assert sorted(set(taken)) == [0, 1, 3] and len(taken) == 8 * (1 + 1 + 2)
    assert counts == [2] * 4 * 6, "samples of the frames that are timed alone: steps, steps with waits and four graphs"
    for case in found["cases"]:
        assert set(case["stages_ms"]) == {"image_encoder", "memory_attention", "mask_decoder", "memory_encoder"}
        assert sum(stage["median"] for stage in case["stages_ms"].values()) < case["step_with_waits_ms"]["p90"] * 1.5
        assert 0 < case["step_ms"]["median"] <= case["step_ms"]["p90"]


def test_stages_wait_before_and_after_each_graph() -> None:
    events: list[str] = []

    class Backend:
        name = "fake"

        class gpu:
            synchronize = staticmethod(lambda: events.append("wait"))

        def run(self, role: GraphRole, inputs: Mapping[str, Any]) -> dict[str, Any]:
            events.append(role.value)
            return {}

    waiting = gpu_tracking.WaitingBackend(Backend())
    waiting.run(GraphRole.ROUTER, {})
    assert events == ["wait", "router", "wait"] and set(waiting.timer.summary()) == {"router"}
