"""`fastsam2 bench`: milliseconds, memory and masks of the tracker, in pairs with the official predictor; resumable.

    cases asked for ─ minus those in the file ─► peak memory, a process each ─► all sides filled once ─► for each number of objects:
                                                             restore ─ copy objects ─ measure in turns ─► cases ─► bench.json

What is timed, and how, is described in `docs/benchmarks.md`.
"""

from __future__ import annotations

import importlib
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastsam2.benchmarks.bench_case import BOUNDARIES, DECODE, SETTLE_S, WAITED_FRAMES, Taken, measure, numbers, quality, stages
from fastsam2.benchmarks.bench_frames import SCENE, Box, box_in, store_frames
from fastsam2.benchmarks.bench_memory import FILL_FRAMES, Request, peak_memory
from fastsam2.benchmarks.bench_record import BenchRecord
from fastsam2.benchmarks.conditions import conditions
from fastsam2.benchmarks.energy import Meter, joules_per_call, open_meter
from fastsam2.benchmarks.graph_work import timed_work, work_of
from fastsam2.benchmarks.official_weights import Weights, build_official, official_weights
from fastsam2.benchmarks.report_cases import END_TO_END
from fastsam2.benchmarks.settle import MOST_S, settle
from fastsam2.benchmarks.sides import COMPILED, OFFICIAL, OURS, Official, Ours, Side, fill, multiply
from fastsam2.bundle import MANIFEST_NAME, sha256_of
from fastsam2.config import KEEP_BUCKETS, Prune
from fastsam2.engines import trt_compat
from fastsam2.engines.records import load_engines, targets_for
from fastsam2.enums import BackendName, Flavor, Precision, PrunePolicy
from fastsam2.errors import PromptError, expected
from fastsam2.runtime.backends.onnxruntime import usable_cores
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.run_record import bundle_text
from fastsam2.runtime.timing import WINDOW

AGAINST = (OFFICIAL, COMPILED)
WARM_UP_FRAMES = 18  # 7 frames and 16 pointers are read; two more settle allocators
DEFAULT_FRAMES = 60

Progress = Callable[[str], None]


def run_bench(
    bundle: str,
    *,
    out: Path,
    backend: BackendName | str = BackendName.ONNXRUNTIME,
    against: str | None = None,
    objects: Sequence[int] = (1,),
    keep: Sequence[float] = (1.0,),
    policy: PrunePolicy | str = PrunePolicy.MASK,
    frames: int = DEFAULT_FRAMES,
    video: str | None = None,
    model: str | None = None,
    config: str | None = None,
    checkpoint: str | None = None,
    threads: int | None = None,
    gpu: int = 0,
    cuda_graphs: bool = False,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Measure every combination of objects and keep that the file does not have yet.

    Args:
        bundle: folder, or name of a built-in bundle.
        out: JSON file; saved after each number of objects, so that an interrupted run goes on where it stopped.
        backend: that runs the bundle.
        against: the official predictor: "official" runs eager, on the CPU or the backend's GPU; "official-compiled" is its form for video
            object segmentation, on a GPU. None measures the tracker alone, and needs no torch.
        objects: how many are tracked, one case each.
        keep: shares of the memory rows, one case each; 1.0 is dense, others are rounded up to the next bucket.
        policy: which rows are kept below 1.0.
        frames: that are timed, after those that fill the memory.
        video: any source of `open_video`; None for `make_frames`.
        model: what the cases call it; None for the bundle's name.
        config: name or config of the official side; None for the one that the bundle was exported from.
        checkpoint: of the official side; None as well.
        threads: CPU threads inside one operator, of both sides; None for every core this process may use.
        gpu: which GPU, for backends that use one.
        cuda_graphs: replay engines as CUDA graphs.
        progress: hears one line for each step.

    Returns:
        The content of the file.

    Raises:
        PromptError: if an option is out of range, or the file was measured under other conditions.
        BundleError: if the bundle is not whole, lacks what a policy needs, or official weights are not those it was exported from.
        BackendError: if the backend cannot be used, or a measuring process fails.
        ExportError: if torch, sam2 or the checkpoint is missing.
        VideoError: if the video cannot be read or is too short.
    """
    prunes, counts = _prunes(keep, policy), _counts(objects)
    if not 1 <= frames <= WINDOW:
        raise PromptError(expected(f"1 to {WINDOW} frames", frames, f"The default is {DEFAULT_FRAMES}"))
    if against not in (None, *AGAINST):
        raise PromptError(expected(f"a predictor of {list(AGAINST)}", repr(against), "Leave it out to measure the tracker alone"))
    loaded = load(bundle, backend=BackendName(backend).value, threads=threads, gpu=gpu, cuda_graphs=cuda_graphs)
    try:
        bench = _Bench(
            bundle=bundle,
            loaded=loaded,
            precision=_precision(loaded),
            against=against,
            frames=frames,
            video=video,
            model=model,
            config=config,
            checkpoint=checkpoint,
            threads=threads or usable_cores(),
            gpu=gpu,
            cuda_graphs=cuda_graphs,
            progress=progress,
        )
        if against == COMPILED and not bench.on_gpu:
            raise PromptError(expected(f"{OFFICIAL} with a backend on the CPU", COMPILED, "Compile it only on a GPU"))
        record = BenchRecord(out, bench.head())
        todo = {n: missing for n in counts if (missing := [p for p in prunes if not record.has(bench.identity(n, p))])}
        if not todo:
            progress(f"nothing to do: {out} has every case")
            return record.content
        bench.run(todo, record)
        return record.content
    finally:
        loaded.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """The options of `run_bench`, opened."""

    bundle: str
    loaded: LoadedBundle
    precision: str
    against: str | None
    frames: int
    video: str | None
    model: str | None
    config: str | None
    checkpoint: str | None
    threads: int
    gpu: int
    cuda_graphs: bool
    progress: Progress

    @property
    def on_gpu(self) -> bool:
        return self.loaded.device_facts() is not None

    @property
    def half(self) -> bool:
        return self.precision != Precision.FP32.value

    @property
    def clip_frames(self) -> int:
        return WARM_UP_FRAMES + 1 + self.frames

    def head(self) -> dict[str, Any]:
        """What the file says besides its cases."""
        packages = ["onnxruntime", "torch"] + ["sam2"] * (self.against is not None)
        packages += [package.pip for flavor, package in trt_compat.PACKAGES.items() if flavor.value == self.loaded.backend.name]
        return {
            **conditions(self.threads, "fastsam2", tuple(packages), gpu=self.loaded.device_facts()),
            "bundle": bundle_text(self.bundle),
            "bundle_sha256": sha256_of(self.loaded.folder / MANIFEST_NAME),
            "video": self.video or SCENE,
            "frames": self.frames,
        }

    def identity(self, objects: int, prune: Prune) -> dict[str, Any]:
        """What tells a case from all others, but for its boundary."""
        spec = self.loaded.spec
        return {
            "model": self.model or spec.name.removesuffix(".yaml").removesuffix(".yml"),
            "image_size": spec.image_size,
            "backend": self.loaded.backend.name,
            "precision": self.precision,
            **({"cuda_graphs": True} if self.cuda_graphs else {}),
            **({} if self.against is None else {"against": self.against}),
            "objects": objects,
            "policy": prune.policy.value,
            "keep": prune.keep or 1.0,
        }

    def run(self, todo: Mapping[int, Sequence[Prune]], record: BenchRecord) -> None:
        """Measures the missing cases, by number of objects."""
        weights = None
        if self.against is not None:
            weights = official_weights(self.loaded.manifest, model=self.config, checkpoint=self.checkpoint)
        with tempfile.TemporaryDirectory() as folder:
            files, size = store_frames(self.video, self.clip_frames, Path(folder))
            record.head["video_size"] = list(size)
            box = box_in(size)
            memory = self._memory(todo, weights, files, box)
            official, ours = self._filled(todo, weights, files, box)
            meter = open_meter(self.gpu if self.on_gpu else None)
            for objects, missing in todo.items():
                record.add(self._group(objects, missing, official, ours, files[WARM_UP_FRAMES:], memory, meter))

    def _memory(
        self, todo: Mapping[int, Sequence[Prune]], weights: Weights | None, files: Sequence[Path], box: Box
    ) -> dict[Prune | None, dict[str, Any]]:
        """Answers of `peak_memory` by way to prune; None is the official side."""

        def ask(side: str, objects: Sequence[int], **options: Any) -> dict[str, Any]:
            self.progress(f"memory of {side} with {list(objects)} objects {options.get('keep') or ''}".rstrip())
            return peak_memory(
                Request(
                    side=side,
                    bundle=str(self.loaded.folder),
                    threads=self.threads,
                    gpu=self.gpu if self.on_gpu else None,
                    files=[str(file) for file in files[: FILL_FRAMES + 2]],
                    box=box,
                    frames=self.clip_frames,
                    objects=list(objects),
                    **options,
                )
            )

        answers: dict[Prune | None, dict[str, Any]] = {}
        if weights is not None and self.against is not None:
            answers[None] = ask(self.against, list(todo), half=self.half, model=weights.model, checkpoint=weights.checkpoint)
        for prune in _all(todo):
            counts = [n for n, missing in todo.items() if prune in missing]
            own = {"policy": prune.policy.value, "keep": prune.keep}
            answers[prune] = ask(OURS, counts, backend=self.loaded.backend.name, cuda_graphs=self.cuda_graphs, **own)
        return answers

    def _filled(
        self, todo: Mapping[int, Sequence[Prune]], weights: Weights | None, files: Sequence[Path], box: Box
    ) -> tuple[Official | None, dict[Prune, Ours]]:
        """All sides with full memories of one object, saved; dense is always among ours."""
        official = None
        if weights is not None:
            module = build_official(weights, self.loaded.manifest)
            importlib.import_module("torch").set_num_threads(self.threads)
            device = f"cuda:{self.gpu}" if self.on_gpu else "cpu"
            compiled = self.against == COMPILED
            official = Official(module, files[0], frames=self.clip_frames, device=device, half=self.half, compiled=compiled)
        ours = {prune: Ours(self.loaded, prune) for prune in dict.fromkeys([Prune(), *_all(todo)])}
        sides: list[Side] = [*([] if official is None else [official]), *ours.values()]
        for number, side in enumerate(sides, 1):
            self.progress(f"filling the memory, side {number} of {len(sides)}")
            fill(side, files[:WARM_UP_FRAMES], box)
        return official, ours

    def _group(
        self,
        objects: int,
        missing: Sequence[Prune],
        official: Official | None,
        ours: Mapping[Prune, Ours],
        files: Sequence[Path],
        memory: Mapping[Prune | None, dict[str, Any]],
        meter: Meter | None,
    ) -> list[dict[str, Any]]:
        """The cases of one number of objects."""
        running = {prune: side for prune, side in ours.items() if prune == Prune() or prune in missing}
        first = 0 if official is None else 1  # column of dense
        sides: list[Side] = [*([] if official is None else [official]), *running.values()]
        compared_with: list[int | None] = [*([] if official is None else [None]), None if official is None else 0]
        compared_with += [first] * (len(running) - 1)
        restless = []
        for side in sides:
            _start(side, objects)
            if self.on_gpu and isinstance(side, Ours):
                if not settle(partial(side.step, side.decode(files[0]))):
                    restless.append(side)
                    self.progress(f"{objects} objects: still getting faster after {MOST_S:g} s, the numbers may be too slow")
                _start(side, objects)
        self.progress(f"{objects} objects: {len(files) - 1} frames on {len(sides)} sides")
        taken = measure(sides, compared_with, files, settle_s=0.0 if self.on_gpu else SETTLE_S)
        cases = []
        for (prune, side), own in zip(running.items(), taken[first:], strict=True):
            if prune in missing:
                theirs = None if official is None else taken[0]
                made = self._cases(objects, prune, side, own, theirs, files, memory, meter)
                cases += [{**case, "settled": side not in restless} for case in made] if self.on_gpu else made
        return cases

    def _cases(
        self,
        objects: int,
        prune: Prune,
        side: Ours,
        own: Taken,
        official: Taken | None,
        files: Sequence[Path],
        memory: Mapping[Prune | None, dict[str, Any]],
        meter: Meter | None,
    ) -> list[dict[str, Any]]:
        """One way to prune, once for each boundary."""
        held = side.result.memory
        shared: dict[str, Any] = {
            "memory_share": held.share[0],
            "bytes_per_object": held.bytes[0],
            **quality(own, dense=prune.policy is PrunePolicy.DENSE, precision=self.precision),
            **_memory_fields(memory, prune, objects),
        }
        took = stages(side, own, files, on_gpu=self.on_gpu)
        shared |= self._work(objects, side, files)
        energy = {}
        if meter is not None:
            joules = joules_per_call(lambda i: side.step(side.decode(files[i % len(files)])), meter)
            energy = {END_TO_END: {"energy_j_per_frame": joules}}
        cases = []
        for boundary in BOUNDARIES:
            case = {
                **self.identity(objects, prune),
                "boundary": boundary,
                **numbers(own, official, boundary),
                **shared,
                "stages_ms": {name: ms for name, ms in took.items() if boundary == END_TO_END or name != DECODE},
                **energy.get(boundary, {}),
                "threads": self.threads,
                "command": self._command(objects, prune),
            }
            cases.append(case)
            ratio = f", {case['ratio']:.2f} times the official one" if official is not None else ""
            self.progress(f"{objects} objects, keep {case['keep']:g}, {boundary}: {case['ours_ms']:.1f} ms{ratio}")
        return cases

    def _work(self, objects: int, side: Ours, files: Sequence[Path]) -> dict[str, Any]:
        """Work and milliseconds a frame of each graph, for rooflines; nothing where the package that reads ONNX files is missing."""
        if find_spec("onnx") is None:
            return {}
        rows, pointers = side.read()
        loaded, frames = self.loaded, len(files[:WAITED_FRAMES]) if self.on_gpu else len(files) - 1
        work = work_of(loaded.folder, loaded.manifest, objects=objects, rows=rows, pointers=pointers, target=loaded.target)
        return {"graphs": timed_work(work, side.stages_per_frame_ms(frames))}

    def _command(self, objects: int, prune: Prune) -> str:
        """The command line that measures one case again, into a file of its own."""
        values = {
            "--backend": self.loaded.backend.name,
            "--against": self.against,
            "--objects": objects,
            "--keep": f"{prune.keep or 1:g}",
            "--policy": None if prune.policy is PrunePolicy.DENSE else prune.policy.value,
            "--frames": self.frames,
            "--video": self.video,
            "--model": self.model,
            "--config": self.config,
            "--checkpoint": self.checkpoint,
            "--threads": self.threads,
            "--gpu": self.gpu or None,
        }
        words = ["fastsam2", "bench", bundle_text(self.bundle)]
        words += [str(word) for option, value in values.items() if value is not None for word in (option, value)]
        return shlex.join([*words, *(["--cuda-graphs"] if self.cuda_graphs else []), "--out", "again.json"])


def _start(side: Side, objects: int) -> None:
    """Back to the full memories, of so many objects."""
    side.restore()
    multiply(side, objects)


def _memory_fields(memory: Mapping[Prune | None, dict[str, Any]], prune: Prune, objects: int) -> dict[str, Any]:
    """Peaks and start-up of a case, with the prefix official_ for the other side."""
    fields: dict[str, Any] = {}
    for prefix, key in (("", prune), ("official_", None)):
        if key in memory:
            own = memory[key]
            fields |= {f"{prefix}{name}": value for name, value in own["peaks"][objects].items()}
            fields[f"{prefix}start_up_ms"] = own["start_up_ms"]
    return fields


def _all(todo: Mapping[int, Sequence[Prune]]) -> list[Prune]:
    return list(dict.fromkeys(prune for missing in todo.values() for prune in missing))


def _prunes(keep: Sequence[float], policy: PrunePolicy | str) -> list[Prune]:
    """One way to prune for each share, in the order given, none twice."""
    if not keep:
        raise PromptError(expected("at least one share to keep", "none", "1.0 keeps all memory"))
    prunes = []
    for share in keep:
        prune = Prune() if share == 1.0 else Prune(policy=policy, keep=share)  # type: ignore[arg-type]  # parsed there
        if prune.keep is not None:
            prune = Prune(policy=prune.policy, keep=min(b for b in KEEP_BUCKETS if b >= prune.keep))
        prunes.append(prune)
    return list(dict.fromkeys(prunes))


def _counts(objects: Sequence[int]) -> list[int]:
    if not objects or min(objects) < 1:
        raise PromptError(expected("numbers of objects from 1 on", list(objects), "Use 1, or 1,4,8,16"))
    return sorted(set(objects))


def _precision(loaded: LoadedBundle) -> str:
    """Number format of most of the graphs."""
    facts = loaded.device_facts()
    if facts is None or loaded.backend.name not in {flavor.value for flavor in Flavor}:
        return loaded.manifest.precision
    flavor = Flavor(loaded.backend.name)
    version = str(trt_compat.load(flavor).__version__)
    target = targets_for(loaded.folder, flavor, version=version, capability=facts["compute_capability"])[0]
    _, engines = load_engines(loaded.folder, loaded.manifest, flavor, version=version, target=target, verify=False)
    return engines.engines[0].precision.value  # all of a set are equal
