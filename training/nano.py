"""Train nano: `python -m fastsam2.training.nano` (in a clone also `python -m training.nano`).

One command: procedural data, training in stages of growing size and length, a bundle, its scores on held-out clips. Interrupt it at any
time: the next call goes on from the last save. On a CPU, `--processes 2` uses two cores better than two threads of one process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from fastsam2.training.clips import Batch, Batches, BatchShape, step_of
from fastsam2.training.matching import install
from fastsam2.training.model import TrainableSam2, build_model, look_at
from fastsam2.training.muon import Muon, matrices
from fastsam2.training.rollout import Rolled, roll, to_input
from fastsam2.training.saves import halved, save
from fastsam2.training.silhouettes import available_silhouettes

OUT = Path("out/nano")
_SAVE_SECONDS = 180
_LOG_EVERY = 20
_CLIP_NORM = 0.5
_WEIGHT_DECAY = 0.02
_OTHERS_RATE = 0.3
_EMA = 0.995
_INSTALL_STEPS = 8  # batches whose features memory is begun with
_INSTALL_SEED = 999  # no stage's


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training.

    Attributes:
        shape: of the batch of one process.
        steps: in this stage.
        rate: learning rate of matrices at its begin and end, linear between; everything else learns at `_OTHERS_RATE` times that.
        teach_presence: gate masks by the truth, see `TrainableSam2`.
        matching: weight of the loss on matching frames with each other, see `matching_loss`.
        install: begin this stage with memory that matches, see `install`.
    """

    shape: BatchShape
    steps: int
    rate: tuple[float, float]
    teach_presence: bool = False
    matching: float = 0.0
    install: bool = False


_EVERY = BatchShape(256, 3, 24, 3, pace=4, drawn=512, follow=False)
"""Frames some way apart, to be matched with each other; every one has objects to prompt."""

PLANS: dict[str, tuple[Stage, ...]] = {
    # Two CPU cores, an hour and a half: low resolution teaches box -> mask and matching at a tenth of the cost.
    "cpu": (
        Stage(BatchShape(128, 1, 16, 3), 200, (0.0, 6e-4), teach_presence=True),
        Stage(BatchShape(128, 1, 16, 3), 400, (6e-4, 6e-4), teach_presence=True),
        Stage(BatchShape(128, 2, 8, 3, pace=0.3), 480, (6e-4, 6e-4), teach_presence=True),
        Stage(BatchShape(256, 3, 4, 3, pace=0.6), 250, (6e-4, 5e-4), teach_presence=True),
        Stage(BatchShape(256, 4, 3, 3), 600, (5e-4, 2e-5)),
    ),
    # Two more hours of two CPU cores for weights that exist (`--initial`), towards 512 px: masks first, on pieces of frames.
    "continue": (
        Stage(BatchShape(256, 1, 12, 5, drawn=512), 40, (0.0, 2e-3), teach_presence=True),
        Stage(BatchShape(256, 1, 12, 5, drawn=512), 700, (2e-3, 1.5e-3), teach_presence=True),
        Stage(BatchShape(256, 2, 6, 4, pace=0.3, drawn=512), 130, (1.5e-3, 1.5e-3), teach_presence=True),
        Stage(BatchShape(256, 4, 4, 3, drawn=512), 220, (1.5e-3, 1e-3)),
        Stage(BatchShape(512, 4, 1, 3), 110, (1e-3, 2e-5)),
    ),
    # Two and a half hours of two CPU cores for weights whose memory is to be begun anew: features that match, then following with them.
    "match": (
        Stage(replace(_EVERY, clips=6), 60, (0.0, 2e-3), teach_presence=True, matching=1.0, install=True),
        Stage(replace(_EVERY, clips=6), 400, (2e-3, 2e-3), teach_presence=True, matching=1.0),
        Stage(BatchShape(256, 4, 4, 3, drawn=512), 300, (2e-3, 2e-3), teach_presence=True, matching=0.5),
        Stage(BatchShape(256, 8, 2, 3, drawn=512), 150, (2e-3, 1.5e-3), matching=0.5),
        Stage(BatchShape(512, 5, 1, 3), 200, (1.5e-3, 2e-5), matching=0.5),
    ),
    # One more hour of two CPU cores, on whole frames.
    "frames": (
        Stage(BatchShape(512, 5, 1, 3), 12, (0.0, 1.5e-3), matching=0.5),
        Stage(BatchShape(512, 5, 1, 3), 240, (1.5e-3, 2e-5), matching=0.5),
    ),
    # One datacenter GPU with a dozen cores that draw (`--workers 12`). Not run yet.
    "gpu": (
        Stage(_EVERY, 300, (0.0, 2e-3), teach_presence=True, matching=1.0, install=True),
        Stage(_EVERY, 4000, (2e-3, 2e-3), teach_presence=True, matching=1.0),
        Stage(BatchShape(256, 4, 24, 3, drawn=512), 3000, (2e-3, 2e-3), teach_presence=True, matching=0.5),
        Stage(BatchShape(256, 8, 16, 3, drawn=512), 3000, (2e-3, 1.5e-3), matching=0.5),
        Stage(BatchShape(512, 8, 8, 3), 2500, (1.5e-3, 1e-5), matching=0.5),
    ),
}


@dataclass(slots=True)
class Progress:
    """Where a run stands: stage, step within it, seconds spent, samples seen."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    frames: int = 0

    @property
    def place(self) -> str:
        """For the log."""
        return f"{self.stage}:{self.step}"


class Average:
    """Exponential moving average of a model's parameters; its memory is short at first, and again when it starts again.

    Args:
        model: whose parameters.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.count = 0

    def start_again(self) -> None:
        """Let the next updates outweigh all before: weights on their way through a new task are not worth a place in it."""
        self.count = 0

    def update(self, model: torch.nn.Module) -> None:
        """Take in the present parameters."""
        self.count += 1
        weight = 1 - min(_EMA, (1 + self.count) / (10 + self.count))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    self.values[key].lerp_(value, weight)


class Trainer:
    """The training of one process.

    Args:
        plan: stages.
        folder: where `last.pt`, `average.pt` and `log.jsonl` are.
        seed: of weights and data.
        device: where to train.
        rank: which process this is.
        processes: how many there are; gradients are averaged over them.
        workers: data-loading processes beside this one.
        initial: weights to start from; fresh ones when None.
    """

    def __init__(
        self,
        plan: tuple[Stage, ...],
        folder: Path,
        *,
        seed: int,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
        initial: Path | None = None,
    ) -> None:
        self.plan, self.folder, self.seed, self.device = plan, folder, seed, device
        self.rank, self.processes, self.workers = rank, processes, workers
        self.silhouettes = available_silhouettes()
        self.parent = os.getppid()
        torch.manual_seed(seed)
        self.size = plan[0].shape.whole
        self.model = build_model(self.size).to(device)
        if initial is not None:
            self.model.load_state_dict(torch.load(initial, map_location=device, weights_only=True)["model"])
        self.average = Average(self.model)
        self.optimizers = self._new_optimizers()
        self.progress = Progress()
        self._resume()

    def run(self) -> TrainableSam2:
        """Train to the end of the plan; answers with the averaged model."""
        saved = time.monotonic()
        while self.progress.stage < len(self.plan):
            stage = self.plan[self.progress.stage]
            self._resize(stage.shape.whole)
            if not self.progress.step:
                if stage.install:
                    self._install(stage)
                self.average.start_again()
            recent: list[Rolled] = []
            clock = time.monotonic()
            for batch in self._batches(stage):
                rolled, norm = self._step(stage, batch)
                recent.append(rolled)
                now = time.monotonic()
                self.progress.seconds += now - clock
                clock = now
                self.progress.step += 1
                self.progress.frames += stage.shape.clips * stage.shape.frames * self.processes
                if self.progress.step % _LOG_EVERY == 0:
                    self._log(stage, recent, norm)
                    recent = []
                if now - saved > _SAVE_SECONDS:
                    self._save()
                    saved = now
                if os.getppid() != self.parent:
                    sys.exit("the process that started this one is gone")
            self.progress.stage, self.progress.step = self.progress.stage + 1, 0
            self._save()
        self.model.load_state_dict(self.average.values)
        return self.model

    def _batches(self, stage: Stage) -> Iterator[Batch]:
        """Batches of the rest of a stage."""
        source = Batches(stage.shape, seed=self.seed * 1000 + self.progress.stage, rank=self.rank, silhouettes=self.silhouettes)
        todo = range(self.progress.step, stage.steps)
        if not self.workers:
            yield from (source[step] for step in todo)
            return
        loader: Iterable[Batch] = torch.utils.data.DataLoader(
            source,  # type: ignore[arg-type]
            batch_size=None,
            sampler=[step_of(position, self.workers, stage.shape.reuse) for position in todo],
            num_workers=self.workers,
            prefetch_factor=4,
        )
        yield from loader

    def _install(self, stage: Stage) -> None:
        """Begin memory as `install` does, on the CPU: every process looks at what the first one draws and comes to the same weights."""
        source = Batches(stage.shape, seed=self.seed * 1000 + _INSTALL_SEED, silhouettes=self.silhouettes)
        batches = [source[step] for step in range(0, _INSTALL_STEPS * stage.shape.reuse, stage.shape.reuse)]
        torch.manual_seed(self.seed)
        model = self.model.cpu()
        look_at(model, stage.shape.size)
        with torch.no_grad():
            frames = to_input(torch.from_numpy(np.concatenate([b.frames[:, 0] for b in batches])))
            features = model.forward_image(frames)["backbone_fpn"][-1]
        install(model, features, torch.from_numpy(np.concatenate([b.objects[0].masks[0] for b in batches]))[:, None].float())
        self.model = model.to(self.device)
        self.optimizers = self._new_optimizers()

    def _step(self, stage: Stage, batch: Batch) -> tuple[Rolled, float]:
        begin, end = stage.rate
        rate = begin + (end - begin) * (self.progress.step + 0.5) / stage.steps
        for optimizer, share in zip(self.optimizers, (1.0, _OTHERS_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * rate
        half = self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            rolled = roll(
                self.model,
                batch,
                device=self.device,
                teach_presence=stage.teach_presence,
                matching=stage.matching,
            )
        self.model.zero_grad(set_to_none=True)
        rolled.loss.backward()
        self._share_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM))
        if math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self.average.update(self.model)
        return replace(rolled, loss=rolled.loss.detach()), norm  # the graph goes with the step, not with the log

    def _share_gradients(self) -> None:
        if self.processes == 1:
            return
        parameters = list(self.model.parameters())
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        dist.all_reduce(flat)
        flat /= self.processes
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def _new_optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Muon for matrices, AdamW for everything else."""
        main = matrices(self.model)
        known = {id(p) for p in main}
        others = [p for p in self.model.parameters() if id(p) not in known]
        return Muon(main, lr=0.0, weight_decay=_WEIGHT_DECAY), torch.optim.AdamW(others, lr=0.0, weight_decay=0.0)

    def _resize(self, size: int) -> None:
        """Go on at another input size: the weights fit any; tables made from sizes do not."""
        if size == self.size:
            return
        states = [o.state_dict() for o in self.optimizers]
        weights = self.model.state_dict()
        self.model, self.size = build_model(size).to(self.device), size
        self.model.load_state_dict(weights)
        self.optimizers = self._new_optimizers()
        self._load_optimizers(states)

    def _load_optimizers(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)

    def _save(self) -> None:
        if self.rank:
            return
        save(
            self.folder / "last.pt",
            {
                "model": self.model.state_dict(),
                "average": self.average.values,
                "count": self.average.count,
                "optimizers": [o.state_dict() for o in self.optimizers],
                "progress": asdict(self.progress),
                "size": self.size,
            },
        )
        save(self.folder / "average.pt", {"model": halved(self.average.values)})

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.is_file():
            return
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self._resize(state["size"])
        self.model.load_state_dict(state["model"])
        self.average.values, self.average.count = state["average"], state["count"]
        self._load_optimizers(state["optimizers"])
        self.progress = Progress(**state["progress"])
        if not self.rank:
            print(f"going on at {self.progress.place} after {self.progress.seconds / 3600:.2f} h", file=sys.stderr)

    def _log(self, stage: Stage, recent: list[Rolled], norm: float) -> None:
        if self.rank:
            return
        line = {
            "stage": self.progress.stage,
            "step": self.progress.step,
            "size": stage.shape.size,
            "length": stage.shape.frames,
            "hours": round(self.progress.seconds / 3600, 4),
            "frames": self.progress.frames,
            "loss": _average([float(r.loss) for r in recent]),
            "prompted_iou": _average([r.prompted_iou for r in recent]),
            "tracked_iou": _average([r.tracked_iou for r in recent]),
            "score_accuracy": _average([r.score_accuracy for r in recent]),
            "matching": _average([r.matching for r in recent]),
            "norm": round(norm, 3),
        }
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(" ".join(f"{k} {v}" for k, v in line.items()), file=sys.stderr, flush=True)


def _average(values: list[float]) -> float | None:
    known = [v for v in values if not math.isnan(v)]
    return round(sum(known) / len(known), 4) if known else None


def _process(rank: int, args: argparse.Namespace, device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    if args.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{args.out.resolve()}/.rendezvous", rank=rank, world_size=args.processes)
    Trainer(
        PLANS[args.plan],
        args.out,
        seed=args.seed,
        device=device,
        rank=rank,
        processes=args.processes,
        workers=args.workers,
        initial=args.initial,
    ).run()
    if args.processes > 1:
        dist.destroy_process_group()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.nano", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder for saves, log and scores")
    parser.add_argument("--plan", choices=PLANS, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="training processes; each takes its own share of the data")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--workers", type=int, default=0, help="data-loading processes")
    parser.add_argument("--no-official", action="store_true", help="do not score the official predictor with the same weights")
    parser.add_argument("--finish", action="store_true", help="train no further: write bundle and scores of what there is")
    parser.add_argument("--text", type=Path, help="bundle whose text and crop encoder the new one gets, such as fastsam2/models/nano")
    parser.add_argument("--initial", type=Path, help="weights to start from")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, then write and score what came of it."""
    args = parse(argv)
    if args.text is not None:  # found out now, and not after hours of training
        from fastsam2.training.finish import giver_of_text

        giver_of_text(args.text)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.finish:
        train(args)
    finish(args)


def train(args: argparse.Namespace) -> None:
    """Train to the end of the plan, in as many processes as asked for."""
    device = torch.device(args.device)
    if args.processes > 1:
        (args.out / ".rendezvous").unlink(missing_ok=True)
        spawn(_process, (args, device), nprocs=args.processes)
    else:
        _process(0, args, device)


def finish(args: argparse.Namespace) -> None:
    """Write checkpoint and bundle of the averaged weights, at the size of the last stage, and score them."""
    from fastsam2.training.finish import carry_text, export, machine, score, write_weights

    weights = write_weights(args.out / "average.pt", args.out / "nano.pt")
    bundle = export(weights, args.out / "bundle", image_size=PLANS[args.plan][-1].shape.whole)
    if args.text is not None:
        carry_text(args.text, bundle)
    last = args.out / "last.pt"  # not there where only the averaged weights came from the machine that trained
    progress = torch.load(last, map_location="cpu", weights_only=True)["progress"] if last.is_file() else None
    record = {"plan": args.plan, "seed": args.seed, "progress": progress, "machine": machine(), "silhouettes": len(available_silhouettes())}
    record["sets"] = score(weights, bundle, official=not args.no_official, say=lambda line: print(line, file=sys.stderr, flush=True))
    (args.out / "scores.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{args.out}: nano.pt, bundle/, scores.json", file=sys.stderr)


if __name__ == "__main__":
    main()
