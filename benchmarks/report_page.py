"""The page and the Markdown of a report: what was measured, under which conditions, and whether it meets the goals."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from fastsam2.benchmarks.report_cases import Case, Group
from fastsam2.benchmarks.report_goals import ratio_goal, verdicts
from fastsam2.benchmarks.report_plots import Plot

Table = list[tuple[str, ...]]  # the first line names the columns

_MIB = 1 << 20
_MARKS = {True: "met", False: "missed", None: "open"}
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --line: #d8dce2; --band: #f4f6f8;
  --met: #116b38; --missed: #b42318; --open: #7a5900; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4af; --paper: #16191d; --line: #3a4048; --band: #1f242a;
  --met: #5fd38d; --missed: #ff8f85; --open: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, figcaption, .soft { color: var(--soft); margin: .3rem 0; }
.wide { overflow-x: auto; margin: .4rem 0 1rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, .left td, .left th { text-align: left; }
.left td:last-child { white-space: normal; min-width: 12rem; }
tbody tr:nth-child(odd) { background: var(--band); }
.met { color: var(--met); font-weight: 600; } .missed { color: var(--missed); font-weight: 600; }
.open { color: var(--open); font-weight: 600; }
figure { margin: .6rem 0; } img { display: block; width: 100%; min-width: 36rem; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .86rem; }
dt { color: var(--soft); } dd { margin: 0; }
code { font: .82rem/1.5 ui-monospace, monospace; } li { margin: .3rem 0; }
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as PNG bytes, for light and for dark pages, or why it is left out."""

    plot: Plot
    light: bytes = b""
    dark: bytes = b""
    missing: str = ""


def page(groups: Sequence[Group], pictures: Sequence[Picture]) -> str:
    """The report as one HTML file that loads nothing."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>fastsam2 benchmark</title>',
        f"<style>{_STYLE}</style></head><body><h1>fastsam2 against the official SAM 2 predictor</h1>",
        "<p>Both sides took the same frames in turn, with full memories. A ratio is official over ours, of each pair: above 1 is faster. "
        "Dense cases count only if their masks agree with the official ones.</p>",
        "<h2>Goals</h2>",
        *(_goals(group) for group in groups),
        "<h2>Results</h2>",
        *(_results(group) for group in groups),
        *(_figure(picture) for picture in pictures if not picture.missing),
        _missing(pictures),
        "<h2>Conditions</h2>",
        *_conditions(groups),
        "<h2>Commands</h2><p>Each measures one case again.</p>",
        *(_commands(group) for group in groups),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def markdown(groups: Sequence[Group]) -> str:
    """Tables to paste: results and goals of every group."""
    lines = []
    for group in groups:
        goals = [("goal", "case", "measured", ""), *((v.goal, v.case, v.measured, _MARKS[v.met]) for v in verdicts(group))]
        lines += [f"### {group.title}", ""]
        for table in (_speed(group), _rest(group), goals):
            lines += [*_markdown_table(table), ""]
        lines += [", ".join(f"{k} {v}" for k, v in group.record.conditions.items() if isinstance(v, str | int | float)), ""]
    return "\n".join(lines)


def _speed(group: Group) -> Table:
    """Every case of both boundaries; columns that no case fills are left out."""
    return _table(
        {
            "case": [c.title for c in group.cases],
            "timed": [c.boundary.replace("_", " ") for c in group.cases],
            "ours ms": [_number(c.ours_ms) for c in group.cases],
            "official ms": [_number(c.official_ms) for c in group.cases],
            "ratio": ["" if c.ratio is None else f"{c.ratio:.2f}x" for c in group.cases],
            "range": ["" if c.ratio_spread is None else f"{c.ratio_spread[0]:.2f} to {c.ratio_spread[1]:.2f}" for c in group.cases],
            "pairs": [str(len(c.pairs) or "") for c in group.cases],
            "goal": [_goal(group, c) for c in group.cases],
            "counts": [{True: "yes", False: "no", None: ""}[c.counts] for c in group.cases],
            "frames/s": [_number(1e3 / c.ours_ms) for c in group.cases],
            "p90 ms": ["" if c.frames_ms is None else _number(c.frames_ms.p90) for c in group.cases],
            "p99 ms": ["" if c.frames_ms is None else _number(c.frames_ms.p99) for c in group.cases],
        }
    )


def _rest(group: Group) -> Table:
    """What does not depend on the boundary."""
    return _table(
        {
            "case": [c.title for c in group.shown],
            "mask IoU": ["" if c.mask_iou is None else f"{c.mask_iou:.4f}" for c in group.shown],
            "covered": ["" if c.covered is None else f"{100 * c.covered:.1f} %" for c in group.shown],
            "rows held": ["" if c.memory_share is None else f"{100 * c.memory_share:.0f} %" for c in group.shown],
            "MiB/object": [_mib(c.bytes_per_object) for c in group.shown],
            "peak MiB": [_mib(c.peak_bytes) for c in group.shown],
            "official": [_mib(c.official_peak_bytes) for c in group.shown],
            "device peak MiB": [_mib(c.device_peak_bytes) for c in group.shown],
            "official device": [_mib(c.official_device_peak_bytes) for c in group.shown],
            "start ms": [_number(c.start_up_ms) for c in group.shown],
            "official start": [_number(c.official_start_up_ms) for c in group.shown],
            "J/frame": [_number(c.energy_j_per_frame) for c in group.shown],
        }
    )


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return [tuple(filled), *zip(*filled.values(), strict=True)]


def _goal(group: Group, case: Case) -> str:
    least = ratio_goal(group, case)
    return "" if least is None or case.ratio is None else f"{least:g}x"


def _number(value: float | None) -> str:
    """Three significant digits, whole from 100 on."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _mib(value: float | None) -> str:
    return "" if value is None else _number(value / _MIB)


def _goals(group: Group) -> str:
    rows = "".join(
        f'<tr><td>{escape(v.goal)}</td><td class="{_MARKS[v.met]}">{_MARKS[v.met]}</td><td>{escape(v.case)}</td>'
        f"<td>{escape(v.measured)}</td></tr>"
        for v in verdicts(group)
    )
    head = "<tr><th>goal</th><th></th><th>case</th><th>measured</th></tr>"
    table = f'<div class="wide"><table class="left"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    return f"<h3>{escape(group.title)}</h3>{table}"


def _results(group: Group) -> str:
    whys = dict.fromkeys(f"{c.title} does not count: {c.counts_why or 'no reason is given'}." for c in group.cases if c.counts is False)
    notes = "".join(f"<p>{escape(why)}</p>" for why in whys)
    return f"<h3>{escape(group.title)}</h3>{_html_table(_speed(group))}{notes}{_html_table(_rest(group))}"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in table[1:])
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(picture: Picture) -> str:
    light, dark = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (picture.light, picture.dark))
    plot = picture.plot
    image = f'<img src="{light}" alt="{escape(plot.title)}">'
    return (
        f'<h2>{escape(plot.title)}</h2><figure><figcaption>{escape(plot.caption)}</figcaption><div class="wide"><picture>'
        f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">{image}</picture></div></figure>'
    )


def _missing(pictures: Iterable[Picture]) -> str:
    items = "".join(f"<li>{escape(p.plot.title)}: {escape(p.missing)}.</li>" for p in pictures if p.missing)
    return f"<h2>Not shown</h2><ul>{items}</ul>" if items else ""


def _conditions(groups: Sequence[Group]) -> list[str]:
    records = {id(group.record): group.record for group in groups}
    return [f"<h3>{escape(record.machine_name)}</h3>{_definitions(record.conditions)}" for record in records.values()]


def _definitions(facts: Mapping[str, object]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()) + "</dl>"


def _commands(group: Group) -> str:
    known = dict.fromkeys((c.title, c.command) for c in group.cases if c.command is not None)
    if not known:
        return f"<h3>{escape(group.title)}</h3><p>The cases hold no commands of their own; that of the file is among the conditions.</p>"
    items = "".join(f"<li>{escape(title)}<br><code>{escape(command)}</code></li>" for title, command in known)
    return f"<h3>{escape(group.title)}</h3><ul>{items}</ul>"


def _markdown_table(table: Sequence[Sequence[str]]) -> list[str]:
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
