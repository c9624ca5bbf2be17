"""The part of tensorrt and tensorrt_rtx that runs engines, in their names, for machines without a GPU.

Engines are files `engine <graph>`; their tensors are those of `fastsam2.contracts`, unless a test says otherwise. Contexts insist on what
the real ones need: memory that is large enough, a profile, shapes inside it, an address for every tensor.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

from fastsam2.config import ModelSpec
from fastsam2.contracts import graph_spec
from fastsam2.engines.profiles import Limits, profiles
from fastsam2.enums import ExportTarget, GraphRole

TYPES = {"float32": "FLOAT", "int32": "INT32", "bool": "BOOL", "uint8": "UINT8"}


class DataType(Enum):
    FLOAT, HALF, INT32, BOOL, UINT8, INT64 = range(6)


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(Enum):
    DEVICE, HOST = range(2)


class EngineValidity(Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER = 1, 2, 4


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class CudaGraphStrategy(Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class ILogger:
    Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class FakeTrt:
    """A module. `told` holds the calls on contexts in order, `alive` counts what is not destroyed, `fails` names calls that fail.

    Args:
        spec: of the model whose engines there are.
        limits: of the engines.
        version: of the package.
        rtx: it is TensorRT-RTX.
    """

    def __init__(self, spec: ModelSpec, limits: Limits, *, version: str, rtx: bool) -> None:
        self.spec, self.limits, self.__version__, self.rtx = spec, limits, version, rtx
        self.told: list[tuple[Any, ...]] = []
        self.alive: dict[str, int] = {"runtime": 0, "engine": 0, "context": 0, "cache": 0}
        self.fails: set[str] = set()
        self.activation = dict.fromkeys(GraphRole, 1000)
        self.validity: tuple[EngineValidity, int] = EngineValidity.VALID, 0
        self.changed: dict[str, tuple[str, Any]] = {}  # tensor -> what of it is other than in the contract
        self.loggers: set[Any] = set()
        self.unknown: set[str] = set()  # inputs whose shape does not suffice
        self.cache_blob, self.cache_fits = b"kernels", True
        self.ILogger, self.DataType, self.TensorIOMode, self.TensorLocation = ILogger, DataType, TensorIOMode, TensorLocation
        self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        if rtx:
            self.EngineValidity, self.EngineInvalidityDiagnostics = EngineValidity, EngineInvalidityDiagnostics
            self.CudaGraphStrategy = CudaGraphStrategy

    def Runtime(self, logger: ILogger) -> Runtime:
        self.loggers.add(logger)
        return RtxRuntime(self, logger) if self.rtx else Runtime(self, logger)

    def works(self, call: str, logger: ILogger) -> bool:
        if call in self.fails:
            logger.log(ILogger.Severity.ERROR, f"[api.cpp] Error Code 3:\n{call} refused")
            logger.log(ILogger.Severity.INFO, "not worth mentioning")
        return call not in self.fails

    def of(self, name: str) -> list[Any]:
        """Arguments of the calls of one name."""
        return [call[1:] for call in self.told if call[0] == name]


class _Counted:
    """Counted while it exists; what it was made from lives as long."""

    kind: str

    def __init__(self, trt: FakeTrt, parent: Any) -> None:
        self._trt, self._parent = trt, parent
        trt.alive[self.kind] += 1

    def __del__(self) -> None:
        self._trt.alive[self.kind] -= 1


class Runtime(_Counted):
    kind = "runtime"

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not self._trt.works("deserialize_cuda_engine", self._parent) or not serialized_engine.startswith(b"engine "):
            return None
        return ICudaEngine(self._trt, self, GraphRole(serialized_engine.split()[1].decode()))


class RtxRuntime(Runtime):
    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        return self._trt.validity


class ICudaEngine(_Counted):
    kind = "engine"

    def __init__(self, trt: FakeTrt, parent: Runtime, role: GraphRole) -> None:
        super().__init__(trt, parent)
        self._role, self._logger = role, parent._parent
        table = graph_spec(role, ExportTarget.TENSORRT)
        self._tensors = {
            t.name: {
                "mode": TensorIOMode.INPUT if t in table.inputs else TensorIOMode.OUTPUT,
                "dtype": DataType[TYPES[t.dtype]],
                "shape": tuple(-1 if isinstance(d, str) else d for d in t.shape(trt.spec)),
                "location": TensorLocation.DEVICE,
            }
            for t in (*table.inputs, *table.outputs)
        }
        for name, (key, value) in trt.changed.items():
            if name in self._tensors:
                self._tensors[name][key] = value
        self._profiles = profiles(trt.spec, role, trt.limits)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._profiles))

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name]["mode"]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name]["dtype"]

    def get_tensor_shape(self, name: str) -> Any:
        return self._tensors[name]["shape"]

    def get_tensor_location(self, name: str) -> Any:
        return self._tensors[name]["location"]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._trt.activation[self._role] // (profile_index + 1)

    def create_runtime_config(self) -> IRuntimeConfig:
        if not self._trt.rtx:
            raise AttributeError("create_runtime_config")
        return IRuntimeConfig(self._trt, self._logger)

    def create_execution_context(self, strategy: Any = None, *, runtime_config: IRuntimeConfig | None = None) -> IExecutionContext | None:
        if runtime_config is not None:
            strategy = runtime_config._strategy
            self._trt.told.append(("graphs", runtime_config.cuda_graph_strategy))
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise AssertionError("activation memory is ours")
        if not self._trt.works("create_execution_context", self._logger):
            return None
        return IExecutionContext(self._trt, self, None if runtime_config is None else runtime_config._cache)


class IRuntimeConfig:
    cuda_graph_strategy: Any = CudaGraphStrategy.DISABLED

    def __init__(self, trt: FakeTrt, logger: ILogger) -> None:
        self._trt, self._logger, self._strategy, self._cache = trt, logger, ExecutionContextAllocationStrategy.STATIC, None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._trt, None)

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return self._trt.works("set_runtime_cache", self._logger)


class IRuntimeCache(_Counted):
    kind = "cache"

    def deserialize(self, blob: bytes) -> bool:
        self._trt.told.append(("cache", blob))
        return self._trt.cache_fits

    def serialize(self) -> bytes:
        return self._trt.cache_blob


class IExecutionContext(_Counted):
    kind = "context"

    def __init__(self, trt: FakeTrt, parent: ICudaEngine, cache: Any) -> None:
        super().__init__(trt, parent)
        self._role, self._cache, self._engine, self._logger = parent._role, cache, parent, parent._logger
        self._memory, self._profile = (0, 0), 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = memory, size
        self._trt.told.append(("memory", self._role, memory, size))

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._trt.told.append(("profile", profile_index, stream_handle))
        self._profile, self._shapes = profile_index, {}
        return self._trt.works("set_optimization_profile_async", self._logger)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._trt.told.append(("shape", name, shape))
        inside = self._engine._profiles[self._profile].shapes.get(name) if self._engine._profiles else None
        low, high = (inside[0], inside[2]) if inside else (shape, shape)
        self._shapes[name] = shape
        return self._trt.works("set_input_shape", self._logger) and all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

    def infer_shapes(self) -> list[str]:
        self._trt.told.append(("infer",))
        if not self._trt.works("infer_shapes", self._logger):
            raise RuntimeError("shapes do not fit")
        inputs = [t.name for t in graph_spec(self._role, ExportTarget.TENSORRT).inputs]
        return [name for name in inputs if name not in self._shapes or name in self._trt.unknown]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        table = graph_spec(self._role, ExportTarget.TENSORRT)
        sizes = {a: s for t in table.inputs for a, s in zip(t.axes, self._shapes[t.name], strict=True)}
        (tensor,) = (t for t in table.outputs if t.name == name)
        return tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape(self._trt.spec))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return self._trt.works("set_tensor_address", self._logger)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._memory[1] < self._trt.activation[self._role]:
            raise AssertionError("too little activation memory")
        if set(self._addresses) != set(self._engine._tensors) or self.infer_shapes():
            raise AssertionError("a tensor has no address or shape")
        self._trt.told.append(("run", self._role, dict(self._addresses), self._memory, stream_handle))
        return self._trt.works("execute_async_v3", self._logger)


class FakeGpu:
    """Addresses without memory; `live` holds what is allocated, `events` what happened to it."""

    index, name, capability, stream, stream_handle = 0, "NVIDIA A 4090", "8.9", SimpleNamespace(), 77

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.events: list[str] = []
        self._next = 256

    def allocate(self, nbytes: int) -> int:
        address, self._next = self._next, self._next + -(-nbytes // 256) * 256
        self.live[address] = nbytes
        self.events.append("allocate")
        return address

    def release(self, address: int) -> None:
        del self.live[address]
        self.events.append("release")

    def activate(self) -> None:
        self.events.append("activate")

    def synchronize(self) -> None:
        self.events.append("synchronize")
