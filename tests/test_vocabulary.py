"""Lists of phrases, and the one that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastsam2.errors import PromptError
from fastsam2.vocabulary import DEFAULT_TEMPLATES, DEFAULT_VOCABULARY, check_templates, check_vocabulary, read_vocabulary


def test_the_shipped_list_is_sorted_and_plain() -> None:
    phrases = read_vocabulary(DEFAULT_VOCABULARY)
    assert list(phrases) == sorted(set(phrases)) and 250 < len(phrases) < 500
    assert DEFAULT_VOCABULARY.read_text() == "".join(f"{phrase}\n" for phrase in phrases)
    assert all(phrase.isascii() and phrase == phrase.lower() and phrase.replace(" ", "").isalpha() for phrase in phrases)
    assert {"person", "dog", "car", "bicycle", "chair", "cup"} <= set(phrases)
    assert check_templates(DEFAULT_TEMPLATES) == ("a photo of a {}",)


def test_blanks_round_a_phrase_and_blank_lines_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("  zebra \r\n\n\tred car\nÜberseekiste", encoding="utf-8")
    assert read_vocabulary(file) == ("zebra", "red car", "Überseekiste")


@pytest.mark.parametrize(("content", "reason"), [(b"", "at least one phrase"), (b"a\nb\na", "'a' more than once"), (b"\xff\xfe", "UTF-8")])
def test_files_that_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    with pytest.raises(PromptError, match=reason) as caught:
        read_vocabulary(file)
    assert str(file) in str(caught.value)
    with pytest.raises(PromptError, match="a vocabulary in"):
        read_vocabulary(tmp_path / "none.txt")


@pytest.mark.parametrize("templates", [[], "{}", ["a photo"], ["{} {}"], [None]])
def test_templates_that_are_refused(templates: Any) -> None:
    with pytest.raises(PromptError, match=r"templates with one {} each"):
        check_templates(templates)


@pytest.mark.parametrize("phrases", [[], "red", ["red", " "], [None], ["red", "red"]])
def test_phrases_that_are_refused(phrases: Any) -> None:
    with pytest.raises(PromptError, match="expected"):
        check_vocabulary(phrases)
