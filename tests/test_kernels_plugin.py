"""The TensorRT plugin: the C++ one against TensorRT's headers and small fakes, the Python one over tensorrt_rtx's base classes.

Full TensorRT is not needed, and never is a parser or builder given the plugin: TensorRT-RTX would end the process.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastsam2.engines.trt_compat import load
from fastsam2.enums import Flavor
from fastsam2.errors import BackendError
from fastsam2.kernels import launch
from fastsam2.kernels.build import PLUGIN_SOURCE, TENSORRT_INCLUDE_DIR, compile_plugin, main, tensorrt_headers
from fastsam2.kernels.nvrtc import SOURCE
from fastsam2.kernels.plugin import top_k_gather_plugin
from fastsam2.kernels.plugin.top_k_gather_plugin import SHAPE_INPUT, plugin_classes, register
from fastsam2.kernels.top_k_gather import TopKGather
from tests.kernel_host.harness import COMPILER, FLAGS, HEADERS, NO_COMPILER

needs_headers = pytest.mark.skipif(tensorrt_headers() is None, reason=f"{TENSORRT_INCLUDE_DIR} names no folder with NvInfer.h")


@needs_headers
@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_cpp_logic_with_fakes(tmp_path: Path) -> None:
    """tests/kernel_host/plugin_test.cpp says what is checked."""
    assert COMPILER is not None
    program = tmp_path / "plugin_test"
    sources = [str(HEADERS / "plugin_test.cpp"), str(PLUGIN_SOURCE), "-x", "c++", str(SOURCE)]
    command = [COMPILER, *FLAGS, "-O1", f"-isystem{tensorrt_headers()}", "-o", str(program), *sources]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0 failures\n" and done.returncode == 0


@needs_headers
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
def test_cpp_library_exports_its_entry_points_and_needs_no_tensorrt_to_link(tmp_path: Path) -> None:
    library = tmp_path / "libfastsam2_plugins.so"
    compile_plugin(library, ("90",))
    symbols = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout.splitlines()
    defined = {line.split()[-1] for line in symbols if " T " in line}
    assert {"getCreators", "setLoggerFinder", "fastsam2_top_k_gather"} <= defined
    undefined = [line.split()[-1] for line in symbols if " U " in line]
    assert [name for name in undefined if "nvinfer" in name or name.startswith(("getPlugin", "cuda"))] == []


def test_missing_headers_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TENSORRT_INCLUDE_DIR, str(tmp_path))
    assert tensorrt_headers() is None
    with pytest.raises(BackendError, match=rf"expected NvInfer.h, got {tmp_path}. Set {TENSORRT_INCLUDE_DIR} to"):
        compile_plugin(tmp_path / "plugins.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--plugin", "--out", str(tmp_path / "out")]) == 2


class Dims(list[Any]):
    """DimsExprs that hold anything."""

    def __init__(self, rank: int) -> None:
        super().__init__([None] * rank)


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    """tensorrt_rtx under TensorRT's name, with shape expressions a test can make and a registry that records."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (extra: rtx)")
    module = ModuleType("tensorrt")
    module.__dict__.update({name: value for name, value in vars(load(Flavor.TENSORRT_RTX)).items() if not name.startswith("__")})
    creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(creator: Any, namespace: str) -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        assert key not in creators
        creators[key] = creator
        return namespace != "full"

    class Registry:
        @property
        def all_creators(self) -> list[Any]:
            return list(creators.values())

    registry = Registry()
    registry.__dict__.update(register_creator=register_creator, creators=creators)
    module.__dict__.update(DimsExprs=Dims, get_plugin_registry=lambda: registry)
    return module


def tensor(trt: ModuleType, dtype: str, dims: tuple[int, ...], layout: str = "LINEAR") -> Any:
    return SimpleNamespace(type=getattr(trt.DataType, dtype), dims=dims, format=getattr(trt.TensorFormat, layout))


def ranged(trt: ModuleType, dtype: str, low: tuple[int, ...], high: tuple[int, ...], dims: tuple[int, ...]) -> Any:
    return SimpleNamespace(desc=tensor(trt, dtype, dims), min=low, max=high)


@pytest.mark.rtx
def test_methods_are_those_tensorrt_calls(trt: ModuleType) -> None:
    plugin, creator = plugin_classes(trt)
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    assert issubclass(plugin, bases) and issubclass(creator, trt.IPluginCreatorV3One)
    assert plugin_classes(trt) == (plugin, creator)
    for own, known in ((plugin, {name for base in bases for name in dir(base)}), (creator, set(dir(trt.IPluginCreatorV3One)))):
        assert {name for name in vars(own) if not name.startswith("_")} <= known
    called = {"get_capability_interface", "get_output_data_types", "get_output_shapes", "supports_format_combination", "configure_plugin",
              "on_shape_change", "enqueue", "attach_to_context", "get_fields_to_serialize", "clone", "set_tactic"}  # fmt: skip
    assert called <= set(vars(plugin))
    made = plugin(5)
    assert made.get_capability_interface(trt.PluginCapabilityType.BUILD) is made
    assert (made.plugin_name, made.plugin_version, made.plugin_namespace, made.num_outputs) == ("TopKGather", "1", "fastsam2", 2)


@pytest.mark.rtx
@pytest.mark.parametrize(("k", "shape_inputs", "kept"), [(77, [], ("constant", 77)), (SHAPE_INPUT, [["k"]], "k")])
def test_output_shapes_and_types(trt: ModuleType, k: int, shape_inputs: list[Any], kept: Any) -> None:
    plugin = plugin_classes(trt)[0](k)
    builder = SimpleNamespace(constant=lambda value: ("constant", value))
    shapes = plugin.get_output_shapes([["B", "N"], ["B'", "N'", "D"]], shape_inputs, builder)
    assert shapes == [["B'", kept, "D"], ["B", kept]]
    types = trt.DataType
    assert plugin.get_output_data_types([types.HALF, types.BF16]) == [types.BF16, types.INT32]
    with pytest.raises(BackendError, match=r"k as an attribute or as one shape input"):
        plugin.get_output_shapes([["B", "N"], ["B", "N", "D"]], [] if shape_inputs else [["k"]], builder)


@pytest.mark.rtx
@pytest.mark.parametrize(("pos", "inputs", "types", "fits"), [
    (0, 2, ["FLOAT"], True), (0, 2, ["HALF"], True), (0, 2, ["BF16"], False), (1, 2, ["HALF", "BF16"], True),
    (1, 2, ["HALF", "BOOL"], False),
    (2, 2, ["HALF", "FLOAT", "FLOAT"], True), (2, 2, ["HALF", "FLOAT", "HALF"], False), (3, 2, ["HALF", "FLOAT", "FLOAT", "INT32"], True),
    (3, 2, ["HALF", "FLOAT", "FLOAT", "INT64"], False), (2, 3, ["HALF", "FLOAT", "INT64"], True), (2, 3, ["HALF", "FLOAT", "FLOAT"], False),
    (3, 3, ["HALF", "FLOAT", "INT32", "FLOAT"], True), (4, 3, ["HALF", "FLOAT", "INT32", "FLOAT", "INT32"], True),
])  # fmt: skip
def test_formats(trt: ModuleType, pos: int, inputs: int, types: list[str], fits: bool) -> None:
    plugin = plugin_classes(trt)[0](3)
    in_out = [SimpleNamespace(desc=tensor(trt, name, ())) for name in types]
    assert plugin.supports_format_combination(pos, in_out, inputs) is fits
    in_out[pos].desc.format = trt.TensorFormat.CHW2
    assert not plugin.supports_format_combination(pos, in_out, inputs)


@pytest.mark.rtx
def test_sizes_the_kernel_does_not_take_are_refused(trt: ModuleType) -> None:
    plugin = plugin_classes(trt)[0](100)

    def configure(low: int, batch: int, high: int, width: int, dtype: str = "BF16") -> None:
        scores = ranged(trt, "FLOAT", (1, low), (batch, high), (-1, -1))
        plugin.configure_plugin([scores, ranged(trt, dtype, (1, low, width), (batch, high, width), (-1, -1, width))], [])

    configure(100, 4, 16384, 64)
    configure(100, 4, 16384, 4, "FLOAT")
    for bad in ((100, 4, 16385, 64), (100, 65536, 16384, 64), (100, 4, 16384, 4)):
        with pytest.raises(BackendError, match=r"scores \[B,N\] and rows \[B,N,D\]"):
            configure(*bad)
    with pytest.raises(BackendError, match=r"smallest N, 99, got 100"):
        configure(99, 4, 16384, 64)
    plugin.on_shape_change([tensor(trt, "FLOAT", (2, 9)), tensor(trt, "HALF", (2, 9, 8))], [])
    for rows in ((2, 8, 8), (1, 9, 8), (2, 9)):
        with pytest.raises(BackendError, match=r"scores \[B,N\] and rows \[B,N,D\]"):
            plugin.on_shape_change([tensor(trt, "FLOAT", (2, 9)), tensor(trt, "HALF", rows)], [])
    assert plugin.get_workspace_size([], []) == 0


@pytest.mark.rtx
@pytest.mark.parametrize(("dtype", "name"), [("FLOAT", "float32"), ("HALF", "float16")])
def test_enqueue_launches_on_tensorrts_stream(trt: ModuleType, monkeypatch: pytest.MonkeyPatch, dtype: str, name: str) -> None:
    launched: list[tuple[TopKGather, int]] = []
    kernel = SimpleNamespace(launch=lambda call, stream: launched.append((call, stream)))
    monkeypatch.setattr(top_k_gather_plugin, "_driver", lambda: SimpleNamespace(context=lambda: 7))
    monkeypatch.setattr(top_k_gather_plugin, "_kernel", {7: kernel}.__getitem__)
    plugin = plugin_classes(trt)[0](SHAPE_INPUT).attach_to_context(None)
    inputs = [tensor(trt, dtype, (2, 4096)), tensor(trt, "BF16", (2, 4096, 64)), tensor(trt, "INT32", (1,))]
    outputs = [tensor(trt, "BF16", (2, 205, 64)), tensor(trt, "INT32", (2, 205))]
    plugin.enqueue(inputs, outputs, [0x1000, 0x100000, 0x50], [0x800000, 0x900000], 0, 0xBEEF)
    wanted = TopKGather(
        scores=0x1000, rows=0x100000, kept=0x800000, index=0x900000, batch=2, n=4096, k=205, row_bytes=128, score_dtype=name
    )  # fmt: skip
    assert launched == [(wanted, 0xBEEF)]


@pytest.mark.rtx
def test_kernel_is_loaded_once_for_each_cuda_context(trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through cuda.bindings' own calls: in the context that is current, on the stream that TensorRT hands over."""
    calls: list[tuple[Any, ...]] = []
    current = [0x10]
    ok = SimpleNamespace(name="CUDA_SUCCESS")

    def answer(name: str, *values: Any) -> Any:
        def function(*arguments: Any) -> tuple[Any, ...]:
            calls.append((name, *arguments))
            return (ok, *values)

        return function

    fake = SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=ok),
        CUdevice_attribute=SimpleNamespace(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=9),
        cuInit=answer("cuInit"),
        cuCtxGetCurrent=lambda: (ok, current[0]),
        cuCtxGetDevice=answer("cuCtxGetDevice", 0),
        cuDeviceGetAttribute=lambda attribute, device: (ok, attribute),
        cuModuleLoadData=lambda image: (ok, f"module of {image.decode()} in {current[0]:#x}"),
        cuModuleGetFunction=lambda module, entry: (ok, f"{entry.decode()} of {module}"),
        cuLaunchKernel=answer("cuLaunchKernel"),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    monkeypatch.setattr(launch, "compile_cubin", lambda capability: b"cubin %d.%d" % capability)
    top_k_gather_plugin._driver.cache_clear()
    top_k_gather_plugin._kernel.cache_clear()
    try:
        described = [tensor(trt, "FLOAT", (1, 64)), tensor(trt, "HALF", (1, 64, 8))], [tensor(trt, "HALF", (1, 5, 8))]
        for context in (0x10, 0x20, 0x10):
            current[0] = context
            plugin = plugin_classes(trt)[0](5).attach_to_context(None)
            for stream in (0xA0, 0xB0):
                plugin.enqueue(*described, [0x1000, 0x2000], [0x3000, 0x4000], 0, stream)
        launched = [(one[1], one[9]) for one in calls if one[0] == "cuLaunchKernel"]
        wanted = "fastsam2_top_k_gather_float32 of module of cubin 8.9 in {:#x}"
        assert launched == [(wanted.format(context), stream) for context in (0x10, 0x20, 0x10) for stream in (0xA0, 0xB0)]
        assert [one[0] for one in calls].count("cuCtxGetDevice") == 2, "loaded once for each context"
        current[0] = 0
        with pytest.raises(BackendError, match=r"a current CUDA context, got none"):
            plugin_classes(trt)[0](5).enqueue(*described, [0x1000, 0x2000], [0x3000, 0x4000], 0, 0xA0)
    finally:
        top_k_gather_plugin._driver.cache_clear()
        top_k_gather_plugin._kernel.cache_clear()


@pytest.mark.rtx
def test_what_is_serialised_lives_as_long_as_the_plugin(trt: ModuleType) -> None:
    """TensorRT reads the address of k after the call that named it has returned."""
    plugin = plugin_classes(trt)[0](205)
    saved = plugin.get_fields_to_serialize()
    others = [np.full(1, -7, np.int32) for _ in range(1000)]
    assert saved[0].data.tolist() == [205] and len(others) == 1000
    assert plugin.get_fields_to_serialize() is saved


@pytest.mark.rtx
def test_k_survives_serialisation(trt: ModuleType) -> None:
    creator = plugin_classes(trt)[1]()

    def create(fields: Any, phase: str) -> Any:
        return creator.create_plugin("gather", fields, getattr(trt.TensorRTPhase, phase))

    def field(value: int, name: str = "k") -> Any:
        return trt.PluginField(name, np.array([value], np.int32), trt.PluginFieldType.INT32)

    for fields, k in (([field(5)], 5), ([], SHAPE_INPUT), ([field(3, "other")], SHAPE_INPUT), ([field(0)], 0)):
        plugin = create(trt.PluginFieldCollection(fields), "BUILD")
        saved = plugin.get_fields_to_serialize()
        assert [(one.name, one.type, one.data.tolist()) for one in saved] == [("k", trt.PluginFieldType.INT32, [k])]
        assert plugin.k == plugin.clone().k == create(saved, "RUNTIME").k == k
    for bad in (-1, 16385):
        with pytest.raises(BackendError, match=rf"the attribute k in 0..16384, got {bad}"):
            create(trt.PluginFieldCollection([field(bad)]), "BUILD")
    assert [one.name for one in creator.field_names] == ["k"]


@pytest.mark.rtx
def test_registered_once(trt: ModuleType) -> None:
    """Looking a creator up that is not there would log an error, so the registry of these tests has no way to do it."""
    register(trt)
    register(trt)
    assert list(trt.get_plugin_registry().creators) == [("TopKGather", "1", "fastsam2")]


@pytest.mark.rtx
def test_never_registered_with_tensorrt_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (extra: rtx)")
    with pytest.raises(BackendError, match=r"a TensorRT with plugins, got TensorRT-RTX"):
        register(load(Flavor.TENSORRT_RTX))
