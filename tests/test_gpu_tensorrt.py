"""Engines of both flavors, against a module that insists on what TensorRT insists on. Only loading fails for real where there is no GPU."""

from __future__ import annotations

import gc
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam2.engines import trt_compat
from fastsam2.engines.profiles import Limits, axis_sizes
from fastsam2.enums import ExportTarget, Flavor, GraphRole
from fastsam2.errors import BackendError, BundleError, InternalError, StateError
from fastsam2.runtime.gpu.tensorrt import TensorRTEngines
from tests import fake_tensorrt
from tests.engine_bundle import SPEC
from tests.tensorrt_world import ATTENTION, DECODER, ENCODER, LIMITS, RTX, VERSIONS, Tensor, World, cache_files, tensors, write_engines


@pytest.fixture
def world_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    def make(flavor: Flavor = RTX, target: str = "8.9") -> World:
        world = World(tmp_path / "bundle", flavor, target)
        for other in Flavor:
            monkeypatch.setitem(sys.modules, trt_compat.PACKAGES[other].module, world.trt if other is flavor else None)
        return world

    return make


@pytest.mark.parametrize("flavor", Flavor)
def test_a_run_is_bound_and_enqueued_on_the_stream(world_of: Callable[..., World], flavor: Flavor) -> None:
    world = world_of(flavor)
    engines = world.open()
    assert (engines.name, engines.target) == (flavor.value, ExportTarget.TENSORRT)
    assert world.trt.alive["engine"] == 0, "engines are loaded at first use"
    inputs, outputs = tensors(DECODER, B=2, Q=5)
    engines.enqueue(DECODER, inputs, outputs)
    ((role, addresses, memory, stream),) = world.trt.of("run")
    assert role is DECODER and stream == 77
    assert addresses == {name: t.address for name, t in (inputs | outputs).items()}
    assert memory == next(iter(world.gpu.live.items())) and memory[1] == engines.activation_bytes()
    assert dict(world.trt.of("shape")) == {name: t.shape for name, t in inputs.items()}
    assert "synchronize" not in world.gpu.events and world.gpu.events[0] == "activate"
    assert world.trt.of("profile") == []
    assert world.trt.of("graphs") == ([(fake_tensorrt.CudaGraphStrategy.DISABLED,)] if flavor is RTX else [])
    engines.close()


def test_what_there_is(world_of: Callable[..., World]) -> None:
    engines = world_of().open()
    assert [engines.max_objects(r) for r in (ATTENTION, DECODER, GraphRole.MASK_PROMPT)] == [3, 3, 3]
    assert engines.max_prompt_frames() == 1
    assert engines.max_objects(ENCODER) is None and engines.max_objects(GraphRole.TEXT_ENCODER) is None
    assert engines.has(ATTENTION) and not engines.has(GraphRole.ROUTER)
    inputs, outputs = tensors(GraphRole.ROUTER)
    with pytest.raises(BundleError, match=r"an engine of router .*fastsam2 build .* --flavor tensorrt-rtx --compute-capability 8.9"):
        engines.enqueue(GraphRole.ROUTER, inputs, outputs)


def test_engines_share_one_block_of_activation_memory(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    engines.enqueue(ENCODER, *tensors(ENCODER))
    assert list(world.gpu.live.values()) == [5000], "as large as the largest engine of the record"
    engines.enqueue(DECODER, *tensors(DECODER))
    assert engines.activation_bytes() == 5000 and world.gpu.events.count("allocate") == 1
    world.trt.activation[ATTENTION] = 6000  # more than the builder said
    engines.enqueue(ATTENTION, *tensors(ATTENTION))
    assert list(world.gpu.live.values()) == [6000] and engines.activation_bytes() == 6000
    engines.enqueue(ENCODER, *tensors(ENCODER))
    assert world.trt.of("run")[-1][2] == next(iter(world.gpu.live.items())), "the others moved along"
    engines.close()
    assert world.gpu.live == {} and engines.activation_bytes() == 0


def test_engines_without_activations_take_no_memory(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.trt.activation = dict.fromkeys(GraphRole, 0)
    engines = world.open()
    engines.enqueue(ENCODER, *tensors(ENCODER))
    assert world.gpu.live == {} and world.trt.of("memory") == []
    engines.close()


def test_the_smallest_profile_with_room_is_taken_and_kept(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    kept = axis_sizes(SPEC, LIMITS, keep=0.05)["M"][2]
    for rows, repeat in ((kept, 2), (kept + 1, 1), (7, 2), (7 * SPEC.tokens, 1)):
        for _ in range(repeat):
            engines.enqueue(ATTENTION, *tensors(ATTENTION, M=rows))
    assert world.trt.of("profile") == [(1, 77), (0, 77), (1, 77), (0, 77)]
    assert len(world.trt.of("run")) == 6
    engines.close()


def test_equal_shapes_are_set_once_and_addresses_every_time(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    for start in (4096, 1 << 20):
        inputs, outputs = tensors(DECODER, start)
        engines.enqueue(DECODER, inputs, outputs)
    assert len(world.trt.of("shape")) == len(inputs)
    first, second = (run[1] for run in world.trt.of("run"))
    assert first != second == {name: t.address for name, t in (inputs | outputs).items()}
    engines.close()


def test_shapes_are_set_again_after_others_failed(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    engines.enqueue(DECODER, *tensors(DECODER))
    world.trt.unknown = {"labels"}
    with pytest.raises(BackendError, match=r"mask_decoder to know the shapes of \['labels'\]"):
        engines.enqueue(DECODER, *tensors(DECODER, B=2))
    world.trt.unknown.clear()
    world.trt.told.clear()
    inputs, outputs = tensors(DECODER)
    engines.enqueue(DECODER, inputs, outputs)
    assert dict(world.trt.of("shape")) == {name: t.shape for name, t in inputs.items()} and len(world.trt.of("run")) == 1
    engines.close()


@pytest.mark.parametrize(
    ("role", "sizes", "message"),
    [
        (DECODER, {"B": 4}, r"conditioned of mask_decoder with B from 1 to 3, .* got B = 4 in 4x1024x64\. .*--max-objects"),
        (DECODER, {"Q": 65}, r"points of mask_decoder with Q from 1 to 64, .* got Q = 65 in 1x65x2\. Give fewer points"),
        (ATTENTION, {"M": 7 * 1024 + 1}, r"memory of memory_attention with M from 1 to 7168.* got M = 7169 .*--max-prompt-frames"),
        (ATTENTION, {"P": 17}, r"pointers of memory_attention with P from 1 to 16.* got P = 17 .*--max-prompt-frames"),
        (ATTENTION, {"P": 0}, r"pointers of memory_attention with P from 1 to 16.* got P = 0 .*Pad it"),
    ],
)
def test_a_size_without_room_says_which_and_what_raises_it(
    world_of: Callable[..., World], role: GraphRole, sizes: dict[str, int], message: str
) -> None:
    world = world_of()
    engines = world.open()
    with pytest.raises(BackendError, match=message):
        engines.enqueue(role, *tensors(role, **sizes))
    engines.enqueue(role, *tensors(role))
    assert len(world.trt.of("run")) == 1
    engines.close()


def test_our_own_mistakes_do_not_reach_the_engine(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    inputs, outputs = tensors(DECODER, B=2)
    wide = Tensor(8, (2, 1024, 65), np.dtype(np.float32))
    half = Tensor(8, inputs["conditioned"].shape, np.dtype(np.float16))
    for bad_in, bad_out, message in (
        ({k: v for k, v in inputs.items() if k != "labels"}, outputs, "inputs of mask_decoder are"),
        (inputs | {"conditioned": half}, outputs, "inputs of mask_decoder are"),
        (inputs | {"conditioned": wide}, outputs, r"conditioned of mask_decoder is \['B', 1024, 64\], got 2x1024x65"),
        (inputs, outputs | {"iou": Tensor(8, (1,), np.dtype(np.float32))}, "writes iou 2, got room for 1"),
    ):
        with pytest.raises(InternalError, match=message):
            engines.enqueue(DECODER, bad_in, bad_out)
    assert world.trt.of("run") == []
    engines.enqueue(DECODER, inputs, outputs)
    engines.close()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "deserialize_cuda_engine",
            r"memory_attention.engine to load on NVIDIA A 4090, got .*deserialize_cuda_engine refused.*fastsam2 b",
        ),
        ("create_execution_context", r"an execution context of memory_attention on NVIDIA A 4090 .*create_execution_context refused"),
        ("set_optimization_profile_async", r"memory_attention to switch to profile 1 .*set_optimization_profile_async refused"),
        ("set_input_shape", r"memory_attention to take tokens 1x1024x64 .*set_input_shape refused"),
        ("infer_shapes", r"shapes that fit each other .*RuntimeError: shapes do not fit; .*infer_shapes refused"),
        ("set_tensor_address", r"memory_attention to take the address of tokens .*set_tensor_address refused"),
        ("execute_async_v3", r"memory_attention to run on NVIDIA A 4090 .*execute_async_v3 refused"),
    ],
)
def test_what_fails_quotes_tensorrt_and_leaves_nothing_behind(world_of: Callable[..., World], call: str, message: str) -> None:
    world = world_of()
    engines = world.open()
    world.trt.fails.add(call)
    with pytest.raises(BackendError, match=message) as raised:
        engines.enqueue(ATTENTION, *tensors(ATTENTION, M=5))
    assert "not worth mentioning" not in str(raised.value) and len(str(raised.value).splitlines()) == 1
    world.trt.fails.clear()
    engines.enqueue(ATTENTION, *tensors(ATTENTION, M=5))
    assert len(world.trt.of("run")) == (2 if call == "execute_async_v3" else 1)
    del raised
    engines.close()
    gc.collect()
    assert world.gpu.live == {} and set(world.trt.alive.values()) == {0}


def test_a_failure_before_is_not_blamed_again(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    engines.enqueue(ENCODER, *tensors(ENCODER))
    (logger,) = world.trt.loggers
    for call in ("execute_async_v3", "set_tensor_address"):
        logger.log(logger.Severity.ERROR, "something else, which did no harm")
        world.trt.fails = {call}
        with pytest.raises(BackendError, match=f"got .api.cpp. Error Code 3: {call} refused. If"):
            engines.enqueue(ENCODER, *tensors(ENCODER))
    engines.close()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "tokens",
            ("dtype", fake_tensorrt.DataType.HALF),
            r"'input 1x1024x64 float32 DEVICE'.*'tokens': 'input 1x1024x64 HALF DEVICE'",
        ),
        ("tokens", ("shape", (1, 256, 64)), r"got .*'tokens': 'input 1x256x64 float32 DEVICE'"),
        ("memory_bias", ("mode", fake_tensorrt.TensorIOMode.OUTPUT), r"got .*'memory_bias': 'output float32 DEVICE'"),
        ("age", ("location", fake_tensorrt.TensorLocation.HOST), r"got .*'age': 'input -1x-1 int32 HOST'"),
    ],
)
def test_an_engine_of_another_graph_is_refused(world_of: Callable[..., World], name: str, change: tuple[str, Any], message: str) -> None:
    world = world_of()
    world.trt.changed = {name: change}
    engines = world.open()
    with pytest.raises(BackendError, match=message + ".*fastsam2 build"):
        engines.enqueue(ATTENTION, *tensors(ATTENTION))
    engines.close()
    gc.collect()
    assert world.gpu.live == {} and set(world.trt.alive.values()) == {0}


def test_an_engine_with_other_profiles_is_refused(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.trt.limits = Limits(max_objects=3)
    with pytest.raises(BackendError, match=r"'profiles': '2'.*'profiles': '1'"):
        world.open().enqueue(ATTENTION, *tensors(ATTENTION))


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_named(world_of: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    world = world_of(target="portable")
    engines = world.open()
    world.trt.validity = fake_tensorrt.EngineValidity.INVALID, 6
    wanted = (
        r"tensorrt-rtx 1.7 runs on NVIDIA A 4090 \(compute capability 8.9\), got one built for portable: UNSUPPORTED_CC, OLD_CUDA_DRIVER; "
        r".*--compute-capability 8.9 .*onnxruntime-cuda"
    )
    with pytest.raises(BackendError, match=wanted):
        engines.enqueue(ENCODER, *tensors(ENCODER))
    assert world.trt.alive["engine"] == 0 and world.trt.of("run") == []
    world.trt.validity = fake_tensorrt.EngineValidity.SUBOPTIMAL, 0
    with caplog.at_level(logging.WARNING):
        engines.enqueue(ENCODER, *tensors(ENCODER))
    assert "was built for portable and may be slower" in caplog.text and len(world.trt.of("run")) == 1
    engines.close()


def test_an_engine_file_that_is_damaged_is_refused_at_once(world_of: Callable[..., World]) -> None:
    world = world_of()
    file = world.engines_folder / "mask_decoder.engine"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"mask_decoder.engine was altered.*Build again: fastsam2 build"):
        world.open()
    assert world.gpu.events == []


def test_an_engine_file_that_vanished_since_is_told(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    (world.engines_folder / "mask_decoder.engine").unlink()
    with pytest.raises(BundleError, match=r"a readable .*mask_decoder.engine, got FileNotFoundError.*fastsam2 build"):
        engines.enqueue(DECODER, *tensors(DECODER))


@pytest.mark.parametrize(
    ("flavor", "built", "capability", "named"),
    [
        (RTX, "8.6", "8.9", "--flavor tensorrt-rtx --compute-capability portable"),
        (RTX, "portable", "7.5", "--flavor tensorrt-rtx --compute-capability 7.5"),
        (Flavor.TENSORRT, "8.6", "8.9", "--flavor tensorrt --compute-capability 8.9"),
    ],
)
def test_engines_of_another_gpu_are_not_tried(
    world_of: Callable[..., World], flavor: Flavor, built: str, capability: str, named: str
) -> None:
    world = world_of(flavor, built)
    world.gpu.capability = capability  # type: ignore[misc]
    with pytest.raises(BundleError, match=rf"got \['{flavor.value}-{VERSIONS[flavor]}-{built}'\].*fastsam2 build .*{named}"):
        world.open()


def test_engines_for_this_very_gpu_come_before_portable_ones(world_of: Callable[..., World]) -> None:
    world = world_of(target="portable")
    write_engines(world.folder, world.manifest, RTX, "8.9")
    engines = world.open()
    (world.engines_folder / "mask_decoder.engine").unlink()
    engines.enqueue(DECODER, *tensors(DECODER))
    engines.close()


def test_the_other_flavor_does_not_stand_in(world_of: Callable[..., World]) -> None:
    world = world_of(RTX)
    wanted = r"package tensorrt, got only tensorrt_rtx\. Run: pip install tensorrt, or .*fastsam2 build .*--flavor tensorrt-rtx"
    with pytest.raises(BackendError, match=wanted):
        TensorRTEngines(world.folder, world.manifest, world.gpu, Flavor.TENSORRT)  # type: ignore[arg-type]


def test_no_package_at_all(world_of: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(RTX)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match="package tensorrt_rtx, got no such package"):
        world.open()


def test_cuda_graphs(world_of: Callable[..., World]) -> None:
    world = world_of(RTX)
    engines = world.open(cuda_graphs=True)
    engines.enqueue(ENCODER, *tensors(ENCODER))
    assert world.trt.of("graphs") == [(fake_tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE,)]
    engines.close()


def test_full_tensorrt_does_not_capture_by_itself(world_of: Callable[..., World]) -> None:
    with pytest.raises(BackendError, match=r"captures its engines into CUDA graphs, got tensorrt\. Leave CUDA graphs off"):
        world_of(Flavor.TENSORRT).open(cuda_graphs=True)


def test_one_logger_and_one_runtime_serve_every_engine(world_of: Callable[..., World]) -> None:
    world = world_of()
    for _ in range(2):
        engines = world.open()
        engines.enqueue(ENCODER, *tensors(ENCODER))
        engines.enqueue(DECODER, *tensors(DECODER))
        assert world.trt.alive["runtime"] == 1
        engines.close()
    assert len(world.trt.loggers) == 1, "TensorRT goes on writing to the first one"


def test_close_waits_and_releases_everything_once(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    engines.enqueue(ENCODER, *tensors(ENCODER))
    engines.enqueue(DECODER, *tensors(DECODER))
    assert world.trt.alive == {"runtime": 1, "engine": 2, "context": 2, "cache": 0}
    world.gpu.events.clear()
    engines.close()
    engines.close()
    assert world.gpu.events == ["synchronize", "release"] and world.gpu.live == {}
    assert set(world.trt.alive.values()) == {0}
    with pytest.raises(StateError, match="open engines, got closed ones"):
        engines.enqueue(ENCODER, *tensors(ENCODER))


def test_closing_after_the_gpu_is_closed_still_lets_go(world_of: Callable[..., World]) -> None:
    world = world_of()
    engines = world.open()
    engines.enqueue(ENCODER, *tensors(ENCODER))

    def closed(*_: Any) -> None:
        raise StateError("closed")

    world.gpu.synchronize = world.gpu.release = closed  # type: ignore[method-assign]
    engines.close()
    assert set(world.trt.alive.values()) == {0}


def test_compiled_kernels_are_kept_from_process_to_process(world_of: Callable[..., World], tmp_path: Path) -> None:
    world, folder = world_of(), tmp_path / "cache"
    for seen, kept in ((b"", b"kernels"), (b"kernels", b"more kernels"), (b"more kernels", b"more kernels")):
        world.trt.cache_blob = kept
        world.trt.told.clear()
        before = {p.stat().st_ino for p in folder.glob("*.bin")}
        engines = world.open(cache_folder=folder)
        engines.enqueue(ENCODER, *tensors(ENCODER))
        engines.enqueue(DECODER, *tensors(DECODER))
        assert world.trt.of("cache") == ([(seen,)] if seen else []) and world.trt.alive["cache"] == 1
        engines.close()
        assert cache_files(folder) == {"runtime_cache-NVIDIA-A-4090.bin": kept} and world.trt.alive["cache"] == 0
        assert ({p.stat().st_ino for p in folder.glob("*.bin")} == before) == (seen == kept), "written only when there is something new"


def test_kernels_that_are_refused_are_compiled_again(
    world_of: Callable[..., World], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world, folder = world_of(), tmp_path / "cache"
    folder.mkdir()
    (folder / "runtime_cache-NVIDIA-A-4090.bin").write_bytes(b"kernels")
    world.trt.cache_fits = False
    engines = world.open(cache_folder=folder)
    engines.enqueue(ENCODER, *tensors(ENCODER))
    assert "compiled again" in caplog.text and len(world.trt.of("run")) == 1
    world.trt.cache_blob = b"new"
    engines.close()
    assert cache_files(folder) == {"runtime_cache-NVIDIA-A-4090.bin": b"new"}


def test_a_cache_folder_that_cannot_be_written_is_only_a_warning(
    world_of: Callable[..., World], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    engines = world_of().open(cache_folder=tmp_path / "file" / "cache")
    engines.enqueue(ENCODER, *tensors(ENCODER))
    engines.close()
    assert "compiled kernels were not kept" in caplog.text


def test_nothing_is_kept_of_engines_that_never_ran(world_of: Callable[..., World], tmp_path: Path) -> None:
    world_of().open(cache_folder=tmp_path / "cache").close()
    assert cache_files(tmp_path / "cache") == {}


@pytest.fixture(scope="module")
def rtx() -> Any:
    if RTX not in trt_compat.available():
        pytest.skip("the package tensorrt_rtx is not installed")
    return trt_compat.load(RTX)


@pytest.mark.rtx
def test_the_fake_module_has_only_what_the_real_one_has(rtx: Any) -> None:
    for name, fake in inspect.getmembers(fake_tensorrt, inspect.isclass):
        if fake.__module__ != fake_tensorrt.__name__ or name.startswith("_") or name in ("FakeTrt", "FakeGpu", "RtxRuntime"):
            continue
        real = getattr(rtx, name)
        members = getattr(fake, "__members__", None) or {n for n in dir(fake) if not n.startswith("_") and n != "kind"}
        assert {n for n in members if not hasattr(real, n)} == set(), name
    assert hasattr(rtx.Runtime, "get_engine_validity")
    for bit in fake_tensorrt.EngineInvalidityDiagnostics:
        assert rtx.EngineInvalidityDiagnostics.__members__[bit.name].value == bit.value


@pytest.mark.rtx
def test_a_file_that_is_no_engine_is_refused_by_the_real_package(rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERSIONS, RTX, str(rtx.__version__))
    world = World(tmp_path, RTX)
    engines = world.open(cache_folder=tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(BackendError, match=r"image_encoder.engine that tensorrt-rtx .*MALFORMED_ENGINE.*fastsam2 build"):
            engines.enqueue(ENCODER, *tensors(ENCODER))
    engines.close()
    assert world.gpu.live == {}
