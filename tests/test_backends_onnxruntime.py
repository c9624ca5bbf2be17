"""What sessions on a CPU leave behind for the graphs after them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import fastsam2
from fastsam2.builtin import bundle_path
from fastsam2.bundle import read_manifest
from fastsam2.enums import GraphRole
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend


def test_threads_of_a_session_rest_after_its_run() -> None:
    """Threads that spin after a run (50 ms of a core by default) slow down the next graph, whose session has its own."""
    folder = bundle_path("nano")
    backend = OnnxRuntimeBackend(folder, read_manifest(folder), threads=2)
    pixels = np.zeros((1, 3, 512, 512), np.uint8)
    spent = []
    for _ in range(3):
        backend.run(GraphRole.IMAGE_ENCODER, {"pixels": pixels})
        start = time.process_time()
        time.sleep(0.2)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.01, "seconds of processor time after the run"


def test_an_open_bundle_does_not_need_the_working_directory(bundle_micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are read when they run first."""
    monkeypatch.chdir(bundle_micro.parent)
    tracker = fastsam2.load(f"./{bundle_micro.name}", threads=1).tracker()
    monkeypatch.chdir(tmp_path)
    tracker.step(np.zeros((64, 64, 3), np.uint8))
    assert tracker.add(1, box=(8, 8, 40, 40)).ids == (1,)
