"""Subcommands that measure: quality against ground truth, speed and memory against the official predictor.

score  -> fastsam2.benchmarks.score.score_folders     eval   -> fastsam2.benchmarks.eval.evaluate
bench  -> fastsam2.benchmarks.bench.run_bench         report -> fastsam2.benchmarks.report.write_report
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

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
    listed,
    pruning,
)
from fastsam2.cli_show import say, score_table, show
from fastsam2.enums import BackendName, Dataset, PrunePolicy, ScoredFrames


class Against(str, Enum):
    """`--against`: what to run beside the tracker."""

    OFFICIAL = "official"
    COMPILED = "official-compiled"


def score(
    *,
    masks: Annotated[Path, typer.Argument(help="Masks that `fastsam2 run` wrote.")],
    truth: Annotated[Path, typer.Argument(help="Ground truth: palette PNGs, or one folder per object.")],
    scored: Annotated[ScoredFrames, typer.Option(help="Frames that count; davis leaves out the last.")] = ScoredFrames.AFTER_PROMPT,
    prompted: Annotated[
        list[str] | None, typer.Option(metavar="ID@FRAME", help="Frame of an object's prompt (default: its first in the truth).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The numbers as JSON.")] = False,
) -> None:
    """Compare masks with ground truth: J, F and J&F, as DAVIS defines them."""
    from json import dumps

    from fastsam2.benchmarks.score import parse_prompted, score_folders

    result = score_folders(masks, truth, scored=scored, prompted=parse_prompted(prompted or ()))
    if json:
        print(dumps(result.to_json(), indent=2))
    else:
        show(score_table(result))


def evaluate(
    *,
    bundle: Annotated[str, typer.Option(help=BUNDLE_HELP)],
    dataset: Annotated[Dataset, typer.Option(help="Which benchmark's layout and protocol.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="Scores; the same call goes on where it stopped.")],
    split: Annotated[str | None, typer.Option(help="Such as val, train or test (default: the benchmark's usual one).")] = None,
    expressions: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Descriptions for --prune router (Ref-DAVIS, MeViS).")
    ] = None,
    submission: Annotated[Path | None, typer.Option(help="Also write the masks, in the form the benchmark's server expects.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="Only this video; repeatable.")] = None,
    backend: Annotated[BackendName, typer.Option(help="Where graphs run.")] = BackendName.ONNXRUNTIME,
    gpu: GpuOption = 0,
    prune: PruneOption = PruneChoice.DENSE,
    keep: KeepOption = None,
    tokens: TokensOption = None,
    protect: ProtectOption = None,
    seed: SeedOption = 0,
    guard: GuardOption = False,
    processes: Annotated[int, typer.Option(min=1, help="Videos side by side.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each.")] = None,
) -> None:
    """Track a whole benchmark by its semi-supervised protocol: J, F, J&F, and the folder its server expects."""
    from fastsam2.benchmarks.eval import evaluate as run

    result = run(
        bundle,
        dataset=dataset.value,
        root=root,
        split=split,
        expressions=expressions,
        backend=backend.value,
        prune=pruning(prune, keep=keep, tokens=tokens, protect=protect, seed=seed, guard=guard),
        out=out,
        submission=submission,
        videos=video,
        processes=processes,
        threads=threads,
        gpu=gpu,
        progress=say,
    )
    if "j_and_f" in result:
        print(f"J&F {result['j_and_f']:.2f} (J {result['j']:.2f}, F {result['f']:.2f})")


def bench(
    *,
    bundle: Annotated[str, typer.Argument(help=BUNDLE_HELP)],
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="Cases; the same call goes on where it stopped.")],
    against: Annotated[Against | None, typer.Option(help="Alternate with the official predictor (needs torch, sam2).")] = None,
    backend: Annotated[BackendName, typer.Option(help="Where graphs run.")] = BackendName.ONNXRUNTIME,
    gpu: GpuOption = 0,
    cuda_graphs: CudaGraphsOption = False,
    objects: Annotated[str, typer.Option(metavar="N,N,…", help="Objects tracked at once.")] = "1,8",
    keep: Annotated[str, typer.Option(metavar="SHARE,…", help="Shares of a frame's memory rows; 1.0 is dense.")] = "1.0,0.05",
    policy: Annotated[PrunePolicy, typer.Option(help="Which rows, where not all are kept.")] = PrunePolicy.MASK,
    frames: Annotated[int, typer.Option(min=1, help="Timed frames of each case, after those that fill the memory.")] = 60,
    video: Annotated[str | None, typer.Option(help="Video file or folder of images (default: a drawn scene, 720 x 1280).")] = None,
    model: Annotated[str | None, typer.Option(help="Its name in the results (default: the bundle's).")] = None,
    config: Annotated[str | None, typer.Option(help="Model config of the official side (default: the bundle's).")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="What the official side loads (default: where the bundle's weights came from).")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, of both sides.")] = None,
) -> None:
    """Milliseconds per frame and peak memory, paired against the official predictor on the same frames."""
    from fastsam2.benchmarks.bench import run_bench

    run_bench(
        bundle,
        backend=backend,
        against=None if against is None else against.value,
        objects=listed("--objects", objects, int),
        keep=listed("--keep", keep, float),
        policy=policy,
        frames=frames,
        video=video,
        out=out,
        model=model,
        config=config,
        checkpoint=checkpoint,
        threads=threads,
        gpu=gpu,
        cuda_graphs=cuda_graphs,
        progress=say,
    )


def report(
    *,
    files: Annotated[list[Path], typer.Argument(help="What `fastsam2 bench` wrote, and `python -m benchmarks.machine` for rooflines.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, its plots and a table in Markdown.")],
) -> None:
    """Turn bench.json files into one self-contained page with plots (needs matplotlib)."""
    from fastsam2.benchmarks.report import write_report

    print(write_report(files, out=out))
