"""`fastsam2 report`: bench.json files as one HTML page that loads nothing, PNG plots and a Markdown table.

bench.json, machine.json ─► cases in groups ─► figures, verdicts on the goals ─► index.html, report.md, *.png
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastsam2.benchmarks.report_cases import Group, read_groups
from fastsam2.benchmarks.report_page import Picture, markdown, page
from fastsam2.benchmarks.report_plots import DARK, LIGHT, PLOTS, Plot, require_matplotlib
from fastsam2.errors import PromptError, expected, reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 144


def write_report(files: Sequence[Path], *, out: Path) -> Path:
    """Draws what the files hold; what they lack is named on the page.

    Args:
        files: what `fastsam2 bench` wrote, of one or more machines and models; and what `benchmarks.machine` wrote, for rooflines.
        out: folder, made if needed; index.html, report.md and the plots in it are replaced.

    Returns:
        The HTML page.

    Raises:
        BackendError: if matplotlib is not installed.
        PromptError: if a file is malformed (names the field), none has a case, or the folder cannot be written.
    """
    require_matplotlib()
    groups = read_groups(files)
    pictures = [_picture(plot, groups) for plot in PLOTS]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            file = out / f"{picture.plot.name}.png"
            if picture.missing:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(picture.light)
        (out / "report.md").write_text(markdown(groups), encoding="utf-8")
        (out / "index.html").write_text(page(groups, pictures), encoding="utf-8")
    except OSError as error:
        raise PromptError(expected("a folder to write", f"{out} ({reason(error)})", "Choose another --out")) from error
    return out / "index.html"


def _picture(plot: Plot, groups: Sequence[Group]) -> Picture:
    light, dark = (plot.draw(groups, theme) for theme in (LIGHT, DARK))
    if isinstance(light, str) or isinstance(dark, str):
        return Picture(plot, missing=str(light))
    return Picture(plot, light=_png(light), dark=_png(dark))


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI, facecolor=figure.get_facecolor())
    return content.getvalue()
