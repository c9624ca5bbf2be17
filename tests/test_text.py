"""fastsam2.runtime.text: descriptions -> ids -> embeddings. Oracle of the ids: the CLIP tokenizer of transformers."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors

from fastsam2.errors import BackendError, BundleError, PromptError
from fastsam2.runtime import text as runtime_text
from fastsam2.runtime.text import TextEncoder
from tests.tiny_clip import LONG, TEXTS, TextBackend, make_tokenizer, oracle_ids, save_tokenizer


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    return TextEncoder(TextBackend(), save_tokenizer(tmp_path, make_tokenizer()), 8)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_ids_are_those_of_transformers(tmp_path: Path, pad: str) -> None:
    encoder = TextEncoder(TextBackend(), save_tokenizer(tmp_path, make_tokenizer(pad)), 8)
    tokenizer = make_tokenizer(pad)
    np.testing.assert_array_equal(encoder.token_ids(TEXTS), oracle_ids(tokenizer, TEXTS).numpy())
    with pytest.warns(UserWarning):
        np.testing.assert_array_equal(encoder.token_ids([LONG]), oracle_ids(tokenizer, [LONG]).numpy())
    assert len({encoder.token_ids([text]).tobytes() for text in TEXTS}) == len(TEXTS)
    assert encoder.token_ids(["red star"])[0, -1] == tokenizer.convert_tokens_to_ids(pad)


def test_a_tokenizer_without_padding_pads_with_its_end_token_and_its_own_truncation_is_ignored(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("!")
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = TextEncoder(TextBackend(), tmp_path / "tokenizer.json", 8).token_ids(["red star star"])
    np.testing.assert_array_equal(ids, oracle_ids(make_tokenizer(), ["red star star"]).numpy())


def test_a_long_text_loses_its_end_with_one_warning(encoder: TextEncoder) -> None:
    with pytest.warns(UserWarning, match="92 tokens.*last 15") as caught:
        encoder.encode([LONG, LONG])
    assert len(caught) == 1
    assert caught[0].filename == __file__, "the warning points at the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode([LONG])
        encoder.encode([" ".join(["star"] * 75)])  # exactly fits


def test_texts_are_run_once_and_rows_follow_the_order_asked_for(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = encoder.backend
    assert isinstance(backend, TextBackend)
    alone = {text: encoder.encode([text])[0].copy() for text in ("red", "star")}
    assert backend.runs == [1, 1]
    both = encoder.encode(["star", "red", "star"])
    assert backend.runs == [1, 1]
    np.testing.assert_array_equal(both, [alone["star"], alone["red"], alone["star"]])
    assert both.dtype == np.float32
    both[:] = 0  # the caller's own
    np.testing.assert_array_equal(encoder.encode(["red"])[0], alone["red"])
    assert encoder.encode([]).shape == (0, 8)
    monkeypatch.setattr(runtime_text, "_CACHED_TEXTS", 2)
    encoder.encode(["a", "b", "red"])
    encoder.encode(["red", "b"])
    assert backend.runs == [1, 1, 2]
    encoder.encode(["star"])
    assert backend.runs == [1, 1, 2, 1], "star was forgotten when only two were kept"


def test_large_vocabularies_run_in_parts(encoder: TextEncoder) -> None:
    encoder.encode([f"thing {i}" for i in range(130)])
    assert isinstance(encoder.backend, TextBackend)
    assert encoder.backend.runs == [64, 64, 2]


@pytest.mark.parametrize("texts", [[""], ["red", " \t\n"], "red", [None]])
def test_what_is_no_description_is_refused(encoder: TextEncoder, texts: Any) -> None:
    with pytest.raises(PromptError, match=r"expected .*description"):
        encoder.encode(texts)


def test_a_graph_of_another_width_is_refused(tmp_path: Path) -> None:
    encoder = TextEncoder(TextBackend(width=9), save_tokenizer(tmp_path, make_tokenizer()), 8)
    with pytest.raises(BackendError, match=r"\(1, 8\).*\(1, 9\)"):
        encoder.encode(["red"])


def test_the_package_tokenizers_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_tokenizer(tmp_path, make_tokenizer())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendError, match=r"pip install fastsam2\[text\]"):
        TextEncoder(TextBackend(), file, 8)


def test_a_damaged_or_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    file = save_tokenizer(tmp_path, make_tokenizer())
    file.write_text(file.read_text()[:1000])
    with pytest.raises(BundleError, match="tokenizer"):
        TextEncoder(TextBackend(), file, 8)
    backend = make_tokenizer().backend_tokenizer
    backend.post_processor = processors.ByteLevel()
    backend.save(str(file))
    with pytest.raises(BundleError, match="begin and end"):
        TextEncoder(TextBackend(), file, 8)
