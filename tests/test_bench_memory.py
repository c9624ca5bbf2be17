"""Peak memory by a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastsam2.benchmarks.bench_frames import box_in, make_frames
from fastsam2.benchmarks.bench_memory import Request, peak_bytes, peak_memory
from fastsam2.errors import BackendError

SIZE = (96, 160)


@pytest.fixture(scope="module")
def common(bundle_micro: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("frames")
    files = [str(folder / f"{t}.png") for t in range(10)]
    for file, frame in zip(files, make_frames(10, SIZE), strict=True):
        Image.fromarray(frame).save(file)
    return {"bundle": str(bundle_micro), "threads": 1, "gpu": None, "files": files, "box": box_in(SIZE), "frames": 30}


def test_processes_tell_their_own_peaks(common: dict[str, Any], micro_config: Path) -> None:
    held = np.ones(40_000_000)  # a process starts with the peak of the one that started it in ru_maxrss
    ours = peak_memory(Request(side="ours", backend="onnxruntime", objects=[1, 12], **common))
    official = peak_memory(Request(side="official", model=str(micro_config), checkpoint="random:2", objects=[1, 12], **common))
    for side in (ours, official):
        assert side["start_up_ms"] > 0
        assert list(side["peaks"]) == [1, 12]
        assert list(side["peaks"][1]) == ["peak_bytes"]
        assert 30e6 < side["peaks"][1]["peak_bytes"] < side["peaks"][12]["peak_bytes"]
    assert ours["peaks"][12]["peak_bytes"] < official["peaks"][1]["peak_bytes"], "torch alone is larger than the micro model"
    assert held.nbytes < peak_bytes()
    assert ours["peaks"][1]["peak_bytes"] < held.nbytes


def test_a_process_that_fails_says_why(common: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"memory of ours with \[1\] objects, got exit status 2: expected a bundle folder"):
        peak_memory(Request(side="ours", backend="onnxruntime", objects=[1], **{**common, "bundle": str(tmp_path / "none")}))
