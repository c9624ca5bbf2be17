"""The command line: what each option becomes, exit codes, and where text goes."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import fastsam2
from fastsam2 import builtin, caption, doctor
from fastsam2.bundle import FileEntry, GraphEntry, Manifest, Origin, TensorEntry, write_manifest
from fastsam2.cli import main
from fastsam2.config import Prune
from fastsam2.contracts import BASE_ROLES, graph_spec
from fastsam2.enums import BackendName, ExportTarget, Protect, PrunePolicy, QueryPolicy
from fastsam2.errors import ExportError
from fastsam2.export import exporter
from fastsam2.export import text as export_text
from fastsam2.runtime import run as run_module
from fastsam2.runtime.prompt_args import TimedPrompt
from fastsam2.runtime.run import run_video
from tests.specs import model_spec

RUN = ["run", "bundle", "--video", "v.mp4", "--out", "out"]


def _call(*args: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(args)
    assert isinstance(exited.value.code, int)
    return exited.value.code


@pytest.fixture
def run_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Calls of `run_video`, which reports two frames and does nothing."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def run(bundle: str, **options: Any) -> dict[str, Any]:
        calls.append((bundle, options))
        if options["progress"] is not None:
            options["progress"](1, 2)
            options["progress"](2, 2)
        return {"frames": 2, "fps": 1.5}

    monkeypatch.setattr(run_module, "run_video", run)
    return calls


@pytest.fixture
def export_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def export(*args: Any, progress: Any, **options: Any) -> None:
        progress("working")
        calls.append((*args, options))

    monkeypatch.setattr(exporter, "export_bundle", export)
    return calls


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose graphs are not ONNX, which only running it would find out."""
    spec = model_spec(name="sam2.1_tiny", hidden_dim=32)
    graphs = []
    for role in BASE_ROLES:
        (tmp_path / f"{role.value}.onnx").write_bytes(role.value.encode() * 100)
        table = graph_spec(role, ExportTarget.TENSORRT)
        graphs.append(
            GraphEntry(
                role=role,
                target=ExportTarget.TENSORRT,
                file=FileEntry.of(tmp_path, PurePosixPath(f"{role.value}.onnx")),
                opset=20,
                inputs=tuple(TensorEntry.of(t) for t in table.inputs),
                outputs=tuple(TensorEntry.of(t) for t in table.outputs),
                checks={t.name: 2e-6 for t in table.outputs},
            )
        )
    origin = Origin(
        model=spec.name,
        checkpoint="random:7",
        checkpoint_sha256=None,
        config="sam2.1_hiera_t.yaml",
        torch="2.0",
        sam2="1.1.0",
        onnx="1.2",
        created=datetime(2025, 1, 2, tzinfo=timezone.utc),
    )
    write_manifest(tmp_path, Manifest(fastsam2_version="0.1.0", model=spec, graphs=tuple(graphs), origin=origin))
    return tmp_path


def test_run_defaults_are_those_of_the_library(run_calls: list[Any]) -> None:
    assert _call(*RUN, "--point", "3,4") == 0
    path, options = run_calls[0]
    assert path == "bundle" and options.pop("source") == "v.mp4" and options.pop("out") == Path("out")
    assert options.pop("prompts") == [TimedPrompt(id=1, points=((3, 4),), labels=(1,))]
    assert options.pop("prune") == Prune()
    assert all(options.pop(name) is not None for name in ("progress", "on_description", "on_backend"))
    parameters = inspect.signature(run_video).parameters
    assert options == {name: parameters[name].default for name in options}
    assert set(options) == set(parameters) - {
        "bundle",
        "source",
        "out",
        "prompts",
        "prune",
        "progress",
        "on_description",
        "on_backend",
        "amend",
    }


def test_presets(run_calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(*RUN, "--point", "3,4", "--prune", "balanced") == 0
    assert run_calls[0][1]["prune"] == Prune(policy=PrunePolicy.ROUTER, keep=0.05, guard=True)
    assert _call(*RUN, "--point", "3,4", "--prune", "fast", "--query-prune", "merge", "--query-keep", "0.25") == 0
    assert run_calls[1][1]["prune"] == replace(Prune.preset("fast"), queries=QueryPolicy.MERGE, query_keep=0.25)
    assert _call(*RUN, "--point", "3,4", "--prune", "balanced", "--keep", "0.1") == 2
    assert "--prune balanced alone" in capsys.readouterr().err


def test_run_options(run_calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('[{"id": 4, "frame": 2, "points": [[1, 2]]}]')
    prompts = ["--box", "1,2,3,4", "--box", "2:1,2,3,4@5", "--point", "5,6,0", "--mask", "3:m.png@1", "--remove", "2@7"]
    prune = ["--prune", "mask", "--keep", "0.05", "--protect", "newest", "--seed", "9", "--guard", "--show-tokens", "--text", "4:a cup"]
    prune += ["--query-prune", "drop", "--query-keep", "0.5"]
    numbers = [
        "--gpu",
        "1",
        "--cuda-graphs",
        "--frames",
        "8",
        "--threads",
        "1",
        "--backend",
        "onnxruntime",
        "--max-prompt-frames",
        "2",
        "--fill-holes",
        "6",
        "--memory-budget",
        "700",
    ]
    flags = ["--corrections-as-prompts", "--separate", "--rle", "--no-overlay", "--stream", "udp://127.0.0.1:5000", "--quiet"]
    assert _call(*RUN, *prompts, "--prompts", str(tmp_path / "p.json"), *prune, *numbers, *flags) == 0
    assert run_calls[0][1] == {
        "source": "v.mp4",
        "out": Path("out"),
        "prompts": [
            TimedPrompt(id=1, box=(1, 2, 3, 4), points=((5, 6),), labels=(0,)),
            TimedPrompt(id=3, frame=1, mask=Path("m.png")),
            TimedPrompt(id=4, frame=2, points=((1, 2),), text="a cup"),
            TimedPrompt(id=2, frame=5, box=(1, 2, 3, 4)),
            TimedPrompt(id=2, frame=7, remove=True),
        ],
        "prune": Prune(
            policy=PrunePolicy.MASK, keep=0.05, protect=(Protect.NEWEST,), seed=9, guard=True, queries=QueryPolicy.DROP, query_keep=0.5
        ),
        "corrections_as_prompts": True,
        "max_prompt_frames": 2,
        "fill_hole_area": 6,
        "memory_budget_mb": 700,
        "frames": 8,
        "separate": True,
        "rle": True,
        "overlay": False,
        "tokens": True,
        "backend": BackendName.ONNXRUNTIME,
        "gpu": 1,
        "cuda_graphs": True,
        "on_backend": None,
        "threads": 1,
        "window": None,
        "stream": "udp://127.0.0.1:5000",
        "auto_text": False,
        "describer": None,
        "on_description": None,
        "progress": None,
    }


@pytest.mark.parametrize(
    ("text", "protect"), [("none", ()), ("prompt", (Protect.PROMPT,)), ("newest, prompt", (Protect.NEWEST, Protect.PROMPT))]
)
def test_protect(run_calls: list[Any], text: str, protect: tuple[Protect, ...]) -> None:
    assert _call(*RUN, "--point", "3,4", "--prune", "mask", "--tokens", "12", "--protect", text) == 0
    assert run_calls[0][1]["prune"] == Prune(policy=PrunePolicy.MASK, tokens=12, protect=protect)


def test_run_reports_on_stderr_unless_quiet(run_calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(*RUN, "--point", "3,4") == 0
    out, err = capsys.readouterr()
    assert out == "" and "2/2 frames" in err and "out: 2 frames, tracked at 1.50 frames/s" in err
    assert _call(*RUN, "--point", "3,4", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*RUN, "--keep", "0.5", "--point", "3,4"], "policy dense"),
        ([*RUN, "--prune", "mask", "--keep", "0.5", "--tokens", "3", "--point", "3,4"], "keep or tokens"),
        ([*RUN, "--protect", "oldest", "--point", "3,4"], "--protect from ['prompt', 'newest']"),
        ([*RUN, "--protect", "", "--point", "3,4"], "--protect from"),
        ([*RUN, "--box", "1,2,3"], "--box [ID:]x0,y0,x1,y1[@FRAME], got '1,2,3'"),
        ([*RUN, "--prompts", "none.json"], "readable prompts file none.json"),
        (RUN, "at least one prompt"),
        ([*RUN, "--point", "3,4"], "a built-in bundle of ['nano'], got bundle"),
        ([*RUN[:-2], "--point", "3,4"], "--out, --show or --stream, got none"),
        ([*RUN[:-2], "--stream", "a.mkv", "--rle", "--point", "3,4"], "--out with --separate or --rle"),
        (["inspect", "none"], "a built-in bundle of ['nano'], got none"),
        (["inspect", "./none"], "a bundle folder, got none"),
        (["score", "none", "none"], "a folder of masks, got none"),
        (["score", "none", "none", "--prompted", "2"], "--prompted ID@FRAME"),
        (["demo", "--sample", "none"], "a built-in sample of ['hard_000'], got none"),
    ],
)
def test_callers_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtin, "_folders", lambda home: ("nano",) if home == builtin.MODELS else ("hard_000",))
    assert _call(*args) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: expected ") and message in err and err.count("\n") == 1 and out == ""
    assert not list(tmp_path.iterdir())


def test_messages_of_several_lines_become_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def export(*_: Any, **__: Any) -> None:
        raise ExportError("first\nsecond")

    monkeypatch.setattr(exporter, "export_bundle", export)
    assert _call("export", "--model", "m", "--checkpoint", "c", "--out", "o") == 2
    assert capsys.readouterr().err == "error: first second\n"


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["run"],
        ["track"],
        [*RUN, "--what"],
        [*RUN, "--frames", "0"],
        [*RUN, "--threads", "none"],
        [*RUN, "--prune", "best"],
        [*RUN, "--backend", "cuda"],
        ["export", "--model", "m", "--checkpoint", "c", "--out", "o", "--target", "cuda"],
    ],
)
def test_usage_errors_exit_2(run_calls: list[Any], export_calls: list[Any], args: list[str]) -> None:
    assert _call(*args) == 2
    assert not run_calls and not export_calls


def test_automatic_texts(run_calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption, "CaptionDescriber", lambda model: f"captions by {model}")
    two = ["--box", "1,2,3,4", "--box", "2:1,2,3,4"]
    for args, texts, auto_text, describer in (
        (["--text", "auto", "--text", "2:a cup"], [None, "a cup"], True, None),
        (["--text", "2:auto"], [None, "auto"], False, None),
        (["--text", "2:auto", "--captioner", "some/blip"], [None, "auto"], False, "captions by some/blip"),
    ):
        assert _call(*RUN, *two, *args) == 0
        options = run_calls[-1][1]
        assert ([p.text for p in options["prompts"]], options["auto_text"], options["describer"]) == (texts, auto_text, describer)
    run_calls[-1][1]["on_description"](2, "a cup")
    assert "object 2: a cup\n" in capsys.readouterr().err
    assert _call(*RUN, *two, "--text", "2:a cup", "--captioner", "some/blip") == 2
    assert "expected --text auto with --captioner" in capsys.readouterr().err


def test_add_text_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(export_text, "add_text", lambda *args, progress, **options: calls.append((*args, options)))
    assert _call("add-text", "--bundle", "b", "--clip", "c") == 0
    assert _call("add-text", "--bundle", "b", "--clip", "c", "--vocabulary", "v.txt", "--template", "{}", "--template", "a {}") == 0
    assert _call("add-text", "--bundle", "b", "--clip", "c", "--out", "o", "--text-only") == 0
    assert calls == [
        ("b", "c", {"out": None, "vocabulary": None, "templates": None, "text_only": False}),
        ("b", "c", {"out": None, "vocabulary": Path("v.txt"), "templates": ["{}", "a {}"], "text_only": False}),
        ("b", "c", {"out": Path("o"), "vocabulary": None, "templates": None, "text_only": True}),
    ]


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run_video", interrupted)
    assert _call(*RUN, "--point", "3,4") == 130


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run_module, "run_video", broken)
    with pytest.raises(ZeroDivisionError):
        main([*RUN, "--point", "3,4"])


@pytest.mark.parametrize(
    ("args", "targets"),
    [
        ([], tuple(ExportTarget)),
        (["--target", "all"], tuple(ExportTarget)),
        (["--target", "tensorrt"], (ExportTarget.TENSORRT,)),
        (["--target", "tensorrt", "--target", "onnxruntime"], (ExportTarget.TENSORRT, ExportTarget.ONNXRUNTIME)),
    ],
)
def test_export_targets(
    export_calls: list[Any], capsys: pytest.CaptureFixture[str], args: list[str], targets: tuple[ExportTarget, ...]
) -> None:
    assert _call("export", "--model", "m", "--checkpoint", "c.pt", "--out", "o", *args) == 0
    assert export_calls == [
        ("m", "c.pt", Path("o"), {"image_size": None, "targets": targets, "query_attention": False, "overwrite": False})
    ]
    assert capsys.readouterr() == ("", "working\n")


def test_export_options(export_calls: list[Any]) -> None:
    assert (
        _call("export", "--model", "m", "--checkpoint", "c", "--out", "o", "--image-size", "512", "--query-attention", "--overwrite") == 0
    )
    assert export_calls[0][3] == {"image_size": 512, "targets": tuple(ExportTarget), "query_attention": True, "overwrite": True}


def test_inspect_shows_everything(bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert _call("inspect", str(bundle)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("sam2.1_tiny", "128 x 128", "random:7", "sam2.1_hiera_t.yaml", "2025-01-02", "memory_attention.onnx", "1,600", "2.0e-06"):
        assert text in shown, text
    for row in ("│ pixels │ uint8 │ 1 x 3 x 128 x 128 │", "│ memory │ float32 │ B x M x 16 │", "│ memory_bias │ float32 │ B x R │"):
        assert row in shown, row


def test_inspect_json_is_the_manifest_and_the_engines(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("inspect", str(bundle), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {**json.loads((bundle / "manifest.json").read_text()), "engines": []}


def test_inspect_refuses_an_altered_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bundle / "mask_decoder.onnx"
    file.write_bytes(file.read_bytes()[::-1])
    assert _call("inspect", str(bundle)) == 2
    assert "altered since export" in capsys.readouterr().err


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor.DoctorReport("0.1", "3.11", "os", "a processor", 2, 2**31, doctor.Driver(problem="no NVIDIA driver"), (), ())
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert _call("doctor") == 0
    assert "a processor" in capsys.readouterr().out
    assert _call("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cpu"] == "a processor"


def test_version_as_a_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, runpy; sys.argv[1:] = ['--version']\ntry: runpy.run_module('fastsam2', run_name='__main__')\nexcept SystemExit as e: "
    )
    code += "print(e.code, [m for m in ('torch', 'onnx', 'onnxruntime', 'av', 'numpy', 'sam2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"fastsam2 {fastsam2.__version__}", "0 []"]
