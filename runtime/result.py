"""What a tracker answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastsam2.enums import Alarm
from fastsam2.errors import BackendError, PromptError, expected
from fastsam2.kernels.reference import top_k

if TYPE_CHECKING:
    from supervision import Detections


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What the memory bank of the tracked objects holds after a step.

    Attributes:
        rows: spatial memory rows held, per object.
        share: rows / (num_maskmem · N), per object; pointers not counted. More than 1 is possible with several prompt frames.
        bytes: bytes held by rows, positions and pointers, per object.
    """

    rows: tuple[int, ...] = ()
    share: tuple[float, ...] = ()
    bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenReport:
    """Which memory rows of a frame are kept once it is no longer the newest, and why.

    Attributes:
        frame: the frame they belong to, the one before the result's: rows are judged when they are written, one step later.
        ids: objects; row i of every array is object ids[i].
        keep: K, rows kept of each object.
        alarms: why the guard raised K, per object; None for an object that gave no reason.
        scores: float32 [B, N]; only the order matters, but for the router, whose scores sum to 1.
        uncertainty: float32 [B, N], 0..1; None unless the router judged, as the next two.
        relevance: float32 [B, N], cosine to the object's description, 0 without one.
        context: float32 [N], how much a token differs from its neighbours; the same for all objects.
    """

    frame: int
    ids: tuple[int, ...]
    keep: int
    alarms: tuple[Alarm | None, ...]
    scores: npt.NDArray[np.float32]
    uncertainty: npt.NDArray[np.float32] | None = None
    relevance: npt.NDArray[np.float32] | None = None
    context: npt.NDArray[np.float32] | None = None

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """The rows kept, bool [B, N]: the K largest scores, worked out when asked for."""
        kept = np.zeros(self.scores.shape, np.bool_)
        np.put_along_axis(kept, top_k(self.scores, self.keep), True, axis=1)
        return kept


@dataclass(frozen=True, slots=True)
class Result:
    """Masks of one frame. Arrays belong to the caller and stay valid.

    Attributes:
        frame: index of the frame since the tracker's start or reset, 0-based.
        ids: object ids, in the order they were added; row i of every array is object ids[i].
        masks: bool [B, H, W] at video resolution; objects may overlap.
        visible: bool [B]; object score > 0.
        scores: float32 [B]; object score logits.
        ious: float32 [B]; predicted IoU of the mask, 0..1 (1 for mask prompts).
        low_res_logits: float32 [B, L, L]; -1024 where an object is not visible.
        memory: what the bank holds.
        tokens: which rows of the frame before are kept and why; None without a policy that scores rows, and on the first frame.
    """

    frame: int
    ids: tuple[int, ...]
    masks: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    ious: npt.NDArray[np.float32]
    low_res_logits: npt.NDArray[np.float32]
    memory: MemoryReport = field(default_factory=MemoryReport)
    tokens: TokenReport | None = None

    def __getitem__(self, object_id: int) -> npt.NDArray[np.bool_]:
        """Mask of one object, bool [H, W].

        Raises:
            PromptError: if the id is not in this result.
        """
        if object_id not in self.ids:
            raise PromptError(expected(f"an id of {list(self.ids)}", object_id, "Ask for an object that is being tracked"))
        mask: npt.NDArray[np.bool_] = self.masks[self.ids.index(object_id)]
        return mask

    def to_supervision(self) -> Detections:
        """This frame's visible objects as `supervision.Detections`, one for each mask that has a pixel.

        Returns:
            Detections with `xyxy` float32 [D, 4] (the box around the mask: outer edges of its outermost pixels, so that areas come out
            right), `mask` bool [D, H, W], `confidence` float32 [D] (`ious`), `class_id` and `tracker_id` int [D] (object ids). Objects
            that are not visible are left out; without any, D is 0.

        Raises:
            BackendError: if the package supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise BackendError(expected("the package supervision", error, "Install it with `pip install supervision`")) from error
        kept = np.flatnonzero(self.visible & self.masks.any(axis=(1, 2)))
        masks, ids = self.masks[kept], np.array(self.ids, np.int64)[kept]
        ends = []
        for axis in (1, 2):
            inside: npt.NDArray[np.bool_] = np.any(masks, axis=axis)  # columns [D, W], then rows [D, H]
            ends.append((inside.argmax(axis=1), inside.shape[1] - inside[:, ::-1].argmax(axis=1)))
        (left, right), (top, bottom) = ends
        xyxy = np.stack([left, top, right, bottom], axis=1).astype(np.float32)
        return Detections(xyxy=xyxy, mask=masks, confidence=self.ious[kept], class_id=ids, tracker_id=ids.copy())
