"""One whole run: bundle, source and prompts -> masks on disk and a record of the run. The library function of `fastsam2 run`.

    check everything ─► per frame: removals ─► step ─► prompts ─► write ─► run.json

What is written for a frame is its state after the prompts on it. Nothing is written unless all prompts are legal for the source.
"""

from __future__ import annotations

import platform
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import onnxruntime

import fastsam2
from fastsam2.config import KEEP_BUCKETS, Prune
from fastsam2.enums import BackendName
from fastsam2.errors import PromptError, expected
from fastsam2.runtime.backends.onnxruntime import usable_cores
from fastsam2.runtime.loaded import load
from fastsam2.runtime.outputs import PALETTE_IDS, RunWriter, load_mask
from fastsam2.runtime.prompt_args import TimedPrompt, combine
from fastsam2.runtime.prompts import make_prompt
from fastsam2.runtime.result import MemoryReport, Result
from fastsam2.runtime.stages import DEFAULT_MEMORY_BUDGET_MB
from fastsam2.runtime.timing import StageTimer
from fastsam2.runtime.tracker import DEFAULT_MAX_PROMPT_FRAMES, Tracker
from fastsam2.runtime.video import Frame, FrameSource, open_video

LIVE_DROPS = "keep only the newest frame"
NO_DROPS = "every frame"

Actions = Mapping[int, Sequence[tuple[TimedPrompt, dict[str, Any]]]]


@dataclass(slots=True)
class _Record:
    """What is remembered of the frames that were written."""

    per_frame: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # decoding and tracking
    memory: MemoryReport = field(default_factory=MemoryReport)
    interrupted: bool = False

    @property
    def frames(self) -> int:
        return len(self.per_frame)

    def add(self, result: Result) -> None:
        self.memory = result.memory
        self.per_frame.append(
            {
                "frame": result.frame,
                "ids": list(result.ids),
                "scores": [round(v, 6) for v in result.scores.tolist()],
                "visible": result.visible.tolist(),
                "ious": [round(v, 6) for v in result.ious.tolist()],
            }
        )


def run_video(
    bundle: Path,
    *,
    source: str,
    out: Path,
    prompts: Sequence[TimedPrompt],
    prune: Prune | None = None,
    corrections_as_prompts: bool = False,
    max_prompt_frames: int = DEFAULT_MAX_PROMPT_FRAMES,
    fill_hole_area: int = 0,
    memory_budget_mb: int = DEFAULT_MEMORY_BUDGET_MB,
    frames: int | None = None,
    separate: bool = False,
    rle: bool = False,
    overlay: bool = True,
    backend: BackendName = BackendName.ONNXRUNTIME,
    threads: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Tracks the prompted objects through a source and writes masks, overlay and run.json.

    Ctrl-C on a live source finishes the frame in work and ends the run normally (`interrupted` in the record); on a recorded one nothing
    stays written.

    Args:
        bundle: folder that `fastsam2 export` wrote.
        source: file, folder, camera or URL; see `open_video`.
        out: folder to make.
        prompts: in any order; see `combine`.
        prune: which memory rows survive; all when None.
        corrections_as_prompts: see `Tracker`, as the next three.
        max_prompt_frames: prompted frames held per object.
        fill_hole_area: holes up to so many low-resolution pixels are filled.
        memory_budget_mb: bound on the activations of one batch of objects, MiB.
        frames: end after this many frames.
        separate: one mask folder per object instead of palette pictures; objects may overlap and ids may exceed 255.
        rle: also write run-length encoded masks.
        overlay: also write a video with the masks drawn in.
        backend: where graphs run.
        threads: CPU threads inside one operator; every core this process may use when None.
        progress: called with (frames done, frames in all or None) after each frame.

    Returns:
        The content of run.json, but for `outputs`, which the writer adds. `fps` counts decoding and tracking, not writing; memory is that
        of the object holding most after the last frame.

    Raises:
        PromptError: before anything is written, if there is no prompt, or one is illegal or lies beyond the known length; at the end,
            with everything written removed, if a source of unknown length ends before a prompt.
        BundleError: if the bundle is missing, damaged, altered, or of another version.
        BackendError: if the backend cannot be used here.
        VideoError: if the source cannot be read or the output cannot be written.
    """
    plan = combine(prompts)
    if not plan:
        raise PromptError(expected("at least one prompt", "none", "Give --box, --point, --mask or --prompts"))
    prune = prune or Prune()
    loaded = load(bundle, backend=backend.value, threads=threads)
    spec = loaded.spec
    kept = prune.rows(spec.tokens)
    options: dict[str, Any] = {
        "corrections_as_prompts": corrections_as_prompts,
        "max_prompt_frames": max_prompt_frames,
        "fill_hole_area": fill_hole_area,
        "memory_budget_mb": memory_budget_mb,
    }
    outputs = {"separate": separate, "rle": rle, "overlay": overlay}
    timer = StageTimer()
    with open_video(source, max_frames=frames) as video:
        limit = frames if video.frame_count is None else video.frame_count
        actions = _checked_actions(plan, video, limit, separate)
        tracker = loaded.tracker(prune=prune, **options)
        writer = RunWriter(out, size=video.size, fps=video.fps, **outputs)
        try:
            record = _track(tracker, video, actions=actions, writer=writer, timer=timer, progress=lambda n: progress and progress(n, limit))
            _check_all_reached(plan, video, record)
            stages_ms = {**tracker.stages_ms(), **timer.summary()}
            run = {
                "fastsam2": fastsam2.__version__,
                "python": platform.python_version(),
                "onnxruntime": onnxruntime.__version__,
                "platform": platform.platform(),
                "bundle": str(bundle),
                "model": spec.model_dump(mode="json"),
                "backend": backend.value,
                "threads": threads or usable_cores(),
                "config": {
                    "prune": _prune_json(prune),
                    **options,
                    **outputs,
                    "frames": frames,
                    "source": source,
                    "prompts": [p.to_json() for p in plan],
                },
                "command": _command(
                    bundle,
                    source,
                    out,
                    plan=plan,
                    prune=prune,
                    options={**options, **outputs, "frames": frames, "threads": threads, "backend": backend},
                ),
                "source": _source_json(video),
                "frames": record.frames,
                "interrupted": record.interrupted,
                "fps": record.frames / record.seconds,
                "stages_ms": stages_ms,
                "objects": _objects_json(plan, record.frames),
                "keep": kept / spec.tokens,
                "memory_tokens": max(record.memory.rows, default=0),
                "memory_share": max(record.memory.share, default=0.0),
                "bytes_per_object": max(record.memory.bytes, default=0),
                "per_frame": record.per_frame,
            }
            writer.finish(run)
        except BaseException:
            writer.abort()
            raise
    return run


def _checked_actions(plan: Sequence[TimedPrompt], video: FrameSource, limit: int | None, separate: bool) -> Actions:
    """The arguments of every tracker call, by frame, after checking them against the source."""
    actions: dict[int, list[tuple[TimedPrompt, dict[str, Any]]]] = {}
    for p in plan:
        where = f"object {p.id} on frame {p.frame}"
        if limit is not None and p.frame >= limit:
            raise PromptError(expected(f"frames 0 to {limit - 1} of {video.source}", where, "Prompt a frame that is read"))
        if p.id not in PALETTE_IDS and not separate:
            raise PromptError(expected(f"ids up to {PALETTE_IDS[-1]} in palette masks", where, "Use smaller ids, or --separate"))
        arguments: dict[str, Any] = {}
        if not p.remove:
            arguments = {
                "box": p.box,
                "points": p.points or None,
                "labels": p.labels or None,
                "mask": None if p.mask is None else load_mask(p.mask),
            }
            try:
                make_prompt(**arguments, frame_size=video.size)
            except PromptError as error:
                raise PromptError(f"{where}: {error}") from error
        actions.setdefault(p.frame, []).append((p, arguments))
    return actions


def _track(
    tracker: Tracker, video: FrameSource, *, actions: Actions, writer: RunWriter, timer: StageTimer, progress: Callable[[int], object]
) -> _Record:
    record = _Record()
    try:
        while True:
            start = perf_counter()
            with timer.stage("decode"):
                frame = next(video, None)
            if frame is None:
                return record
            with _whole_frame(video.live):
                result = _track_frame(tracker, frame, actions.get(record.frames, ()))
                record.seconds += perf_counter() - start
                with timer.stage("write"):
                    writer.write(frame, result)
                record.add(result)
            progress(record.frames)
    except KeyboardInterrupt:
        if not video.live or not record.frames:
            raise
        record.interrupted = True
        return record


def _track_frame(tracker: Tracker, frame: Frame, actions: Sequence[tuple[TimedPrompt, dict[str, Any]]]) -> Result:
    for prompt, _ in actions:
        if prompt.remove:
            tracker.remove(prompt.id)
    result = tracker.step(frame)
    for prompt, arguments in actions:
        if not prompt.remove:
            call = tracker.correct if prompt.id in tracker.ids else tracker.add
            result = call(prompt.id, **arguments)
    return result


@contextmanager
def _whole_frame(live: bool) -> Iterator[None]:
    """Puts off Ctrl-C to the end of the block, so that an interrupted live run ends on a whole frame."""
    heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # it is not in a process started in the background
    if not live or not heard or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def _check_all_reached(plan: Sequence[TimedPrompt], video: FrameSource, record: _Record) -> None:
    late = [p for p in plan if p.frame >= record.frames]
    if late and not record.interrupted:
        got = f"a prompt for object {late[0].id} on frame {late[0].frame}"
        raise PromptError(expected(f"prompts on the {record.frames} frames that {video.source} had", got, "Prompt a frame that exists"))


def _objects_json(plan: Sequence[TimedPrompt], frames: int) -> list[dict[str, Any]]:
    """When each object came and went, in the order they came; one that came back has two entries."""
    objects: list[dict[str, Any]] = []
    tracked: dict[int, dict[str, Any]] = {}
    for p in plan:
        if p.frame >= frames:
            break
        if p.remove:
            tracked.pop(p.id)["removed_frame"] = p.frame
        elif p.id not in tracked:
            tracked[p.id] = {"id": p.id, "added_frame": p.frame, "removed_frame": None}
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
    }


def _command(bundle: Path, source: str, out: Path, *, plan: Sequence[TimedPrompt], prune: Prune, options: Mapping[str, Any]) -> str | None:
    """The command line that repeats the run; None when `prune` has buckets that no option can name."""
    if prune.buckets != KEEP_BUCKETS:
        return None
    values = {
        "--backend": options["backend"].value,
        "--threads": options["threads"],
        "--frames": options["frames"],
        "--prune": prune.policy.value,
        "--keep": prune.keep,
        "--tokens": prune.tokens,
        "--protect": ",".join(p.value for p in prune.protect) or "none",
        "--seed": prune.seed,
        "--max-prompt-frames": options["max_prompt_frames"],
        "--fill-holes": options["fill_hole_area"],
        "--memory-budget": options["memory_budget_mb"],
    }
    flags = {
        "--corrections-as-prompts": options["corrections_as_prompts"],
        "--separate": options["separate"],
        "--rle": options["rle"],
        "--no-overlay": not options["overlay"],
    }
    args = ["fastsam2", "run", str(bundle), "--video", source, "--out", str(out)]
    args += [arg for prompt in plan for arg in prompt.to_args()]
    args += [arg for option, value in values.items() if value is not None for arg in (option, str(value))]
    return shlex.join(args + [flag for flag, on in flags.items() if on])
