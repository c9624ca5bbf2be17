"""Image mode: one picture, any number of prompts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsam2.errors import PromptError, expected
from fastsam2.runtime.preprocess import check_frame
from fastsam2.runtime.result import Result
from fastsam2.runtime.tracker import Tracker

IMAGE_OBJECT_ID = 1


class ImagePredictor:
    """Masks of single pictures: what a tracker answers to a first prompt, without memory.

    The official `SAM2ImagePredictor` resizes pictures with another filter and returns three masks; this one resizes as the video loader
    does and returns the mask the video predictor would start from.

    Args:
        tracker: a tracker of its own.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def set(self, frame: npt.NDArray[np.uint8]) -> ImagePredictor:
        """Take a picture, uint8 [H, W, 3] RGB of any size. Its features are computed at the first prediction and kept.

        Raises:
            PromptError: if it is not such an array; the picture set before stays.
        """
        check_frame(frame)
        self._tracker.reset()
        self._tracker.step(frame)
        return self

    def predict(
        self,
        *,
        box: npt.ArrayLike | None = None,
        points: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> Result:
        """Mask of one object, prompted as in `Tracker.add`; `result.masks[0]` is bool [H, W].

        Raises:
            PromptError: if no picture is set or the prompt is not legal.
        """
        if self._tracker.frame is None:
            raise PromptError(expected("a picture", "none", "Call set(frame) first"))
        try:
            return self._tracker.add(IMAGE_OBJECT_ID, box=box, points=points, labels=labels, mask=mask)
        finally:
            if IMAGE_OBJECT_ID in self._tracker.ids:
                self._tracker.remove(IMAGE_OBJECT_ID)
