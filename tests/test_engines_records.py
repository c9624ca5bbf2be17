"""When stored engines are accepted, what `inspect` says of them, and the command line of both."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from fastsam2.bundle import FileEntry, Manifest
from fastsam2.cli import main
from fastsam2.contracts import BASE_ROLES
from fastsam2.engines import build
from fastsam2.engines.builder import OPTIONS
from fastsam2.engines.profiles import Limits, profiles
from fastsam2.engines.records import (
    EngineEntry,
    EngineSet,
    build_command,
    inspect_engines,
    load_engines,
    read_set,
    targets_for,
    write_set,
)
from fastsam2.enums import ExportTarget, Flavor, GraphRole, Precision
from fastsam2.errors import BundleError
from tests.engine_bundle import LISTING, SPEC, write_bundle

RTX = Flavor.TENSORRT_RTX
LIMITS = Limits(max_objects=3, keep_buckets=(0.05,))


def engine(folder: Path, manifest: Manifest, role: GraphRole, **changes: Any) -> EngineEntry:
    """An engine of `role`, with its files."""
    (folder / f"{role.value}.engine").write_bytes(role.value.encode() * 9)
    (folder / f"{role.value}.layers.txt").write_text(LISTING)
    values: dict[str, Any] = {
        "graph": role,
        "precision": Precision.FP16,
        "file": FileEntry.of(folder, PurePosixPath(f"{role.value}.engine")),
        "listing": FileEntry.of(folder, PurePosixPath(f"{role.value}.layers.txt")),
        "source_sha256": manifest.graph(role, ExportTarget.TENSORRT).file.sha256,
        "recipe_sha256": "0" * 64,
        "profiles": profiles(SPEC, role, LIMITS),
        "options": dict(OPTIONS),
        "fused_attention": 5,
        "expected_attention": 1,
        "attention": 4,
        "activation_bytes": 7,
        "build_seconds": 1.5,
        "drift": {"out": 2e-4},
        "created": datetime(2025, 1, 2, tzinfo=timezone.utc),
    }
    return EngineEntry(**{**values, **changes})


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Manifest, Path]:
    """Bundle, its manifest, and the folder of its engines."""
    manifest = write_bundle(tmp_path / "bundle")
    folder = tmp_path / "bundle" / "engines" / "tensorrt-rtx-1.7-8.9"
    folder.mkdir(parents=True)
    entries = tuple(engine(folder, manifest, role) for role in BASE_ROLES)
    write_set(folder, EngineSet(flavor=RTX, version="1.7", target="8.9", limits=LIMITS, engines=entries))
    return tmp_path / "bundle", manifest, folder


def load(bundle: tuple[Path, Manifest, Path], **changes: Any) -> tuple[Path, EngineSet]:
    return load_engines(bundle[0], bundle[1], **{"flavor": RTX, "version": "1.7", "target": "8.9", **changes})


def change(folder: Path, role: GraphRole, **changes: Any) -> None:
    engines = read_set(folder)
    entry = engines.engine(role)
    assert entry is not None
    write_set(folder, engines.with_engine(entry.model_copy(update=changes)))


def test_engines_that_fit(bundle: tuple[Path, Manifest, Path]) -> None:
    folder, engines = load(bundle)
    assert folder == bundle[2] and engines == read_set(folder)
    assert [e.graph for e in engines.engines] == list(BASE_ROLES)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("other", [{"flavor": Flavor.TENSORRT}, {"version": "1.8"}, {"target": "portable"}, {"target": "8.6"}])
def test_other_flavor_version_or_target(bundle: tuple[Path, Manifest, Path], other: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"got \['tensorrt-rtx-1.7-8.9'\]. Build them: fastsam2 build .* --compute-capability "):
        load(bundle, **other)


def test_no_engines(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"expected engines tensorrt-rtx-1.7-8.9 in .*, got none"):
        load((tmp_path, manifest, tmp_path))
    assert inspect_engines(tmp_path, manifest) == []


AGAIN = (
    r"Build again: fastsam2 build .* --flavor tensorrt-rtx --compute-capability 8.9 --precision fp16 --max-objects 3 --keep-buckets 0.05"
)


def test_another_onnx_file(bundle: tuple[Path, Manifest, Path]) -> None:
    change(bundle[2], GraphRole.MASK_DECODER, source_sha256="1" * 64)
    with pytest.raises(BundleError, match=f"this bundle's mask_decoder, got one of another ONNX file .*{AGAIN}"):
        load(bundle)


def test_missing_engine(bundle: tuple[Path, Manifest, Path]) -> None:
    engines = read_set(bundle[2])
    write_set(bundle[2], engines.model_copy(update={"engines": engines.engines[:-1]}))
    with pytest.raises(BundleError, match=f"an engine of memory_encoder in .*{AGAIN}"):
        load(bundle)


def test_engines_of_an_interrupted_rebuild(bundle: tuple[Path, Manifest, Path]) -> None:
    change(bundle[2], GraphRole.MASK_DECODER, profiles=profiles(SPEC, GraphRole.MASK_DECODER, Limits()))
    with pytest.raises(BundleError, match=f"mask_decoder in .* to have room for max_objects=3 .*{AGAIN}"):
        load(bundle)
    change(bundle[2], GraphRole.MASK_DECODER, precision=Precision.FP32)
    with pytest.raises(BundleError, match=r"engines of one precision in .*, got \['fp16', 'fp32'\]"):
        load(bundle)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("mask_prompt.engine", None, "mask_prompt.engine is missing"),
        ("mask_prompt.engine", b"", "mask_prompt.engine has 0 bytes instead of 99"),
        ("mask_prompt.engine", b"x" * 99, "mask_prompt.engine was altered"),
        ("image_encoder.layers.txt", b"x", "image_encoder.layers.txt has 1 bytes"),
    ],
)
def test_damaged_files(bundle: tuple[Path, Manifest, Path], name: str, content: bytes | None, problem: str) -> None:
    (bundle[2] / name).unlink()
    if content is not None:
        (bundle[2] / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"got {problem}.*{AGAIN}"):
        load(bundle)
    with pytest.raises(BundleError, match=f"got {problem}.*{AGAIN}"):
        inspect_engines(bundle[0], bundle[1])
    if content is not None and len(content) == 99:
        assert load(bundle, verify=False)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"record_version": 1', '"record_version": 2', "record_version 1 in .*, got 2"),
        ('"record_version": 1,', "", "record_version 1 in .*, got None"),
        ('"target": "8.9"', '"target": "8.6"', "engines of tensorrt-rtx-1.7-8.9 in .*, got tensorrt-rtx-1.7-8.6"),
        ('"flavor"', '"flavour"', "a legal flavor"),
        ('"graph": "mask_decoder"', '"graph": "mask_prompt"', "a legal the record .*a graph is listed twice"),
        ('"path": "mask_prompt.engine"', '"path": "../mask_prompt.engine"', r"a legal engines.3.file.path"),
        ('"fused_attention": 5', '"fused_attention": "5"', r"a legal engines.0.fused_attention"),
        ("{", "", "readable JSON"),
    ],
)
def test_illegal_record(bundle: tuple[Path, Manifest, Path], old: str, new: str, problem: str) -> None:
    file = bundle[2] / "engines.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(BundleError, match=f"expected {problem}.*build again with `fastsam2 build`"):
        load(bundle)


def test_targets_for_a_gpu(bundle: tuple[Path, Manifest, Path]) -> None:
    def found(capability: str) -> tuple[str, ...]:
        return targets_for(bundle[0], RTX, version="1.7", capability=capability)

    assert found("8.9") == ("8.9",) and found("8.6") == ()
    portable = bundle[2].with_name("tensorrt-rtx-1.7-portable")
    portable.mkdir()
    write_set(portable, EngineSet(flavor=RTX, version="1.7", target="portable", limits=LIMITS))
    assert found("8.9") == ("8.9", "portable") and found("12.0") == ("portable",) and found("7.5") == ()


def test_build_command_is_complete() -> None:
    limits = Limits(max_objects=2, max_prompt_frames=3, keep_buckets=(0.02, 0.05))
    assert build_command(Path("b"), RTX, "8.9", Precision.BF16, limits) == (
        "fastsam2 build b --flavor tensorrt-rtx --compute-capability 8.9 --precision bf16 --max-objects 2 --max-prompt-frames 3 "
        "--keep-buckets 0.02 --keep-buckets 0.05"
    )


def call(*args: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(args)
    assert isinstance(exited.value.code, int)
    return exited.value.code


def test_inspect_counts_from_the_listing(bundle: tuple[Path, Manifest, Path], capsys: pytest.CaptureFixture[str]) -> None:
    change(bundle[2], GraphRole.MASK_DECODER, source_sha256="1" * 64)
    assert call("inspect", str(bundle[0]), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    engines = shown.pop("engines")
    assert shown == json.loads((bundle[0] / "manifest.json").read_text())
    assert [e["graph"] for e in engines] == [role.value for role in BASE_ROLES]
    entry = engines[1]
    assert entry["fused_attention"] == 1  # the record says 5
    assert entry["activation_bytes"] == 18022400  # the record says 7
    assert {k: entry[k] for k in ("graph", "flavor", "version", "target", "precision", "bytes", "expected_attention", "build_seconds")} == {
        "graph": "memory_attention",
        "flavor": "tensorrt-rtx",
        "version": "1.7",
        "target": "8.9",
        "precision": "fp16",
        "bytes": 9 * len("memory_attention"),
        "expected_attention": 1,
        "build_seconds": 1.5,
    }
    assert entry["drift"] == {"out": 2e-4} and entry["profiles"][0]["sizes"]["B"] == [1, 1, 3]
    assert [e["of_this_bundle"] for e in engines] == [True, True, False, True, True]


def test_inspect_shows_engines(
    bundle: tuple[Path, Manifest, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    change(bundle[2], GraphRole.MASK_DECODER, source_sha256="1" * 64)
    assert call("inspect", str(bundle[0])) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tensorrt-rtx 1.7, 8.9, fp16" in shown
    assert "│ memory_attention │ 0.0 │ 1 of 4 │ 1 │ 18 │ 1.5 │ 2.0e-04 │" in shown
    assert shown.count("of another graph: build again") == 1


def test_build_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []

    def fake(bundle: str, *, progress: Any, **options: Any) -> None:
        progress("working")
        calls.append((bundle, options))

    monkeypatch.setattr(build, "build_engines", fake)
    assert call("build", "b") == 0
    many = ["--flavor", "tensorrt", "--precision", "bf16", "--compute-capability", "8.9", "--compute-capability", "portable", "--force"]
    sizes = ["--max-objects", "2", "--max-prompt-frames", "3", "--keep-buckets", "0.25", "--keep-buckets", "0.05", "--out", "o"]
    assert call("build", "b", *many, *sizes) == 0
    plain = {"flavor": None, "precision": Precision.FP16, "targets": (), "limits": Limits(), "out": None, "force": False}
    rich = Limits(max_objects=2, max_prompt_frames=3, keep_buckets=(0.05, 0.25))
    assert calls == [
        ("b", plain),
        (
            "b",
            {
                "flavor": Flavor.TENSORRT,
                "precision": Precision.BF16,
                "targets": ("8.9", "portable"),
                "limits": rich,
                "out": Path("o"),
                "force": True,
            },
        ),
    ]
    assert capsys.readouterr() == ("", "working\nworking\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--keep-buckets", "1.5"], "a legal keep_buckets.0, got 1.5"),
        (["--flavor", "tensorrt-rtx", "--compute-capability", "ampere"], "a compute capability, portable or current, got 'ampere'"),
        ([], "a bundle folder, got"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    monkeypatch.setattr(build.trt_compat, "load", lambda flavor: None)
    monkeypatch.setattr(build.trt_compat, "available", lambda: [RTX])
    assert call("build", str(tmp_path / "none"), *args) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: expected ") and message in err and err.count("\n") == 1 and out == ""
