"""One ONNX model and its profiles -> one engine, with TensorRT-RTX (no GPU needed) or TensorRT (on the GPU that runs it).

What differs between the two:

| | TensorRT-RTX | TensorRT |
|---|---|---|
| strong typing | always | a flag of the network, until TensorRT 11 |
| target | a compute capability, or none for portable engines | this GPU; portable: hardware compatibility level Ampere and newer |
| layer listing | in the builder's log | from the engine inspector |
| timing cache | none: kernels are chosen where the engine runs | a file beside the engines |

The builder is called directly and not through Polygraphy, which holds one flavor per process and keeps the log, and so the listing, to
itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsam2.engines.layers import listing_of
from fastsam2.engines.profiles import Profile
from fastsam2.engines.targets import PORTABLE
from fastsam2.engines.trt_log import Recording, logger_of, quoted
from fastsam2.enums import Flavor
from fastsam2.errors import BackendError, expected

# Of every build: float32 is float32, the listing names kernels, and engines take no memory but what they are given (TensorRT-RTX would, for
# large shapes, and could not be captured into CUDA graphs then; TensorRT has no such flag).
OPTIONS: dict[str, str | bool] = {"tf32": False, "profiling_verbosity": "detailed", "user_allocation": True}


@dataclass(frozen=True, slots=True)
class Built:
    """What the builder made.

    Attributes:
        engine: serialized.
        listing: for `fastsam2.engines.layers.parse_listing`.
        seconds: that parsing and building took.
    """

    engine: bytes
    listing: str
    seconds: float


def build_engine(
    model: bytes, name: str, profiles: Sequence[Profile], *, trt: Any, flavor: Flavor, target: str, timing_cache: Path | None = None
) -> Built:
    """Build one engine.

    Args:
        model: serialized ONNX, typed, in the form of `fastsam2.engines.network_form`.
        name: of the graph, for messages.
        profiles: optimization profiles; none for static shapes.
        trt: module of the flavor.
        flavor: which module that is.
        target: from `fastsam2.engines.targets.resolve_target`.
        timing_cache: file read and written by TensorRT; TensorRT-RTX has none.

    Raises:
        BackendError: if the model does not parse or build; quotes the builder.
    """
    begin = time.perf_counter()
    log = logger_of(trt)
    recorded = log.record()
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, flavor))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        said = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in map(parser.get_error, range(parser.num_errors))]
        raise _failed(f"{name} to parse", flavor, trt, said or recorded.errors)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if flavor is Flavor.TENSORRT_RTX:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _aim(config, trt, flavor, target)
    for profile in profiles:
        _add_profile(builder, config, profile, name)
    cache = None
    if flavor is Flavor.TENSORRT and timing_cache is not None:
        cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
        if not config.set_timing_cache(cache, False):
            config.set_timing_cache(cache := config.create_timing_cache(b""), False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _failed(f"{name} to build for {target}", flavor, trt, recorded.errors)
    if cache is not None and timing_cache is not None:
        timing_cache.write_bytes(bytes(cache.serialize()))
    seconds = time.perf_counter() - begin
    serialized = bytes(engine)
    listing = listing_of(recorded.messages) if flavor is Flavor.TENSORRT_RTX else _inspect(serialized, len(profiles), trt, recorded, name)
    return Built(serialized, listing, seconds)


def _network_flags(trt: Any, flavor: Flavor) -> int:
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 1 << int(typed) if flavor is Flavor.TENSORRT and typed is not None else 0


def _aim(config: Any, trt: Any, flavor: Flavor, target: str) -> None:
    if flavor is Flavor.TENSORRT:
        if target == PORTABLE:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif target != PORTABLE:
        listed = trt.ComputeCapability.__members__.get(f"SM{target.replace('.', '')}")
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT if listed is None else listed, 0)


def _add_profile(builder: Any, config: Any, profile: Profile, name: str) -> None:
    made = builder.create_optimization_profile()
    for tensor, shapes in profile.shapes.items():
        made.set_shape(tensor, *shapes)
    for tensor, values in profile.values.items():
        made.set_shape_input(tensor, *([value] for value in values))
    if config.add_optimization_profile(made) < 0:
        todo = "Build with other --max-objects or --keep-buckets"
        raise BackendError(
            expected(f"a profile of {name} that the builder takes", f"{profile.name}: {profile.shapes | profile.values}", todo)
        )


def _inspect(engine: bytes, profiles: int, trt: Any, recorded: Recording, name: str) -> str:
    """Activation memory of each profile and the layers, as the inspector of TensorRT has them."""
    loaded = trt.Runtime(logger_of(trt)).deserialize_cuda_engine(engine)
    if loaded is None:
        raise _failed(f"the engine of {name} to load on the GPU that built it", Flavor.TENSORRT, trt, recorded.errors)
    memory = [loaded.get_device_memory_size_for_profile_v2(index) for index in range(max(1, profiles))]
    layers = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return "\n".join([*(f"Total Activation Memory: {size} bytes" for size in memory), layers.rstrip()]) + "\n"


def _failed(what: str, flavor: Flavor, trt: Any, said: Sequence[str]) -> BackendError:
    todo = f"Export the bundle again with this release, or use another version of {flavor.value}"
    return BackendError(expected(f"{what} with {flavor.value} {trt.__version__}", quoted(said), todo))
