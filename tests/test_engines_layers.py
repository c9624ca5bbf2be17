"""Reading a builder's layer listing. Oracle: parts of one by TensorRT-RTX 1.7.1; one attention of four is fused in each of two profiles."""

from __future__ import annotations

import json

import pytest

from fastsam2.engines.layers import listing_of, parse_listing
from fastsam2.errors import BundleError
from tests.engine_bundle import LISTING


def test_fused_attentions_of_each_profile() -> None:
    listing = parse_listing(LISTING)
    assert [layer.name for layer in listing.fused()] == ["_gemm_mha_v2_myl0_40"]
    assert [layer.name for layer in listing.fused(1)] == ["_gemm_mha_v2_myl1_32"]
    assert listing.fused(2) == ()
    assert listing.fused()[0].sources == ("node_scaled_dot_product_attention_2",)
    assert listing.activation_bytes == (18022400, 8683520)


def test_layers_without_a_tag_belong_to_the_profile_of_their_region() -> None:
    profiles = {layer.name: layer.profile for layer in parse_listing(LISTING).layers}
    assert len(profiles) == 19 and list(profiles.values()) == [0] * 10 + [1] * 9
    assert profiles["__myl_MaxrSubExpSumDiv_myl1_6"] == 1


def test_kinds_and_tactics() -> None:
    layers = {layer.name: layer for layer in parse_listing(LISTING).layers}
    assert layers["__mye14008_0_myl0_0"].kind == "shape_call" and layers["__mye14008_0_myl0_0"].tactic == ""
    assert layers["_gemm_mha_v2_myl0_40"].tactic.startswith("_gemm_mha_v2_0x")
    assert not layers["__fc54867_myl0_54"].fused_attention


def test_what_is_kept_of_a_log() -> None:
    memory, _, block = LISTING.partition("Layers:")
    noise = ["Parsing node: a_mha_node", "Total Activation Memory is estimated", "[graph] Layers: 12"]
    log = [noise[0], *memory.strip().splitlines(), *noise[1:], f"Layers:{block}", "Adding 1 engine(s) to plan file."]
    assert listing_of(log) == LISTING
    assert listing_of(noise) == "\n"


def test_json_of_the_inspector() -> None:
    layers = [
        {"Name": "conv_1", "LayerType": "CaskConvolution", "TacticName": "sm80_xmma", "Metadata": "[ONNX Layer: conv]"},
        {"Name": "_gemm_mha_v2_myl2_3", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_0x1", "Metadata": "[ONNX Layer: att]"},
        {"Name": "__myl_Move_myl2_4", "LayerType": "kgen"},
        {"Name": "conv_1 [profile 1]", "LayerType": "CaskConvolution"},
        {"Name": "gemm [profile 1]_myl3_2", "LayerType": "gemm"},
        {"Name": "_gemm_mha_v2_myl3_3", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_0x1"},
    ]
    text = "Total Activation Memory: 70 bytes\nTotal Activation Memory: 7 bytes\n" + json.dumps(
        {"Layers": layers, "Bindings": ["x"]}, indent=2
    )
    listing = parse_listing(text)
    assert [(layer.name, layer.profile) for layer in listing.layers if layer.fused_attention] == [
        ("_gemm_mha_v2_myl2_3", 0),
        ("_gemm_mha_v2_myl3_3", 1),
    ]
    assert listing.fused()[0].sources == ("att",) and listing.activation_bytes == (70, 7)
    assert [layer.profile for layer in listing.layers] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "text", ["", "Total Activation Memory: 7 bytes\n", "Layers:\n", '{"Layers": 3}', '{"Layers": [1]}', '{"Other": []}', "{"]
)
def test_no_listing(text: str) -> None:
    with pytest.raises(BundleError, match="expected a builder's layer listing"):
        parse_listing(text)
