"""Options that several subcommands share, and what their texts mean."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from fastsam2.enums import Protect, PrunePolicy, PrunePreset
from fastsam2.errors import PromptError, expected

if TYPE_CHECKING:
    from fastsam2.config import Prune

T = TypeVar("T")

BUNDLE_HELP = "Folder that `fastsam2 export` wrote, or the name of a built-in bundle."


class PruneChoice(str, Enum):
    """`--prune`: a policy, or a preset that names policy, budget and guard."""

    DENSE = PrunePolicy.DENSE.value
    RANDOM = PrunePolicy.RANDOM.value
    UNIFORM = PrunePolicy.UNIFORM.value
    MASK = PrunePolicy.MASK.value
    POOL2X2 = PrunePolicy.POOL2X2.value
    ROUTER = PrunePolicy.ROUTER.value
    FAST = PrunePreset.FAST.value
    BALANCED = PrunePreset.BALANCED.value
    QUALITY = PrunePreset.QUALITY.value


PruneOption = Annotated[PruneChoice, typer.Option(help="How memory rows are chosen, or a preset for the router.")]
KeepOption = Annotated[float | None, typer.Option(help="Share of a frame's memory rows to keep, 0..1.")]
TokensOption = Annotated[int | None, typer.Option(help="The same as a number of rows.")]
ProtectOption = Annotated[str | None, typer.Option(metavar="prompt,newest|none", help="Frames never pruned (default: both).")]
SeedOption = Annotated[int, typer.Option(help="For --prune random.")]
GuardOption = Annotated[bool, typer.Option("--guard", help="Keep more rows while tracking looks unsure.")]
GpuOption = Annotated[int, typer.Option(min=0, metavar="INDEX", help="Which GPU, for backends that need one.")]
CudaGraphsOption = Annotated[bool, typer.Option("--cuda-graphs", help="Replay engines as CUDA graphs, on a GPU.")]


def pruning(choice: PruneChoice, *, keep: float | None, tokens: int | None, protect: str | None, seed: int, guard: bool) -> Prune:
    """What the options about memory rows say together.

    Raises:
        PromptError: if a preset comes with options of its own, or a value is out of range.
    """
    from fastsam2.config import Prune

    if choice.value in {p.value for p in PrunePreset}:
        if keep is not None or tokens is not None or protect is not None or guard:
            raise PromptError(
                expected(f"--prune {choice.value} alone", "--keep, --tokens, --protect or --guard with it", "Or name the policy: router")
            )
        return Prune.preset(choice.value)
    frames = (Protect.PROMPT, Protect.NEWEST) if protect is None else _protect(protect)
    return Prune(policy=PrunePolicy(choice.value), keep=keep, tokens=tokens, protect=frames, seed=seed, guard=guard)


def _protect(text: str) -> tuple[Protect, ...]:
    try:
        return () if text == "none" else tuple(Protect(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise PromptError(
            expected(f"--protect from {[p.value for p in Protect]}, or none", repr(text), "Join names with a comma")
        ) from error


def listed(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """Numbers joined with commas.

    Raises:
        PromptError: if one is no such number.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise PromptError(expected(f"numbers for {option}, such as 1,4", repr(text), "Join them with commas")) from error
