"""Procedural clips and the training loop. The model here is nano at 64 px: a fraction of a second a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastsam2.training import nano
from fastsam2.training.clips import Batches, BatchShape, is_visible, make_prompts, step_of, tight_box
from fastsam2.training.evaluate import evaluate, first_mask_copied, nearest_colour, summary
from fastsam2.training.held_out import SETS, HeldOutClip, make_clip
from fastsam2.training.matching import install, matching_loss
from fastsam2.training.model import build_model, look_at
from fastsam2.training.rollout import frame_loss, reading_loss, roll, to_input
from fastsam2.training.scene import HARD, PLAIN, Scene
from fastsam2.training.shapes import SHAPES
from fastsam2.training.silhouettes import decode_rle, load_silhouettes

SMALL = BatchShape(size=64, frames=2, clips=2, objects=2)


def _encode_rle(mask: npt.NDArray[np.uint8]) -> str:
    """`rleToString` of cocoapi/common/maskApi.c."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    if flat[0]:
        runs = [0, *runs]
    text = ""
    for i, run in enumerate(runs):
        x, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            c, x = x & 0x1F, x >> 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr((c | 0x20 if more else c) + 48)
    return text


def test_scenes_are_deterministic_and_differ_by_seed() -> None:
    a, b, c = (Scene((5, seed), HARD, (96, 128)) for seed in (1, 1, 2))
    assert a.captions == b.captions
    for t in (0.0, 7.5, 400.0):
        for mine, same in zip(a.render(t), b.render(t), strict=True):
            np.testing.assert_array_equal(mine, same)
    assert (a.render(0)[0] != c.render(0)[0]).mean() > 0.5


def test_a_frame_does_not_depend_on_what_was_drawn_before() -> None:
    a, b = (Scene((5, 3), PLAIN, (96, 128)) for _ in range(2))
    for t in range(5):
        a.render(t)
    np.testing.assert_array_equal(a.render(9)[0], b.render(9)[0])


def test_ids_cover_what_is_painted() -> None:
    """Without noise, light or a moving camera, taking an actor away changes exactly the pixels that carry its id, and its soft rim."""
    level = PLAIN.__class__(targets=(2, 2), distractors=(0, 0), occluders=(0, 0), camera=0.0, clutter=(0, 0), noise=0.0)
    for seed in range(20):
        with_it, without = Scene((6, seed), level, (120, 160)), Scene((6, seed), level, (120, 160))
        top = int(with_it._depth[-1])
        without._depth = without._depth[:-1]
        _, ids = with_it.render(0)
        for scene in (with_it, without):
            scene._blur = (0.0, 0, 0.0)
        changed = (with_it.render(0)[0] != without.render(0)[0]).any(-1)
        inside = ids == top + 1
        if not is_visible(with_it, top, 0, ids):
            continue
        assert (changed & inside).sum() > 0.6 * inside.sum()
        assert (changed & ~inside).sum() < 0.5 * inside.sum()
        return
    pytest.fail("no scene of 20 shows its topmost actor")


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_closed_outlines_of_unit_size(name: str) -> None:
    outline = SHAPES[name](np.random.default_rng(0))
    points = np.concatenate(outline)
    assert 0.6 < np.abs(points).max() < 1.6
    assert all(p.dtype == np.float32 and p.ndim == 2 and len(p) >= 8 for p in outline)


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_round_trip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((37, 53)) > rng.uniform(0.1, 0.9)).astype(np.uint8)
    mask[5:20, 10:40] = seed % 2
    np.testing.assert_array_equal(decode_rle(_encode_rle(mask), (37, 53)), mask)


def test_silhouettes_are_centred_and_play_back_and_forth(tmp_path: Path) -> None:
    y, x = np.mgrid[:100, :120]
    frames = []
    for t in range(25):
        mask = np.zeros((100, 120), np.uint8)
        mask[(y - 45) ** 2 / 15**2 + (x - 40 - t) ** 2 / 20**2 < 1] = 1
        frames.append([{"size": [100, 120], "counts": _encode_rle(mask)}])
    path = tmp_path / "x_manual.json"
    path.write_text(json.dumps({"masklet": frames}))
    (silhouette,) = load_silhouettes(path)
    assert len(silhouette.outlines) == 25
    assert np.abs(np.concatenate([np.concatenate(o) for o in silhouette.outlines]).mean(0)).max() < 0.1
    np.testing.assert_array_equal(silhouette.at(3)[0], silhouette.at(3 + 48)[0])


def test_held_out_clips_repeat_show_every_target_and_have_their_own_seeds() -> None:
    clip, again = make_clip("hard", 0), make_clip("hard", 0)
    np.testing.assert_array_equal(clip.frames[::20], again.frames[::20])
    assert clip.seed[0] == SETS["hard"].seed != 0
    assert len({s.seed for s in SETS.values()} | {0}) == 4
    for i, box in zip(clip.ids, clip.boxes, strict=True):
        np.testing.assert_array_equal(tight_box(clip.truth[0] == i), box)
    assert len(clip.captions) == clip.truth.max()
    with pytest.raises(IndexError, match=r"0\.\.11"):
        make_clip("hard", 12)


def test_workers_that_take_batches_in_turn_make_runs_of_steps() -> None:
    steps = [step_of(position, 3, 8) for position in range(72)]
    assert sorted(steps) == list(range(72))
    assert steps[1:25:3] == list(range(8, 16)), "what the second worker takes first"
    assert [step_of(position, 1, 8) for position in range(20)] == list(range(20))


def test_batches_are_deterministic_and_differ_by_step_and_process() -> None:
    one, same, other = Batches(SMALL, seed=1), Batches(SMALL, seed=1), Batches(SMALL, seed=1, rank=1)
    np.testing.assert_array_equal(one[3].frames, same[3].frames)
    assert (one[3].frames != one[4].frames).any()
    assert (one[3].frames != other[3].frames).any()
    batch = one[0]
    assert batch.frames.shape == (2, 2, 3, 64, 64)
    followed, single = batch.objects
    assert followed.masks.shape == (2, 4, 64, 64) and single.masks.shape == (1, 4, 64, 64)
    for objects in batch.objects:
        assert objects.masks[0].any((-2, -1)).all(), "every object is visible when it is prompted"


def test_pieces_show_objects_at_the_size_they_have_in_the_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsam2.training.clips._CLOSE_UP", 0.0)  # what is larger than a piece is cut off
    whole, cut = BatchShape(192, 2, 4, 3), BatchShape(96, 2, 4, 3, drawn=192)
    batch, same = Batches(cut, seed=1)[2], Batches(cut, seed=1)[2]
    assert batch.frames.shape == (4, 2, 3, 96, 96)
    assert batch.objects[0].masks.shape == (2, 12, 96, 96)
    np.testing.assert_array_equal(batch.frames, same.frames)
    assert batch.objects[0].masks[0].any((-2, -1)).all(), "every object is visible when it is prompted"
    areas = [np.median([Batches(shape, seed=1)[step].objects[0].masks[0].sum((-2, -1)) for step in range(4)]) for shape in (whole, cut)]
    assert areas[1] == pytest.approx(areas[0], rel=0.4), "a quarter if scenes were shrunk instead of cut"


def test_prompts_lie_on_their_objects() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((2, 64, 64), np.bool_)
    truth[0, 10:30, 5:25] = True
    truth[1, 40:60, 30:64] = True
    kinds = set()
    for _ in range(60):
        prompts = make_prompts(truth, rng, masks=True)
        if prompts.masks is not None:
            kinds.add("mask")
            np.testing.assert_array_equal(prompts.masks[:, 0] > 0, truth)
            continue
        assert prompts.points is not None and prompts.labels is not None
        for mask, points, labels in zip(truth, prompts.points, prompts.labels, strict=True):
            if labels[0] == 2:
                kinds.add("box")
                assert np.abs(points.ravel() - tight_box(mask)).max() < 8
                continue
            kinds.add("points")
            for (x, y), label in zip(points, labels, strict=True):
                assert mask[int(y), int(x)] == bool(label)
    assert kinds == {"mask", "box", "points"}


def test_training_learns_a_single_batch() -> None:
    torch.manual_seed(0)
    model = build_model(64)
    batch = Batches(SMALL, seed=2)[0]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(10):
        loss = roll(model, batch, device=torch.device("cpu"), teach_presence=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Embeddings of prompts that this batch does not have, and the stand-ins for an object that is never absent.
    assert all(n.startswith(("sam_prompt_encoder", "no_", "mask_downsample", "image_encoder.neck.convs.0")) for n in unused), unused


def test_loss_is_least_for_the_truth() -> None:
    from fastsam2.training.model import Candidates

    target = torch.zeros(2, 16, 16)
    target[0, 4:9, 3:12] = 1
    present = torch.tensor([True, False])

    pixels = torch.stack([target, torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))], 1)

    def loss(logits: torch.Tensor, score: float, pixels: torch.Tensor = pixels) -> float:
        wide = logits[:, None].expand(-1, 4, -1, -1)
        iou = ((wide > 0) & (target[:, None] > 0.5)).sum((-2, -1)) / ((wide > 0) | (target[:, None] > 0.5)).sum((-2, -1)).clamp(min=1)
        return float(frame_loss(Candidates(wide, iou, torch.tensor([[score], [-score]]), pixels, pixels), target, present))

    truth = (target * 2 - 1) * 12
    best = loss(truth, 8.0)
    assert best < 0.08  # the rule on the embedding answers +-4, which leaves 0.07 of Dice and cross-entropy
    assert loss(truth, 8.0, pixels.flip(1)) == pytest.approx(best, rel=0.05), "no order of channels"
    assert loss(truth, 8.0, pixels[:, 1:]) > best + 0.5, "an embedding that does not tell the object from the rest"
    assert loss(-truth, 8.0) > 2
    assert loss(truth.roll(3, -1), 8.0) > 0.5
    assert loss(truth, -8.0) > 4


def test_a_piece_keeps_its_place_in_the_whole_frame() -> None:
    """The oracle is the same model on the whole frame: what depends on places and neighbours alone is the same there."""
    torch.manual_seed(0)
    model = build_model(512)
    frame = torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8)
    part = np.s_[..., 128:384, 256:512]

    def look(frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            seen = model.forward_image(to_input(frame))
            prompts = model.sam_prompt_encoder
            points = torch.tensor([[[300.0, 200.0]]]) - (torch.tensor([256.0, 128.0]) if frame.shape[-1] == 256 else 0)
            clicks, none = prompts(points=(points, torch.ones(1, 1)), boxes=None, masks=None)
            memory = model.memory_encoder.position_encoding(torch.zeros(2, 64, frame.shape[-1] // 16, frame.shape[-1] // 16))
        return seen["backbone_fpn"][0], seen["vision_pos_enc"][2], prompts.get_dense_pe(), memory, clicks, none

    whole = look(frame)
    look_at(model, 256, 128, 256)
    piece = look(frame[part])
    for name, (of_piece, of_whole) in enumerate(zip(piece, whole, strict=True)):
        step = 512 // of_whole.shape[-1]
        there = of_whole[..., 128 // step : 384 // step, 256 // step : 512 // step] if of_whole.ndim == 4 else of_whole
        inner = slice(8, -8) if name == 0 else slice(None)  # windows at the edge of the piece see padding
        torch.testing.assert_close(of_piece[..., inner, inner], there[..., inner, inner], rtol=0, atol=1e-6, msg=str(name))
    look_at(model, 512)
    for again, first in zip(look(frame), whole, strict=True):
        torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_pieces_go_some_of_the_way_with_their_objects() -> None:
    mask = np.zeros((5, 60, 60), np.bool_)
    for t in range(4):  # hidden on the last frame
        mask[t, 10:20, 10 * t : 10 * t + 10] = True
    ways = np.stack([Batches._drift(mask, np.random.default_rng(seed)) for seed in range(40)])
    assert (ways[:, 0] == 0).all() and (ways[..., 0] == 0).all()
    assert 0 <= ways[:, -1, 1].min() < 6 and 24 < ways[:, -1, 1].max() <= 30


def test_reading_asks_for_a_rule_that_all_objects_share() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(3, 32, 32)
    for i in range(3):
        target[i, 8 * i : 8 * i + 12, 4:20] = 1
    coarse = torch.nn.functional.avg_pool2d(target, 4)
    noise = torch.randn(3, 5, 8, 8, generator=generator)
    shared, own = noise.clone(), noise.clone()
    shared[:, 2] += 20 * coarse
    for i, way in enumerate((20, -20, 0)):
        own[i, 2] += way * coarse[i]  # found each by a rule of its own, but by none together
    losses = [float(reading_loss(e, target)) for e in (shared, own, noise)]
    assert losses[0] < 0.5 * losses[1] and losses[1] < losses[2]
    assert float(reading_loss(noise[:0], target[:0])) == 0


def test_memory_begun_as_a_matcher_finds_the_mask_again() -> None:
    """Random image features of a frame and of the same things elsewhere: what is read there says where the object is now."""
    torch.manual_seed(0)
    model = build_model(256)
    n, tokens, width = 6, 16, model.hidden_dim
    features = torch.randn(n, width, tokens, tokens)
    masks = torch.zeros(n, 1, 256, 256)
    for i in range(n):
        masks[i, :, 64 : 64 + 16 * (2 + i), 48 : 48 + 16 * (3 + i)] = 1
    install(model, features, masks)
    moved = torch.roll(features, (2, 3), (2, 3))
    truth = torch.nn.functional.avg_pool2d(torch.roll(masks, (32, 48), (2, 3)), 16).flatten(2).permute(2, 0, 1)  # [tokens, n, 1]
    with torch.no_grad():
        memory, where = model._encode_new_memory(
            [features.flatten(2).permute(2, 0, 1)], [(tokens, tokens)], masks * 20 - 10, torch.ones(n, 1), True
        )
        positions = model.image_encoder.neck.position_encoding(features).flatten(2).permute(2, 0, 1)
        memory, where = (x.flatten(2).permute(2, 0, 1) for x in (memory, where[0]))
        now = moved.flatten(2).permute(2, 0, 1)

        def error(masked: torch.Tensor) -> float:
            """Of the best linear rule for what is read, as a share of the variance."""
            read = model.memory_attention(curr=[now], curr_pos=[positions], memory=masked, memory_pos=where)
            x = torch.cat([read, torch.ones_like(read[..., :1])], -1).flatten(0, 1)
            y = truth.flatten(0, 1)
            rule = torch.linalg.lstsq(x, y, driver="gelsd").solution  # normed channels sum to nothing: of deficient rank
            return float((x @ rule - y).var() / y.var())

        assert error(memory) < 0.05
        assert error(memory[:, torch.arange(n).roll(1)]) > 0.5, "the memory of another object"


def test_matching_asks_for_features_that_tell_things_apart() -> None:
    torch.manual_seed(0)
    model = build_model(128)
    ids = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
    for t in range(3):
        ids[:, t, 16 * t : 16 * t + 48, 32:64] = 1
        ids[:, t, 64:112, 16 * t : 16 * t + 48] = 7
    ids[0, 2] = 0  # gone: nothing can be said of it on that frame
    kinds = torch.nn.functional.one_hot(ids[..., ::16, ::16].long(), 8).float().flatten(0, 1).flatten(1, 2)  # [6, tokens, 8]
    looks = torch.randn(8, model.hidden_dim)
    features = (3 * kinds @ looks + torch.randn(6, 64, model.hidden_dim)).transpose(0, 1)
    noise = torch.randn_like(features)
    masks = (ids.flatten(0, 1)[:, None] == 1).float()
    positions = torch.zeros_like(features)
    losses = []
    for x in (features, noise):
        install(model, x.permute(1, 2, 0).unflatten(2, (8, 8)), masks)
        losses.append(float(matching_loss(model, x, positions, ids).detach()))
    assert losses[0] < 0.3 * losses[1], losses
    renamed = torch.where(ids == 7, 9, ids)
    assert float(matching_loss(model, features, positions, renamed).detach()) == pytest.approx(
        float(matching_loss(model, features, positions, ids).detach())
    )


@pytest.mark.parametrize("follow", [True, False])
def test_frames_have_objects_of_their_own(follow: bool) -> None:
    batch = Batches(BatchShape(96, 3, 4, 2, pace=4, drawn=192, follow=follow), seed=1)[1]
    assert len(batch.objects) == 1 + follow
    single = batch.objects[-1]
    assert single.masks.shape == (1, 4 * (3 - follow) * 2, 96, 96)
    assert single.masks.any((-2, -1)).all(), "every object is visible when it is prompted"
    assert {1, 2} <= set(single.start.tolist()) <= {0, 1, 2}
    for objects in batch.objects:
        for t, masks in enumerate(objects.masks):
            for mask, clip, start in zip(masks, objects.clip, objects.start, strict=True):
                assert len(np.unique(batch.ids[clip, start + t][mask])) <= 1


PLAN = (
    nano.Stage(BatchShape(64, 1, 1, 1), 2, (0.0, 1e-3), teach_presence=True),
    nano.Stage(BatchShape(128, 2, 1, 1), 2, (1e-3, 0.0)),
)


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(folder: Path) -> nano.Trainer:
        folder.mkdir(exist_ok=True)
        return nano.Trainer(PLAN, folder, seed=3, device=torch.device("cpu"))

    whole = trainer(tmp_path / "whole").run().state_dict()

    steps = 0

    class Interrupt(Exception):
        pass

    def stop_in_second_stage(self: nano.Trainer, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Interrupt
        return original(self, *args)

    original = nano.Trainer._step
    monkeypatch.setattr(nano, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(nano.Trainer, "_step", stop_in_second_stage)
    with pytest.raises(Interrupt):
        trainer(tmp_path / "parts").run()
    again = trainer(tmp_path / "parts")
    assert (again.progress.stage, again.progress.step) == (1, 1)
    parts = again.run().state_dict()
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key


def test_the_average_lets_go_of_what_was_before_it_started_again() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = nano.Average(model)

    def update(value: float, times: int) -> float:
        torch.nn.init.constant_(model.weight, value)
        for _ in range(times):
            average.update(model)
        return float(average.values["weight"])

    update(1.0, 400)
    assert update(2.0, 20) < 1.5
    average.start_again()
    assert update(2.0, 20) > 1.999


def test_rules_that_know_nothing_score_as_they_should() -> None:
    """A thing that stands still is copied perfectly; a red thing on green that moves is found by its colour alone."""
    frames = np.zeros((6, 60, 80, 3), np.uint8)
    frames[...] = (20, 160, 30)
    truth = np.zeros((6, 60, 80), np.uint8)
    for t in range(6):
        truth[t, 5:15, 60:75] = 1
        truth[t, 30:50, 5 + 8 * t : 25 + 8 * t] = 2
    frames[truth == 1], frames[truth == 2] = (30, 40, 200), (210, 30, 30)
    clip = HeldOutClip("x", (0,), frames, truth, ["blue", "red"], np.zeros((2, 4), np.float32))
    copied, coloured = evaluate(first_mask_copied, [clip])["x"], evaluate(nearest_colour, [clip])["x"]
    assert copied.objects[0].j_and_f == 100
    assert copied.objects[1].j < 40
    assert coloured.j_and_f > 99
    overall = summary({"x": copied})
    assert overall["objects"] == 2
    assert overall["j"] == pytest.approx(np.mean([o.j for o in copied.objects]))
