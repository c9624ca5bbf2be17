"""One whole run: bundle, source and prompts -> masks on disk and a record of the run. The library function of `fastsam2 run`.

    check everything ─► per frame: removals ─► step ─► prompts ─► write ─► run.json

What is written for a frame is its state after the prompts on it. Nothing is written unless all prompts are legal for the source.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from fastsam2.config import Prune
from fastsam2.enums import BackendName, PrunePolicy
from fastsam2.errors import PromptError, VideoError, expected
from fastsam2.runtime.auto_text import Describer
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.outputs import PALETTE_IDS, RunWriter, load_mask
from fastsam2.runtime.overlay import draw_overlay
from fastsam2.runtime.prompt_args import AUTO_TEXT, TimedPrompt, adding, combine
from fastsam2.runtime.prompts import make_prompt
from fastsam2.runtime.result import Result
from fastsam2.runtime.run_record import FrameLog, RunOptions, run_json
from fastsam2.runtime.stages import DEFAULT_MEMORY_BUDGET_MB
from fastsam2.runtime.stream import OverlayStream
from fastsam2.runtime.timing import StageTimer
from fastsam2.runtime.token_view import MAX_LINES, TokenPanels
from fastsam2.runtime.tracker import DEFAULT_MAX_PROMPT_FRAMES, Tracker
from fastsam2.runtime.video import Frame, FrameSource, open_video
from fastsam2.runtime.watch import Watch
from fastsam2.runtime.window import Window

Action = tuple[TimedPrompt, dict[str, Any]]  # a prompt and the arguments of the tracker's call
Amend = Callable[[dict[str, Any], Path], dict[str, Any]]

_log = logging.getLogger("fastsam2")


def run_video(
    bundle: str | os.PathLike[str],
    *,
    source: str,
    out: Path | None = None,
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
    tokens: bool = False,
    backend: BackendName = BackendName.ONNXRUNTIME,
    gpu: int = 0,
    cuda_graphs: bool = False,
    on_backend: Callable[[str], object] | None = None,
    threads: int | None = None,
    window: Window | None = None,
    stream: str | None = None,
    auto_text: bool = False,
    describer: Describer | None = None,
    on_description: Callable[[int, str], object] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    amend: Amend | None = None,
) -> dict[str, Any]:
    """Tracks the prompted objects through a source; writes masks, overlay and run.json, or shows the overlay, or both.

    Ctrl-C on a live source finishes the frame in work and ends the run normally (`interrupted` in the record); on a recorded one nothing
    stays written. Ending the run from the window is normal for both (`interrupted` too). A recorded source without prompts waits on its
    first frame for a box drawn in the window.

    A prompt whose text is `AUTO_TEXT` gets a description of what the object's mask shows on its frame, in the record too, as if it had
    been typed. One that cannot be described (its mask is empty) stays without, with a UserWarning.

    Args:
        bundle: name of a built-in bundle, or a folder that `fastsam2 export` wrote; see `bundle_path`.
        source: file, folder, camera or URL; see `open_video`.
        out: folder to make; None writes nothing and needs a window or a stream.
        prompts: in any order; see `combine`. May be empty with a window, where boxes can be drawn.
        prune: which memory rows survive; all when None.
        corrections_as_prompts: see `Tracker`, as the next three.
        max_prompt_frames: prompted frames held per object.
        fill_hole_area: holes up to so many low-resolution pixels are filled.
        memory_budget_mb: bound on the activations of one batch of objects, MiB.
        frames: end after this many frames.
        separate: one mask folder per object instead of palette pictures; objects may overlap and ids may exceed 255.
        rle: also write run-length encoded masks.
        overlay: also write a video with the masks drawn in.
        tokens: also write a video of the memory rows that are kept and why, see `TokenPanels`; needs a policy that scores rows.
        backend: where graphs run.
        gpu: which GPU, for backends that need one.
        cuda_graphs: replay engines as CUDA graphs.
        on_backend: called with what `auto` chose, and why not another.
        threads: CPU threads inside one operator; every core this process may use when None.
        window: shows the overlay and takes boxes; the caller closes it.
        stream: where the overlay is sent as it comes; see `StreamTarget.parse`.
        auto_text: put `AUTO_TEXT` where an object is added without a text, boxes drawn in the window included.
        describer: makes the descriptions; `LoadedBundle.describer()` when None.
        on_description: called with id and description for each one that was made.
        progress: called with (frames done, frames in all or None) after each frame.
        amend: called with what run.json is going to say and the folder of the finished masks, before anything has its final name; answers
            what run.json says. What it raises ends the run with everything written removed. Not called without `out`.

    Returns:
        The content of run.json, but for `outputs`, which the writer adds. `fps` counts decoding and tracking, not writing; memory is that
        of the object holding most after the last frame.

    Raises:
        PromptError: before anything is written, if there is nothing to write or show, no prompt and no window, or a prompt is illegal or
            lies beyond the known length; at the end, with everything written removed, if a source of unknown length ends before a prompt.
        BundleError: if the bundle is missing, damaged, altered, or of another version; or lacks what descriptions need.
        BackendError: if the backend or the window cannot be used here.
        VideoError: if the source cannot be read, the output cannot be written, or the stream cannot be opened or, being all that comes of
            the run, fails.
    """
    plan = combine(prompts)
    if auto_text:
        undescribed = {(p.id, p.frame) for p in adding(plan) if p.text is None}
        plan = [replace(p, text=AUTO_TEXT) if not p.remove and (p.id, p.frame) in undescribed else p for p in plan]
    if out is None and window is None and stream is None:
        raise PromptError(expected("--out, --show or --stream", "none of them", "Say where the masks go"))
    if out is None and (separate or rle):
        raise PromptError(expected("--out with --separate or --rle", "none", "Name the folder to write"))
    if tokens and (out is None or prune is None or not prune.policy.scores_rows):
        got = "no --out" if out is None else f"policy {(prune or Prune()).policy.value}"
        raise PromptError(expected("--show-tokens with --out and a policy that scores rows", got, "Add --out, or --prune mask or router"))
    if not plan and window is None:
        raise PromptError(expected("at least one prompt", "none", "Give --box, --point, --mask or --prompts, or draw with --show"))
    options = RunOptions(
        bundle=bundle,
        source=source,
        out=out,
        prune=prune or Prune(),
        tracker={
            "corrections_as_prompts": corrections_as_prompts,
            "max_prompt_frames": max_prompt_frames,
            "fill_hole_area": fill_hole_area,
            "memory_budget_mb": memory_budget_mb,
        },
        files={"separate": separate, "rle": rle, "overlay": overlay, "tokens": tokens},
        frames=frames,
        backend=backend,
        gpu=gpu,
        cuda_graphs=cuda_graphs,
        threads=threads,
        show=window is not None,
        stream=stream,
    )
    loaded = load(bundle, backend=backend.value, threads=threads, gpu=gpu, cuda_graphs=cuda_graphs)
    options = replace(options, backend=BackendName(loaded.backend.name))
    if on_backend is not None and backend is BackendName.AUTO:
        whys: dict[str, list[str]] = {}
        for name, why in loaded.passed_over.items():
            whys.setdefault(why, []).append(name)
        on_backend("\n  ".join([f"backend: {loaded.backend.name}", *(f"not {', '.join(names)}: {why}" for why, names in whys.items())]))
    _check_texts(plan, options.prune, loaded, auto_text=auto_text)
    if describer is None and (auto_text or any(p.text == AUTO_TEXT for p in plan)):
        describer = loaded.describer()
    options.prune.rows(loaded.spec.tokens)  # raises before anything is opened
    timer = StageTimer()
    with closing(loaded), open_video(source, max_frames=frames) as video:
        limit = frames if video.frame_count is None else video.frame_count
        actions = _checked_actions(plan, video, limit, separate or out is None)
        tracker = loaded.tracker(prune=options.prune, **options.tracker)
        writer = None if out is None else _writer(out, options, plan, video)
        with ExitStack() as undo:
            if writer is not None:
                undo.callback(writer.abort)
            sender = None if stream is None else OverlayStream(stream, size=video.size, fps=video.fps, live=video.live)
            if sender is not None:
                undo.callback(sender.discard)
            ids = None if separate or out is None else PALETTE_IDS
            with closing(Watch(window=window, stream=sender, stream_alone=out is None and window is None, ids=ids)) as watch:
                words = _Words(describer, timer, on_description, drawn=auto_text)
                run = _Run(tracker, video, actions, timer, watch, writer, words)
                log = run.track(lambda n: progress and progress(n, limit))
                plan = words.in_place(combine([*plan, *run.drawn]))
                _check_all_reached(plan, video, log)
                watch.close()
                stages_ms = {**tracker.stages_ms(), **timer.summary()}
                record = run_json(
                    options,
                    plan=plan,
                    described=words.made.keys(),
                    spec=loaded.spec,
                    device=loaded.device_facts(),
                    video=video,
                    log=log,
                    stages_ms=stages_ms,
                    stream=watch.facts(),
                )
                if writer is not None:
                    record = amend(record, writer.masks) if amend else record
                    writer.finish(record)
            undo.pop_all()
    return record


def _writer(out: Path, options: RunOptions, plan: Sequence[TimedPrompt], video: FrameSource) -> RunWriter:
    files = dict(options.files)
    shown = min(MAX_LINES, len({p.id for p in plan}) or 1)
    panels = TokenPanels(shown, routed=options.prune.policy is PrunePolicy.ROUTER) if files.pop("tokens") else None
    return RunWriter(out, size=video.size, fps=video.fps, **files, token_video=panels, names=video.numbers)


def _check_texts(plan: Sequence[TimedPrompt], prune: Prune, loaded: LoadedBundle, *, auto_text: bool) -> None:
    described = [p.text for p in plan if p.text is not None] + [AUTO_TEXT] * auto_text
    if described and prune.policy is not PrunePolicy.ROUTER:
        got = f"{described[0]!r} with policy {prune.policy.value}"
        raise PromptError(expected("texts with --prune router", got, "Only the router reads descriptions: add --prune router"))
    if described and loaded.manifest.text is None:
        got = f"{loaded.folder} without"
        raise PromptError(expected("a bundle with a text encoder", got, "Add one with `fastsam2 add-text`, or give no text"))


def _checked_actions(plan: Sequence[TimedPrompt], video: FrameSource, limit: int | None, separate: bool) -> dict[int, list[Action]]:
    """The arguments of every tracker call, by frame, after checking them against the source."""
    actions: dict[int, list[Action]] = {}
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


@dataclass(slots=True)
class _Words:
    """The descriptions of one run.

    Attributes:
        describer: None when nothing is to be described automatically.
        timer: of the run.
        said: called with id and description for each one that was made.
        drawn: boxes drawn in the window are described too.
        made: id and frame of a prompt -> its description, None where there was nothing to describe.
    """

    describer: Describer | None
    timer: StageTimer
    said: Callable[[int, str], object] | None
    drawn: bool
    made: dict[tuple[int, int], str | None] = field(default_factory=dict)

    def of(self, prompt: TimedPrompt, frame: Frame, result: Result) -> str | None:
        """What the prompt says of its object, or what the object's mask shows."""
        if prompt.text != AUTO_TEXT or self.describer is None:
            return prompt.text
        text = None
        try:
            with self.timer.stage("describe"):
                text = self.describer.describe(frame, result[prompt.id])
        except PromptError as error:
            warnings.warn(f"object {prompt.id} on frame {prompt.frame} is not described: {error}", UserWarning, stacklevel=2)
        self.made[prompt.id, prompt.frame] = text
        if text is not None and self.said is not None:
            self.said(prompt.id, text)
        return text

    def in_place(self, plan: Sequence[TimedPrompt]) -> list[TimedPrompt]:
        """The plan with the descriptions that were made."""
        return [replace(p, text=self.made.get((p.id, p.frame), p.text)) if p.text == AUTO_TEXT else p for p in plan]


@dataclass(slots=True)
class _Run:
    """The loop over the frames of one source.

    Attributes:
        actions: what is said on each frame.
        writer: files, or None.
        drawn: prompts that came from the window.
    """

    tracker: Tracker
    video: FrameSource
    actions: Mapping[int, Sequence[Action]]
    timer: StageTimer
    watch: Watch
    writer: RunWriter | None
    words: _Words
    drawn: list[TimedPrompt] = field(default_factory=list)
    log: FrameLog = field(default_factory=FrameLog)

    def track(self, progress: Callable[[int], object]) -> FrameLog:
        """Every frame, until the source ends, or the user or a failure ends a live one."""
        log, ahead = self.log, None
        try:
            while not log.interrupted:
                start = perf_counter()
                now = self._next() if ahead is None else ahead
                if now is None:
                    break
                frame, time = now
                ahead = None if self.video.live else self._next()
                upcoming = None if ahead is None else ahead[0]
                if not log.frames and not self.video.live and not self.actions:
                    self.watch.hold(frame)
                    start = perf_counter()
                with _whole_frame(self.video.live):
                    result = self._track_frame(frame, upcoming, log.frames)
                    log.seconds += perf_counter() - start
                    with self.timer.stage("write"):
                        self._hand_out(frame, result, time)
                    log.add(result)
                progress(log.frames)
                log.interrupted = self.watch.closed
        except KeyboardInterrupt:
            if not self.video.live or not log.frames:
                raise
            log.interrupted = True
        return log

    def _next(self) -> tuple[Frame, float | None] | None:
        """The next frame and its time; None at the end, which a live source that fails after its first frame has reached."""
        try:
            with self.timer.stage("decode"):
                frame = next(self.video, None)
        except VideoError as error:
            if not self.video.live or not self.log.frames:
                raise
            self.log.lost = str(error)
            _log.warning("the source ended after %d frames, which are kept: %s", self.log.frames, error)
            return None
        return None if frame is None else (frame, self.video.time)

    def _track_frame(self, frame: Frame, upcoming: Frame | None, number: int) -> Result:
        planned = self.actions.get(number, ())
        drawn = self.watch.prompts(number, [p.id for p in self.drawn] + [p.id for actions in self.actions.values() for p, _ in actions])
        if self.words.drawn:
            drawn = [replace(p, text=AUTO_TEXT) for p in drawn]
        self.drawn += drawn
        for prompt, _ in planned:
            if prompt.remove:
                self.tracker.remove(prompt.id)
        result = self.tracker.step(frame, upcoming=upcoming)
        for prompt, arguments in (*planned, *((p, {"box": p.box}) for p in drawn)):
            if not prompt.remove:
                call = self.tracker.correct if prompt.id in self.tracker.ids else self.tracker.add
                result = call(prompt.id, **arguments)
                if (text := self.words.of(prompt, frame, result)) is not None:
                    self.tracker.describe(prompt.id, text)
        return result

    def _hand_out(self, frame: Frame, result: Result, time: float | None) -> None:
        picture = draw_overlay(frame, result) if self.watch.wants_pictures else None
        if self.writer is not None:
            self.writer.write(frame, result, picture=picture, time=time)
        if picture is not None:
            self.watch.show(picture, time)


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


def _check_all_reached(plan: Sequence[TimedPrompt], video: FrameSource, log: FrameLog) -> None:
    late = [p for p in plan if p.frame >= log.frames]
    if late and not log.interrupted and log.lost is None:
        got = f"a prompt for object {late[0].id} on frame {late[0].frame}"
        raise PromptError(expected(f"prompts on the {log.frames} frames that {video.source} had", got, "Prompt a frame that exists"))
