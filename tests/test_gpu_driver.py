"""pycuda as the GPU loop uses it: against a module of the same names and argument orders whose device memory is host memory.

It keeps to pycuda's rules: work runs when the stream is waited for, every thread has a stack of contexts that has to be empty when it ends,
memory is only freed in the context that it came from, and nothing may be left when a context goes.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastsam2.errors import BackendError, InternalError, StateError
from fastsam2.runtime.gpu.driver import Gpu, PyCudaGpu

TOTAL = 1 << 20


class FakePyCuda(ModuleType):
    """`pycuda.driver` with two GPUs. Addresses index one array of bytes; `events` holds what releases things and waits, in order."""

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        fake = self
        self.bytes = np.zeros(TOTAL, np.uint8)
        self.events: list[str] = []
        self.live: dict[int, int] = {}  # address -> size
        self.contexts = self.streams = self.pushes = 0
        self.sticky = ""  # why waiting fails from now on
        self.stacks: dict[int, list[Any]] = {}
        self.devices, self.next = ["NVIDIA A", "NVIDIA B"], 256

        class Error(Exception):
            pass

        self.Error = Error
        self.MemoryError: Any = type("MemoryError", (Error,), {})
        self.LogicError: Any = type("LogicError", (Error,), {})
        self.LaunchError: Any = type("LaunchError", (Error,), {})

        class Context:
            def __init__(self) -> None:
                self.valid, self.thread = True, threading.get_ident()
                fake.contexts += 1

            @staticmethod
            def stack() -> list[Any]:
                return fake.stacks.setdefault(threading.get_ident(), [])

            @staticmethod
            def get_current() -> Any:
                stack = Context.stack()
                while stack and not stack[-1].valid:
                    stack.pop()
                return stack[-1] if stack else None

            @staticmethod
            def pop() -> None:
                if not Context.stack():
                    raise fake.LogicError("cuCtxPopCurrent failed: invalid device context")
                Context.stack().pop()

            def push(self) -> None:
                if not self.valid:
                    raise fake.LogicError("cuCtxPushCurrent failed: context is destroyed")
                if Context.stack() and not Context.stack()[-1].valid:
                    raise fake.LogicError("cuCtxPopCurrent failed: context is destroyed")
                Context.stack().append(self)
                fake.pushes += 1

            def detach(self) -> None:
                if not self.valid:
                    raise fake.LogicError("cannot detach from invalid context")
                fake.events.append("detach")
                if Context.get_current() is self or self.thread == threading.get_ident():
                    fake.contexts -= 1
                self.valid = False
                Context.get_current()

        class Stream:
            handle = 77

            def __init__(self) -> None:
                fake.current()
                self.work: list[Callable[[], None]] = []
                fake.streams += 1

            def __del__(self) -> None:
                fake.streams -= 1
                fake.events.append("stream")

            def synchronize(self) -> None:
                fake.current()
                fake.events.append("synchronize")
                if fake.sticky:
                    raise fake.LaunchError(fake.sticky)
                while self.work:
                    self.work.pop(0)()

            def wait_for_event(self, event: Event) -> None:
                """What was recorded by now is done before what is enqueued from now on."""
                done = event.done

                def wait() -> None:
                    while not done[0]:
                        event.stream.work.pop(0)()

                fake.enqueue(self, wait)

        class Event:
            def __init__(self, flags: int = 0) -> None:
                assert flags == fake.event_flags.DISABLE_TIMING
                fake.current()
                self.stream: Any = None
                self.done = [True]

            def record(self, stream: Stream) -> Event:
                self.stream, self.done = stream, [False]
                fake.enqueue(stream, lambda done=self.done: done.__setitem__(0, True))  # type: ignore[misc]
                return self

            def __del__(self) -> None:
                fake.events.append("event")

        class DeviceAllocation:
            def __init__(self, address: int, size: int) -> None:
                self.address, self.context, self.valid = address, fake.current(), True
                fake.live[address] = size

            def __int__(self) -> int:
                return self.address

            def free(self) -> None:
                if not self.valid:
                    raise fake.LogicError("device_allocation::free failed: invalid resource handle")
                self.valid = False
                if self.context.valid and Context.get_current() is self.context:  # else pycuda leaks it
                    fake.events.append("free")
                    del fake.live[self.address]

        class Device:
            @staticmethod
            def count() -> int:
                return len(fake.devices)

            def __init__(self, index: int) -> None:
                self.index = index

            def name(self) -> str:
                return fake.devices[self.index]

            def compute_capability(self) -> tuple[int, int]:
                return 8, 9 - 3 * self.index

            def retain_primary_context(self) -> Context:
                return Context()

        self.Context, self.Stream, self.Event, self.Device, self.allocation = Context, Stream, Event, Device, DeviceAllocation
        self.event_flags = SimpleNamespace(DISABLE_TIMING=2)

    def init(self) -> None:
        if not self.devices:
            raise self.Error("cuInit failed: no CUDA-capable device is detected")

    def current(self) -> Any:
        found = self.Context.get_current()
        if found is None:
            raise self.LogicError("explicit_context_dependent failed: invalid device context - no currently active context?")
        return found

    def mem_get_info(self) -> tuple[int, int]:
        self.current()
        return TOTAL - self.next, TOTAL

    def mem_alloc(self, bytes: int) -> Any:
        if not bytes:
            raise self.LogicError("cuMemAlloc failed: invalid argument")
        if self.next + bytes > TOTAL:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        address, self.next = self.next, self.next + -(-bytes // 256) * 256
        return self.allocation(address, bytes)

    def pagelocked_empty(self, shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        self.current()
        if not shape:
            raise self.LogicError("cuMemHostAlloc failed: invalid argument")
        if shape > TOTAL:
            raise self.MemoryError("cuMemHostAlloc failed: out of memory")
        return np.empty(shape, dtype)

    def enqueue(self, stream: Any, work: Callable[[], None]) -> None:
        self.current()
        if stream is None:
            raise AssertionError("enqueued on the default stream")
        stream.work.append(work)

    def memcpy_htod_async(self, dest: int, src: Any, stream: Any = None) -> None:
        self.enqueue(stream, lambda: self.bytes.__setitem__(slice(dest, dest + src.nbytes), np.frombuffer(src.tobytes(), np.uint8)))

    def memcpy_dtoh_async(self, dest: Any, src: int, stream: Any = None) -> None:
        self.enqueue(stream, lambda: dest.view(np.uint8).reshape(-1).__setitem__(slice(None), self.bytes[src : src + dest.nbytes]))

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: Any = None) -> None:
        self.enqueue(stream, lambda: self.bytes.__setitem__(slice(dest, dest + size), self.bytes[src : src + size].copy()))

    def memset_d8_async(self, dest: int, data: int, size: int, stream: Any = None) -> None:
        self.enqueue(stream, lambda: self.bytes.__setitem__(slice(dest, dest + size), data))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakePyCuda:
    fake = FakePyCuda()
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    return fake


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` answers or raises in a thread that ends."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(work())
        except Exception as error:
            box.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return box[0]


def test_work_is_done_in_order_and_waited_for_once(cuda: FakePyCuda) -> None:
    gpu: Gpu = PyCudaGpu()
    assert (gpu.index, gpu.name, gpu.capability, gpu.stream_handle) == (0, "NVIDIA A", "8.9", 77)
    source, target = gpu.pinned(24).view(np.float32), gpu.pinned(24).view(np.float32)
    source[:], target[:] = np.arange(6), -1
    first, second = gpu.allocate(24), gpu.allocate(24)
    assert first % 256 == second % 256 == 0 and first != second
    gpu.upload(first, source)
    gpu.copy(second, first, 24)
    gpu.fill_zero(second + 8, 4)
    gpu.download(target, second)
    assert (target == -1).all() and "synchronize" not in cuda.events
    gpu.synchronize()
    assert target.tolist() == [0, 1, 0, 3, 4, 5] and cuda.events == ["synchronize"]
    gpu.close()


def test_a_copy_beside_the_stream_holds_up_only_what_comes_after_it(cuda: FakePyCuda) -> None:
    gpu = PyCudaGpu()
    ahead, target = gpu.allocate(8), gpu.pinned(8)
    gpu.fill_zero(gpu.allocate(8), 8)
    before = len(gpu.stream.work)
    gpu.upload_beside(ahead, np.arange(8, dtype=np.uint8))
    assert len(gpu.stream.work) == before + 1, "a wait, no copy"
    gpu.download(target, ahead)
    gpu.upload_beside(ahead, np.full(8, 9, np.uint8))  # as late as the stream allows
    gpu.synchronize()
    assert target.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    gpu.upload_beside(ahead, np.empty(0, np.uint8))
    assert gpu.stream.work == []
    gpu.close()


def test_nothing_to_copy_is_nothing_to_enqueue(cuda: FakePyCuda) -> None:
    gpu, nothing = PyCudaGpu(), np.empty((0, 4), np.float32)
    address = gpu.allocate(0)
    gpu.upload(address, nothing)
    gpu.download(nothing, address)
    gpu.copy(address, address, 0)
    gpu.fill_zero(address, 0)
    assert gpu.stream.work == [] and gpu.pinned(0).shape == (0,)
    gpu.close()


def test_a_transposed_array_is_not_copied_in_the_wrong_order(cuda: FakePyCuda) -> None:
    gpu = PyCudaGpu()
    wrong = np.zeros((3, 2), np.float32).T
    address = gpu.allocate(wrong.nbytes)
    with pytest.raises(InternalError, match="C-contiguous"):
        gpu.upload(address, wrong)
    with pytest.raises(InternalError, match="C-contiguous"):
        gpu.upload_beside(address, wrong)
    with pytest.raises(InternalError, match="C-contiguous"):
        gpu.download(wrong, address)
    assert gpu.stream.work == []
    gpu.close()


def test_memory_is_given_back_once(cuda: FakePyCuda) -> None:
    gpu = PyCudaGpu()
    address, kept = gpu.allocate(300), gpu.allocate(1)
    assert cuda.live == {address: 300, kept: 1}
    gpu.release(address)
    assert cuda.live == {kept: 1}
    with pytest.raises(InternalError, match="not allocated"):
        gpu.release(address)
    gpu.close()


def test_memory_that_ran_out_says_how_much_and_what_to_do(cuda: FakePyCuda) -> None:
    gpu = PyCudaGpu()
    with pytest.raises(
        BackendError, match=r"2\.0 MiB of memory on NVIDIA A, got 1\.0 MiB free of 1\.0 MiB.*--max-objects.*--prune.*--image-size"
    ):
        gpu.allocate(2 << 20)
    with pytest.raises(BackendError, match=r"2\.0 MiB of page-locked host memory.*out of memory"):
        gpu.pinned(2 << 20)
    assert cuda.live == {} and gpu.allocate(8) in cuda.live  # goes on
    gpu.close()


def test_a_failure_on_the_stream_is_told_and_everything_is_still_released(cuda: FakePyCuda) -> None:
    gpu = PyCudaGpu()
    gpu.allocate(8)
    cuda.sticky = "cuStreamSynchronize failed: an illegal memory access was encountered"
    with pytest.raises(BackendError, match=r"NVIDIA A to finish.*LaunchError: cuStreamSynchronize failed: an illegal.*start again"):
        gpu.synchronize()
    gpu.close()
    assert cuda.live == {} and cuda.contexts == cuda.streams == 0


def test_close_releases_what_lives_in_the_context_before_it(cuda: FakePyCuda) -> None:
    gpu = PyCudaGpu()
    gpu.allocate(8), gpu.allocate(8)
    gpu.close()
    gpu.close()
    assert cuda.events[:4] == ["synchronize", "synchronize", "free", "free"]
    assert sorted(cuda.events[4:-1]) == ["event", "stream", "stream"] and cuda.events[-1] == "detach"
    assert cuda.live == {} and cuda.contexts == cuda.streams == 0 and cuda.stacks[threading.get_ident()] == []


@pytest.mark.parametrize(
    "call",
    [
        lambda gpu: gpu.allocate(8),
        lambda gpu: gpu.release(256),
        lambda gpu: gpu.pinned(8),
        lambda gpu: gpu.upload(256, np.zeros(2)),
        lambda gpu: gpu.upload_beside(256, np.zeros(2)),
        lambda gpu: gpu.download(np.zeros(2), 256),
        lambda gpu: gpu.copy(256, 512, 8),
        lambda gpu: gpu.fill_zero(256, 8),
        lambda gpu: gpu.synchronize(),
        lambda gpu: gpu.memory(),
        lambda gpu: gpu.activate(),
        lambda gpu: gpu.stream,
    ],
)
def test_nothing_works_after_close(cuda: FakePyCuda, call: Callable[[Gpu], Any]) -> None:
    gpu = PyCudaGpu()
    gpu.allocate(8)
    gpu.close()
    with pytest.raises(StateError, match="an open NVIDIA A, got a closed one"):
        call(gpu)


def test_a_gpu_that_is_forgotten_is_closed(cuda: FakePyCuda) -> None:
    gpu = PyCudaGpu()
    gpu.allocate(8)
    del gpu
    gc.collect()
    assert cuda.live == {} and cuda.contexts == cuda.streams == 0


def test_activating_twice_leaves_one_context_on_the_stack(cuda: FakePyCuda) -> None:
    a, b = PyCudaGpu(0), PyCudaGpu(1)
    assert (b.index, b.name, b.capability) == (1, "NVIDIA B", "8.6")
    for gpu, pushes in ((a, 3), (a, 3), (b, 4), (a, 5), (b, 6), (b, 6)):
        gpu.activate()
        assert len(cuda.stacks[threading.get_ident()]) == 1 and cuda.pushes == pushes
    a.close()
    b.synchronize()
    b.close()
    assert cuda.contexts == 0 and cuda.stacks[threading.get_ident()] == []


def test_threads_may_take_over_and_end(cuda: FakePyCuda) -> None:
    """pycuda aborts the process when a thread ends with a context on its stack."""
    gpu = PyCudaGpu()
    assert isinstance(address := in_thread(lambda: gpu.allocate(8)), int)
    assert in_thread(lambda: gpu.release(address)) is None
    assert in_thread(lambda: (gpu.activate(), gpu.activate(), threading.get_ident())[-1]) in cuda.stacks
    here = threading.get_ident()
    assert all(stack == [] for thread, stack in cuda.stacks.items() if thread != here)
    gpu.close()


def test_closing_in_another_thread_leaves_nothing(cuda: FakePyCuda) -> None:
    gpu = PyCudaGpu()
    gpu.allocate(8)
    assert in_thread(gpu.close) is None
    assert cuda.live == {} and cuda.contexts == cuda.streams == 0
    other = PyCudaGpu(1)  # this thread's stack still holds the closed context
    other.synchronize()
    other.close()
    assert cuda.stacks[threading.get_ident()] == []


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendError, match=r"the Python package pycuda.*pip install fastsam2\[cuda\]"):
        PyCudaGpu()


def test_no_driver_and_no_such_gpu(cuda: FakePyCuda) -> None:
    with pytest.raises(BackendError, match=r"a GPU with index 2, got \['0: NVIDIA A', '1: NVIDIA B'\]\. Choose one"):
        PyCudaGpu(2)
    with pytest.raises(BackendError, match="a GPU with index -1"):
        PyCudaGpu(-1)
    cuda.devices = []
    with pytest.raises(BackendError, match=r"an NVIDIA driver with a GPU, got Error: cuInit failed.*backend onnxruntime"):
        PyCudaGpu()
    assert cuda.contexts == 0


def test_a_gpu_without_room_for_a_stream_is_given_back(cuda: FakePyCuda) -> None:
    def refuse() -> None:
        raise cuda.MemoryError("cuStreamCreate failed: out of memory")

    cuda.Stream = refuse  # type: ignore[assignment,misc]
    with pytest.raises(BackendError, match="a stream on NVIDIA A, got MemoryError: cuStreamCreate failed: out of memory") as raised:
        PyCudaGpu()
    assert raised.tb is not None  # as long as somebody looks at it, nothing is collected
    assert cuda.contexts == 0 and cuda.stacks[threading.get_ident()] == []


def test_a_driver_that_refuses_a_copy_is_quoted(cuda: FakePyCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PyCudaGpu()

    def refuse(*_: Any) -> None:
        raise cuda.LogicError("cuMemcpyHtoDAsync failed: invalid argument")

    cuda.memcpy_htod_async = refuse  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="the CUDA driver to copy to the GPU, got LogicError: cuMemcpyHtoDAsync failed: invalid"):
        gpu.upload(gpu.allocate(8), np.zeros(1))
    gpu.close()
