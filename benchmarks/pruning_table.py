"""From scores of single clips to the table of a pruning study: one row per set and case, goals, and the plot.

scores.jsonl ─ per clip J&F of every case ─► rows: means, intervals, loss against dense on the same clips ─► goals, plot
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsam2.config import LEAST_MERGED
from fastsam2.errors import BackendError, expected

ORACLES = ("oracle", "oracle_sample")
"""Know the attention to come: the rows with the most of it, and a sample in proportion to it."""
REMEDIES = ("router_guard", "router_forecast", "router_half_noise", "router_turned", "router_turned_flat")
"""The router with the guard of the budget; without its noise; with half of it; with noise that moves from frame to frame; with that and
shares to the power of 0.7."""
_RULES = ("dense", "random", "uniform", "pool2x2", "mask", "mask_uncertainty", "mask_sample", "text")
POLICIES = (*_RULES, "router", *REMEDIES, *ORACLES)
QUERY_POLICIES = ("drop", "merge")
"""Which tokens of the current frame query a dense memory; need a bundle with query_attention, so they are only measured where asked for."""
TEXTS: Mapping[str, tuple[str, ...]] = {"text": ("right", "wrong", "reversed"), "router": ("none", "right", "wrong", "reversed")}
"""Descriptions that a policy is measured with; all others have "none"."""
ALL_TEXTS = ("none", "right", "wrong", "reversed")
_Z = 1.96  # 95 %
_TICKS = (-64, -32, -16, -8, -4, -2, -1, -0.5, 0, 1, 4, 8)


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One way to prune.

    Attributes:
        policy: one of `POLICIES` or `QUERY_POLICIES`.
        text: right, none, wrong (of a clip with other things) or reversed (the right one's embedding, negated).
        keep: share of a frame's rows, or of its queries.
        protected: prompt frames and the newest frame stay dense; True where only queries are pruned.
    """

    policy: str
    text: str = "none"
    keep: float = 1.0
    protected: bool = True


DENSE = Case("dense")


def cases(policies: Iterable[str], keeps: Sequence[float], protections: Sequence[bool], texts: Iterable[str]) -> list[Case]:
    """Every combination that means something; dense is always among them, first."""
    allowed = {*texts}
    out = [DENSE]
    for policy in policies:
        own = [t for t in TEXTS.get(policy, ("none",)) if t in allowed]
        least = LEAST_MERGED if policy == "merge" else 0.0
        for protected in (True,) if policy in QUERY_POLICIES else protections:
            for keep in (0.25,) if policy == "pool2x2" else () if policy == "dense" else [k for k in keeps if k >= least]:
                out += [Case(policy, text, keep, protected) for text in own]
    return out


def table(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the study.

    Args:
        scores: of one clip and case each, with "set", "seed", "clip", the fields of `Case`, "j_and_f" (0..100) and "memory_share".

    Returns:
        One row per set and case: "set", the fields of `Case`, "memory_share" (spatial rows held / 7N, mean), "jf_mean" (mean over clips),
        "jf_worst" (least clip), "jf_ci95" (half width of the interval of the mean), "loss_mean" and "loss_ci95" (dense minus this, on the
        same clips), "clips", "seeds".
    """
    dense = {_clip(s): s["j_and_f"] for s in scores if s["policy"] == "dense"}
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for score in scores:
        grouped[score["set"], score["policy"], score["text"], score["keep"], score["protected"]].append(score)
    rows = []
    for (name, *case), members in grouped.items():
        values = np.array([m["j_and_f"] for m in members])
        losses = np.array([dense[_clip(m)] - m["j_and_f"] for m in members])
        rows.append(
            {
                "set": name,
                **asdict(Case(*case)),
                "memory_share": round(float(np.mean([m["memory_share"] for m in members])), 4),
                "jf_mean": round(float(values.mean()), 2),
                "jf_worst": round(float(values.min()), 2),
                "jf_ci95": round(_interval(values), 2),
                "loss_mean": round(float(losses.mean()), 2),
                "loss_ci95": round(_interval(losses), 2),
                "clips": len(members),
                "seeds": len({m["seed"] for m in members}),
            }
        )
    return rows


def _clip(score: Mapping[str, Any]) -> tuple[str, int, int]:
    return score["set"], score["seed"], score["clip"]


def _interval(values: np.ndarray[Any, Any]) -> float:
    return float(_Z * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def goals(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the router is held to, with the numbers that decide it; a goal that the scores cannot decide has met = None."""
    out = []
    for name in ("plain", "hard"):
        loss = difference(scores, name, DENSE, Case("router", "none", 0.05))
        out.append(_at_most_half(f"router, protected, keep 0.05, loses at most 0.5 to dense on {name}", loss))
    tried = sorted({s["keep"] for s in scores if s["policy"] == "random" and not s["protected"]}, reverse=True)
    lost = {k: difference(scores, "hard", DENSE, Case("random", keep=k, protected=False)) for k in tried}
    harmful = [k for k, gap in lost.items() if gap is not None and gap[0] >= 3]
    what = "router, unprotected, at the largest keep where random loses 3 on hard, wins back 60 % of that loss, and more than mask"
    if not harmful:
        out.append({"goal": what, "met": None, "why": "random never loses 3" if tried else "not measured"})
    else:
        keep = harmful[0]
        random = lost[keep]
        router = difference(scores, "hard", DENSE, Case("router", keep=keep, protected=False))
        better = difference(scores, "hard", Case("router", keep=keep, protected=False), Case("mask", keep=keep, protected=False))
        if random is None or router is None or better is None:
            out.append({"goal": what, "met": None, "why": "not measured"})
        else:
            won = 1 - router[0] / random[0]
            numbers = {"keep": keep, "random_loses": random[0], "router_loses": router[0], "won_back": round(won, 3)}
            numbers |= {"router_minus_mask": better[0], "ci95": better[1]}
            out.append({"goal": what, "met": bool(won >= 0.6 and better[0] > better[1]), **numbers})
    for name in ("plain", "hard"):
        cost = difference(scores, name, Case("router", "none", 0.05), Case("router", "wrong", 0.05))
        out.append(_at_most_half(f"a wrong description costs at most 0.5 against none on {name}", cost))
    return out


def _at_most_half(what: str, measured: tuple[float, float] | None) -> dict[str, Any]:
    if measured is None:
        return {"goal": what, "met": None, "why": "not measured"}
    return {"goal": what, "met": measured[0] <= 0.5, "difference": measured[0], "ci95": measured[1]}


def difference(scores: Sequence[Mapping[str, Any]], name: str, one: Case, other: Case) -> tuple[float, float] | None:
    """J&F of one case minus that of another on the clips of a set that have both: mean and half width of its 95 % interval.

    Returns:
        None where fewer than two clips have both.
    """

    def of(case: Case) -> dict[tuple[str, int, int], float]:
        wanted = asdict(case)
        return {_clip(s): s["j_and_f"] for s in scores if s["set"] == name and all(s[k] == v for k, v in wanted.items())}

    first, second = of(one), of(other)
    gaps = np.array([first[c] - second[c] for c in first.keys() & second.keys()])
    return (round(float(gaps.mean()), 2), round(_interval(gaps), 2)) if len(gaps) > 1 else None


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """J&F won or lost against dense, on the same clips: a panel per set and protection, in it a group of points per keep.

    The scale is logarithmic beyond one point of J&F either way.

    Raises:
        BackendError: if the package matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            expected("the package matplotlib for --plot", f"an import error ({error})", "Run `pip install fastsam2[plots]`")
        ) from error
    pruned = [r for r in rows if r["policy"] != "dense"]
    panels = list(dict.fromkeys(sorted(((r["set"], r["protected"]) for r in pruned), key=lambda p: (not p[1], p[0] == "long", p[0]))))
    lines = [line for line in _lines() if any((r["policy"], r["text"]) == line for r in pruned)]
    figure = Figure(figsize=(15, 1 + 3.5 * max(len(panels), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    known: dict[str, Any] = {}  # label -> its mark
    for axis, (name, protected) in zip(figure.subplots(max(len(panels), 1), 1, squeeze=False)[:, 0], panels, strict=False):
        here = [r for r in pruned if (r["set"], r["protected"]) == (name, protected)]
        keeps = sorted({r["keep"] for r in here})
        axis.axhline(0, color="black", linewidth=1)
        axis.axhspan(-0.5, 0, color="green", alpha=0.1)
        for place, (policy, text) in enumerate(lines):
            points = sorted((r for r in here if (r["policy"], r["text"]) == (policy, text)), key=lambda r: r["keep"])
            x = [keeps.index(r["keep"]) + 0.8 * ((place + 0.5) / len(lines) - 0.5) for r in points]
            y, spread = [-r["loss_mean"] for r in points], [r["loss_ci95"] for r in points]
            style: dict[str, Any] = {"color": colormaps["tab20"](place % 20), "marker": "osD^v"[place % 5]}
            label = policy if text == "none" else f"{policy}, {text} text"
            axis.errorbar(x, y, spread, linestyle="none", markersize=6, capsize=2, label=label, **style)
        for gap in range(1, len(keeps)):
            axis.axvline(gap - 0.5, color="grey", linewidth=0.5)
        axis.set_yscale("symlog", linthresh=1, linscale=0.7)
        axis.set_yticks(_TICKS, [f"{tick:+g}" for tick in _TICKS])
        low = min(-r["loss_mean"] - (r["loss_ci95"] if np.isfinite(r["loss_ci95"]) else 0) for r in here)
        axis.set_ylim(min(low * 1.2, -2), 10)
        axis.set_xlim(-0.5, len(keeps) - 0.5)
        axis.set_xticks(range(len(keeps)), [f"{100 * keep:g} %" for keep in keeps])
        fewest, most = min(r["clips"] for r in here), max(r["clips"] for r in here)
        what = "prompt and newest frames protected" if protected else "every frame pruned"
        axis.set_title(f"{name}, {what}, {fewest if fewest == most else f'{fewest} to {most}'} clips")
        axis.set_ylabel("J&F minus dense")
        axis.grid(axis="y", alpha=0.3)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if panels:
        figure.legend(known.values(), known.keys(), loc="outside right upper", fontsize=10)
        figure.supxlabel("keep (share of a frame's rows)", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(str(file), dpi=80)


def _lines() -> list[tuple[str, str]]:
    return [(policy, text) for policy in (*POLICIES[1:], *QUERY_POLICIES) for text in TEXTS.get(policy, ("none",))]
