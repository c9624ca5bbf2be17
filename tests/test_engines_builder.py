"""What the builder is told, flavor by flavor, and what comes back: with a module that records every call."""

from __future__ import annotations

import json
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastsam2.engines.builder import build_engine
from fastsam2.engines.layers import parse_listing
from fastsam2.engines.profiles import Limits, profiles
from fastsam2.enums import Flavor, GraphRole
from fastsam2.errors import BackendError
from tests.engine_bundle import LISTING, SPEC

PROFILES = profiles(SPEC, GraphRole.MEMORY_ATTENTION, Limits(keep_buckets=(0.05,)))
INSPECTED = json.dumps({"Layers": [{"Name": "_gemm_mha_v2_myl0_1", "LayerType": "kgen", "TacticName": "", "Metadata": ""}]}, indent=1)


class Capability(Enum):
    CURRENT = 0
    SM89 = 5


class FakeTrt:
    """The part of tensorrt and tensorrt_rtx that builds; `told` holds what it was told, in order.

    Args:
        typed_flag: the network flag of strong typing exists.
        engine: what building returns.
        cache_fits: a stored timing cache is accepted.
    """

    __version__ = "10.9"
    ComputeCapability = Capability
    BuilderFlag = SimpleNamespace(TF32="TF32", REQUIRE_USER_ALLOCATION="REQUIRE_USER_ALLOCATION")
    ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS")
    LayerInformationFormat = SimpleNamespace(JSON="JSON")

    class ILogger:
        Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "INFO", "VERBOSE"])

    def __init__(self, *, typed_flag: bool = True, engine: bytes | None = b"engine", cache_fits: bool = True) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.engine, self.cache_fits = engine, cache_fits
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**({"STRONGLY_TYPED": 3} if typed_flag else {}))

    def Builder(self, log: Any) -> Any:
        fake = self

        class Config:
            def __setattr__(self, name: str, value: Any) -> None:
                fake.told.append((name, value))

            def __getattr__(self, name: str) -> Any:
                def call(*args: Any) -> Any:
                    fake.told.append((name, *args))
                    if name == "create_timing_cache":
                        return SimpleNamespace(held=args[0], serialize=lambda: b"new cache")
                    if name == "set_timing_cache":
                        return fake.cache_fits or args[0].held == b""
                    return 0

                return call

        def build(network: Any, config: Any) -> bytes | None:
            for line in LISTING.partition("Layers:")[0].splitlines():
                log.log(log.Severity.INFO, line)
            log.log(log.Severity.VERBOSE, "Layers:" + LISTING.partition("Layers:")[2])
            if fake.engine is None:
                log.log(log.Severity.ERROR, "no kernel\nfor node att")
            return fake.engine

        made = SimpleNamespace(
            set_shape=lambda *shapes: fake.told.append(("set_shape", *shapes)),
            set_shape_input=lambda *values: fake.told.append(("set_shape_input", *values)),
        )
        return SimpleNamespace(
            create_network=lambda flags: fake.told.append(("create_network", flags)),
            create_builder_config=Config,
            create_optimization_profile=lambda: made,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return SimpleNamespace(parse=lambda model: self.told.append(("parse", model)) or True, num_errors=0)

    def Runtime(self, log: Any) -> Any:
        inspector = SimpleNamespace(get_engine_information=lambda form: {"JSON": INSPECTED}[form])
        engine = SimpleNamespace(
            create_engine_inspector=lambda: inspector, get_device_memory_size_for_profile_v2=lambda index: (70, 7)[index]
        )
        return SimpleNamespace(deserialize_cuda_engine=lambda data: engine if data == b"engine" else None)

    def of(self, name: str) -> list[Any]:
        """What was told under one name."""
        return [call[1:] if len(call) > 2 else call[1] for call in self.told if call[0] == name]


def run(trt: FakeTrt, flavor: Flavor, target: str, cache: Path | None = None) -> Any:
    return build_engine(b"model", "memory_attention", PROFILES, trt=trt, flavor=flavor, target=target, timing_cache=cache)


@pytest.mark.parametrize("flavor", Flavor)
def test_what_both_flavors_are_told(flavor: Flavor) -> None:
    trt = FakeTrt()
    built = run(trt, flavor, "portable")
    assert built.engine == b"engine" and built.seconds >= 0
    assert trt.of("parse") == [b"model"] and trt.of("clear_flag") == ["TF32"] and trt.of("profiling_verbosity") == ["DETAILED"]
    assert trt.of("set_flag") == (["REQUIRE_USER_ALLOCATION"] if flavor is Flavor.TENSORRT_RTX else [])
    assert trt.of("set_shape") == [(name, *shapes) for p in PROFILES for name, shapes in p.shapes.items()]
    assert len(trt.of("add_optimization_profile")) == 2


def test_rtx_targets() -> None:
    for target, capability in (("portable", []), ("8.9", [(Capability.SM89, 0)]), ("9.0", [(Capability.CURRENT, 0)])):
        trt = FakeTrt()
        run(trt, Flavor.TENSORRT_RTX, target)
        assert trt.of("set_compute_capability") == capability and trt.of("num_compute_capabilities") == [1] * len(capability)
        assert trt.of("hardware_compatibility_level") == [] and trt.of("create_network") == [0]


def test_rtx_listing_comes_from_the_log(tmp_path: Path) -> None:
    trt = FakeTrt()
    assert run(trt, Flavor.TENSORRT_RTX, "portable", tmp_path / "timing.cache").listing == LISTING
    assert trt.of("create_timing_cache") == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("typed_flag", "flags"), [(True, 8), (False, 0)])
def test_tensorrt_is_strongly_typed(typed_flag: bool, flags: int) -> None:
    trt = FakeTrt(typed_flag=typed_flag)
    run(trt, Flavor.TENSORRT, "8.9")
    assert trt.of("create_network") == [flags]
    assert trt.of("hardware_compatibility_level") == [] and trt.of("set_compute_capability") == []


def test_portable_tensorrt_engines_are_for_ampere_and_newer() -> None:
    trt = FakeTrt()
    run(trt, Flavor.TENSORRT, "portable")
    assert trt.of("hardware_compatibility_level") == ["AMPERE_PLUS"]


def test_tensorrt_listing_comes_from_the_inspector() -> None:
    listing = parse_listing(run(FakeTrt(), Flavor.TENSORRT, "8.9").listing)
    assert listing.activation_bytes == (70, 7) and len(listing.fused()) == 1


@pytest.mark.parametrize(("stored", "fits", "tried"), [(None, True, [b""]), (b"old", True, [b"old"]), (b"old", False, [b"old", b""])])
def test_timing_cache_of_tensorrt(tmp_path: Path, stored: bytes | None, fits: bool, tried: list[bytes]) -> None:
    cache = tmp_path / "timing.cache"
    if stored is not None:
        cache.write_bytes(stored)
    trt = FakeTrt(cache_fits=fits)
    run(trt, Flavor.TENSORRT, "8.9", cache)
    assert trt.of("create_timing_cache") == tried and [used.held for used, _ in trt.of("set_timing_cache")] == tried
    assert cache.read_bytes() == b"new cache"


def test_errors_of_the_builder_are_quoted() -> None:
    with pytest.raises(BackendError, match=r"memory_attention to build for 8.9 with tensorrt-rtx 10.9, got no kernel for node att\."):
        run(FakeTrt(engine=None), Flavor.TENSORRT_RTX, "8.9")


def test_engine_that_its_own_gpu_does_not_load() -> None:
    with pytest.raises(BackendError, match=r"the engine of memory_attention to load on the GPU that built it .*no message"):
        run(FakeTrt(engine=b"broken"), Flavor.TENSORRT, "8.9")
