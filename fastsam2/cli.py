"""The `fastsam2` command: each subcommand parses its options and calls one library function.

    export -> fastsam2.export.exporter.export_bundle      inspect -> fastsam2.bundle.read_manifest
    run    -> fastsam2.runtime.run.run_video              doctor  -> fastsam2.doctor.examine

Exit codes: 0 done, 1 a bug (with a traceback), 2 something the caller can put right, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

import fastsam2
from fastsam2.enums import BackendName, ExportTarget, Protect, PrunePolicy
from fastsam2.errors import FastSam2Error, PromptError, expected

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fastsam2.bundle import GraphEntry, Manifest

app = typer.Typer(
    name="fastsam2",
    help="Promptable streaming video segmentation with SAM 2.1 on ONNX Runtime.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class TargetChoice(str, Enum):
    """`--target`: one export target, or all of them."""

    ONNXRUNTIME = ExportTarget.ONNXRUNTIME.value
    TENSORRT = ExportTarget.TENSORRT.value
    ALL = "all"


_ALL_TARGETS = [TargetChoice.ALL]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    Args:
        args: arguments after the program's name; `sys.argv` when None.

    Raises:
        SystemExit: always, with the exit code; only bugs come out as other exceptions.
    """
    try:
        app(args, prog_name="fastsam2")
    except FastSam2Error as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fastsam2 {fastsam2.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


@app.command()
def export(
    *,
    model: Annotated[str, typer.Option(help="Name of a SAM 2.1 model, or a config file (.yaml).")],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file, hub (downloads the official one), or random:SEED.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    image_size: Annotated[int | None, typer.Option(help="Side of the square model input, pixels (default: the config's).")] = None,
    target: Annotated[list[TargetChoice], typer.Option(help="Consumer to shape graphs for; repeatable.")] = _ALL_TARGETS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Turn an official checkpoint into a bundle of ONNX graphs (needs torch and sam2)."""
    from fastsam2.export.exporter import export_bundle

    targets = tuple(ExportTarget) if TargetChoice.ALL in target else tuple(ExportTarget(t.value) for t in target)
    export_bundle(
        model,
        checkpoint,
        out,
        image_size=image_size,
        targets=targets,
        overwrite=overwrite,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )


@app.command()
def run(
    *,
    bundle: Annotated[Path, typer.Argument(help="Folder that `fastsam2 export` wrote.")],
    video: Annotated[str, typer.Option(help="Video file, folder of images, camera number or URL.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    box: Annotated[list[str] | None, typer.Option(metavar="[ID:]x0,y0,x1,y1[@FRAME]", help="Box in video pixels.")] = None,
    point: Annotated[list[str] | None, typer.Option(metavar="[ID:]x,y[,0|1][@FRAME]", help="Click; 0 is off the object.")] = None,
    mask: Annotated[list[str] | None, typer.Option(metavar="[ID:]M.png[@FRAME]", help="Picture of the object's mask.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="ID@FRAME", help="Stop tracking an object.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Prompts as a JSON list.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="End after so many frames.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    backend: Annotated[BackendName, typer.Option(help="Where graphs run.")] = BackendName.ONNXRUNTIME,
    prune: Annotated[PrunePolicy, typer.Option(help="How memory rows are chosen.")] = PrunePolicy.DENSE,
    keep: Annotated[float | None, typer.Option(help="Share of a frame's memory rows to keep, 0..1.")] = None,
    tokens: Annotated[int | None, typer.Option(help="The same as a number of rows.")] = None,
    protect: Annotated[str, typer.Option(metavar="prompt,newest|none", help="Frames that are never pruned.")] = "prompt,newest",
    seed: Annotated[int, typer.Option(help="For --prune random.")] = 0,
    corrections_as_prompts: Annotated[bool, typer.Option("--corrections-as-prompts", help="Hold corrected frames as prompts.")] = False,
    max_prompt_frames: Annotated[int, typer.Option(min=1, help="Prompted frames held per object.")] = 4,
    fill_holes: Annotated[int, typer.Option(min=0, metavar="AREA", help="Fill holes up to this area, low-resolution pixels.")] = 0,
    memory_budget: Annotated[int, typer.Option(min=1, metavar="MIB", help="Bound on one batch of objects; more run in turns.")] = 4096,
    separate: Annotated[bool, typer.Option("--separate", help="One mask folder per object; objects may overlap.")] = False,
    rle: Annotated[bool, typer.Option("--rle", help="Also write run-length encoded masks.")] = False,
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="Write no video with the masks drawn in.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Track prompted objects through a video and write their masks."""
    from fastsam2.config import Prune
    from fastsam2.runtime.prompt_args import read_prompts
    from fastsam2.runtime.run import run_video

    timed = read_prompts(boxes=box or (), points=point or (), masks=mask or (), removals=remove or (), file=prompts)
    pruning = Prune(policy=prune, keep=keep, tokens=tokens, protect=_protect(protect), seed=seed)
    with _progress_bar(quiet) as progress:
        record = run_video(
            bundle,
            source=video,
            out=out,
            prompts=timed,
            prune=pruning,
            corrections_as_prompts=corrections_as_prompts,
            max_prompt_frames=max_prompt_frames,
            fill_hole_area=fill_holes,
            memory_budget_mb=memory_budget,
            frames=frames,
            separate=separate,
            rle=rle,
            overlay=not no_overlay,
            backend=backend,
            threads=threads,
            progress=progress,
        )
    if not quiet:
        print(f"{out}: {record['frames']} frames, tracked at {record['fps']:.2f} frames/s", file=sys.stderr)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder that `fastsam2 export` wrote.")],
    json: Annotated[bool, typer.Option("--json", help="The manifest as JSON.")] = False,
) -> None:
    """Check a bundle and show what is in it."""
    from fastsam2.bundle import read_manifest

    manifest = read_manifest(bundle)
    if json:
        print(manifest.model_dump_json(indent=2))
    else:
        _show(_manifest_tables(manifest))


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False) -> None:
    """Show what this machine can do and how to get what it cannot."""
    from fastsam2.doctor import examine, render

    report = examine()
    if json:
        print(report.to_json())
    else:
        _show(render(report))


def _protect(text: str) -> tuple[Protect, ...]:
    try:
        return () if text == "none" else tuple(Protect(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise PromptError(
            expected(f"--protect from {[p.value for p in Protect]}, or none", repr(text), "Join names with a comma")
        ) from error


@contextmanager
def _progress_bar(quiet: bool) -> Iterator[Callable[[int, int | None], None] | None]:
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


def _show(renderable: RenderableType) -> None:
    from rich.console import Console

    Console().print(renderable)


def _manifest_tables(manifest: Manifest) -> RenderableType:
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
