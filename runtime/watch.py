"""Watching a run: the overlay in a window, on a stream, and boxes drawn in the window.

    (frame, Result) ─► draw_overlay ─► window ─► boxes, end
                                   └─► stream

A box drawn on the picture of one frame prompts a new object on the next frame. A stream that fails does not end a run that is also written
or shown: the failure is logged once and stands in run.json.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from fastsam2.errors import VideoError, expected
from fastsam2.runtime.prompt_args import TimedPrompt
from fastsam2.runtime.stream import OverlayStream
from fastsam2.runtime.video import Frame
from fastsam2.runtime.window import Window, WindowInput

HOLD_S = 0.03  # between looks at the mouse while a recorded source waits for its first box

_log = logging.getLogger("fastsam2")


class Watch:
    """The viewers of one run.

    Args:
        window: shows pictures and takes boxes; stays open afterwards.
        stream: closed by `close`.
        stream_alone: nothing else comes of the run, so a failed stream ends it.
        ids: that new objects may have; None for any.

    Attributes:
        closed: the user ended the run from the window.
    """

    def __init__(
        self, *, window: Window | None = None, stream: OverlayStream | None = None, stream_alone: bool = False, ids: range | None = None
    ) -> None:
        self.closed = False
        self._ids = ids
        self._window, self._stream, self._stream_alone = window, stream, stream_alone
        self._boxes: list[tuple[float, float, float, float]] = []
        self._stream_failed = False

    @property
    def wants_pictures(self) -> bool:
        """Somebody looks."""
        return self._window is not None or (self._stream is not None and not self._stream_failed)

    def hold(self, frame: Frame) -> None:
        """Shows a frame, uint8 [H, W, 3] RGB, until a box is drawn or the window is closed; returns at once without a window."""
        while self._window is not None and not self._boxes and not self.closed:
            self._window.show(frame)
            self._take(self._window.poll(HOLD_S))

    def show(self, picture: Frame, time: float | None = None) -> None:
        """Shows and sends a picture, uint8 [H, W, 3] RGB, which must not change afterwards, and takes what the user did.

        `time`: seconds after the first picture, where that is known.

        Raises:
            VideoError: if the stream failed and nothing else comes of the run.
            BackendError: if the window cannot be opened.
        """
        if self._stream is not None:
            self._stream.write(picture, time)
            self._check_stream(self._stream)
        if self._window is not None:
            self._window.show(picture)
            self._take(self._window.poll())

    def prompts(self, frame: int, used: Iterable[int]) -> list[TimedPrompt]:
        """The boxes drawn since the last call as new objects on a frame.

        Args:
            frame: index of the frame they are given on.
            used: ids that are taken, now or later in the run; new ones follow the highest, or are the lowest that are left below it.

        A box for which no id is left is dropped with a warning.
        """
        taken = set(used)
        boxes, self._boxes = self._boxes, []
        prompts = []
        for box in boxes:
            after = max(taken, default=0) + 1
            new = after if self._ids is None or after in self._ids else next((i for i in self._ids if i not in taken), None)
            if new is None:
                _log.warning("a box drawn on the picture was dropped: ids 1 to %d are taken (--separate has no limit)", after - 1)
                continue
            taken.add(new)
            prompts.append(TimedPrompt(id=new, frame=frame, box=box))
        return prompts

    def close(self) -> None:
        """Ends the stream.

        Raises:
            VideoError: if it failed at its end and nothing else comes of the run.
        """
        if self._stream is not None:
            self._stream.close()
            self._check_stream(self._stream)

    def facts(self) -> dict[str, Any] | None:
        """What run.json says of the stream."""
        return None if self._stream is None else self._stream.facts()

    def _take(self, given: WindowInput) -> None:
        self.closed = self.closed or given.closed
        self._boxes += given.boxes

    def _check_stream(self, stream: OverlayStream) -> None:
        if stream.error is None or self._stream_failed:
            return
        self._stream_failed = True
        message = expected(f"a receiver that takes the stream at {stream.target.text}", stream.error, "Check it and start again")
        if self._stream_alone:
            raise VideoError(message)
        _log.warning("the overlay stream ended, tracking goes on: %s", message)
