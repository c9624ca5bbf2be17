"""Pictures of which memory rows are kept and why.

one line of panels for each object:  kept | log10 score | context | relevance | uncertainty     (with the router; kept | score otherwise)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fastsam2.runtime.overlay import LABEL_PAD, label_font
from fastsam2.runtime.result import TokenReport

PANEL_WIDTH = 320  # pixels
MAX_LINES = 4  # objects shown
_LOG_SCORE = "log10 score"  # the router's span some powers of ten
_DIM = 0.35  # brightness of the frame under a heat map and outside the kept cells
_HEAT = np.array([[0, 0, 0], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32)  # five colours of "inferno"
_HEAT_SHARE = 0.75  # of the heat map in its panel


@dataclass(frozen=True, slots=True)
class TokenPanels:
    """How reports of one run are drawn.

    Attributes:
        lines: objects shown, the first ones of every report; at most `MAX_LINES` make sense.
        routed: the router judges, so there are cues to show.
    """

    lines: int
    routed: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The panels of a line, in order."""
        return ("kept", _LOG_SCORE, "context", "relevance", "uncertainty") if self.routed else ("kept", "score")

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the pictures for frames of `size` (H, W)."""
        return self.lines * _panel_height(size), PANEL_WIDTH * len(self.names)

    def draw(self, frame: npt.NDArray[np.uint8], report: TokenReport | None) -> npt.NDArray[np.uint8]:
        """Draws a report over the frame it belongs to.

        Args:
            frame: uint8 [H, W, 3], RGB: frame `report.frame`.
            report: None, as while nothing is tracked, gives dimmed frames; so do lines without an object.

        Returns:
            uint8 [h, w, 3] of `size`, RGB. Heat maps run from the smallest value of the frame (dark) to the largest (light); the panel
            names both.
        """
        height = _panel_height(frame.shape[:2])
        small = np.asarray(Image.fromarray(frame).resize((PANEL_WIDTH, height), Image.Resampling.BILINEAR), np.float32)
        picture = np.tile((small * _DIM).astype(np.uint8), (self.lines, len(self.names), 1))
        if report is None:
            return picture
        for line in range(min(self.lines, len(report.ids))):
            for column, name in enumerate(self.names):
                part = picture[line * height : (line + 1) * height, column * PANEL_WIDTH : (column + 1) * PANEL_WIDTH]
                part[:] = _panel(small, report, line, name)
        return picture


def _panel(small: npt.NDArray[np.float32], report: TokenReport, line: int, name: str) -> npt.NDArray[np.uint8]:
    if name == "kept":
        kept = _spread(report.kept[line].astype(np.float32), small.shape[:2])[..., None]
        alarm = report.alarms[line]
        text = f"object {report.ids[line]}: {report.keep} rows" + (f" ({alarm.value})" if alarm else "")
        return _labelled(small * np.where(kept > 0, 1.0, _DIM), text)
    cells = _cue(report, line, name)
    if cells is None:
        return _labelled(small * _DIM, f"{name}: none")
    low, high = float(cells.min()), float(cells.max())
    scaled = (cells - low) / (high - low) if high > low else np.zeros_like(cells)
    heat = _heat(_spread(scaled, small.shape[:2]))
    return _labelled((1 - _HEAT_SHARE) * small + _HEAT_SHARE * heat, f"{name} {low:.3g} to {high:.3g}")


def _cue(report: TokenReport, line: int, name: str) -> npt.NDArray[np.float32] | None:
    if name == "context":
        return report.context
    if name == _LOG_SCORE:
        logs: npt.NDArray[np.float32] = np.log10(np.maximum(report.scores[line], np.finfo(np.float32).tiny))
        return logs
    values = {"score": report.scores, "relevance": report.relevance, "uncertainty": report.uncertainty}[name]
    return None if values is None else values[line]


def _heat(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Values 0..1 [h, w] as colours float32 [h, w, 3], 0..255."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, stops, _HEAT[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def _spread(cells: npt.NDArray[np.float32], size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Cells [N] of the square grid over a panel: the model sees every frame squeezed into a square."""
    grid = round(len(cells) ** 0.5)
    rows = np.arange(size[0]) * grid // size[0]
    columns = np.arange(size[1]) * grid // size[1]
    return cells.reshape(grid, grid)[np.ix_(rows, columns)]


def _labelled(pixels: npt.NDArray[np.floating], text: str) -> npt.NDArray[np.uint8]:
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    font = label_font(12)
    left, top, right, bottom = draw.textbbox((LABEL_PAD, LABEL_PAD), text, font=font)
    draw.rectangle((left - LABEL_PAD, top - LABEL_PAD, right + LABEL_PAD, bottom + LABEL_PAD), fill=(0, 0, 0))
    draw.text((LABEL_PAD, LABEL_PAD), text, font=font, fill=(255, 255, 255))
    return np.asarray(picture)


def _panel_height(size: tuple[int, ...]) -> int:
    return max(2, round(PANEL_WIDTH * size[0] / size[1] / 2) * 2)
