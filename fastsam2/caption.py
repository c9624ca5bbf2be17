"""Descriptions by a captioning model of transformers: crop round the mask -> a sentence.

Stands above the runtime, which never imports torch: it fills `fastsam2.runtime.auto_text.Describer` and needs the packages torch and
transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.errors import BackendError, PromptError, expected
from fastsam2.runtime.auto_text import object_crop

DEFAULT_MODEL = "Salesforce/blip-image-captioning-base"
_TASKS = (
    "image-to-text",
    "image-text-to-text",
)  # transformers 4 and 5: the second replaced the first, and asks for a text, which may be ""


class CaptionDescriber:
    """A BLIP-like captioner.

    Args:
        model_id: hub id or local folder.
        max_new_tokens: of a caption.

    Raises:
        BackendError: if transformers or torch is not installed, or the model cannot be loaded as a captioner.
    """

    def __init__(self, model_id: str = DEFAULT_MODEL, *, max_new_tokens: int = 20) -> None:
        self.model_id, self.max_new_tokens = model_id, max_new_tokens
        try:
            importlib.import_module("torch")
            pipelines = importlib.import_module("transformers.pipelines")
        except ImportError as error:
            todo = "Run `pip install torch transformers`, or describe the object by hand"
            raise BackendError(expected("the packages torch and transformers for captions", f"an import error ({error})", todo)) from error
        self._task = next(task for task in _TASKS if task in pipelines.SUPPORTED_TASKS)
        try:
            self._pipeline: Any = pipelines.pipeline(self._task, model=model_id)
        except Exception as error:  # the hub's client and transformers raise many unrelated families
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
            todo = f"Name a captioning model on the hub, such as {DEFAULT_MODEL}, or its folder"
            raise BackendError(expected(f"a captioning model in {model_id}", reason, todo)) from error

    def describe(self, image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> str:
        """See `Describer.describe`.

        Args:
            image: RGB uint8 [H, W, 3].
            mask: bool [H, W].

        Returns:
            One line.

        Raises:
            PromptError: if the mask is empty or of another size than the image, or the model has nothing to say.
        """
        crop = Image.fromarray(np.ascontiguousarray(object_crop(image, mask)))
        text = {"text": ""} if self._task == "image-text-to-text" else {}
        (answer,) = self._pipeline(images=crop, **text, max_new_tokens=self.max_new_tokens)
        caption = " ".join(str(answer["generated_text"]).split())
        if not caption:
            raise PromptError(expected(f"a caption from {self.model_id}", "an empty one", "Describe the object by hand"))
        return caption
