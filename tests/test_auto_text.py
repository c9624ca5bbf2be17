"""Descriptions made from the picture: zero-shot choice from a vocabulary, and captions by a tiny random BLIP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import processors

from fastsam2.caption import CaptionDescriber
from fastsam2.errors import BackendError, PromptError
from fastsam2.runtime.auto_text import VocabularyDescriber, object_crop
from fastsam2.runtime.text import TextEncoder
from tests.tiny_clip import SIZE, TextBackend, make_tokenizer, save_tokenizer


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    return TextEncoder(TextBackend(), save_tokenizer(tmp_path, make_tokenizer()), 8)


def picture() -> tuple[np.ndarray, np.ndarray]:
    """A red thing of 20 x 10 pixels on blue, and its mask."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[:] = (0, 0, 200)
    mask = np.zeros((60, 80), np.bool_)
    mask[30:50, 40:50] = True
    image[mask] = (200, 0, 0)
    return image, mask


def test_a_crop_is_the_box_and_a_tenth_more() -> None:
    """Oracle: coordinates by hand."""
    image, mask = picture()
    np.testing.assert_array_equal(object_crop(image, mask), image[28:52, 39:51])
    corner = np.zeros_like(mask)
    corner[:20, 70:] = True
    np.testing.assert_array_equal(object_crop(image, corner), image[:22, 69:])
    for wrong, match in ((np.zeros_like(mask), "at least one pixel"), (mask[:-1], "mask")):
        with pytest.raises(PromptError, match=match):
            object_crop(image, wrong)


def test_a_vocabulary_is_matched_by_the_mean_of_its_templates(encoder: TextEncoder) -> None:
    """Oracle: the cosine written out for each word; the crop's embedding is made so that a single template would choose otherwise."""
    words, templates = ["red", "star", "stars", "re"], ["a {}", "the {} there", "{}"]
    rows = np.stack([encoder.encode([t.replace("{}", w) for t in templates]) for w in words])  # [words, templates, E]
    means = rows.mean(1)
    rng = np.random.default_rng(0)
    seen: list[np.ndarray] = []
    by_mean, by_one = set(), 0
    for _ in range(30):
        embedding = rng.standard_normal(8).astype(np.float32)

        def encode_crop(crop: np.ndarray, embedding: np.ndarray = embedding) -> np.ndarray:
            seen.append(crop)
            return embedding

        answer = VocabularyDescriber(encoder, encode_crop, words, templates).describe(*picture())
        cosines = [float(m @ embedding / np.linalg.norm(m)) for m in means]
        assert answer == words[int(np.argmax(cosines))]
        by_mean.add(answer)
        by_one += answer != words[int((rows[:, 0] @ embedding).argmax())]
    assert len(by_mean) > 1
    assert by_one > 0
    assert seen[0].shape == (24, 12, 3)


@pytest.mark.parametrize(
    ("vocabulary", "templates"), [([], ["{}"]), ("red", ["{}"]), (["red", " "], ["{}"]), (["red"], []), (["red"], ["a photo"])]
)
def test_what_is_no_vocabulary_is_refused(encoder: TextEncoder, vocabulary: Any, templates: Any) -> None:
    with pytest.raises(PromptError, match="expected"):
        VocabularyDescriber(encoder, lambda _: np.zeros(8, np.float32), vocabulary, templates)


def make_captioner(folder: Path) -> tuple[Any, Any, Any]:
    """A tiny random BLIP with a vocabulary of three words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "red", "star", "disc"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[DEC]", **names)
    ids = {"vocab_size": len(words), "bos_token_id": 4, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    text = {**SIZE, **ids, "encoder_hidden_size": 32, "max_position_embeddings": 32, "projection_dim": 16}
    vision = {**SIZE, "image_size": 32, "patch_size": 16}
    torch.manual_seed(1)
    model = transformers.BlipForConditionalGeneration(transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.text_decoder.cls.predictions.decoder.bias.data[5:] += 1  # say words rather than nothing
    images = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, fast).save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return model, images, fast


def test_captions_are_those_of_the_captioner_for_the_crop(tmp_path: Path) -> None:
    """Oracle: `generate` of the BLIP itself on the crop."""
    model, images, tokenizer = make_captioner(tmp_path / "blip")
    describer = CaptionDescriber(str(tmp_path / "blip"), max_new_tokens=4)
    image, mask = picture()
    answers = set()
    for scene in (image, np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)):
        pixels = images(object_crop(scene, mask), return_tensors="pt").pixel_values
        with torch.no_grad():
            want = tokenizer.decode(model.generate(pixel_values=pixels, max_new_tokens=4)[0], skip_special_tokens=True)
        answers.add(describer.describe(scene, mask))
        assert describer.describe(scene, mask) == " ".join(want.split())
    assert all(set(a.split()) <= {"red", "star", "disc"} and a for a in answers)


def test_a_captioner_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="captioning model"):
        CaptionDescriber(str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "transformers.pipelines", None)
    with pytest.raises(BackendError, match="pip install torch transformers"):
        CaptionDescriber(str(tmp_path / "none"))
