"""The script that compares both trackers, without a GPU: graphs of nano in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fastsam2
from fastsam2.benchmarks.bench_frames import store_frames
from fastsam2.benchmarks.cpp_compare import CppTracker, boxes_of, build_library, compare, main
from fastsam2.enums import BackendName
from fastsam2.errors import BackendError
from tests.cpp.native import needs_native, release

pytestmark = [needs_native, pytest.mark.xdist_group("cpp")]


@pytest.fixture(scope="module")
def library() -> Path:
    return release() / "runtime" / "cpp" / "libfastsam2_runtime.so"


def test_the_command(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cpp.json"
    main(["nano", "--library", str(library), "--frames", "3", "--warm", "2", "--objects", "2", "--threads", "1", "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["frames_equal"] == record["frames_compared"] == 5
    assert record["mask_iou"] == 1.0 and record["logit_difference"] == 0.0
    assert len(set(record["mask_sha256"].values())) == 1
    assert len(record["pairs"]) == 3 and min(min(pair) for pair in record["pairs"]) > 0
    assert record["ratio"] == pytest.approx(np.median([a / b for a, b in record["pairs"]]))
    assert record["milliseconds"]["cpp"]["p50"] == pytest.approx(np.median([b for _, b in record["pairs"]]))
    assert (record["backend"], record["objects"], record["threads"]) == ("onnxruntime", 2, 1)
    assert record["command"] and record["cpu"] and record["onnxruntime"]
    assert "5 of 5 frames equal in every bit" in capsys.readouterr().out


def test_masks_that_differ_show(library: Path, tmp_path: Path) -> None:
    bundle = fastsam2.load("nano", threads=1)
    files, size = store_frames(None, 3, tmp_path)
    cpp = CppTracker(library, bundle, BackendName.ONNXRUNTIME)
    step = cpp.step

    def shifted(frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        answer = step(frame)
        return {"masks": np.roll(answer["masks"], 40, axis=2), "low_res_logits": answer["low_res_logits"] + 1}

    cpp.step = shifted  # type: ignore[method-assign]
    record = compare(bundle, cpp, files, boxes_of(1, size), warm=1)
    assert record["frames_equal"] == 1  # the one that was prompted
    assert record["mask_iou"] < 0.95 and record["logit_difference"] == pytest.approx(1.0, abs=1e-4)
    assert len(set(record["mask_sha256"].values())) == 2
    cpp.close()


def test_what_is_refused(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = fastsam2.load("nano", threads=1)
    with pytest.raises(BackendError, match="tensorrt-rtx"):
        CppTracker(library, bundle, BackendName.TENSORRT_RTX)
    with pytest.raises(SystemExit) as stopped:
        main(["nano", "--library", str(library), "--video", str(tmp_path / "none.mp4"), "--out", str(tmp_path / "cpp.json")])
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err
    with pytest.raises(BackendError, match="FASTSAM2_WITH_TENSORRT AUTO, ON or OFF"):
        build_library(tmp_path / "build", ["-DFASTSAM2_WITH_TENSORRT=MAYBE"])
