"""What an object may be called when nobody says it: lists of phrases, and the sentences they are put into.

    vocabulary.txt: one phrase per line, UTF-8, blank lines ignored

`DEFAULT_VOCABULARY` ships with the package: everyday things that are seen in video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fastsam2.builtin import PACKAGE
from fastsam2.errors import PromptError, expected

DEFAULT_VOCABULARY = PACKAGE / "vocabulary.txt"
DEFAULT_TEMPLATES = ("a photo of a {}",)


def read_vocabulary(file: Path) -> tuple[str, ...]:
    """The phrases of a file, in its order, without blanks round them.

    Args:
        file: see above.

    Raises:
        PromptError: if the file cannot be read as UTF-8, holds no phrase, or holds one twice.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(expected(f"a vocabulary in {file}", error, "Name a text file with one phrase per line, in UTF-8")) from error
    return check_vocabulary([line.strip() for line in lines if line.strip()], str(file))


def check_vocabulary(phrases: Sequence[str], where: str = "the vocabulary") -> tuple[str, ...]:
    """The phrases as they came.

    Args:
        phrases: at least one; none blank, none twice.
        where: what an error calls them.

    Raises:
        PromptError: if they are anything else.
    """
    if isinstance(phrases, str) or not phrases:
        raise PromptError(expected(f"at least one phrase in {where}", repr(phrases), "List what may be in the picture, one to a line"))
    if blank := [phrase for phrase in phrases if not isinstance(phrase, str) or not phrase.strip()]:
        raise PromptError(expected(f"phrases that are not blank in {where}", repr(blank[0]), "Remove it"))
    if twice := [phrase for phrase, count in Counter(phrases).items() if count > 1]:
        raise PromptError(expected(f"each phrase once in {where}", f"{twice[0]!r} more than once", "Remove it"))
    return tuple(phrases)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates as they came.

    Args:
        templates: at least one sentence with one `{}`, where the phrase goes; `{}` itself is the phrase alone.

    Raises:
        PromptError: if they are anything else.
    """
    if isinstance(templates, str) or not templates or any(not isinstance(t, str) or t.count("{}") != 1 for t in templates):
        raise PromptError(expected("templates with one {} each", repr(templates), 'For example "a photo of a {}"'))
    return tuple(templates)
