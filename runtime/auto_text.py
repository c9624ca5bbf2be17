"""Descriptions made from the picture: what was prompted -> a few words for the text encoder.

image, mask -> crop round the mask -> the word that fits it best (`VocabularyDescriber`), or a caption (`fastsam2.caption`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastsam2.errors import PromptError, expected
from fastsam2.runtime.backends.protocol import Float
from fastsam2.runtime.text import TextEncoder

MARGIN = 0.1  # of the box's width and height, added on every side: a little of what is around helps to name a thing

CropEncoder = Callable[[npt.NDArray[np.uint8]], Float]
"""RGB uint8 [h, w, 3] of any size -> float32 [E], comparable with the text embeddings: the image half of the same CLIP."""


class Describer(Protocol):
    """Says in words what a mask covers."""

    def describe(self, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> str:
        """Describe one thing.

        Args:
            image: RGB uint8 [H, W, 3].
            mask: bool [H, W], where the thing is.

        Returns:
            A description that `TextEncoder.encode` accepts.

        Raises:
            PromptError: if the mask is empty or of another size than the image.
        """
        ...


class VocabularyDescriber:
    """Zero-shot choice from a list of words: the one whose embedding has the largest cosine with that of the crop.

    A word's embedding is the mean over the templates, as openai/CLIP @a1d0717 `notebooks/Prompt_Engineering_for_ImageNet.ipynb` does it.

    Args:
        text_encoder: of the bundle.
        crop_encoder: image half of the same CLIP.
        vocabulary: words or phrases to choose from; one of them is the answer.
        templates: sentences with one `{}` each, where the word goes.

    Raises:
        PromptError: if the vocabulary or the templates are empty, a word is blank, or a template has no place for it.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        crop_encoder: CropEncoder,
        vocabulary: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}",),
    ) -> None:
        if isinstance(vocabulary, str) or not vocabulary:
            raise PromptError(expected("a list of at least one word", repr(vocabulary), "List what may be in the picture"))
        if isinstance(templates, str) or not templates or any(t.count("{}") != 1 for t in templates):
            raise PromptError(expected("a list of templates with one {} each", repr(templates), 'For example ["a photo of a {}"]'))
        if blank := [word for word in vocabulary if not isinstance(word, str) or not word.strip()]:
            raise PromptError(expected("words that are not blank", repr(blank[0]), "Remove it from the vocabulary"))
        self.vocabulary, self._encode_crop = tuple(vocabulary), crop_encoder
        texts = [template.replace("{}", word) for word in self.vocabulary for template in templates]
        means = text_encoder.encode(texts).reshape(len(self.vocabulary), len(templates), -1).mean(1)
        self._words = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)

    def describe(self, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> str:
        """See `Describer.describe`."""
        scores = self._words @ self._encode_crop(object_crop(image, mask))  # the crop's length does not change the order
        return self.vocabulary[int(scores.argmax())]


def object_crop(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], *, margin: float = MARGIN) -> npt.NDArray[np.uint8]:
    """The picture round a mask.

    Args:
        image: RGB uint8 [H, W, 3].
        mask: bool [H, W] with at least one pixel set.
        margin: added on every side of the mask's box, as a share of its width and height; cut off at the picture's edge.

    Returns:
        uint8 [h, w, 3], a view of `image`.

    Raises:
        PromptError: if the mask is empty or of another size than the image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or mask.shape != image.shape[:2]:
        got = f"{image.shape} and {mask.shape}"
        raise PromptError(expected("an image [H, W, 3] and a mask [H, W]", got, "Give the mask at the image's size"))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise PromptError(expected("a mask with at least one pixel", "an empty one", "Describe the object by hand"))
    (y0, y1), (x0, x1) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    dy, dx = round(margin * (y1 - y0)), round(margin * (x1 - x0))
    return image[max(y0 - dy, 0) : y1 + dy, max(x0 - dx, 0) : x1 + dx]
