"""Boxes drawn with the mouse, and when a window cannot be had. OpenCV is faked: what it does on a screen is not tested here."""

from __future__ import annotations

import importlib.machinery
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam2.errors import BackendError
from fastsam2.runtime.window import BoxDrawing, OpenCvWindow, WindowInput

SIZE = (40, 60)


def test_press_drag_release_is_a_box() -> None:
    drawing = BoxDrawing()
    drawing.move(3, 3)
    drawing.press(50, 30)
    drawing.move(20, 10)
    assert drawing.take() == ()
    drawing.release(10, 5, SIZE)
    drawing.press(0, 0)
    drawing.release(5, 7, SIZE)
    assert drawing.take() == ((10, 5, 51, 31), (0, 0, 6, 8))
    assert drawing.take() == ()


@pytest.mark.parametrize("end", [(12, 12), (12, 30), (30, 12)])
def test_clicks_and_thin_drags_are_no_boxes(end: tuple[int, int]) -> None:
    drawing = BoxDrawing()
    drawing.press(10, 10)
    drawing.release(*end, SIZE)
    drawing.release(40, 30, SIZE)
    assert drawing.take() == ()


def test_boxes_are_cut_to_the_picture() -> None:
    drawing = BoxDrawing()
    drawing.press(10, 10)
    drawing.release(500, -9, SIZE)
    assert drawing.take() == ((10, 0, 60, 11),)
    drawing.press(-70, 10)
    drawing.release(-9, 30, SIZE)
    assert drawing.take() == ()


def test_outline_of_the_box_being_drawn() -> None:
    drawing, picture = BoxDrawing(), np.zeros((*SIZE, 3), np.uint8)
    assert drawing.drawn_on(picture) is picture
    drawing.press(10, 5)
    drawing.move(19, 99)
    outlined = drawing.drawn_on(picture)
    assert not picture.any() and outlined.max() == 255
    rows, columns = np.nonzero(outlined[..., 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 39, 10, 19)
    assert len(rows) == 2 * 10 + 2 * 33


class FakeCv2:
    """The calls of a window, and a user."""

    WINDOW_AUTOSIZE, WINDOW_GUI_NORMAL, WND_PROP_VISIBLE = 1, 16, 4
    EVENT_MOUSEMOVE, EVENT_LBUTTONDOWN, EVENT_LBUTTONUP = 0, 1, 4
    __version__ = "9.9"

    class error(Exception):
        pass

    def __init__(self, gui: str = "QT5") -> None:
        self.gui = gui
        self.key = -1
        self.visible = 1.0
        self.shown: list[Any] = []
        self.calls: list[tuple[Any, ...]] = []
        self.mouse: Any = None

    def getBuildInformation(self) -> str:
        return f"General\n  GUI:                           {self.gui}\n"

    def namedWindow(self, title: str, flags: int) -> None:
        self.calls.append(("open", title, flags))

    def setMouseCallback(self, _: str, callback: Any) -> None:
        self.mouse = callback

    def imshow(self, _: str, picture: Any) -> None:
        self.shown.append(picture)

    def waitKey(self, milliseconds: int) -> int:
        self.calls.append(("wait", milliseconds))
        return self.key

    def getWindowProperty(self, _: str, which: int) -> float:
        assert which == self.WND_PROP_VISIBLE
        return self.visible

    def destroyWindow(self, title: str) -> None:
        self.calls.append(("destroy", title))


class Finder:
    """Imports cv2 as a given object."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec("cv2", self) if name == "cv2" else None  # type: ignore[arg-type]

    def create_module(self, _: object) -> Any:
        return self.module

    def exec_module(self, _: object) -> None:
        pass


@pytest.fixture
def cv2(monkeypatch: pytest.MonkeyPatch) -> FakeCv2:
    fake = FakeCv2()
    monkeypatch.setitem(sys.modules, "cv2", fake)  # type: ignore[arg-type]
    monkeypatch.setenv("DISPLAY", ":9")
    return fake


def test_window(cv2: FakeCv2) -> None:
    window = OpenCvWindow("a title")
    assert window.poll() == WindowInput() and not cv2.calls
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[..., 0] = 200
    window.show(picture)
    assert cv2.shown[0][0, 0].tolist() == [0, 0, 200] and cv2.shown[0].flags.c_contiguous
    cv2.mouse(cv2.EVENT_LBUTTONDOWN, 5, 6, 0, None)
    cv2.mouse(cv2.EVENT_MOUSEMOVE, 20, 20, 0, None)
    window.show(picture)
    assert cv2.shown[1][6, 10].tolist() == [255, 255, 255]
    cv2.mouse(cv2.EVENT_LBUTTONUP, 24, 25, 0, None)
    assert window.poll(0.03) == WindowInput(boxes=((5, 6, 25, 26),))
    assert window.poll() == WindowInput()
    for key in (ord("q"), 27):
        cv2.key = key
        assert window.poll() == WindowInput(closed=True)
    cv2.key = ord("x")
    assert not window.poll().closed
    cv2.visible = 0
    assert window.poll().closed
    cv2.visible = 1
    window.close()
    window.close()
    assert [call for call in cv2.calls if call[0] != "wait"] == [("open", "a title", 17), ("destroy", "a title")]
    assert ("wait", 30) in cv2.calls and ("wait", 1) in cv2.calls


def test_machines_without_windows(cv2: FakeCv2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendError, match=r"a display, got neither DISPLAY .*--stream udp://HOST:PORT"):
        OpenCvWindow("")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    OpenCvWindow("")
    cv2.gui = "NONE"
    with pytest.raises(BackendError, match=r"headless build, 9.9. .*fastsam2\[live\].*--stream"):
        OpenCvWindow("")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendError, match=r"OpenCV.*got none installed.*fastsam2\[live\]"):
        OpenCvWindow("")


def test_opencv_after_pyav_would_hang(cv2: FakeCv2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setitem(sys.modules, "av", cv2)  # type: ignore[arg-type]
    OpenCvWindow("")
    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.setattr(sys, "meta_path", [Finder(cv2), *sys.meta_path])
    with pytest.raises(BackendError, match="OpenCV to be imported before PyAV"):
        OpenCvWindow("")


def test_the_command_imports_opencv_first(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("import sys\nprint('av' in sys.modules)\nraise ImportError")
    run = [sys.executable, "-m", "fastsam2", "run", "bundle", "--video", "0", "--show"]
    done = subprocess.run(
        run, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    )
    assert (done.returncode, done.stdout) == (2, "False\n") and "OpenCV, which draws the window" in done.stderr


def test_display_that_refuses_the_window(cv2: FakeCv2) -> None:
    def refused(*_: object) -> None:
        raise cv2.error("no")

    cv2.namedWindow = refused  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="a display that takes a window, got no"):
        OpenCvWindow("").show(np.zeros((*SIZE, 3), np.uint8))


def test_this_machines_opencv_says_whether_it_has_windows() -> None:
    real = pytest.importorskip("cv2", reason="OpenCV is not installed (extra: holes)")
    assert re.search(r"GUI:\s+\w+", real.getBuildInformation())
