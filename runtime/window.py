"""A live window: pictures out, key presses and boxes drawn with the mouse in.

`Window` is what a run needs of one; `OpenCvWindow` is the one on a screen. OpenCV is an optional package (extra: live).
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastsam2.errors import BackendError, expected

Picture = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1, pixels

MIN_SIDE = 4  # pixels; a smaller drag is taken for a click, which does nothing
KEYS_THAT_END = frozenset({ord("q"), 27})  # 27 is Esc
RUBBER_BAND = (255, 255, 255)
INSTALL = "Install it with `pip install 'fastsam2[live]'`"
INSTEAD = "or watch without a window: --stream udp://HOST:PORT or --stream FILE.mkv"


@dataclass(frozen=True, slots=True)
class WindowInput:
    """What the user did since the last question.

    Attributes:
        closed: q or Esc was pressed, or the window was closed.
        boxes: drawn ones, in order, in pixels of the picture; x0 < x1 and y0 < y1, within the picture.
    """

    closed: bool = False
    boxes: tuple[Box, ...] = ()


class Window(Protocol):
    """What a run asks of a window. Called from the thread that tracks."""

    def show(self, picture: Picture) -> None:
        """Replaces the picture, uint8 [H, W, 3] RGB."""

    def poll(self, wait_s: float = 0.0) -> WindowInput:
        """Handles what the user did, after waiting for at most `wait_s` seconds."""

    def close(self) -> None:
        """Removes the window. Safe to call twice."""


class BoxDrawing:
    """Boxes from mouse events: press, drag, release."""

    def __init__(self) -> None:
        self._corner: tuple[int, int] | None = None
        self._mouse = (0, 0)
        self._boxes: list[Box] = []

    def press(self, x: int, y: int) -> None:
        """The button went down at a pixel."""
        self._corner = self._mouse = (x, y)

    def move(self, x: int, y: int) -> None:
        """The mouse is at a pixel, which may lie outside the picture."""
        self._mouse = (x, y)

    def release(self, x: int, y: int, size: tuple[int, int]) -> None:
        """The button went up; the box is cut to a picture of size (H, W) and dropped if a side has less than MIN_SIDE pixels."""
        self._mouse = (x, y)
        box, self._corner = self._spanned(size), None
        if box is not None and min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE:
            self._boxes.append(box)

    def take(self) -> tuple[Box, ...]:
        """The boxes finished since the last call."""
        boxes, self._boxes = tuple(self._boxes), []
        return boxes

    def drawn_on(self, picture: Picture) -> Picture:
        """The picture, or a copy with the outline of the box being drawn."""
        box = self._spanned(picture.shape[:2])
        if box is None:
            return picture
        x0, y0, x1, y1 = (int(v) for v in box)
        outlined = picture.copy()
        for rows, columns in ((y0, slice(x0, x1)), (max(y1 - 1, 0), slice(x0, x1)), (slice(y0, y1), x0), (slice(y0, y1), max(x1 - 1, 0))):
            outlined[rows, columns] = RUBBER_BAND
        return outlined

    def _spanned(self, size: tuple[int, ...]) -> Box | None:
        if self._corner is None:
            return None
        (left, right), (top, bottom) = (
            sorted(min(max(v, 0), limit - 1) for v in ends)
            for ends, limit in zip(zip(self._corner, self._mouse, strict=True), size[::-1], strict=True)
        )
        return (float(left), float(top), float(right + 1), float(bottom + 1))


class OpenCvWindow:
    """A window of OpenCV, opened with the first picture.

    Args:
        title: in its frame.

    Raises:
        BackendError: if OpenCV is missing, was built without windows or was imported after PyAV, or there is no display.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._cv2 = _opencv_with_windows()
        self._open = False
        self._picture: Picture | None = None
        self._drawing = BoxDrawing()

    def show(self, picture: Picture) -> None:
        """See `Window`.

        Raises:
            BackendError: if the window cannot be opened.
        """
        self._picture = picture
        if not self._open:
            try:
                self._cv2.namedWindow(self.title, self._cv2.WINDOW_AUTOSIZE | self._cv2.WINDOW_GUI_NORMAL)
            except self._cv2.error as error:
                raise BackendError(expected("a display that takes a window", error, f"Run on a desktop, {INSTEAD}")) from error
            self._cv2.setMouseCallback(self.title, self._mouse)
            self._open = True
        self._cv2.imshow(self.title, np.ascontiguousarray(self._drawing.drawn_on(picture)[..., ::-1]))

    def poll(self, wait_s: float = 0.0) -> WindowInput:
        """See `Window`."""
        if not self._open:
            return WindowInput()
        pressed = self._cv2.waitKey(max(1, round(wait_s * 1000))) & 0xFF
        closed = pressed in KEYS_THAT_END or self._cv2.getWindowProperty(self.title, self._cv2.WND_PROP_VISIBLE) < 1
        return WindowInput(closed=closed, boxes=self._drawing.take())

    def close(self) -> None:
        """See `Window`."""
        if self._open:
            self._open = False
            if self._cv2.getWindowProperty(self.title, self._cv2.WND_PROP_VISIBLE) >= 1:
                self._cv2.destroyWindow(self.title)

    def _mouse(self, event: int, x: int, y: int, _flags: int, _data: object) -> None:
        if event == self._cv2.EVENT_LBUTTONDOWN:
            self._drawing.press(x, y)
        elif event == self._cv2.EVENT_MOUSEMOVE:
            self._drawing.move(x, y)
        elif event == self._cv2.EVENT_LBUTTONUP and self._picture is not None:
            self._drawing.release(x, y, (self._picture.shape[0], self._picture.shape[1]))


def _opencv_with_windows() -> Any:
    late = "av" in sys.modules and "cv2" not in sys.modules
    try:
        import cv2
    except ImportError as error:
        raise BackendError(expected("OpenCV, which draws the window", "none installed", f"{INSTALL}, {INSTEAD}")) from error
    if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        todo = f"{INSTALL} after `pip uninstall opencv-python-headless`, {INSTEAD}"
        raise BackendError(expected("an OpenCV with windows", f"a headless build, {cv2.__version__}", todo))
    # Asked before the first window: without a display the Qt of OpenCV's wheels ends the whole process.
    if platform.system() == "Linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise BackendError(expected("a display", "neither DISPLAY nor WAYLAND_DISPLAY set", f"Run on a desktop, {INSTEAD}"))
    # The Qt of OpenCV's Linux wheels takes the libxcb of PyAV's for its own if that is loaded first, and then hangs for ever.
    if late and platform.system() == "Linux":
        raise BackendError(expected("OpenCV to be imported before PyAV", "the other order", "Start the program with `import cv2`"))
    return cv2
