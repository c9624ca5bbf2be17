"""Tiny CLIPs with random weights, as transformers makes them, and what they say: the oracle of the text tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from fastsam2.enums import GraphRole

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
MERGES = [("s", "t"), ("a", "r</w>"), ("st", "ar</w>"), ("r", "e"), ("re", "d</w>")]
E_DIM = 40
TEXTS = [
    "red star",
    "  The   RED star's\tstars, isn't it?  ",
    "Ünïcode ☃ façade 北京",
    "3 stars & 77 reds (v2.0)",
    "a",
    "<|endoftext|> in the middle",
]
LONG = " ".join(["star"] * 90)


def make_tokenizer(pad: str = "<|endoftext|>") -> Any:
    """All bytes, bytes that end a word, five merges, begin and end: the order of CLIP's own vocabulary."""
    alphabet = sorted(ByteLevel.alphabet())
    parts = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *(a + b for a, b in MERGES), "<|startoftext|>", "<|endoftext|>"]
    vocab: Any = {part: i for i, part in enumerate(parts)}
    merges: Any = MERGES
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def text_config(tokenizer: Any, *, legacy: bool = False, context: int = 77) -> dict[str, Any]:
    end = 2 if legacy else tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": end}
    return {**SIZE, **ids, "max_position_embeddings": context, "projection_dim": E_DIM}


def make_clip(tokenizer: Any, **options: Any) -> Any:
    """A whole CLIP. Weights are larger than at a usual start, so that every part of the model shows in the output."""
    torch.manual_seed(0)
    vision = {**SIZE, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text_config(tokenizer, **options), vision_config=vision, projection_dim=E_DIM)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.text_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save(folder: Path, model: Any, tokenizer: Any = None) -> str:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def oracle_ids(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    ids: torch.Tensor = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    return ids


def oracle_text(model: Any, ids: torch.Tensor) -> np.ndarray:
    """float32 [T, E] of unit length, from the public method of CLIPModel or the output of CLIPTextModelWithProjection."""
    with torch.no_grad():
        if isinstance(model, transformers.CLIPModel):
            text = model.get_text_features(input_ids=ids).pooler_output
        else:
            text = model(input_ids=ids).text_embeds
    return (text / text.norm(dim=-1, keepdim=True)).numpy()


class TextBackend:
    """Answers with a vector that only the ids decide, and counts."""

    name = "test"

    def __init__(self, width: int = 8) -> None:
        self.width = width
        self.runs: list[int] = []

    def run(self, role: GraphRole, inputs: Mapping[str, Any]) -> dict[str, Any]:
        assert role is GraphRole.TEXT_ENCODER
        ids = inputs["ids"]
        assert ids.dtype == np.int32
        assert ids.shape[1:] == (77,)
        assert ids.flags.c_contiguous
        self.runs.append(len(ids))
        rng = np.random.default_rng(0).standard_normal((77, self.width))
        out = ids @ rng
        return {"text": (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)}


def save_tokenizer(folder: Path, tokenizer: Any) -> Path:
    """As a bundle holds it."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.enable_padding(length=77, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
