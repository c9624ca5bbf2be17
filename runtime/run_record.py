"""What run.json says of a run, and the command line that repeats it."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime

import fastsam2
from fastsam2.config import KEEP_BUCKETS, ModelSpec, Prune
from fastsam2.enums import BackendName, QueryPolicy
from fastsam2.runtime.backends.onnxruntime import usable_cores
from fastsam2.runtime.prompt_args import TimedPrompt, adding
from fastsam2.runtime.result import MemoryReport, Result, TokenReport
from fastsam2.runtime.video import FrameSource

LIVE_DROPS = "keep only the newest frame"
NO_DROPS = "every frame"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The arguments of `run_video` that its record and its command line name; described there."""

    bundle: str | os.PathLike[str]
    source: str
    out: Path | None
    prune: Prune
    tracker: Mapping[str, Any]  # corrections_as_prompts, max_prompt_frames, fill_hole_area, memory_budget_mb
    files: Mapping[str, bool]  # separate, rle, overlay, tokens
    frames: int | None
    backend: BackendName
    threads: int | None
    show: bool
    stream: str | None
    gpu: int = 0
    cuda_graphs: bool = False

    def command(self, plan: Sequence[TimedPrompt]) -> str | None:
        """The command line that repeats the run; None when `prune` has buckets, or a correction a text, that no option can name."""
        prune = self.prune
        added = [p for p in adding(plan) if p.text is not None]
        if prune.buckets != KEEP_BUCKETS or len(added) != sum(p.text is not None for p in plan):
            return None
        texts = dict.fromkeys((p.id, p.text) for p in added)
        if len(texts) != len({i for i, _ in texts}):
            return None
        values = {
            "--out": self.out,
            "--stream": self.stream,
            "--backend": self.backend.value,
            "--gpu": self.gpu or None,
            "--threads": self.threads,
            "--frames": self.frames,
            **prune_options(prune),
            "--max-prompt-frames": self.tracker["max_prompt_frames"],
            "--fill-holes": self.tracker["fill_hole_area"],
            "--memory-budget": self.tracker["memory_budget_mb"],
        }
        flags = {
            "--show": self.show,
            "--corrections-as-prompts": self.tracker["corrections_as_prompts"],
            "--separate": self.files["separate"],
            "--rle": self.files["rle"],
            "--no-overlay": self.out is not None and not self.files["overlay"],
            "--cuda-graphs": self.cuda_graphs,
            "--guard": prune.guard,
            "--show-tokens": self.files["tokens"],
        }
        args = ["fastsam2", "run", bundle_text(self.bundle), "--video", self.source]
        args += [arg for prompt in plan for arg in prompt.to_args()]
        args += [arg for i, text in texts for arg in ("--text", f"{i}:{text}")]
        args += [arg for option, value in values.items() if value is not None for arg in (option, str(value))]
        return shlex.join(args + [flag for flag, on in flags.items() if on])


@dataclass(slots=True)
class FrameLog:
    """What is remembered of the frames of a run."""

    per_frame: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # decoding and tracking
    memory: MemoryReport = field(default_factory=MemoryReport)
    interrupted: bool = False
    lost: str | None = None  # why a live source ended

    @property
    def frames(self) -> int:
        """How many there were."""
        return len(self.per_frame)

    def add(self, result: Result) -> None:
        """Remembers a frame."""
        self.memory = result.memory
        self.per_frame.append(
            {
                "frame": result.frame,
                "ids": list(result.ids),
                "scores": [round(v, 6) for v in result.scores.tolist()],
                "visible": result.visible.tolist(),
                "ious": [round(v, 6) for v in result.ious.tolist()],
                **({} if result.tokens is None else _tokens_json(result.tokens)),
            }
        )


def run_json(
    options: RunOptions,
    *,
    plan: Sequence[TimedPrompt],
    described: Collection[tuple[int, int]],
    spec: ModelSpec,
    device: Mapping[str, Any] | None,
    video: FrameSource,
    log: FrameLog,
    stages_ms: Mapping[str, Mapping[str, float]],
    stream: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The content of run.json, but for `outputs`, which the writer adds.

    `described`: ids and frames whose texts were not typed; `device`: the GPU and its memory.
    """
    prune = options.prune
    return {
        "fastsam2": fastsam2.__version__,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "platform": platform.platform(),
        "bundle": str(options.bundle),
        "model": spec.model_dump(mode="json"),
        "backend": options.backend.value,
        **({} if device is None else {"gpu": device}),
        "threads": options.threads or usable_cores(),
        "config": {
            "prune": _prune_json(prune),
            **options.tracker,
            **options.files,
            "frames": options.frames,
            "source": options.source,
            "prompts": [p.to_json() for p in plan],
        },
        "command": options.command(plan),
        "source": _source_json(video),
        "frames": log.frames,
        "interrupted": log.interrupted,
        "source_lost": log.lost,
        "fps": log.frames / log.seconds,
        "stages_ms": stages_ms,
        "stream": stream,
        "objects": _objects_json(plan, described, log.frames),
        "keep": prune.rows(spec.tokens) / spec.tokens,
        "memory_tokens": max(log.memory.rows, default=0),
        "memory_share": max(log.memory.share, default=0.0),
        "bytes_per_object": max(log.memory.bytes, default=0),
        "per_frame": log.per_frame,
    }


def prune_options(prune: Prune) -> dict[str, Any]:
    """Command-line options that say the same, all but the buckets; None where one is left out."""
    return {
        "--prune": prune.policy.value,
        "--keep": prune.keep,
        "--tokens": prune.tokens,
        "--protect": ",".join(p.value for p in prune.protect) or "none",
        "--seed": prune.seed,
        "--query-prune": None if prune.queries is QueryPolicy.ALL else prune.queries.value,
        "--query-keep": prune.query_keep,
    }


def bundle_text(bundle: str | os.PathLike[str]) -> str:
    """The command-line argument that stands for a bundle: a `Path` without a separator is written so that no built-in name takes it."""
    text = os.fspath(bundle)
    return text if isinstance(bundle, str) or os.sep in text else os.path.join(".", text)


def _tokens_json(tokens: TokenReport) -> dict[str, Any]:
    """Rows kept of the frame before, and why there are more of them than asked for."""
    alarms = {str(i): alarm.value for i, alarm in zip(tokens.ids, tokens.alarms, strict=True) if alarm is not None}
    return {"kept_rows": tokens.keep, **({"alarms": alarms} if alarms else {})}


def _objects_json(plan: Sequence[TimedPrompt], described: Collection[tuple[int, int]], frames: int) -> list[dict[str, Any]]:
    """When each object came and went, and what it was called then, in the order they came; one that came back has two entries."""
    objects: list[dict[str, Any]] = []
    tracked: dict[int, dict[str, Any]] = {}
    for p in plan:
        if p.frame >= frames:
            break
        if p.remove:
            tracked.pop(p.id)["removed_frame"] = p.frame
        elif p.id not in tracked:
            tracked[p.id] = {"id": p.id, "added_frame": p.frame, "removed_frame": None}
            if p.text is not None:
                tracked[p.id] |= {"text": p.text, "auto_text": (p.id, p.frame) in described}
            objects.append(tracked[p.id])
    return objects


def _source_json(video: FrameSource) -> dict[str, Any]:
    return {
        "name": video.source,
        "size": list(video.size),
        "fps": video.fps,
        "frame_count": video.frame_count,
        "live": video.live,
        "dropped": video.dropped,
        "drop_policy": LIVE_DROPS if video.live else NO_DROPS,
    }


def _prune_json(prune: Prune) -> dict[str, Any]:
    return {
        "policy": prune.policy.value,
        "keep": prune.keep,
        "tokens": prune.tokens,
        "protect": [p.value for p in prune.protect],
        "seed": prune.seed,
        "buckets": list(prune.buckets),
        "guard": prune.guard,
        "queries": prune.queries.value,
        "query_keep": prune.query_keep,
    }
