"""Which frames a step attends to. Oracle of the prompt-frame choice: `sam2.modeling.sam2_utils.select_closest_cond_frames`."""

import random

import pytest
from sam2.modeling.sam2_utils import select_closest_cond_frames

from fastsam2.runtime.selection import UNBOUNDED, closest_prompt_frames, select

SIZES = {"num_maskmem": 7, "max_pointers": 16}


@pytest.mark.parametrize("seed", range(40))
def test_prompt_frames_are_chosen_as_officially(seed: int) -> None:
    rng = random.Random(seed)
    frames = rng.sample(range(60), rng.randint(1, 9))
    frame, limit = rng.randrange(60), rng.choice([UNBOUNDED, 2, 3, 5])
    selected, _ = select_closest_cond_frames(frame, dict.fromkeys(frames), limit)
    assert closest_prompt_frames(frame, frames, limit) == list(selected)


def test_ages_go_by_frame_index_not_by_what_was_written_last() -> None:
    chosen = select(20, [0], [19, 17, 14, 13], **SIZES)
    assert chosen.rows == ((0, 6), (14, 5), (17, 2), (19, 0))


def test_pointers_reach_fifteen_frames_back_and_prompts_any_distance() -> None:
    chosen = select(100, [3], list(range(4, 100)), **SIZES)
    assert chosen.pointers == ((3, 97), *((100 - back, back) for back in range(1, 16)))


def test_unselected_prompt_frame_among_the_last_six_is_read_as_an_ordinary_frame() -> None:
    chosen = select(10, [1, 5, 8], [9], max_prompt_frames=2, **SIZES)
    assert chosen.rows == ((8, 6), (5, 6), (9, 0))
    chosen = select(10, [5, 7, 8], [9], max_prompt_frames=2, **SIZES)
    assert chosen.rows == ((8, 6), (7, 6), (5, 4), (9, 0))
    assert (5, 5) in chosen.pointers


def test_pointers_of_prompts_come_from_the_past_only() -> None:
    chosen = select(5, [0, 9], [4], **SIZES)
    assert [t for t, _ in chosen.rows] == [0, 9, 4]
    assert [t for t, _ in chosen.pointers] == [0, 4]


def test_reverse_mirrors_time() -> None:
    forward = select(10, [2], [9, 8, 5], num_frames=40, **SIZES)
    backward = select(29, [37], [30, 31, 34], num_frames=40, reverse=True, **SIZES)
    assert [(39 - t, age) for t, age in backward.rows] == list(forward.rows)
    assert [(39 - t, offset) for t, offset in backward.pointers] == list(forward.pointers)


def test_a_clip_shorter_than_the_pointers_lowers_their_number_and_their_divisor() -> None:
    assert select(20, [0], range(1, 20), **SIZES).pointer_span == 15
    assert select(20, [0], range(1, 20), num_frames=40, **SIZES).pointer_span == 15
    short = select(11, [0], range(1, 11), num_frames=12, **SIZES)
    assert short.pointer_span == 11
    assert [t for t, _ in short.pointers] == [0, *range(10, 0, -1)]
    assert select(3, [0], range(1, 3), num_frames=4, **SIZES).pointers == ((0, 3), (2, 1), (1, 2))
    assert select(0, [0], [], num_frames=1, **SIZES).pointer_span == 1
