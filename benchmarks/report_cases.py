"""What bench.json files say, read and checked: cases in groups that may be compared with each other.

bench.json, machine.json ─► Record: conditions, rates of the machine, cases ─► Group: one model on one backend of one machine
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from fastsam2.errors import PromptError, expected, reason

Positive = Annotated[FiniteFloat, Field(gt=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
END_TO_END, MODEL = "end_to_end", "model"


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Times(_Read):
    """Milliseconds of a stage."""

    median: Annotated[FiniteFloat, Field(ge=0)]
    p90: Annotated[FiniteFloat, Field(ge=0)]


class Percentiles(_Read):
    """Milliseconds of whole frames."""

    p50: Positive
    p90: Positive
    p99: Positive


class Graph(_Read):
    """Work and time of one graph, as `graph_work.timed_work` gives them."""

    multiply_adds: Positive
    least_bytes: Positive
    ms: Positive


class Rates(_Read):
    """What the machine reaches; see `benchmarks.machine`."""

    copy_bytes_per_s: Positive
    multiply_adds_per_s: Positive
    precision: str | None = None


class Case(_Read):
    """One case; names as in `bench.json`, absent values are None."""

    model: str
    image_size: int = Field(gt=0)
    backend: str
    objects: int = Field(gt=0)
    keep: Annotated[FiniteFloat, Field(gt=0, le=1)]
    ours_ms: Positive
    precision: str = "fp32"
    cuda_graphs: bool = False
    against: str | None = None
    policy: str = "dense"
    boundary: str = END_TO_END
    memory_share: Share | None = None
    official_ms: Positive | None = None
    ratio: Positive | None = None
    ratio_spread: tuple[Positive, Positive] | None = None
    pairs: tuple[tuple[Positive, Positive], ...] = ()
    frames_ms: Percentiles | None = None
    mask_iou: Share | None = None
    mask_sha256: str | None = None
    covered: Share | None = None
    counts: bool | None = None
    counts_why: str | None = None
    peak_bytes: Positive | None = None
    official_peak_bytes: Positive | None = None
    device_peak_bytes: Positive | None = None
    official_device_peak_bytes: Positive | None = None
    bytes_per_object: Positive | None = None
    start_up_ms: Positive | None = None
    official_start_up_ms: Positive | None = None
    stages_ms: dict[str, Times] = {}
    energy_j_per_frame: Positive | None = None
    graphs: dict[str, Graph] = {}
    threads: int | None = None
    command: str | None = None

    @property
    def dense(self) -> bool:
        """Nothing of the memory is pruned."""
        return self.policy == "dense"

    @property
    def memory(self) -> str:
        """How much memory is kept, and by which rule."""
        return "dense" if self.dense else f"keep {self.keep:.2g}, {self.policy}"

    @property
    def title(self) -> str:
        """What tells the case from others of its group."""
        return f"{self.objects} object{'s' if self.objects > 1 else ''}, {self.memory}"

    @property
    def pair_peaks(self) -> tuple[float, float] | None:
        """Peak bytes of ours and of the official predictor, on the device where that was measured."""
        for ours, official in ((self.device_peak_bytes, self.official_device_peak_bytes), (self.peak_bytes, self.official_peak_bytes)):
            if ours is not None and official is not None:
                return ours, official
        return None


class Record(_Read):
    """One file. What is not a field is a condition."""

    cases: tuple[Case, ...] = ()
    machine: Rates | None = None
    threads: int | None = None
    cpu: str | None = None
    gpu: str | None = None

    @property
    def machine_name(self) -> str:
        """The GPU, or the CPU and its threads."""
        return self.gpu or f"{self.cpu or 'unnamed CPU'}, {self.threads or '?'} thread{'' if self.threads == 1 else 's'}"

    @property
    def conditions(self) -> dict[str, Any]:
        """Everything but cases and rates, in the order of the file."""
        return {k: v for k, v in self.model_dump(exclude={"cases", "machine"}).items() if v is not None}


@dataclass(frozen=True, slots=True)
class Group:
    """Cases of one model on one backend of one machine.

    Attributes:
        title: names them.
        record: where they come from.
        cases: of every boundary, in the order of the file.
        rates: of the machine; None where they were not measured.
    """

    title: str
    record: Record
    cases: tuple[Case, ...]
    rates: Rates | None

    @property
    def shown(self) -> tuple[Case, ...]:
        """One case of each pair of boundaries: from decoding to masks, where that was measured."""
        whole = {_key(c) for c in self.cases if c.boundary == END_TO_END}
        return tuple(c for c in self.cases if c.boundary == END_TO_END or _key(c) not in whole)


def read_groups(files: Sequence[Path]) -> list[Group]:
    """Reads bench.json files, and machine.json files that give the rates of the same machines.

    Raises:
        PromptError: if a file cannot be read or is malformed (names the field), or if there is no case at all.
    """
    records = [_read(Path(file)) for file in files]
    groups = []
    for record in records:
        by_setting: dict[tuple[Any, ...], list[Case]] = {}
        for case in record.cases:
            setting = (case.model, case.image_size, case.backend, case.precision, case.cuda_graphs, case.against)
            by_setting.setdefault(setting, []).append(case)
        for (model, size, backend, precision, cuda_graphs, against), cases in by_setting.items():
            words = [f"{model} at {size} px", f"{backend} {precision}{' with CUDA graphs' if cuda_graphs else ''}", record.machine_name]
            measured = [r.machine for r in (record, *records) if r.machine is not None and r.machine_name == record.machine_name]
            rates = next((m for m in measured if m.precision in (None, precision)), None)
            title = " · ".join([*words, *([f"against {against}"] if against else [])])
            groups.append(Group(title, record, tuple(cases), rates))
    if not groups:
        todo = "Name files that `fastsam2 bench` wrote"
        raise PromptError(expected("at least one case", f"none in {[str(f) for f in files]}", todo))
    return groups


def _key(case: Case) -> tuple[int, str, float]:
    return case.objects, case.policy, case.keep


def _read(file: Path) -> Record:
    todo = "Name a file that `fastsam2 bench` wrote"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(expected(f"readable JSON in {file}", reason(error), todo)) from error
    if not isinstance(raw, dict) or not ("cases" in raw or "machine" in raw):
        got = f"keys {sorted(raw)[:6]}" if isinstance(raw, dict) else type(raw).__name__
        raise PromptError(expected(f"an object with cases or machine in {file}", got, todo))
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise PromptError(
            expected(f"a legal {field} in {file}", f"{first['input']!r}: {first['msg']}"[:200], "Measure it again")
        ) from error
