"""Peak memory of a process that tracks many objects with full banks.

    python -m benchmarks.many_objects --bundle bundles/tiny --objects 16 --out benchmarks/results/cpu_tiny_1024_16_objects.json

One object is tracked until the bank is full (7 frames) and its state is copied to the others; then every object is tracked for two frames.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from pathlib import Path

import fastsam2
from fastsam2.benchmarks.against_official import BOX, make_frames
from fastsam2.benchmarks.conditions import conditions

FILL_FRAMES = 8


def main() -> None:
    """Track and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--memory-budget", type=int, default=4096, help="MiB, of one batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    bundle = fastsam2.load(args.bundle, threads=args.threads)
    tracker = bundle.tracker(memory_budget_mb=args.memory_budget)
    frames = make_frames(FILL_FRAMES + 2, (720, 1280))
    tracker.step(frames[0])
    tracker.add(1, box=(BOX[0] * 1280, BOX[1] * 720, BOX[2] * 1280, BOX[3] * 720))
    for frame in frames[1:FILL_FRAMES]:
        tracker.step(frame)
    one = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for object_id in range(2, args.objects + 1):
        tracker._objects[object_id] = copy.deepcopy(tracker._objects[1])
    seconds = []
    for frame in frames[FILL_FRAMES:]:
        start = time.perf_counter()
        result = tracker.step(frame)
        seconds.append(time.perf_counter() - start)
    record = {
        **conditions(args.threads, "benchmarks.many_objects"),
        "model": bundle.spec.name,
        "image_size": bundle.spec.image_size,
        "objects": len(result.ids),
        "memory_budget_mb": args.memory_budget,
        "memory_share": result.memory.share[0],
        "bytes_per_object": result.memory.bytes[0],
        "peak_bytes_one_object": one,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "frame_ms": [round(s * 1e3) for s in seconds],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
