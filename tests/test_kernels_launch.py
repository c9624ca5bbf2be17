"""Launching from Python, against drivers that record every call; and NVRTC itself where it is installed."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterator
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from fastsam2.errors import BackendError
from fastsam2.kernels import launch, nvrtc
from fastsam2.kernels.drivers import CudaBindingsDriver, Driver
from fastsam2.kernels.launch import TopKGatherKernel
from fastsam2.kernels.top_k_gather import PARAMETERS, TopKGather
from tests.kernel_host.harness import needs_nvrtc

SIZE = struct.calcsize(PARAMETERS)
FULL, HALF = "fastsam2_top_k_gather_float32", "fastsam2_top_k_gather_float16"


def call(**change: Any) -> TopKGather:
    sizes = {"batch": 3, "n": 4096, "k": 205, "row_bytes": 128}
    return TopKGather(**{"scores": 0x100000, "rows": 0x200000, "kept": 0x800000, "index": 0x900000, **sizes, **change})


class RecordingDriver:
    """A Driver whose functions are their names."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    def load(self, image: bytes, entry: str, parameter_bytes: int) -> Any:
        self.calls.append(("load", image, entry, parameter_bytes))
        return entry

    def allow_shared(self, function: Any, shared_bytes: int) -> None:
        self.calls.append(("allow_shared", function, shared_bytes))

    def launch(
        self, function: Any, grid: tuple[int, int], block: tuple[int, int, int], shared_bytes: int, stream: Any, parameters: bytes
    ) -> None:
        self.calls.append(("launch", function, grid, block, shared_bytes, stream, parameters))


@pytest.fixture
def cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC answers with the architecture it was asked for."""
    monkeypatch.setattr(launch, "compile_cubin", lambda capability: b"cubin %d.%d" % capability)


def make_kernel(driver: RecordingDriver) -> TopKGatherKernel:
    kernel = TopKGatherKernel(driver)
    assert sorted(driver.calls) == [("load", b"cubin 8.7", entry, SIZE) for entry in (HALF, FULL)]
    driver.calls.clear()
    return kernel


@pytest.mark.usefixtures("cubin")
def test_one_launch_with_every_argument() -> None:
    driver = RecordingDriver()
    pitched = {"rows_pitch": 144, "kept_pitch": 160, "kept_batch_stride": 7 * 4096 * 160, "index_batch_stride": 4096}
    make_kernel(driver).launch(call(**pitched), "stream 7")
    ((what, function, grid, block, shared, stream, parameters),) = driver.calls
    assert (what, function, grid, block, stream) == ("launch", FULL, (2, 3), (512, 1, 1), "stream 7")
    assert shared == 1416 + 4 * 4096
    assert struct.unpack(PARAMETERS, parameters) == (
        *(0x100000, 0x200000, 0x800000, 0x900000),
        *(4096, 144, 4096 * 144, 160, 7 * 4096 * 160, 4096),
        *(3, 4096, 205, 128),
    )


@pytest.mark.usefixtures("cubin")
def test_strides_left_out_mean_contiguous() -> None:
    driver = RecordingDriver()
    make_kernel(driver).launch(call(score_dtype="float16"), None)
    assert driver.calls[0][1] == HALF and driver.calls[0][4] == 1416 + 2 * 4096
    assert struct.unpack(PARAMETERS, driver.calls[0][-1])[4:10] == (4096, 128, 4096 * 128, 128, 205 * 128, 205)


@pytest.mark.usefixtures("cubin")
def test_large_rows_of_scores_ask_for_shared_memory_once() -> None:
    driver = RecordingDriver()
    kernel = make_kernel(driver)
    for n in (4096, 12000, 16384, 12000, 16384):
        kernel.launch(call(n=n, batch=1), None)
    asked = [(one[0], one[2] if one[0] == "allow_shared" else one[4]) for one in driver.calls]
    sizes = {n: 1416 + 4 * n for n in (4096, 12000, 16384)}
    assert asked == [("launch", sizes[4096]), ("allow_shared", sizes[12000]), ("launch", sizes[12000]), ("allow_shared", sizes[16384]),
                     ("launch", sizes[16384]), ("launch", sizes[12000]), ("launch", sizes[16384])]  # fmt: skip
    driver.calls.clear()
    kernel.launch(call(n=16384, batch=1, score_dtype="float16"), None)
    assert [one[0] for one in driver.calls] == ["launch"]


@pytest.mark.usefixtures("cubin")
def test_no_rows_launch_nothing() -> None:
    driver = RecordingDriver()
    make_kernel(driver).launch(call(k=0), None)
    assert driver.calls == []


class CudaError(Exception):
    """pycuda.driver.Error."""


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """As much of pycuda.driver as is used; `refuse` names the call that fails."""
    fake = SimpleNamespace(Error=CudaError, calls=[], refuse="", function_attribute=SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"))

    def record(name: str, *arguments: Any) -> None:
        fake.calls.append((name, *arguments))
        if fake.refuse == name:
            raise CudaError(f"{name} failed: out of luck\nand more")

    class Function:
        def prepare(self, types: list[str]) -> Function:
            self.format = "".join(types)
            return self

        def set_attribute(self, attribute: str, value: int) -> None:
            record("set_attribute", attribute, value)

        def prepared_async_call(self, grid: Any, block: Any, stream: Any, *arguments: Any, shared_size: int) -> None:
            record("launch", grid, block, stream, struct.pack(self.format, *arguments), shared_size)

    def module_from_buffer(image: bytes) -> Any:
        record("module_from_buffer", image)
        return SimpleNamespace(get_function=lambda name: record("get_function", name) or Function())

    def get_device() -> Any:
        record("get_device")
        return SimpleNamespace(compute_capability=lambda: (9, 0))

    fake.module_from_buffer, fake.Context = module_from_buffer, SimpleNamespace(get_device=get_device)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=fake))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    yield fake


@pytest.mark.usefixtures("cubin")
def test_pycuda_gets_the_struct_as_its_one_argument(pycuda: SimpleNamespace) -> None:
    kernel = TopKGatherKernel()
    assert ("module_from_buffer", b"cubin 9.0") in pycuda.calls and ("get_function", FULL) in pycuda.calls
    pycuda.calls.clear()
    wanted = call(n=16384)
    kernel.launch(wanted, "a pycuda stream")
    assert pycuda.calls == [
        ("set_attribute", "shared", wanted.shared_bytes),
        ("launch", (2, 3), (512, 1, 1), "a pycuda stream", wanted.parameters, wanted.shared_bytes),
    ]


@pytest.mark.parametrize(("refuse", "message"), [
    ("get_device", r"a current CUDA context, got CudaError: get_device failed: out of luck. .*import pycuda.autoprimaryctx"),
    ("module_from_buffer", r"the CUDA driver to load fastsam2_top_k_gather_float\d+, got CudaError: module_from_buffer failed"),
    ("set_attribute", r"66952 bytes of shared memory for a block on this GPU, got CudaError"),
    ("launch", r"the CUDA driver to launch \(2, 3\) blocks of 512 threads, got CudaError: launch failed"),
])  # fmt: skip
@pytest.mark.usefixtures("cubin")
def test_what_pycuda_refuses_is_said(pycuda: SimpleNamespace, refuse: str, message: str) -> None:
    pycuda.refuse = refuse
    with pytest.raises(BackendError, match=message) as caught:
        TopKGatherKernel().launch(call(n=16384), None)
    assert isinstance(caught.value.__cause__, CudaError)


def test_missing_pycuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendError, match=r"the Python package pycuda, got .*pip install fastsam2\[cuda\]"):
        TopKGatherKernel()


class Result(Enum):
    """CUresult."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_UNKNOWN = 999


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """As much of cuda.bindings.driver as is used; `refuse` names the function that fails."""
    attributes = SimpleNamespace(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor")
    fake = SimpleNamespace(
        CUresult=Result, CUdevice_attribute=attributes, calls=[], refuse="",
        CUfunction_attribute=SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"),
    )  # fmt: skip

    def answer(name: str, *values: Any) -> Any:
        def function(*arguments: Any) -> tuple[Any, ...]:
            if name == "cuLaunchKernel":  # what the driver reads: an array of addresses, one per parameter
                address = ctypes.c_void_p.from_address(arguments[-2]).value
                arguments = (*arguments[:-2], ctypes.string_at(address or 0, SIZE), arguments[-1])
            fake.calls.append((name, *arguments))
            return (Result.CUDA_ERROR_UNKNOWN if fake.refuse == name else Result.CUDA_SUCCESS, *values)

        return function

    for name, *values in (("cuInit",), ("cuCtxGetDevice", 0), ("cuModuleLoadData", "module"), ("cuModuleGetFunction", "function"),
                          ("cuFuncSetAttribute",), ("cuLaunchKernel",)):  # fmt: skip
        setattr(fake, name, answer(name, *values))
    fake.cuDeviceGetAttribute = lambda attribute, device: (Result.CUDA_SUCCESS, {"major": 12, "minor": 0}[attribute])
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    yield fake


@pytest.mark.usefixtures("cubin")
def test_cuda_bindings_launches_on_the_handle_of_any_stream(bindings: SimpleNamespace) -> None:
    kernel = TopKGatherKernel(CudaBindingsDriver())
    assert ("cuModuleLoadData", b"cubin 12.0") in bindings.calls and ("cuModuleGetFunction", "module", FULL.encode()) in bindings.calls
    bindings.calls.clear()
    wanted = call(n=16384)
    kernel.launch(wanted, 0xDEAD0)
    assert bindings.calls == [
        ("cuFuncSetAttribute", "function", "shared", wanted.shared_bytes),
        ("cuLaunchKernel", "function", 2, 3, 1, 512, 1, 1, wanted.shared_bytes, 0xDEAD0, wanted.parameters, 0),
    ]


@pytest.mark.parametrize(("refuse", "message"), [
    ("cuInit", r"an NVIDIA driver with a GPU, got CUDA_ERROR_UNKNOWN"),
    ("cuCtxGetDevice", r"a current CUDA context, got CUDA_ERROR_UNKNOWN from cuCtxGetDevice"),
    ("cuModuleLoadData", r"the CUDA driver to load .*, got RuntimeError: CUDA_ERROR_UNKNOWN from cuModuleLoadData"),
    ("cuModuleGetFunction", r"the CUDA driver to load "),
    ("cuFuncSetAttribute", r"66952 bytes of shared memory"),
    ("cuLaunchKernel", r"the CUDA driver to launch .*CUDA_ERROR_UNKNOWN from cuLaunchKernel"),
])  # fmt: skip
@pytest.mark.usefixtures("cubin")
def test_what_the_driver_refuses_is_said(bindings: SimpleNamespace, refuse: str, message: str) -> None:
    bindings.refuse = refuse
    with pytest.raises(BackendError, match=message):
        TopKGatherKernel(CudaBindingsDriver()).launch(call(n=16384), 0)


def test_missing_bindings_or_driver_are_named(monkeypatch: pytest.MonkeyPatch, bindings: SimpleNamespace) -> None:
    def no_driver(flags: int) -> Any:
        raise RuntimeError("libcuda.so.1 not found")

    bindings.cuInit = no_driver
    with pytest.raises(BackendError, match=r"cuda.bindings and an NVIDIA driver, got RuntimeError: libcuda.so.1 not found"):
        CudaBindingsDriver()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"cuda.bindings and an NVIDIA driver, got .*pip install fastsam2\[cuda\]"):
        CudaBindingsDriver()


def test_fakes_have_the_protocol() -> None:
    driver: Driver = RecordingDriver()
    assert driver.compute_capability() == (8, 7)


def test_nvrtc_builds_a_cubin_with_both_kernels() -> None:
    needs_nvrtc()
    cubin = nvrtc.compile_cubin((8, 9))
    assert cubin[:4] == b"\x7fELF"
    assert all(f".text.{entry}".encode() in cubin for entry in (FULL, HALF))
    assert nvrtc.compile_cubin((8, 9)) is cubin


def test_nvrtc_says_what_it_cannot_build() -> None:
    needs_nvrtc()
    with pytest.raises(BackendError, match=r"top_k_gather.cu to compile for sm_11, got .*gpu-architecture.*pip install --upgrade"):
        nvrtc.compile_cubin((1, 1))


def test_missing_nvrtc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(BackendError, match=r"NVRTC, which compiles the CUDA kernels, got .*pip install fastsam2\[cuda\]"):
        nvrtc.compile_cubin((8, 8))
