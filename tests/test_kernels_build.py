"""nvcc: the resource report, the refusal of spills, and the record of all architectures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from fastsam2.errors import BackendError
from fastsam2.kernels.build import ARCHITECTURES, SOURCES, check_spills, compile_fatbin, main, nvcc_version, parse_resources
from fastsam2.kernels.frame_ops import PARAMETERS, THREADS
from fastsam2.kernels.nvrtc import FRAME_OPS_SOURCE
from fastsam2.kernels.top_k_gather import THREADS as GATHER_THREADS

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "kernel_resources.json"
ENTRIES = ("fastsam2_top_k_gather_float16", "fastsam2_top_k_gather_float32")
FRAME_OPS = tuple(f"fastsam2_{name}" for name in PARAMETERS)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


def report(spills: str = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", shared: str = "") -> str:
    return "".join(
        f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{entry}' for 'sm_90a'
ptxas info    : Function properties for {entry}
    {spills}
ptxas info    : Used {registers} registers, used 1 barriers{shared}, 400 bytes cmem[0]
ptxas info    : Compile time = 3.1 ms
"""
        for entry, registers in zip(ENTRIES, (32, 40), strict=True)
    )


def test_report_is_read() -> None:
    half, full = parse_resources(report(shared=", 16 bytes smem"))
    assert (half.kernel, full.kernel) == ENTRIES
    assert (half.registers, full.registers, half.architecture) == (32, 40, "90a")
    assert half.static_shared_bytes == 16 and parse_resources(report())[0].static_shared_bytes == 0
    assert half.dynamic_shared_bytes == {"4096": 1416 + 8192, "16384": 1416 + 32768}
    assert full.dynamic_shared_bytes == {"4096": 1416 + 16384, "16384": 1416 + 65536}
    check_spills([half, full])
    (other, _) = parse_resources(report().replace(ENTRIES[0], "fastsam2_masks"))
    assert (other.kernel, other.registers, other.dynamic_shared_bytes) == ("fastsam2_masks", 32, {})


@pytest.mark.parametrize("spills", ["0 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads",
                                    "0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads",
                                    "8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"])  # fmt: skip
def test_spills_are_refused(spills: str) -> None:
    with pytest.raises(BackendError, match=r"fastsam2_top_k_gather_float16 to live in registers, got .* on sm_90a"):
        check_spills(parse_resources(report(spills)))


@pytest.mark.parametrize(
    "text", ["", "nvcc warning: nothing to do", report().replace("Used", "Took"), report().replace("spill stores", "")]
)
def test_unreadable_report_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match=r"nvcc"):
        parse_resources(text)


def test_record_covers_every_architecture_without_spills() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = {(row["architecture"], row["kernel"]): row for row in record["kernels"]}
    assert set(rows) == {(architecture, entry) for architecture in ARCHITECTURES for entry in ENTRIES + FRAME_OPS}
    assert {row["spill_bytes"] for row in rows.values()} == {row["stack_bytes"] for row in rows.values()} == {0}
    for (_, entry), row in rows.items():  # a multiprocessor has 65536 registers, given out by eights
        threads = THREADS if entry in FRAME_OPS else GATHER_THREADS
        assert 65536 // (threads * -(-row["registers"] // 8) * 8) >= 2, "a block must not have a whole multiprocessor to itself"


def test_docs_show_the_record() -> None:
    docs = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert f"nvcc {record['nvcc']}" in docs
    registers = {(row["architecture"], row["kernel"]): row["registers"] for row in record["kernels"]}
    for architecture in ARCHITECTURES:
        half, full = (registers[architecture, entry] for entry in ENTRIES)
        most = max(registers[architecture, entry] for entry in FRAME_OPS)
        assert f"| {architecture} | {full} / {half} | {most} | 0 |" in docs


@needs_nvcc
@pytest.mark.parametrize(("source", "entries"), list(zip(SOURCES, (ENTRIES, FRAME_OPS), strict=True)), ids=["top_k_gather", "frame_ops"])
def test_nvcc_compiles_and_agrees_with_the_record(tmp_path: Path, source: Path, entries: tuple[str, ...]) -> None:
    found = compile_fatbin(tmp_path / "kernels.fatbin", ("80", "90"), source=source)
    assert (tmp_path / "kernels.fatbin").stat().st_size > 10_000
    assert {(one.architecture, one.kernel) for one in found} == {(name, entry) for name in ("80", "90") for entry in entries}
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    if record["nvcc"] != nvcc_version():
        pytest.skip(f"the record is of nvcc {record['nvcc']}, this one is {nvcc_version()}: compiled, not compared")
    recorded = [row for row in record["kernels"] if row["architecture"] in ("80", "90") and row["kernel"] in entries]
    assert sorted(map(str, (asdict(one) for one in found))) == sorted(map(str, recorded)), (
        f"run: python -m fastsam2.kernels.build --resources {RECORD.relative_to(ROOT)}"
    )


@needs_nvcc
def test_nothing_is_fused_where_every_bit_is_promised(tmp_path: Path) -> None:
    """The host never fuses, so only the compiled code shows it: `add.f32` without a rounding mode may still be fused by ptxas."""
    out = tmp_path / "frame_ops.ptx"
    command = ["nvcc", "-ptx", "-std=c++17", "-O3", "-arch=compute_90", "-o", str(out), str(FRAME_OPS_SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    bodies = dict(re.findall(r"\.entry (\w+)\((.*?)\n}", out.read_text(encoding="utf-8"), re.DOTALL))
    assert set(bodies) == set(FRAME_OPS)
    for entry in ("fastsam2_masks", "fastsam2_pool_2x2"):
        arithmetic = set(re.findall(r"\t((?:add|sub|mul|fma|mad)\.\S*f32)\b", bodies[entry]))
        assert arithmetic == {"add.rn.f32", "mul.rn.f32"}, entry


@needs_nvcc
def test_failed_build_writes_nothing_and_quotes_nvcc(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"nvcc to compile top_k_gather.cu, got .*no-such-option"):
        compile_fatbin(tmp_path / "kernels.fatbin", ("80",), ["--no-such-option"])
    assert list(tmp_path.iterdir()) == []


def test_no_nvcc_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "out"), "--arch", "80"]) == 2
    assert "expected nvcc on PATH, got none. Install the CUDA toolkit" in capsys.readouterr().err
