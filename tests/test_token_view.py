"""fastsam2.runtime.token_view: what the panels show. Oracle: cells counted by hand on a frame of one colour."""

from __future__ import annotations

import numpy as np

from fastsam2.enums import Alarm
from fastsam2.runtime.result import TokenReport
from fastsam2.runtime.token_view import PANEL_WIDTH, TokenPanels

GRID = 4


def report(*, routed: bool) -> TokenReport:
    scores = np.arange(2 * GRID**2, dtype=np.float32).reshape(2, -1)
    scores[1, GRID] = 99  # second row, left; the largest of the first object is at the bottom right
    cue = scores if routed else None
    return TokenReport(3, (7, 9), 1, (None, Alarm.AREA), scores, cue, cue, None if cue is None else cue[0])


def test_kept_cells_are_bright_where_they_lie_in_the_frame() -> None:
    frame = np.full((90, 160, 3), 200, np.uint8)
    panels = TokenPanels(lines=3, routed=False)
    picture = panels.draw(frame, report(routed=False))
    height = 180  # of a panel: 320 * 90 / 160
    assert picture.shape == (*panels.size((90, 160)), 3) == (3 * height, 2 * PANEL_WIDTH, 3)
    bright = picture[:, :PANEL_WIDTH, 0] == 200
    cell = (height // GRID, PANEL_WIDTH // GRID)
    assert bright[3 * cell[0] : height, 3 * cell[1] :].all()
    assert bright[height + cell[0] : height + 2 * cell[0], : cell[1]].all()
    assert bright.sum() == 2 * cell[0] * cell[1]  # nothing else, and nothing on the line without an object
    score = picture[:height, PANEL_WIDTH:].astype(int).sum(-1)
    assert score[-1, -1] > score[height // 2, PANEL_WIDTH // 2] > score[cell[0] - 1, 0]


def test_cues_are_shown_for_the_router_only_and_nothing_without_a_report() -> None:
    frame = np.full((90, 160, 3), 200, np.uint8)
    panels = TokenPanels(lines=1, routed=True)
    assert panels.names == ("kept", "log10 score", "context", "relevance", "uncertainty")
    routed, empty = panels.draw(frame, report(routed=True)), panels.draw(frame, None)
    assert (empty == round(200 * 0.35)).all()
    for column in range(len(panels.names)):
        part = np.s_[60:, column * PANEL_WIDTH : (column + 1) * PANEL_WIDTH]
        assert (routed[part] != empty[part]).any(), panels.names[column]
    bare = panels.draw(frame, report(routed=False))
    assert (bare[60:, 2 * PANEL_WIDTH :] == empty[60:, 2 * PANEL_WIDTH :]).all()
