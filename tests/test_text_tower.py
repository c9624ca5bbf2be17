"""Training of nano's own CLIP: its data, tokenizer, loss and saves. Steps are few and scenes small in number: seconds."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fastsam2.builtin import bundle_path
from fastsam2.bundle import read_manifest
from fastsam2.errors import BundleError
from fastsam2.export.text import load_clip_text
from fastsam2.training import nano, text_tower
from fastsam2.training.finish import carry_text
from fastsam2.training.held_out import SETS
from fastsam2.training.shapes import SHAPES
from fastsam2.training.text_tower import (
    VOCABULARY,
    CropSource,
    Trainer,
    accuracy,
    contrastive_loss,
    fitting,
    make_tokenizer,
    random_phrase,
    square_crop,
    words_of,
    write_checkpoint,
)
from fastsam2.training.textures import COLOURS, PATTERNS
from fastsam2.vocabulary import read_vocabulary
from tests.bare_nano import bare_nano


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(phrases=500)


def test_crops_are_deterministic_and_unseen_scenes_are_others() -> None:
    one, same, unseen = CropSource(2, seed=1), CropSource(2, seed=1), CropSource(2, seed=1, unseen=True)
    one[0]
    np.testing.assert_array_equal(one[3].pixels, same[3].pixels)
    assert one[3].phrases == same[3].phrases
    scenes = [source._make_scene(0, 0) for source in (one, unseen)]
    assert scenes[0].seed != scenes[1].seed
    assert not {scene.seed[0] for scene in scenes} & {s.seed for s in SETS.values()}


def test_words_are_those_of_the_caption() -> None:
    """Oracle: the caption itself, cut at its spaces."""
    crops = CropSource(6, seed=2)[0]
    assert len(crops.pixels) == len(crops.words) == len(crops.captions) == len(crops.phrases) > 6
    for words, caption in zip(crops.words, crops.captions, strict=True):
        assert words == set(caption.split()) - {"and"}


def test_phrases_say_nothing_that_is_not_true() -> None:
    """Oracle: every word of a phrase is one of what it stands for, a synonym of one, or says nothing."""
    rng = np.random.default_rng(0)
    words = frozenset({"gray", "red", "striped", "disc"})
    meaning = {w: k for k, alternatives in text_tower.SYNONYMS.items() for w in alternatives} | {w: w for w in words}
    phrases = {random_phrase(words, "red and gray striped disc", rng) for _ in range(400)}
    for text, said in phrases:
        assert said
        assert said <= words
        assert {meaning[w] for w in text.split() if w in meaning} == said
        assert set(text.split()) - meaning.keys() <= {"a", "the", "and", "picture", "of", *text_tower._ANYTHING}
    assert "red and gray striped disc" in {text for text, _ in phrases}
    assert any(text.split()[-1] in text_tower._ANYTHING for text, _ in phrases)
    assert {len(said) for _, said in phrases} == {1, 2, 3, 4}


def test_every_word_of_a_caption_is_known() -> None:
    named = {*COLOURS, *PATTERNS, *SHAPES, "figure"}
    assert set(text_tower.SYNONYMS) <= named
    assert not named & {w for alternatives in text_tower.SYNONYMS.values() for w in alternatives}
    scene = CropSource(1, seed=0)._make_scene(0, 0)
    assert all(words_of(actor) <= named for actor in scene.actors)


def test_crops_keep_proportions_and_hide_what_is_outside() -> None:
    image = np.full((60, 90, 3), 200, np.uint8)
    mask = np.zeros((60, 90), np.bool_)
    mask[20:30, 10:50] = True  # 4 : 1
    image[20:30, 10:30] = 10  # left half
    crop, masked, flipped = square_crop(image, mask), square_crop(image, mask, masked=True), square_crop(image, mask, flip=True)
    assert crop.shape == (64, 64, 3)
    grey = text_tower._GREY
    for picture in (crop, masked):
        assert (picture[:20] == grey).all()
        assert (picture[-20:] == grey).all()
        assert picture[32, 12, 0] == 10
        assert picture[32, 52, 0] == 200
    assert (masked[:, :3] == grey).all()
    assert (crop[32, :3] == 200).all()
    np.testing.assert_array_equal(flipped, crop[:, ::-1])


def test_loss_knows_which_texts_fit_other_crops_too() -> None:
    """Oracle: the softmax written out for three crops, of which the first two carry the same caption."""
    words = [frozenset({"red", "star"}), frozenset({"red", "star"}), frozenset({"blue", "star"})]
    phrases = [("", frozenset({"red", "star"})), ("", frozenset({"red"})), ("", frozenset({"star"}))]
    fits = fitting(text_tower.Crops(np.zeros((3, 64, 64, 3), np.uint8), words, ["", "", ""], phrases))
    assert fits.tolist() == [[True, True, True], [True, True, True], [False, False, True]]
    a = torch.arange(9.0).reshape(3, 3).sin()
    e = a.exp()
    crops = [0.0, 0.0, math.log(e[2].sum() / e[2, 2])]
    texts = [math.log((e[0, 0] + e[2, 0]) / e[0, 0]), math.log((e[1, 1] + e[2, 1]) / e[1, 1]), 0.0]
    assert float(contrastive_loss(a, fits)) == pytest.approx((sum(crops) + sum(texts)) / 6, abs=1e-6)


def test_any_text_can_be_spelled(tokenizer: Any) -> None:
    """No token is unknown: the end token, which stands for unknown ones, comes once, at the end; and captions are short."""
    for text in ("red and white striped star", "zebra", "Ünïcode ☃ 北京", "x y z ! 7"):
        ids = tokenizer(text).input_ids
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert ids.count(tokenizer.eos_token_id) == 1
    assert len(tokenizer("red and white striped star").input_ids) == 7
    assert tokenizer.eos_token_id == len(tokenizer) - 1


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setattr(text_tower, "make_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(text_tower, "_WARM_UP", 1)


@pytest.mark.usefixtures("short")
def test_training_learns_a_single_batch(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, steps=40, scenes=1)
    crops = trainer.source[0]
    losses = [trainer._step(crops) for _ in range(10)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.usefixtures("short")
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(name: str) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(tmp_path / name, steps=4, scenes=1, seed=3)

    whole = trainer("whole").run().state_dict()
    monkeypatch.setattr(text_tower, "_SAVE_SECONDS", -1.0)
    parts = trainer("parts")
    original = parts._step

    def stop_at_third(crops: Any) -> float:
        if parts.step == 2:
            raise KeyboardInterrupt
        return original(crops)

    monkeypatch.setattr(parts, "_step", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        parts.run()
    again = trainer("parts")
    assert again.step == 2
    for key, value in again.run().state_dict().items():
        assert torch.equal(value, whole[key]), key


@pytest.mark.usefixtures("short")
def test_what_is_written_is_a_clip_that_transformers_and_bundles_accept(tmp_path: Path, tokenizer: Any) -> None:
    """Oracle: the model in memory."""
    trainer = Trainer(tmp_path, steps=1, scenes=1)
    model = trainer.model.eval()
    write_checkpoint(model, tokenizer, tmp_path)
    loaded = transformers.CLIPModel.from_pretrained(tmp_path).float().eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read("red striped star, zebra").input_ids == tokenizer("red striped star, zebra").input_ids
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    phrases = read_vocabulary(tmp_path / VOCABULARY)
    assert len(phrases) == len(COLOURS) * len(SHAPES) and "red star" in phrases
    text = load_clip_text(str(tmp_path))
    assert text.model.text_projection.out_features == 512
    assert (text.end, text.padding) == (tokenizer.eos_token_id, tokenizer.eos_token_id)


def test_accuracy_counts_what_is_matched(tokenizer: Any) -> None:
    """Oracle: a model that reads the truth scores 1; one that says the same of everything scores 0, because ties do not count."""

    class Oracle:
        def __init__(self, right: bool) -> None:
            self.right, self.source, self.step = right, CropSource(5, seed=0, masked=0.0, unseen=True), 0

        def __call__(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> Any:
            captions = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
            found = self.source[self.step]
            self.step += text_tower._REUSE
            assert len(found.words) == len(pixel_values)
            logits = [[float(self.right and set(c.split()) - {"and"} == w) for c in captions] for w in found.words]
            return type("Output", (), {"logits_per_image": torch.tensor(logits)})

    assert accuracy(Oracle(True), tokenizer, masked=False, crops=30, scenes=5) == 1.0
    assert accuracy(Oracle(False), tokenizer, masked=False, crops=30, scenes=5) == 0.0


def test_text_is_carried_to_a_bundle_of_other_weights(tmp_path: Path) -> None:
    """What comes of it is the giver without what belongs to its weights."""
    giver = read_manifest(bundle_path("nano"))
    shutil.copytree(bare_nano(), tmp_path / "new")
    with pytest.raises(BundleError, match="a bundle with a text encoder"):
        carry_text(bare_nano(), tmp_path / "new")
    with pytest.raises(BundleError, match="a bundle with a text encoder"):
        nano.main(["--text", str(bare_nano()), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists(), "said before training"
    carry_text(bundle_path("nano"), tmp_path / "new")
    got = read_manifest(tmp_path / "new")
    assert giver.text is not None and giver.text.projection is not None
    assert (got.text, got.router) == (giver.text.model_copy(update={"projection": None}), None)
    assert (got.model, got.graphs) == (giver.model, tuple(g for g in giver.graphs if g.role.value != "router"))
