"""The demo: a clip that ships with the package, tracked from boxes and scored against its ground truth.

samples/NAME/clip.mp4, clip.json ─► run_video ─► OUT/masks, overlay.mp4 ─► score with samples/NAME/truth ─► OUT/run.json
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastsam2.benchmarks.score import Score, score_folders
from fastsam2.builtin import sample_path
from fastsam2.config import Prune
from fastsam2.errors import VideoError, expected
from fastsam2.runtime.prompt_args import TimedPrompt
from fastsam2.runtime.run import run_video
from fastsam2.runtime.run_record import bundle_text

DEFAULT_BUNDLE = "nano"
DEFAULT_SAMPLE = "hard_000"
CLIP, DESCRIPTION, TRUTH = "clip.mp4", "clip.json", "truth"


class SampleObject(BaseModel):
    """One object of a sample.

    Attributes:
        id: colour index in the ground truth.
        caption: what it looks like.
        first_frame: index of the frame it is prompted on.
        box: x0, y0, x1, y1 there, video pixels.
    """

    model_config = ConfigDict(frozen=True)

    id: int = Field(ge=1, le=255)
    caption: str = ""
    first_frame: int = Field(ge=0)
    box: tuple[float, float, float, float]


class Sample(BaseModel):
    """The content of `clip.json` that the demo needs; other fields are allowed."""

    model_config = ConfigDict(frozen=True)

    name: str
    objects: tuple[SampleObject, ...] = Field(min_length=1)


def read_sample(folder: Path) -> Sample:
    """Reads a sample's description and checks that its clip and ground truth are there.

    Raises:
        VideoError: if a file is missing or the description is not legal.
    """
    missing = [name for name in (CLIP, DESCRIPTION, TRUTH) if not (folder / name).exists()]
    if missing:
        raise VideoError(expected(f"{CLIP}, {DESCRIPTION} and {TRUTH}/ in {folder}", f"no {', no '.join(missing)}", "Name a sample folder"))
    try:
        return Sample.model_validate_json((folder / DESCRIPTION).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise VideoError(expected(f"a legal {where} in {folder / DESCRIPTION}", first["msg"], "Restore the file")) from error


def run_demo(
    out: Path,
    *,
    bundle: str | os.PathLike[str] = DEFAULT_BUNDLE,
    sample: str | os.PathLike[str] = DEFAULT_SAMPLE,
    prune: Prune | None = None,
    threads: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Tracks every object of a sample from the box on its first frame and scores the written masks.

    Args:
        out: folder to make: `masks/`, `overlay.mp4`, `run.json`.
        bundle: name or folder; see `bundle_path`.
        sample: name or folder; see `sample_path`.
        prune: which memory rows survive; all when None.
        threads: CPU threads inside one operator.
        progress: as in `run_video`.

    Returns:
        The content of run.json: that of `run_video` with `j_and_f`, `j` and `f` (0..100, of the mask pictures, every frame after an
        object's prompt), `score` per object, `sample` (its files), `command` (repeats the demo), `run_command` (repeats the tracking alone)
        and `score_command` (scores the masks again, to the same numbers).

    Raises:
        VideoError: if the sample is not whole, or the output cannot be written.
        BundleError: if the bundle is missing or damaged.
        ScoreError: if the sample's ground truth does not fit its clip; nothing stays written.
    """
    folder = sample_path(sample)
    facts = read_sample(folder)
    prune = prune or Prune()
    prompted = {o.id: o.first_frame for o in facts.objects}

    def amend(record: dict[str, Any], masks: Path) -> dict[str, Any]:
        score, differing = _score(masks, folder / TRUTH, prompted)
        options = [arg for i in differing for arg in ("--prompted", f"{i}@{prompted[i]}")]
        return {
            "j_and_f": score.j_and_f,
            "j": score.j,
            "f": score.f,
            "sample": {
                "name": facts.name,
                "clip": str(folder / CLIP),
                "truth": str(folder / TRUTH),
                "objects": [o.model_dump(mode="json") for o in facts.objects],
            },
            **record,
            "command": _command(out, bundle, sample, prune, threads),
            "run_command": record["command"],
            "score_command": shlex.join(["fastsam2", "score", str(out / "masks"), str(folder / TRUTH), *options]),
            "score": score.to_json(),
        }

    return run_video(
        bundle,
        source=str(folder / CLIP),
        out=out,
        prompts=[TimedPrompt(id=o.id, frame=o.first_frame, box=o.box) for o in facts.objects],
        prune=prune,
        threads=threads,
        progress=progress,
        amend=amend,
    )


def _score(masks: Path, truth: Path, prompted: dict[int, int]) -> tuple[Score, list[int]]:
    """The score, and ids that are prompted on another frame than their first in the ground truth."""
    score = score_folders(masks, truth)
    differing = [o.id for o in score.objects if o.id in prompted and o.prompted != prompted[o.id]]
    return (score_folders(masks, truth, prompted={i: prompted[i] for i in differing}) if differing else score), differing


def _command(out: Path, bundle: str | os.PathLike[str], sample: str | os.PathLike[str], prune: Prune, threads: int | None) -> str | None:
    """The command line that repeats the demo; None where `prune` has settings that its options cannot name."""
    if prune != Prune(policy=prune.policy, keep=prune.keep):
        return None
    args = ["fastsam2", "demo", "--out", str(out), "--bundle", bundle_text(bundle), "--sample", bundle_text(sample)]
    args += ["--prune", prune.policy.value, *(["--keep", str(prune.keep)] if prune.keep is not None else [])]
    return shlex.join(args + (["--threads", str(threads)] if threads is not None else []))
