"""Descriptions made from the picture: what was prompted -> a few words for the text encoder.

image, mask -> crop round the mask -> a caption (`fastsam2.caption`), or the phrase of a vocabulary that fits it best:
crop -> square on grey -> I x I -> crop_encoder -> float32 [E] -> largest cosine with the embeddings of the phrases
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError, PromptError, expected
from fastsam2.runtime.backends.protocol import Backend, Float
from fastsam2.runtime.host_device import device_of
from fastsam2.runtime.preprocess import check_frame, frame_to_pixels
from fastsam2.runtime.text import TextEncoder
from fastsam2.vocabulary import DEFAULT_TEMPLATES, check_templates, check_vocabulary

GREY = 127  # beside crops that are not square
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
        PromptError: if the vocabulary or the templates are empty, a word is blank or there twice, or a template has no place for it.
        BackendError: if the text encoder cannot run.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        crop_encoder: CropEncoder,
        vocabulary: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> None:
        self.vocabulary, self.templates = check_vocabulary(vocabulary), check_templates(templates)
        self._encode_crop = crop_encoder
        texts = [template.replace("{}", word) for word in self.vocabulary for template in self.templates]
        means = text_encoder.encode(texts).reshape(len(self.vocabulary), len(self.templates), -1).mean(1)
        self._words = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)

    def describe(self, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> str:
        """See `Describer.describe`."""
        scores = self._words @ self._encode_crop(object_crop(image, mask))  # the crop's length does not change the order
        return self.vocabulary[int(scores.argmax())]


class ClipCropEncoder:
    """The image half of a bundle's CLIP, as a `CropEncoder`.

    Differs from the `CLIPImageProcessor` of huggingface/transformers where a crop is not square: that one scales the shorter side to I and
    cuts off what is left of the longer one; here the crop is put in the middle of a grey square, so that all of the object is seen in its
    own proportions. Both then scale with Pillow's bicubic filter; other filters that a checkpoint's config may name are not used.

    Args:
        backend: of a bundle that has a crop encoder.
        crop_size: I of that bundle (`ModelSpec.crop_size`), pixels.
        text_dim: E of that bundle (`ModelSpec.text_dim`).
    """

    def __init__(self, backend: Backend, crop_size: int, text_dim: int) -> None:
        self.backend, self.crop_size, self.text_dim = backend, crop_size, text_dim

    def __call__(self, crop: npt.NDArray[np.uint8]) -> Float:
        """Embed a picture.

        Args:
            crop: RGB uint8 [h, w, 3] with h, w >= 1; any strides.

        Returns:
            float32 [E] of unit length; the caller's own.

        Raises:
            PromptError: if it is no such picture.
            BackendError: if the graph cannot be executed, or answers with another width than E.
        """
        pixels = frame_to_pixels(square_on_grey(crop), self.crop_size)
        (out,) = device_of(self.backend).fetch(self.backend.run(GraphRole.CROP_ENCODER, {"crop": pixels})["crop_embedding"])
        if out.shape != (1, self.text_dim):
            wanted = (1, self.text_dim)
            raise BackendError(expected(f"crop_embedding of shape {wanted}", out.shape, "Give the text_dim and backend of one bundle"))
        return np.array(out[0], np.float32)


def square_on_grey(crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture in the middle of a square, grey where it is not.

    Args:
        crop: RGB uint8 [h, w, 3] with h, w >= 1; any strides.

    Returns:
        uint8 [s, s, 3], s the longer side. Where a pixel is left over it is below, or to the right.

    Raises:
        PromptError: if it is no such picture.
    """
    check_frame(crop)
    height, width = crop.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), GREY, np.uint8)
    square[(side - height) // 2 :, (side - width) // 2 :][:height, :width] = crop
    return square


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
