"""Descriptions -> unit vectors: the bundle's tokenizer and its text_encoder graph.

    "red striped star" -> 77 ids: begin, words, end, padding -> text_encoder -> float32 [E]

The ids are those of transformers' CLIP tokenizer with padding="max_length", truncation=True, max_length=77. Needs the package
`tokenizers`, and nothing of transformers or torch.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.contracts import CLIP_CONTEXT
from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError, BundleError, PromptError, expected
from fastsam2.runtime.backends.protocol import Backend, Float
from fastsam2.runtime.host_device import device_of

_CACHED_TEXTS = 1024
_TEXTS_PER_RUN = 64  # bounds the memory of a run when a vocabulary of thousands is encoded


class TextEncoder:
    """Embeds descriptions. Safe to call from several threads.

    Args:
        backend: of a bundle that has a text encoder.
        tokenizer_file: `tokenizer.json` of that bundle. Of a padding section only the id is used, and truncation is ignored: lengths are
            decided here.
        text_dim: E of that bundle (`ModelSpec.text_dim`).

    Raises:
        BackendError: if the package tokenizers is not installed.
        BundleError: if the file is no tokenizer that puts a begin and an end token round a text.
    """

    def __init__(self, backend: Backend, tokenizer_file: Path, text_dim: int) -> None:
        self.backend, self.text_dim = backend, text_dim
        self._tokenizer, (self._end, self._padding) = _load_tokenizer(Path(tokenizer_file))
        self._known: OrderedDict[str, Float] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Float:
        """Embed texts; the last 1024 different ones are remembered.

        Args:
            texts: T descriptions, none of them blank. One of more than 75 tokens loses the rest, with a UserWarning when it is first
                met.

        Returns:
            float32 [T, E], rows of unit length; the caller's own.

        Raises:
            PromptError: if a text is blank or no string, or `texts` is itself a string.
            BackendError: if the graph cannot be executed, or answers with another width than E.
        """
        _check_texts(texts)
        with self._lock:
            found = {text: self._known[text] for text in texts if text in self._known}
            new = [text for text in dict.fromkeys(texts) if text not in found]
            for start in range(0, len(new), _TEXTS_PER_RUN):
                part = new[start : start + _TEXTS_PER_RUN]
                found.update(zip(part, self._run(self._ids(part)), strict=True))
            for text in texts:
                self._known[text] = found[text]
                self._known.move_to_end(text)
            while len(self._known) > _CACHED_TEXTS:
                self._known.popitem(last=False)
        return np.array([found[text] for text in texts], np.float32).reshape(-1, self.text_dim)

    def token_ids(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """The ids that `encode` gives to the graph.

        Args:
            texts: as in `encode`.

        Returns:
            int32 [T, 77]: begin, words, end, padding.

        Raises:
            PromptError: as in `encode`.
        """
        _check_texts(texts)
        return self._ids(texts)

    def _ids(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        ids = np.full((len(texts), CLIP_CONTEXT), self._padding, np.int32)
        for row, text, encoding in zip(ids, texts, self._tokenizer.encode_batch(list(texts)), strict=True):
            tokens: list[int] = encoding.ids
            dropped = len(tokens) - CLIP_CONTEXT
            if dropped > 0:
                warnings.warn(
                    f"{text[:40]!r}... has {len(tokens)} tokens with begin and end, {CLIP_CONTEXT} fit: the last {dropped} words or "
                    "parts of words are dropped",
                    UserWarning,
                    stacklevel=3,
                )
                tokens = [*tokens[: CLIP_CONTEXT - 1], self._end]
            row[: len(tokens)] = tokens
        return ids

    def _run(self, ids: npt.NDArray[np.int32]) -> Float:
        (out,) = device_of(self.backend).fetch(self.backend.run(GraphRole.TEXT_ENCODER, {"ids": ids})["text"])
        if out.shape != (len(ids), self.text_dim):
            wanted = (len(ids), self.text_dim)
            raise BackendError(expected(f"text of shape {wanted}", out.shape, "Give the text_dim and backend of one bundle"))
        return np.asarray(out, np.float32)


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise PromptError(expected("a list of descriptions", f"the string {texts!r}", "Put it into a list"))
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise PromptError(expected("descriptions of at least one word", repr(text), "Leave the description out if there is none"))


def _load_tokenizer(file: Path) -> tuple[Any, tuple[int, int]]:
    """The tokenizer with its own padding and truncation switched off; ids of the end token and of padding."""
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise BackendError(
            expected("the package tokenizers for descriptions", f"an import error ({error})", "Run `pip install fastsam2[text]`")
        ) from error
    again = "Add the text encoder again with `fastsam2 add-text`"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exceptions
        raise BundleError(expected(f"a tokenizer in {file}", error, again)) from error
    padding = tokenizer.padding
    tokenizer.no_padding()
    tokenizer.no_truncation()
    around: list[int] = tokenizer.encode("").ids
    if len(around) != 2:
        raise BundleError(expected(f"begin and end token round an empty text from {file}", f"{len(around)} tokens", again))
    return tokenizer, (around[1], around[1] if padding is None else int(padding["pad_id"]))
