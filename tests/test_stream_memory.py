"""A live stream of any length runs in constant memory."""

import subprocess
import sys
from pathlib import Path

import pytest

EARLY, LATE = 1000, 2000  # within the first thousand frames allocators take another megabyte, once
TOLERANCE = 0.005  # of the early resident set: half a kilobyte a frame

PROGRAM = """
import sys
import numpy as np
import fastsam2

def resident():
    return int(open("/proc/self/statm").read().split()[1])

tracker = fastsam2.load(sys.argv[1], threads=1).tracker(prune=fastsam2.Prune(policy="mask", keep=0.25))
noise = np.random.default_rng(0)
marks = {int(m): 0 for m in sys.argv[2:]}
for t in range(max(marks) + 1):
    frame = noise.integers(0, 256, (96, 128, 3), np.uint8)
    tracker.step(frame)
    if t == 0:
        tracker.add(1, box=(20, 20, 90, 80))
        tracker.add(2, points=[(60, 50)])
    if t % 50 == 25:
        tracker.correct(1, points=[(50, 50)])
    if t in marks:
        marks[t] = resident()
print(*marks.values())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc: the resident set cannot be read")
def test_memory_after_2000_frames_is_that_after_1000(bundle_micro: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(bundle_micro), str(EARLY), str(LATE)]
    early, late = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert abs(late - early) <= TOLERANCE * early
