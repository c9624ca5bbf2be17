"""fastsam2.predictor_options."""

from __future__ import annotations

import pytest

from fastsam2.errors import PromptError
from fastsam2.predictor_options import PredictorOptions, read_options


def test_defaults_are_the_official_ones_without_the_cuda_extension() -> None:
    assert read_options([], {}, postprocessing=True) == PredictorOptions(
        fill_hole_area=0,
        non_overlap_masks=False,
        clear_non_cond_mem_around_input=False,
        add_all_frames_to_correct_as_cond=False,
        max_cond_frames_in_attn=-1,
        image_size=None,
    )


@pytest.mark.parametrize("prefix", ["++", "+", ""])
def test_overrides_are_read_as_hydra_does_and_keywords_win(prefix: str) -> None:
    overrides = [f"{prefix}model.fill_hole_area=8", f"{prefix}model.non_overlap_masks=True", f"{prefix}model.image_size=512"]
    options = read_options(overrides, {"fill_hole_area": 3, "max_cond_frames_in_attn": 4}, postprocessing=True)
    assert options == PredictorOptions(fill_hole_area=3, non_overlap_masks=True, image_size=512, max_cond_frames_in_attn=4)


def test_what_changes_nothing_is_accepted() -> None:
    overrides = [
        "++model.compile_image_encoder=True",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
        "++model.binarize_mask_from_pts_for_mem_enc=true",
    ]
    assert read_options(overrides, {}, postprocessing=True) == PredictorOptions()


@pytest.mark.parametrize(
    "override",
    [
        "++model.num_maskmem=4",
        "++model._target_=os.system",
        "++model.binarize_mask_from_pts_for_mem_enc=false",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.5",
        "++model.memory_attention.num_layers=2",
    ],
)
def test_overrides_that_cannot_be_honoured_are_refused(override: str) -> None:
    with pytest.raises(PromptError, match="write them into a config file of your own"):
        read_options([override], {}, postprocessing=True)


def test_postprocessing_options_are_refused_without_postprocessing() -> None:
    with pytest.raises(PromptError):
        read_options(["++model.binarize_mask_from_pts_for_mem_enc=true"], {}, postprocessing=False)


@pytest.mark.parametrize("override", ["fill_hole_area=8", "++trainer.epochs=3", "~model.image_size", "++model.fill_hole_area"])
def test_other_overrides_are_refused(override: str) -> None:
    with pytest.raises(PromptError, match=r"overrides of the form \+\+model\.NAME=VALUE"):
        read_options([override], {}, postprocessing=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fill_hole_area", -1),
        ("fill_hole_area", 2.5),
        ("fill_hole_area", True),
        ("non_overlap_masks", "maybe"),
        ("non_overlap_masks", 1),
        ("max_cond_frames_in_attn", 0),
        ("max_cond_frames_in_attn", -2),
        ("image_size", "big"),
        ("image_size", 0),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(PromptError, match=name):
        read_options([], {name: value}, postprocessing=True)


def test_unknown_keyword_is_refused() -> None:
    with pytest.raises(PromptError, match="'points_per_side=32'"):
        read_options([], {"points_per_side": 32}, postprocessing=True)
