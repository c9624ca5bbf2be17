"""Seeded weights: repeatable, different by seed, for SAM 2.0 and 2.1 of any width. Oracle: the official modules' own initialisation."""

from __future__ import annotations

import torch

from fastsam2.export.random_weights import condition_weights, seeded

from .conftest import MICRO_CONFIG
from .official import official_predictor


def test_same_seed_same_weights_and_the_callers_random_state_survives() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = official_predictor(MICRO_CONFIG, 0).state_dict(), official_predictor(MICRO_CONFIG, 0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = official_predictor(MICRO_CONFIG, 1).state_dict()
    assert not torch.equal(first["maskmem_tpos_enc"], other["maskmem_tpos_enc"])
    assert not torch.equal(first["memory_attention.layers.0.linear1.weight"], other["memory_attention.layers.0.linear1.weight"])


def test_seed_zero_draws_these_weights() -> None:
    """Bundles are named after their seed, so a seed must keep its meaning; recorded with torch 2.13."""
    state = official_predictor(MICRO_CONFIG, 0).state_dict()
    torch.testing.assert_close(state["maskmem_tpos_enc"].flatten()[:3], torch.tensor([-1.5255959, -0.7502318, -0.6539809]))


def test_score_gain_and_bias_act_on_the_last_layer_of_the_score_head() -> None:
    plain = official_predictor(MICRO_CONFIG, 0, score_gain=1.0, score_bias=0.0).state_dict()
    changed = official_predictor(MICRO_CONFIG, 0, score_gain=30.0, score_bias=2.0).state_dict()
    weight, bias = (f"sam_mask_decoder.pred_obj_score_head.layers.2.{kind}" for kind in ("weight", "bias"))
    torch.testing.assert_close(changed[weight], plain[weight] * 30)
    torch.testing.assert_close(changed[bias], plain[bias] + 2)
    assert {name for name in plain if not torch.equal(plain[name], changed[name])} == {weight, bias}


def test_a_sam_2_0_model_has_no_pointer_offsets_to_scale() -> None:
    model = official_predictor("configs/sam2/sam2_hiera_t.yaml", 0, image_size=256)
    assert isinstance(model.obj_ptr_tpos_proj, torch.nn.Identity)
    assert float(model.get_parameter("maskmem_tpos_enc").detach().std()) > 0.9


def test_seeded_conditions_what_it_builds() -> None:
    model = official_predictor(MICRO_CONFIG, 3)
    twice = seeded(lambda: model, 3)
    assert twice is model
    assert not twice.training
    before = model.get_parameter("sam_mask_decoder.output_hypernetworks_mlps.0.layers.2.weight").clone()
    condition_weights(model, 3)
    torch.testing.assert_close(model.get_parameter("sam_mask_decoder.output_hypernetworks_mlps.0.layers.2.weight"), before * 30)
