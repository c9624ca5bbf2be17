"""Figures of a report, from groups of cases; a figure without data says what is missing instead.

Bars start at zero. A point is a median over frames; its line goes from the 10th to the 90th percentile of the frames, or from the smallest
to the largest ratio of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam2.benchmarks.report_cases import Case, Group
from fastsam2.benchmarks.report_goals import ratio_goal
from fastsam2.errors import BackendError, expected, reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.5  # inches
TITLE_WIDTH = 76  # characters
STAGES = (  # bottom to top of a stack, in the order of a frame
    *("decode", "preprocess", "memory_encoder", "router", "image_encoder", "query_pruning", "memory_attention", "query_attention"),
    *("mask_decoder", "postprocess"),
)
_COLOURS = ("#88CCEE", "#DDCC77", "#CC6677", "#999933", "#4477AA", "#EE8866", "#44AA99", "#77AADD", "#AA4499", "#BBCC33")
STAGE_COLOURS = dict(zip(STAGES, _COLOURS, strict=True))
OFFICIAL_COLOUR = "#999999"
_MARKERS = "osD^vP*X"
_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a figure that are not data."""

    ink: str
    paper: str
    grid: str


LIGHT, DARK = Theme("#1b1f24", "#ffffff", "#d8dce2"), Theme("#e6e8eb", "#16191d", "#3a4048")

Draw = Callable[[Sequence[Group], Theme], "Figure | str"]


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure of the report.

    Attributes:
        name: of its file.
        title: heading on the page.
        caption: what is to be seen, and how it was measured.
        draw: makes it, or says why it is left out.
    """

    name: str
    title: str
    caption: str
    draw: Draw


def require_matplotlib() -> None:
    """Raises BackendError if the package matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise BackendError(
            expected("the package matplotlib for the plots of a report", reason(error), "Run `pip install fastsam2[plots]`")
        ) from error


def ratios(groups: Sequence[Group], theme: Theme) -> Figure | str:
    """Official over ours, a line per case with its goal."""
    shown = _with(groups, lambda c: c.ratio)
    if not shown:
        return "no case was measured against the official predictor (ratio)"
    figure, axes = _rows(shown, theme, [0.8 * len(cases) for _, cases in shown])
    for (group, cases), (axis,) in zip(shown, axes, strict=True):
        for y, case in enumerate(cases):
            assert case.ratio is not None
            colour = "#44AA99" if case.counts is not False else "#CC6677"
            low, high = case.ratio_spread or (case.ratio, case.ratio)
            axis.plot([low, high], [y, y], color=colour, linewidth=3, alpha=0.6, solid_capstyle="round")
            axis.plot(case.ratio, y, "o", color=colour, markersize=7)
            text = f"{case.ratio:.2f}x{'' if case.counts is not False else ' (does not count)'}"
            axis.annotate(text, (high, y), xytext=(6, 0), textcoords="offset points", va="center", color=theme.ink, fontsize=8)
            goal = ratio_goal(group, case)
            if goal is not None:
                axis.plot([goal, goal], [y - 0.35, y + 0.35], color=theme.ink, linewidth=1.5, linestyle=":")
        axis.axvline(1, color=theme.ink, linewidth=1)
        _names(axis, [f"{c.title}, {len(c.pairs) or '?'} pairs" for c in cases])
        goals = [ratio_goal(group, c) or 0 for c in cases]
        axis.set_xlim(0, max(1.18 * max((c.ratio_spread or (0, c.ratio or 0))[1] for c in cases), 1.05 * max(goals)))
        axis.set_xlabel("official ms / ours ms (median and range of the pairs; dotted: goal)")
    return figure


def stages(groups: Sequence[Group], theme: Theme) -> Figure | str:
    """Milliseconds per frame by stage, stacked, with the official frame beside them."""
    shown = _with(groups, lambda c: c.stages_ms)
    if not shown:
        return "no case has stages_ms"
    figure, axes = _rows(shown, theme, [1.2 * len(cases) for _, cases in shown])
    used: dict[str, Any] = {}
    for (_, cases), (axis,) in zip(shown, axes, strict=True):
        for y, case in enumerate(cases):
            left = 0.0
            for name in sorted(case.stages_ms, key=lambda n: (STAGES.index(n) if n in STAGES else len(STAGES), n)):
                took = case.stages_ms[name].median
                bar = axis.barh(y, took, 0.42, left=left, color=STAGE_COLOURS.get(name, "#777777"), edgecolor=theme.paper, linewidth=0.5)
                used.setdefault(name, bar)
                left += took
            if case.ours_ms > left:
                bar = axis.barh(y, case.ours_ms - left, 0.42, left=left, color="none", edgecolor=theme.ink, hatch="////", linewidth=0.5)
                used.setdefault("in no stage", bar)
            axis.plot([case.ours_ms] * 2, [y - 0.28, y + 0.28], color=theme.ink, linewidth=2)
            if case.official_ms is not None:
                used.setdefault("official frame", axis.barh(y + 0.36, case.official_ms, 0.22, color=OFFICIAL_COLOUR))
        _names(axis, [c.title for c in cases])
        axis.set_xlim(left=0)
        axis.set_xlabel("ms per frame (medians; tick: our whole frame)")
    names = [*(n for n in STAGES if n in used), *(n for n in used if n not in STAGES)]
    figure.legend([used[n] for n in names], names, loc="outside lower center", ncols=4, frameon=False, labelcolor=theme.ink, fontsize=8)
    return figure


def objects(groups: Sequence[Group], theme: Theme) -> Figure | str:
    """Frames per second against objects, a line per way to prune."""
    shown = [(g, cases) for g, cases in _with(groups, lambda c: c.ours_ms) if len({c.objects for c in cases}) > 1]
    if not shown:
        return "no group was measured with more than one number of objects"
    figure, axes = _rows(shown, theme, [4.5] * len(shown))
    for (_, cases), (axis,) in zip(shown, axes, strict=True):
        for number, memory in enumerate(dict.fromkeys(c.memory for c in cases)):
            line = sorted((c for c in cases if c.memory == memory), key=lambda c: c.objects)
            _fps_line(axis, [c.objects for c in line], line, number, memory)
        official = {c.objects: c for c in cases if c.official_ms is not None and (c.dense or not any(d.dense for d in cases))}
        if official:
            x = sorted(official)
            y = [1e3 / (official[o].official_ms or np.nan) for o in x]
            axis.plot(x, y, marker="s", linestyle="--", color=OFFICIAL_COLOUR, label="official")
        axis.set_xticks(sorted({c.objects for c in cases}))
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("objects")
        axis.set_ylabel("frames per second")
        _legend(axis, theme)
    return figure


def rows(groups: Sequence[Group], theme: Theme) -> Figure | str:
    """Frames per second, and memory, against the share of memory rows that is held."""
    shown = [(g, cases) for g, cases in _with(groups, lambda c: c.memory_share) if len({c.memory_share for c in cases}) > 1]
    if not shown:
        return "no group was measured with more than one share of the memory (memory_share)"
    figure, axes = _rows(shown, theme, [4.5] * len(shown), columns=2)
    for (_, cases), (speed, memory) in zip(shown, axes, strict=True):
        for number, count in enumerate(sorted({c.objects for c in cases})):
            line = sorted((c for c in cases if c.objects == count), key=lambda c: c.memory_share or 0)
            x = [100 * (c.memory_share or 0) for c in line]
            label = f"{count} object{'s' if count > 1 else ''}"
            _fps_line(speed, x, line, number, label)
            held = [(s, c.bytes_per_object * count / _MIB) for s, c in zip(x, line, strict=True) if c.bytes_per_object is not None]
            if held:
                memory.plot(*zip(*held, strict=True), marker=_MARKERS[number % 8], color=f"C{number}", label=label)
        for axis, what in ((speed, "frames per second"), (memory, "MiB of memory bank")):
            axis.set_xlim(0, 105)
            axis.set_ylim(bottom=0)
            axis.set_xlabel("memory rows held (% of 7 frames)")
            axis.set_ylabel(what)
            if axis.lines:
                _legend(axis, theme)
            else:
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=theme.ink)
    return figure


def peaks(groups: Sequence[Group], theme: Theme) -> Figure | str:
    """Peak memory of ours and of the official predictor."""
    shown = _with(groups, lambda c: c.device_peak_bytes or c.peak_bytes)
    if not shown:
        return "no case has peak_bytes or device_peak_bytes"
    figure, axes = _rows(shown, theme, [len(cases) for _, cases in shown])
    for (_, cases), (axis,) in zip(shown, axes, strict=True):
        on_device = any(c.device_peak_bytes is not None for c in cases)
        for y, case in enumerate(cases):
            ours, official = case.peak_bytes, case.official_peak_bytes
            if on_device:
                ours, official = case.device_peak_bytes, case.official_device_peak_bytes
            for shift, value, colour in ((-0.2, ours, "#4477AA"), (0.2, official, OFFICIAL_COLOUR)):
                if value is not None:
                    axis.barh(y + shift, value / _GIB, 0.36, color=colour)
                    axis.annotate(f"{value / _GIB:.2f}", (value / _GIB, y + shift), xytext=(3, 0), textcoords="offset points", va="center",
                                  color=theme.ink, fontsize=8)  # fmt: skip
        _names(axis, [c.title for c in cases])
        axis.set_xlim(0, 1.1 * axis.get_xlim()[1])
        axis.set_xlabel(f"GiB, peak of the {'device' if on_device else 'process'} (blue ours, grey official)")
    return figure


def roofline(groups: Sequence[Group], theme: Theme) -> Figure | str:
    """Rate of each graph against its products per byte, under what the machine reaches."""
    shown = [(g, cases) for g, cases in _with(groups, lambda c: c.graphs) if g.rates is not None]
    if not shown:
        return "no group has both graphs (work and ms of each) and the rates of its machine (`python -m benchmarks.machine`)"
    from matplotlib.ticker import NullFormatter

    figure, axes = _rows(shown, theme, [5.5] * len(shown))
    for (group, cases), (axis,) in zip(shown, axes, strict=True):
        assert group.rates is not None
        copy, peak = group.rates.copy_bytes_per_s, group.rates.multiply_adds_per_s
        points = [
            (n, i, g.multiply_adds / g.least_bytes, g.multiply_adds / g.ms * 1e3) for i, c in enumerate(cases) for n, g in c.graphs.items()
        ]
        x = np.geomspace(0.4 * min([peak / copy, *(p[2] for p in points)]), 2 * max([peak / copy, *(p[2] for p in points)]), 200)
        axis.plot(x, np.minimum(copy * x, peak) / 1e9, color=theme.ink, linewidth=1.5)
        for name, number, intensity, rate in points:
            axis.plot(intensity, rate / 1e9, _MARKERS[number % 8], color=STAGE_COLOURS.get(name, "#777777"), markersize=7, alpha=0.9)
        for scale in (axis.set_xscale, axis.set_yscale):
            scale("log")
        axis.set_ylim(0.5 * min(p[3] for p in points) / 1e9, 2 * peak / 1e9)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter(NullFormatter())
        axis.set_xlabel("multiply-adds per byte that has to move (inputs, outputs, weights)")
        axis.set_ylabel("G multiply-adds / s")
        names = list(dict.fromkeys(p[0] for p in points))
        handles = [axis.plot([], [], "o", color=STAGE_COLOURS.get(n, "#777777"), label=n)[0] for n in names]
        handles += [axis.plot([], [], _MARKERS[i % 8], color=theme.ink, label=c.title)[0] for i, c in enumerate(cases)]
        roof = f"{copy / 1e9:.3g} GB/s copied, {peak / 1e9:.3g} G multiply-adds/s"
        handles += [axis.plot([], [], color=theme.ink, label=roof)[0]]
        axis.legend(handles=handles, fontsize=7, loc="best", framealpha=0.8, facecolor=theme.paper, labelcolor=theme.ink)
    return figure


def percentiles(groups: Sequence[Group], theme: Theme) -> Figure | str:
    """Median, 90th and 99th percentile of our frames."""
    shown = _with(groups, lambda c: c.frames_ms)
    if not shown:
        return "no case has frames_ms"
    figure, axes = _rows(shown, theme, [0.8 * len(cases) for _, cases in shown])
    for (_, cases), (axis,) in zip(shown, axes, strict=True):
        for y, case in enumerate(cases):
            assert case.frames_ms is not None
            values = (case.frames_ms.p50, case.frames_ms.p90, case.frames_ms.p99)
            for value, alpha, name in zip(values, (1.0, 0.6, 0.35), ("p50", "p90", "p99"), strict=True):
                axis.barh(y, value, 0.6, color="#4477AA", alpha=alpha, zorder=3 - alpha, label=name if y == 0 else None)
            single = [ours for _, ours in case.pairs]
            axis.plot(single, np.full(len(single), y), "|", color=theme.ink, markersize=8, zorder=4)
        _names(axis, [f"{c.title}, {len(c.pairs) or '?'} frames" for c in cases])
        axis.set_xlabel("ms per frame (lines: single frames)")
        axis.set_xlim(left=0)
        _legend(axis, theme)
    return figure


def energy(groups: Sequence[Group], theme: Theme) -> Figure | str:
    """Joules per frame."""
    shown = _with(groups, lambda c: c.energy_j_per_frame)
    if not shown:
        return "no case has energy_j_per_frame (only NVML and tegrastats count it)"
    figure, axes = _rows(shown, theme, [0.7 * len(cases) for _, cases in shown])
    for (_, cases), (axis,) in zip(shown, axes, strict=True):
        axis.barh(range(len(cases)), [c.energy_j_per_frame or 0 for c in cases], 0.6, color="#999933")
        _names(axis, [c.title for c in cases])
        axis.set_xlabel("J per frame")
    return figure


PLOTS = (
    Plot("ratio", "Speed against the official predictor", "Both sides took the same frames in turn. Right of 1 is faster.", ratios),
    Plot(
        "stages",
        "Time by stage",
        "Medians of single stages need not add up to the median of the frame. A graph that runs in several batches shows one of them; on a "
        "GPU stages are waited for one by one, in a pass of their own. Hatched: in no stage.",
        stages,
    ),
    Plot("objects", "Frames per second against objects", "The image encoder runs once a frame, all else once an object.", objects),
    Plot(
        "rows",
        "Frames per second and memory against rows kept",
        "Rows held, pointers not counted; the prompt frame and the newest frame are never pruned by default.",
        rows,
    ),
    Plot("peaks", "Peak memory", "Both sides were measured the same way, in processes of their own.", peaks),
    Plot(
        "roofline",
        "Roofline",
        "The line is what this machine copied and multiplied at best. Bytes are the least that can move, so a graph whose intermediate "
        "values leave the caches lies below it.",
        roofline,
    ),
    Plot("percentiles", "Spread over frames", "With fewer than 100 frames p99 is close to the slowest one.", percentiles),
    Plot("energy", "Energy", "Of the whole GPU or board, idle power included.", energy),
)


def _with(groups: Iterable[Group], value: Callable[[Case], object]) -> list[tuple[Group, list[Case]]]:
    """Groups with those of their cases that have a value; groups without any are left out."""
    found = ((g, [c for c in g.shown if value(c)]) for g in groups)
    return [(g, cases) for g, cases in found if cases]


def _rows(
    shown: Sequence[tuple[Group, Sequence[Case]]], theme: Theme, heights: Sequence[float], columns: int = 1
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a row of axes for each group, about `heights` times 0.6 inches high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inches = [0.6 * h + 1.0 for h in heights]
    figure = Figure(figsize=(WIDTH, sum(inches) + 0.6), layout="constrained", facecolor=theme.paper)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), columns, squeeze=False, gridspec_kw={"height_ratios": inches})
    for (group, _), line in zip(shown, axes, strict=True):
        line[0].set_title(fill(group.title, TITLE_WIDTH), loc="left", color=theme.ink, fontsize=9, fontweight="bold")
        for axis in line:
            axis.set_facecolor(theme.paper)
            axis.tick_params(colors=theme.ink, labelsize=8)
            axis.xaxis.label.set_color(theme.ink)
            axis.yaxis.label.set_color(theme.ink)
            axis.grid(color=theme.grid, linewidth=0.6)
            axis.set_axisbelow(True)
            for side, spine in axis.spines.items():
                spine.set_color(theme.grid)
                spine.set_visible(side in ("left", "bottom"))
    return figure, [list(line) for line in axes]


def _names(axis: Axes, names: Sequence[str]) -> None:
    """Cases from top to bottom."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _fps_line(axis: Axes, x: Sequence[float], cases: Sequence[Case], number: int, label: str) -> None:
    fps = np.array([1e3 / c.ours_ms for c in cases])
    frames = [[ours for _, ours in c.pairs] or [c.ours_ms] for c in cases]
    low, high = (np.array([1e3 / np.quantile(f, q) for f in frames]) for q in (0.9, 0.1))
    spread = np.maximum(0, np.stack([fps - low, high - fps]))
    axis.errorbar(x, fps, spread, marker=_MARKERS[number % 8], color=f"C{number}", capsize=3, label=label)


def _legend(axis: Axes, theme: Theme) -> None:
    axis.legend(fontsize=8, frameon=False, labelcolor=theme.ink)
