"""The `fastsam2` command: each subcommand parses its options and calls one library function.

    export -> fastsam2.export.exporter.export_bundle      inspect -> fastsam2.bundle.read_manifest
    run    -> fastsam2.runtime.run.run_video              doctor  -> fastsam2.doctor.examine
    demo   -> fastsam2.demo.run_demo                      score, eval, bench, report: see `cli_measure.py`
    add-text     -> fastsam2.export.text.add_text         fit-text -> fastsam2.training.text_fit.fit_text_command
    train-router -> fastsam2.training.router.train_router_command
    build  -> fastsam2.engines.build.build_engines

Exit codes: 0 done, 1 a bug (with a traceback), 2 something the caller can put right, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import fastsam2
from fastsam2 import cli_measure
from fastsam2.cli_options import (
    BUNDLE_HELP,
    CudaGraphsOption,
    GpuOption,
    GuardOption,
    KeepOption,
    ProtectOption,
    PruneChoice,
    PruneOption,
    SeedOption,
    TokensOption,
    pruning,
)
from fastsam2.cli_show import engine_tables, manifest_tables, progress_bar, say, show
from fastsam2.enums import BackendName, ExportTarget, Flavor, Precision, PrunePolicy, QueryPolicy
from fastsam2.errors import ExportError, FastSam2Error, PromptError, expected

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


DATA_HELP = "Folder in the layout of DAVIS, MOSE or SA-V, or procedural clips."
EXPRESSIONS_HELP = "Texts of the objects, JSON as referring data sets have it; otherwise looked for in and beside DIR."
TEXT_FORM = "[ID:]WORDS|[ID:]auto"
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
    query_attention: Annotated[bool, typer.Option("--query-attention", help="Also make the graph for run --query-prune.")] = False,
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
        query_attention=query_attention,
        overwrite=overwrite,
        progress=say,
    )


@app.command()
def build(
    *,
    bundle: Annotated[str, typer.Argument(help=BUNDLE_HELP)],
    flavor: Annotated[Flavor | None, typer.Option(help="TensorRT or TensorRT-RTX (default: the one that is installed).")] = None,
    precision: Annotated[Precision, typer.Option(help="Of products; statistics, tables and coordinates stay fp32.")] = Precision.FP16,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="8.9|portable|current", help="GPU to build for; repeatable (default: portable, with tensorrt current)."),
    ] = None,
    max_objects: Annotated[int, typer.Option(min=1, help="Objects in one batch; more run in turns.")] = 4,
    max_prompt_frames: Annotated[int, typer.Option(min=1, help="Prompted frames attended to, as in run.")] = 1,
    keep_buckets: Annotated[
        list[float] | None, typer.Option(metavar="SHARE", help="Also a profile for run --keep SHARE, which saves memory; repeatable.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept engines that miss a limit: drift from fp32, fused attentions, activation memory.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A copy of the bundle to make; without it the bundle itself gets the engines.")] = None,
) -> None:
    """Build TensorRT engines from a bundle's graphs, where those that are there do not fit (TensorRT-RTX needs no GPU)."""
    from fastsam2.engines.build import build_engines
    from fastsam2.engines.profiles import Limits

    limits = Limits.of(max_objects=max_objects, max_prompt_frames=max_prompt_frames, keep_buckets=tuple(keep_buckets or ()))
    targets = tuple(compute_capability or ())
    build_engines(bundle, flavor=flavor, precision=precision, targets=targets, limits=limits, out=out, force=force, progress=say)


@app.command()
def run(
    *,
    bundle: Annotated[str, typer.Argument(help=BUNDLE_HELP)],
    video: Annotated[str, typer.Option(help="Video file, folder of images, camera number or URL.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; may be left out with --show or --stream.")] = None,
    box: Annotated[list[str] | None, typer.Option(metavar="[ID:]x0,y0,x1,y1[@FRAME]", help="Box in video pixels.")] = None,
    point: Annotated[list[str] | None, typer.Option(metavar="[ID:]x,y[,0|1][@FRAME]", help="Click; 0 is off the object.")] = None,
    mask: Annotated[list[str] | None, typer.Option(metavar="[ID:]M.png[@FRAME]", help="Picture of the object's mask.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="ID@FRAME", help="Stop tracking an object.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Prompts as a JSON list.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="End after so many frames.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    backend: Annotated[BackendName, typer.Option(help="Where graphs run; auto takes the first that is ready.")] = BackendName.ONNXRUNTIME,
    gpu: GpuOption = 0,
    cuda_graphs: CudaGraphsOption = False,
    prune: PruneOption = PruneChoice.DENSE,
    keep: KeepOption = None,
    tokens: TokensOption = None,
    protect: ProtectOption = None,
    seed: SeedOption = 0,
    guard: GuardOption = False,
    query_prune: Annotated[QueryPolicy, typer.Option(help="Which tokens of a frame query the memory.")] = QueryPolicy.ALL,
    query_keep: Annotated[float | None, typer.Option(help="Share of a frame's tokens that stay queries, 0..1.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar=TEXT_FORM, help="What an object is, for --prune router; auto: from the picture.")
    ] = None,
    captioner: Annotated[str | None, typer.Option(metavar="MODEL", help="For --text auto: a captioning model's hub id or folder.")] = None,
    show_tokens: Annotated[bool, typer.Option("--show-tokens", help="Also write a video of the rows kept, and why.")] = False,
    corrections_as_prompts: Annotated[bool, typer.Option("--corrections-as-prompts", help="Hold corrected frames as prompts.")] = False,
    max_prompt_frames: Annotated[int, typer.Option(min=1, help="Prompted frames held per object.")] = 4,
    fill_holes: Annotated[int, typer.Option(min=0, metavar="AREA", help="Fill holes up to this area, low-resolution pixels.")] = 0,
    memory_budget: Annotated[int, typer.Option(min=1, metavar="MIB", help="Bound on one batch of objects; more run in turns.")] = 4096,
    separate: Annotated[bool, typer.Option("--separate", help="One mask folder per object; objects may overlap.")] = False,
    rle: Annotated[bool, typer.Option("--rle", help="Also write run-length encoded masks.")] = False,
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="Write no video with the masks drawn in.")] = False,
    live_window: Annotated[bool, typer.Option("--show", help="Watch in a window; drag a box to add an object, q or Esc ends.")] = False,
    stream: Annotated[
        str | None, typer.Option(metavar="udp://HOST:PORT|rtsp://…|FILE.mkv|FILE.ts|-", help="Send the overlay as it comes.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Track prompted objects through a video; write their masks, or watch them."""
    from fastsam2.runtime.prompt_args import AUTO_TEXT, read_prompts, without_auto

    texts, auto_text = without_auto(text or ())
    timed = read_prompts(boxes=box or (), points=point or (), masks=mask or (), removals=remove or (), texts=texts, file=prompts)
    if captioner is not None and not auto_text and all(p.text != AUTO_TEXT for p in timed):
        raise PromptError(expected("--text auto with --captioner", "no object to describe", "Add --text auto, or leave --captioner out"))
    rows = pruning(prune, keep=keep, tokens=tokens, protect=protect, seed=seed, guard=guard)
    chosen = replace(rows, queries=query_prune, query_keep=query_keep)
    with ExitStack() as opened:
        window = None
        if live_window:
            from fastsam2.runtime.window import OpenCvWindow

            window = opened.enter_context(closing(OpenCvWindow(f"fastsam2: {video}")))  # imports OpenCV, which must come before PyAV

        from fastsam2.runtime.run import run_video

        describer = None
        if captioner is not None:
            from fastsam2.caption import CaptionDescriber

            describer = CaptionDescriber(captioner)

        progress = opened.enter_context(progress_bar(quiet))
        record = run_video(
            bundle,
            source=video,
            out=out,
            prompts=timed,
            prune=chosen,
            corrections_as_prompts=corrections_as_prompts,
            max_prompt_frames=max_prompt_frames,
            fill_hole_area=fill_holes,
            memory_budget_mb=memory_budget,
            frames=frames,
            separate=separate,
            rle=rle,
            overlay=not no_overlay,
            tokens=show_tokens,
            backend=backend,
            gpu=gpu,
            cuda_graphs=cuda_graphs,
            on_backend=None if quiet else say,
            threads=threads,
            window=window,
            stream=stream,
            auto_text=auto_text,
            describer=describer,
            on_description=None if quiet else lambda i, words: say(f"object {i}: {words}"),
            progress=progress,
        )
    if not quiet:
        print(f"{out or stream or video}: {record['frames']} frames, tracked at {record['fps']:.2f} frames/s", file=sys.stderr)


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("out/demo"),
    bundle: Annotated[str, typer.Option(help=BUNDLE_HELP)] = "nano",
    sample: Annotated[str, typer.Option(help="Name of a built-in clip, or a folder with clip.mp4, clip.json and truth/.")] = "hard_000",
    prune: Annotated[PrunePolicy, typer.Option(help="How memory rows are chosen.")] = PrunePolicy.DENSE,
    keep: KeepOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Track the objects of a clip that ships with fastsam2 and score their masks."""
    from fastsam2.config import Prune
    from fastsam2.demo import run_demo

    with progress_bar(quiet) as progress:
        record = run_demo(out, bundle=bundle, sample=sample, prune=Prune(policy=prune, keep=keep), threads=threads, progress=progress)
    if not quiet:
        print(
            f"{out}: {record['frames']} frames, {record['fps']:.2f} frames/s, "
            f"J&F {record['j_and_f']:.2f} (J {record['j']:.2f}, F {record['f']:.2f})\n"
            f"watch {out / 'overlay.mp4'}; score again with: {record['score_command']}"
        )


app.command()(cli_measure.score)
app.command("eval")(cli_measure.evaluate)
app.command()(cli_measure.bench)
app.command()(cli_measure.report)


@app.command()
def add_text(
    *,
    bundle: Annotated[str, typer.Option(help=BUNDLE_HELP)],
    clip: Annotated[str, typer.Option(help="CLIP checkpoint of transformers: hub id or folder.")],
    out: Annotated[Path | None, typer.Option(help="A new bundle; without it the bundle itself is changed.")] = None,
    vocabulary: Annotated[Path | None, typer.Option(metavar="FILE", help="For run --text auto: one phrase per line.")] = None,
    template: Annotated[list[str] | None, typer.Option(help="Sentence that a phrase is put into at {}; repeatable.")] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Leave out the image half, which run --text auto needs.")] = False,
) -> None:
    """Give a bundle the two halves of a CLIP checkpoint (needs torch and transformers)."""
    from fastsam2.export.text import add_text as add

    add(bundle, clip, out=out, vocabulary=vocabulary, templates=template or None, text_only=text_only, progress=say)


@app.command()
def fit_text(
    *,
    bundle: Annotated[str, typer.Option(help="Bundle with a text encoder.")],
    data: Annotated[str, typer.Option(metavar="DIR|procedural", help=DATA_HELP)],
    out: Annotated[Path | None, typer.Option(help="A new bundle; without it the bundle itself is changed.")] = None,
    expressions: Annotated[Path | None, typer.Option(help=EXPRESSIONS_HELP)] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips to fit to.")] = 200,
    report_clips: Annotated[int, typer.Option(min=1, help="Other clips, to report on.")] = 24,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip.")] = 24,
    seed: Annotated[int, typer.Option(help="Which clips.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Map descriptions to tokens by least squares, and report whether the map points the right way."""
    command = _needs_torch("fastsam2.training.text_fit").fit_text_command
    numbers = {"clips": clips, "report_clips": report_clips, "frames": frames, "seed": seed, "threads": threads}
    report = command(bundle, data=data, out=out, expressions=expressions, **numbers, progress=say)
    print(report.sign.lines())


@app.command()
def train_router(
    *,
    bundle: Annotated[str, typer.Option(help=BUNDLE_HELP)],
    data: Annotated[str, typer.Option(metavar="DIR|procedural", help=DATA_HELP)],
    out: Annotated[Path | None, typer.Option(help="A new bundle; without it the bundle itself is changed.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for samples, saves and log; the same call goes on from there.")] = Path("out/router"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 2000,
    expressions: Annotated[Path | None, typer.Option(help=EXPRESSIONS_HELP)] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips to train on.")] = 60,
    report_clips: Annotated[int, typer.Option(min=1, help="Other clips, to report on.")] = 12,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip.")] = 32,
    dropout_samples: Annotated[int, typer.Option(min=0, help="Monte-Carlo dropout: scores are the mean over so many patterns.")] = 0,
    seed: Annotated[int, typer.Option(help="Of clips, weights and batches.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Train the router that ranks memory rows; encoder and text encoder stay as they are."""
    command = _needs_torch("fastsam2.training.router").train_router_command
    numbers = {"steps": steps, "clips": clips, "report_clips": report_clips, "frames": frames, "seed": seed, "threads": threads}
    more = {"expressions": expressions, "dropout_samples": dropout_samples}
    report = command(bundle, data=data, out=out, work=work, **numbers, **more, progress=say)
    print(report.table())


@app.command()
def add_gather(
    *,
    bundle: Annotated[str, typer.Option(help="Bundle with a router and graphs for TensorRT.")],
    out: Annotated[Path | None, typer.Option(help="A new bundle; without it the bundle itself is changed.")] = None,
) -> None:
    """Add a graph that scores and gathers memory rows, for applications on full TensorRT (not TensorRT-RTX)."""
    from fastsam2.export.gather import add_gather as add

    print(add(bundle, out=out))


@app.command()
def inspect(
    bundle: Annotated[str, typer.Argument(help=BUNDLE_HELP)],
    json: Annotated[bool, typer.Option("--json", help="The manifest and the engines as JSON.")] = False,
) -> None:
    """Check a bundle with its engines and show what is in it."""
    from json import dumps

    from fastsam2.builtin import bundle_path
    from fastsam2.bundle import read_manifest
    from fastsam2.engines.records import inspect_engines

    folder = bundle_path(bundle)
    manifest = read_manifest(folder)
    engines = inspect_engines(folder, manifest)
    if json:
        print(dumps({**manifest.model_dump(mode="json"), "engines": engines}, indent=2))
        return
    show(manifest_tables(manifest))
    if engines:
        show(engine_tables(engines))


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False) -> None:
    """Show what this machine can do and how to get what it cannot."""
    from fastsam2.doctor import examine, render

    report = examine()
    if json:
        print(report.to_json())
    else:
        show(render(report))


def _needs_torch(module: str) -> Any:
    from importlib import import_module

    from fastsam2.export.checkpoints import INSTALL

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ExportError(expected(f"the package {error.name} for this command", "none installed", INSTALL)) from error
