"""What this project wants to reach, and whether the cases of a benchmark do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastsam2.benchmarks.report_cases import Case, Group

DENSE_CPU, PRUNED_CPU = 1.1, {1: 1.3, 8: 2.0}  # times the official predictor; the latter by objects
COMPILED, COMPILED_GPU = "official-compiled", {1: 2.0, 16: 6.0}
PEAK_GPU = 0.626  # of the official predictor's peak memory


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal and what was measured.

    Attributes:
        goal: with its unit.
        case: title of the case that decides it; "" where there is none.
        measured: with its spread; why there is nothing, if so.
        met: None where nothing decides it.
    """

    goal: str
    case: str
    measured: str
    met: bool | None


def ratio_goal(group: Group, case: Case) -> float | None:
    """Least ratio to the official predictor that is wanted of a case; None where none is."""
    if group.record.gpu is not None:
        return COMPILED_GPU.get(case.objects) if case.against == COMPILED else None
    return DENSE_CPU if case.dense else PRUNED_CPU.get(case.objects)


def verdicts(group: Group) -> list[Verdict]:
    """Every goal for a group's machine: by each case it is about, or undecided."""
    on_gpu = group.record.gpu is not None
    found = list(_ratios(group))
    goals = [_ratio_text("", least, objects) for objects, least in (COMPILED_GPU if on_gpu else PRUNED_CPU).items()]
    if on_gpu:
        found += _peaks(group)
        goals = [f"{g} compiled" for g in goals] + [_PEAK_TEXT]
    else:
        goals = [_ratio_text("dense, ", DENSE_CPU), *(f"pruned, {g}" for g in goals)]
    return found + [Verdict(goal, "", "not measured", None) for goal in goals if goal not in {v.goal for v in found}]


_PEAK_TEXT = f"at most {100 * PEAK_GPU:.1f} % of the official peak memory"


def _ratio_text(prefix: str, least: float, objects: int | None = None) -> str:
    return f"{prefix}{'' if objects is None else f'{objects} object' + ('s, ' if objects > 1 else ', ')}at least {least:g}x the official"


def _ratios(group: Group) -> Iterator[Verdict]:
    for case in _compared(group.shown):
        least = ratio_goal(group, case)
        if least is None or case.ratio is None:
            continue
        if group.record.gpu is not None:
            goal = f"{_ratio_text('', least, case.objects)} compiled"
        else:
            goal = _ratio_text("dense, ", least) if case.dense else f"pruned, {_ratio_text('', least, case.objects)}"
        spread = f" ({case.ratio_spread[0]:.2f} to {case.ratio_spread[1]:.2f})" if case.ratio_spread else ""
        counts, why = _counts(group, case)
        yield Verdict(goal, case.title, f"{case.ratio:.2f}x{spread}{why}", counts and case.ratio >= least)


def _peaks(group: Group) -> Iterator[Verdict]:
    for case in _compared(group.shown):
        if case.pair_peaks is not None:
            ours, official = case.pair_peaks
            counts, why = _counts(group, case)
            yield Verdict(_PEAK_TEXT, case.title, f"{100 * ours / official:.1f} %{why}", counts and ours <= PEAK_GPU * official)


def _counts(group: Group, case: Case) -> tuple[bool, str]:
    """Whether a case's numbers count, and what to say if not: masks of pruned cases are held against dense ones only, which must count."""
    deciding = [c for c in group.shown if c.dense and c.objects == case.objects and c.against == case.against]
    for c in (case, *deciding):
        if c.counts is False:
            return False, f"; does not count: {'' if c is case else 'dense: '}{c.counts_why or 'masks differ'}"
    return True, ""


def _compared(cases: Sequence[Case]) -> Iterator[Case]:
    return (c for c in cases if c.official_ms is not None)
