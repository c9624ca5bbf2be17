"""Which attentions have to fuse. Oracles: what TensorRT-RTX 1.7.1 was measured to do, and the counts of the official models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastsam2.engines.fusion import AttentionSize, attention_sizes, check_activation, check_fusion, expect, official, why_unfused
from fastsam2.engines.layers import parse_listing
from fastsam2.engines.profiles import Limits, profiles
from fastsam2.enums import GraphRole, Precision
from fastsam2.errors import BackendError, ExportError
from tests.engine_bundle import LISTING, SPEC, attention_model
from tests.specs import model_spec

ATTENTION = GraphRole.MEMORY_ATTENTION
TINY = model_spec(name="sam2.1_hiera_tiny", image_size=1024, hidden_dim=256, memory_dim=64)


@pytest.mark.parametrize(
    ("size", "fuses"),
    [
        ((1, 4096, 4096, 256, False), True),
        ((1, 1024, 1024, 128, False), False),
        ((1, 2048, 7232, 256, False), False),
        ((1, 2048, 8256, 256, True), True),
        ((1, 512, 28736, 256, True), False),
        ((2, 1024, 7232, 128, False), True),
        ((2, 1024, 7232, 128, True), False),
        ((3, 1024, 7232, 128, True), True),
        ((4, 64, 28736, 64, False), True),
        ((4, 64, 28736, 64, True), False),
        ((32, 71, 4096, 8, False), False),
        ((32, 71, 4096, 16, False), True),
        ((8, 4096, 4096, 264, False), False),
        ((8, 4096, 4096, 20, False), False),
    ],
)
def test_rule_says_what_was_measured(size: tuple[int, int, int, int, bool], fuses: bool) -> None:
    why = why_unfused(AttentionSize("a", *size))
    assert (why is None) == fuses, why


@pytest.mark.parametrize(("name", "encoder"), [("tiny", 12), ("small", 16), ("base_plus", 24), ("large", 48)])
@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
def test_official_models(version: str, name: str, encoder: int) -> None:
    spec = model_spec(name=f"{version}_hiera_{name}", image_size=1024)
    listed = official(spec)
    assert listed is not None
    counts = {r: listed[r.value] for r in (GraphRole.IMAGE_ENCODER, ATTENTION, GraphRole.MASK_DECODER, GraphRole.MASK_PROMPT)}
    assert list(counts.values()) == [encoder, 8, 7, 7]
    assert expect(attention_model(), spec, ATTENTION, Precision.FP16, None).fused == 8
    assert official(model_spec(name=spec.name, image_size=512)) is None


def test_sizes_come_from_the_graph() -> None:
    (profile,) = profiles(SPEC, ATTENTION, Limits(max_objects=3))
    assert attention_sizes(attention_model(), profile.sizes) == [AttentionSize("node_mixed", 3, 1024, 7 * 1024 + 4 * 16, 64, True)]


@pytest.mark.parametrize(("objects", "fused"), [(2, 0), (3, 1)])
def test_expectation_follows_the_profile(objects: int, fused: int) -> None:
    (profile,) = profiles(SPEC, ATTENTION, Limits(max_objects=objects))
    found = expect(attention_model(), SPEC, ATTENTION, Precision.BF16, profile)
    assert (found.fused, found.attentions) == (fused, 1)
    assert found.unfused == (() if fused else (("node_mixed", "2 x 1024 x 7232 scores are fewer than 16777216"),))


def test_float32_is_not_asked_to_fuse() -> None:
    assert expect(attention_model(), TINY, ATTENTION, Precision.FP32, None).fused == 0


@pytest.mark.parametrize("change", ["no shape", "unknown symbol", "call", "three dimensions"])
def test_a_graph_that_does_not_tell_sizes(change: str) -> None:
    model = attention_model()
    (info,) = (v for v in model.graph.value_info if v.name == "k_4")
    if change == "no shape":
        model.graph.value_info.remove(info)
    elif change == "three dimensions":
        (query,) = (v for v in model.graph.value_info if v.name == "q_4")
        del query.type.tensor_type.shape.dim[3]
    else:
        info.type.tensor_type.shape.dim[2].dim_param = "s80" if change == "unknown symbol" else "max(M, P)"
    (profile,) = profiles(SPEC, ATTENTION, Limits())
    with pytest.raises(ExportError, match="expected the sizes of Attention node_mixed"):
        expect(model, SPEC, ATTENTION, Precision.FP16, profile)


def test_too_few_fused_attentions() -> None:
    listing = parse_listing(LISTING)
    (profile,) = profiles(SPEC, ATTENTION, Limits())
    enough = expect(attention_model(), SPEC, ATTENTION, Precision.FP16, profile)
    check_fusion(listing, enough, ATTENTION, Precision.FP16)
    with pytest.raises(
        BackendError, match=r"expected 2 of 4 attentions .* in fp16, got 1; not fused: .*node_scaled_dot_product_attention_3"
    ) as caught:
        check_fusion(listing, replace(enough, fused=2, attentions=4), ATTENTION, Precision.FP16)
    assert "node_scaled_dot_product_attention_2" not in str(caught.value)


@pytest.mark.parametrize(("limits", "allowed_mb"), [(Limits(), 1200), (Limits(max_objects=1), 300), (Limits(max_prompt_frames=8), 2400)])
def test_activation_limit_grows_with_objects_and_frames(limits: Limits, allowed_mb: int) -> None:
    (profile,) = profiles(TINY, ATTENTION, limits)
    check_activation(allowed_mb * 10**6, TINY, ATTENTION, Precision.FP16, profile)
    with pytest.raises(BackendError, match=f"expected at most {allowed_mb} MB of activations"):
        check_activation(allowed_mb * 10**6 + 1, TINY, ATTENTION, Precision.FP16, profile)
    check_activation(10**12, TINY, ATTENTION, Precision.FP32, profile)
    check_activation(10**12, SPEC, ATTENTION, Precision.FP16, profile)
    check_activation(10**12, TINY, GraphRole.MASK_DECODER, Precision.FP16, profile)
