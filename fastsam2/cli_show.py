"""What the command line prints: progress on standard error, tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fastsam2.benchmarks.score import Score
    from fastsam2.bundle import GraphEntry, Manifest


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int | None], None] | None]:
    """A function (frames done, frames in all or None) that shows them, or None when quiet."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames, {task.fields[fps]} frames/s{task.fields[eta]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=None, fps="-", eta="")

    def advance(done: int, total: int | None) -> None:
        bar.start()
        speed = bar.tasks[0].speed
        eta = "" if total is None else ", ETA"
        bar.update(task, completed=done, total=total, fps="-" if speed is None else f"{speed:.2f}", eta=eta)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def say(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


def show(renderable: RenderableType) -> None:
    """Prints a table or text on standard output."""
    from rich.console import Console

    Console().print(renderable)


def manifest_tables(manifest: Manifest) -> RenderableType:
    """A bundle's model, origin, files and tensors."""
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    model, origin = manifest.model, manifest.origin
    head = Text(
        f"{model.name}, input {model.image_size} x {model.image_size} pixels, {model.tokens} tokens a frame of width {model.hidden_dim}, "
        f"memory width {model.memory_dim}, {model.num_maskmem} memory frames, {manifest.precision}\n"
        f"checkpoint {origin.checkpoint} (SHA-256 {origin.checkpoint_sha256 or 'none'}), config {origin.config}\n"
        f"exported {origin.created:%Y-%m-%d %H:%M} by fastsam2 {manifest.fastsam2_version} with torch {origin.torch}, sam2 {origin.sam2}, "
        f"onnx {origin.onnx}"
    )
    if (text := manifest.text) is not None:
        head.append(f"\ndescriptions: CLIP {text.source}, {'mapped' if text.projection else 'not mapped'} to tokens; automatic ones: ")
        if (words := text.vocabulary) is None:
            head.append("none")
        else:
            sentences = ", ".join(repr(t) for t in words.templates)
            head.append(f"{words.file.path} ({words.phrases} phrases in {sentences})")
    parts: list[RenderableType] = [head]
    for target in manifest.targets:
        graphs = [g for g in manifest.graphs if g.target is target]
        files = Table(
            "graph",
            Column("file", overflow="fold"),
            "bytes",
            "opset",
            "difference to torch (root mean square / standard deviation)",
            title=target.value,
        )
        tensors = Table("graph", "", Column("tensor", overflow="fold"), "type", "shape", title=f"{target.value}: tensors")
        for g in graphs:
            checks = ", ".join(f"{name} {value:.1e}" for name, value in g.checks.items())
            files.add_row(g.role.value, g.file.path, f"{g.file.bytes:,}", str(g.opset), checks)
            for row in _tensor_rows(g, manifest):
                tensors.add_row(*row)
        parts += [files, tensors]
    return Group(*parts)


def _tensor_rows(graph: GraphEntry, manifest: Manifest) -> Iterator[tuple[str, ...]]:
    from fastsam2.contracts import TensorSpec

    for kind, entries in (("in", graph.inputs), ("out", graph.outputs)):
        for entry in entries:
            shape = TensorSpec(entry.name, entry.dtype, entry.axes, "").shape(manifest.model)
            yield graph.role.value, kind, entry.name, entry.dtype, " x ".join(map(str, shape))


def engine_tables(engines: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Engines of a bundle, from `fastsam2.engines.records.inspect_engines`: one table for each set."""
    from rich.console import Group
    from rich.table import Table

    sets: dict[str, list[Mapping[str, Any]]] = {}
    for e in engines:
        sets.setdefault(f"{e['flavor']} {e['version']}, {e['target']}, {e['precision']}", []).append(e)
    tables = []
    for title, members in sets.items():
        table = Table("graph", "MB", "fused", "expected", "active MB", "build s", "drift", title=title)
        for e in members:
            table.add_row(
                e["graph"] if e["of_this_bundle"] else f"{e['graph']} (of another graph: build again)",
                f"{e['bytes'] / 1e6:.1f}",
                f"{e['fused_attention']} of {e['attention']}",
                str(e["expected_attention"]),
                f"{e['activation_bytes'] / 1e6:.0f}",
                f"{e['build_seconds']:.1f}",
                f"{max(e['drift'].values(), default=0.0):.1e}",
            )
        tables.append(table)
    return Group(*tables)


def score_table(score: Score) -> RenderableType:
    """J, F and J&F of every object, and their means."""
    from rich.table import Table

    table = Table("object", "frames", "J", "F", "J&F", caption=f"0..100; frames scored: {score.scored.value}")
    for o in score.objects:
        table.add_row(str(o.id), str(o.frames), f"{o.j:.2f}", f"{o.f:.2f}", f"{o.j_and_f:.2f}")
    for what, ids in (("no frame to score", score.not_scored), ("not in the ground truth", score.not_in_truth)):
        for object_id in ids:
            table.add_row(str(object_id), "0", "", "", what)
    table.add_section()
    table.add_row("mean", "", f"{score.j:.2f}", f"{score.f:.2f}", f"{score.j_and_f:.2f}")
    return table
