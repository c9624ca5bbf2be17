"""What is built, when and why, and what an interruption leaves: with a builder that is not one (tests/engine_bundle.py)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastsam2 import builtin
from fastsam2.bundle import read_manifest, write_manifest
from fastsam2.contracts import BASE_ROLES
from fastsam2.engines import build, network_form, trt_compat
from fastsam2.engines.build import build_engines
from fastsam2.engines.profiles import Limits
from fastsam2.engines.records import read_set
from fastsam2.enums import ExportTarget, Flavor, GraphRole, Precision
from fastsam2.errors import BackendError, BundleError, FastSam2Error
from tests.engine_bundle import FakeBuilder, write_bundle

ALL = [role.value for role in BASE_ROLES]


class Setup:
    """A bundle and everything that `build_engines` would do on it, except for building."""

    def __init__(self, folder: Path, builder: FakeBuilder) -> None:
        self.folder, self.builder, self.lines = folder, builder, list[str]()
        self.drift = {"out": 1e-4}
        self.measured: list[GraphRole] = []

    def run(self, **options: Any) -> list[str]:
        """Builds; returns the graphs that were built."""
        self.builder.built.clear()
        self.lines.clear()
        self.sets = build_engines(self.folder, flavor=Flavor.TENSORRT_RTX, progress=self.lines.append, **options)
        return [name for name, _ in self.builder.built]

    @property
    def engines(self) -> Path:
        return self.sets[0]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    class Module:
        __version__ = "1.7"

        class ComputeCapability:
            __members__ = {"SM89": 1, "SM120": 2}  # noqa: RUF012

    write_bundle(tmp_path / "bundle")
    made = Setup(tmp_path / "bundle", FakeBuilder())

    def convert(source: Path, out: Path, role: GraphRole, precision: Precision) -> None:
        shutil.copyfile(source, out)

    def measure(variant: Path, role: GraphRole, samples: object) -> Mapping[str, float]:
        made.measured.append(role)
        return made.drift

    def check(drift: Mapping[str, float], role: GraphRole, precision: Precision) -> None:
        if drift["out"] > 1e-3:
            raise BackendError(f"{role.value} drifts by {drift['out']}")

    monkeypatch.setattr(trt_compat, "load", lambda flavor: Module)
    monkeypatch.setattr(build, "build_engine", made.builder)
    monkeypatch.setattr(build, "convert", convert)
    monkeypatch.setattr(build, "samples", lambda folder, manifest: {role: [] for role in BASE_ROLES})
    monkeypatch.setattr(build.drifts, "measure", measure)
    monkeypatch.setattr(build.drifts, "check", check)
    return made


def test_first_build(setup: Setup) -> None:
    assert setup.run() == ALL
    assert setup.engines == setup.folder / "engines" / "tensorrt-rtx-1.7-portable"
    files = {p.name for p in setup.engines.iterdir()}
    assert files == {"engines.json", *(f"{name}.{end}" for name in ALL for end in ("engine", "layers.txt"))}
    engines = read_set(setup.engines)
    assert [e.graph.value for e in engines.engines] == ALL and engines.limits == Limits()
    entry = engines.engine(GraphRole.MEMORY_ATTENTION)
    assert entry is not None
    assert (entry.fused_attention, entry.expected_attention, entry.attention) == (1, 1, 1)
    assert entry.activation_bytes == 18022400 and entry.build_seconds == 0.25 and entry.drift == {"out": 1e-4}
    assert entry.precision is Precision.FP16 and entry.profiles == setup.builder.profiles["memory_attention"]
    assert entry.source_sha256 == next(iter(read_manifest(setup.folder).digests(entry.graph)))
    assert [line for line in setup.lines if "building" in line] == [
        f"{name} for tensorrt-rtx 1.7, portable: building (no engine yet)" for name in ALL
    ]


def test_nothing_changed(setup: Setup) -> None:
    setup.run()
    before = {p: p.stat().st_mtime_ns for p in setup.engines.glob("*.engine")}
    setup.measured.clear()
    assert setup.run() == [] and setup.measured == []
    assert setup.lines == [f"{name} for tensorrt-rtx 1.7, portable: up to date" for name in ALL]
    assert before == {p: p.stat().st_mtime_ns for p in setup.engines.glob("*.engine")}


def _change_a_graph(setup: Setup) -> None:
    from onnx import load, save

    manifest = read_manifest(setup.folder)
    file = setup.folder / "mask_decoder.onnx"
    model = load(file)
    model.doc_string = "another"
    save(model, file)
    graphs = tuple(
        g.model_copy(update={"file": type(g.file).of(setup.folder, Path("mask_decoder.onnx"))}) if g.role is GraphRole.MASK_DECODER else g
        for g in manifest.graphs
    )
    write_manifest(setup.folder, manifest.model_copy(update={"graphs": graphs}))


def _replace(setup: Setup, name: str, content: bytes | None) -> None:
    path = setup.engines / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "options", "built", "why"),
    [
        (_change_a_graph, {}, ["mask_decoder"], "the bundle's graph changed"),
        (lambda s: None, {"precision": "bf16"}, ALL, "bf16 instead of fp16"),
        (
            lambda s: None,
            {"limits": Limits(max_objects=3)},
            ["memory_attention", "mask_decoder", "mask_prompt", "memory_encoder"],
            "other profiles",
        ),
        (lambda s: None, {"limits": Limits(keep_buckets=(0.05,))}, ["memory_attention"], "other profiles"),
        (lambda s: _replace(s, "mask_prompt.engine", None), {}, ["mask_prompt"], "mask_prompt.engine is missing"),
        (lambda s: _replace(s, "mask_prompt.engine", b"x"), {}, ["mask_prompt"], "mask_prompt.engine has 1 bytes instead of"),
        (lambda s: _replace(s, "memory_encoder.layers.txt", None), {}, ["memory_encoder"], "memory_encoder.layers.txt is missing"),
        (lambda s: _replace(s, "engines.json", b"{"), {}, ALL, "no engine yet"),
        (lambda s: _replace(s, "engines.json", None), {}, ALL, "no engine yet"),
    ],
)
def test_only_what_changed_is_built_again(setup: Setup, change: Any, options: dict[str, Any], built: list[str], why: str) -> None:
    setup.run()
    change(setup)
    assert setup.run(**options) == built
    said = [line for line in setup.lines if ": building (" in line]
    assert len(said) == len(built) and all(why in line for line in said)
    assert setup.run(**options) == []


def test_same_size_other_content_is_noticed(setup: Setup) -> None:
    setup.run()
    engine = setup.engines / "mask_prompt.engine"
    engine.write_bytes(engine.read_bytes()[::-1])
    assert setup.run() == ["mask_prompt"]
    assert any("mask_prompt.engine was altered since it was built" in line for line in setup.lines)


def test_another_recipe_or_option_builds_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.run()
    monkeypatch.setitem(build.OPTIONS, "tf32", True)
    assert setup.run() == ALL and "other builder options" in setup.lines[0]
    monkeypatch.setattr(build, "recipe", lambda: "0" * 64)
    assert setup.run() == ALL and "this release types the graph in another way" in setup.lines[0]


def test_recipe_is_that_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build.recipe()
    assert network_form.__file__.endswith(build._RECIPE[2])
    for name in build._RECIPE:
        monkeypatch.setattr(build, "_RECIPE", tuple(n for n in build._RECIPE if n != name))
        assert build.recipe() != whole
        monkeypatch.undo()


def test_each_target_has_its_folder(setup: Setup) -> None:
    assert len(setup.run(targets=["portable", "8.9", "8.9"])) == 2 * len(ALL)
    assert [p.name for p in setup.sets] == ["tensorrt-rtx-1.7-portable", "tensorrt-rtx-1.7-8.9"]
    assert setup.measured == list(BASE_ROLES)  # typed and measured once
    assert setup.run(targets=["8.9", "12.0"]) == ALL


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), BackendError("expected mask_decoder to build, got no. Stop.")])
def test_interrupted_build_leaves_what_was_complete(setup: Setup, stop: BaseException) -> None:
    def before(name: str) -> None:
        if name == "mask_decoder":
            raise stop

    setup.builder.before = before
    with pytest.raises(type(stop)):
        setup.run()
    folder = setup.folder / "engines" / "tensorrt-rtx-1.7-portable"
    assert [e.graph.value for e in read_set(folder).engines] == ["image_encoder", "memory_attention"]
    assert not [p.name for p in folder.iterdir() if "partial" in p.name]
    setup.builder.before = None
    assert setup.run() == [name for name in ALL if name not in ("image_encoder", "memory_attention")]


@pytest.mark.parametrize("name", ["mask_decoder.engine", "mask_decoder.layers.txt", "engines.json"])
def test_stop_while_a_file_is_written(setup: Setup, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    setup.run()
    old = {p.name: p.read_bytes() for p in setup.engines.iterdir()}
    replace = os.replace

    def stop(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise KeyboardInterrupt
        replace(source, target)

    _change_a_graph(setup)
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        setup.run()
    monkeypatch.setattr(os, "replace", replace)
    assert (setup.engines / name).read_bytes() == old[name]
    assert read_set(setup.engines).engine(GraphRole.MASK_PROMPT) is not None
    assert setup.run() == ["mask_decoder"]
    assert setup.run() == [] and not list(setup.engines.glob(".*"))


def test_too_few_fused_attentions_leave_no_engine(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import engine_bundle

    monkeypatch.setattr(engine_bundle, "LISTING", engine_bundle.LISTING.replace("_gemm_mha", "_gemm_mma"))
    with pytest.raises(BackendError, match="expected 1 of 1 attentions of memory_attention fused in fp16, got 0; not fused: "):
        setup.run()
    folder = setup.folder / "engines" / "tensorrt-rtx-1.7-portable"
    assert [p.name for p in folder.glob("memory_attention*")] == []
    assert setup.run(precision="fp32") == ALL


def test_attentions_that_cannot_fuse_are_named(setup: Setup) -> None:
    setup.run(limits=Limits(max_objects=2))
    said = "memory_attention, profile dense: 1 of 1 attentions cannot fuse: 2 x 1024 x 7232 scores are fewer than 16777216"
    assert said in setup.lines
    setup.run(limits=Limits(keep_buckets=(0.05,)))
    assert [line for line in setup.lines if "cannot fuse" in line] == [
        "memory_attention, profile keep 0.05: 1 of 1 attentions cannot fuse: 4 x 1024 x 2372 scores are fewer than 16777216"
    ]


def test_every_profile_has_to_fuse(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import engine_bundle

    monkeypatch.setattr(
        engine_bundle, "LISTING", engine_bundle.LISTING.replace("_gemm_mha_v2_myl1", "_gemm_mma_v2_myl1").replace("_gemm_mha_v2_0x", "0x")
    )
    assert setup.run(limits=Limits(keep_buckets=(0.05,))) == ALL
    with pytest.raises(BackendError, match="expected 1 of 1 attentions of memory_attention fused in fp16, got 0"):
        setup.run(limits=Limits(keep_buckets=(0.5,)))
    setup.run(limits=Limits(keep_buckets=(0.5,)), force=True)
    assert any("accepted because of --force: expected 1 of 1 attentions" in line for line in setup.lines)
    entry = read_set(setup.engines).engine(GraphRole.MEMORY_ATTENTION)
    assert entry is not None and [p.name for p in entry.profiles] == ["dense", "keep 0.5"]


def test_drift_beyond_its_budget(setup: Setup) -> None:
    setup.drift = {"out": 0.5}
    with pytest.raises(BackendError, match="image_encoder drifts by"):
        setup.run()
    assert setup.builder.built == []
    assert setup.run(force=True) == ALL
    assert "accepted because of --force: image_encoder drifts by 0.5" in setup.lines
    entry = read_set(setup.engines).engine(GraphRole.IMAGE_ENCODER)
    assert entry is not None and entry.drift == {"out": 0.5}


def test_out_is_a_copy_that_can_be_gone_on_with(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    assert setup.run(out=out) == ALL
    assert setup.engines.is_relative_to(out) and not (setup.folder / "engines").exists()
    assert read_manifest(out).graphs == read_manifest(setup.folder).graphs
    assert setup.run(out=out) == []
    _change_a_graph(setup)
    with pytest.raises(BundleError, match="expected a new folder, or a copy of"):
        setup.run(out=out)


def test_built_in_bundle_needs_out(setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builtin, "MODELS", setup.folder.parent)
    with pytest.raises(BundleError, match="expected --out for a built-in bundle, got bundle alone"):
        build_engines("bundle", flavor="tensorrt-rtx")
    assert build_engines("bundle", flavor="tensorrt-rtx", out=tmp_path / "out")


def test_bundle_without_graphs_for_tensorrt(setup: Setup, tmp_path: Path) -> None:
    shutil.rmtree(setup.folder)
    write_bundle(setup.folder, target=ExportTarget.ONNXRUNTIME)
    for out in (None, tmp_path / "out"):
        with pytest.raises(BundleError, match=r"expected an image_encoder graph for target tensorrt.*--target tensorrt"):
            setup.run(out=out)
    assert not (setup.folder / "engines").exists() and not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(setup: Setup) -> None:
    (setup.folder / "engines").write_text("in the way")
    with pytest.raises(BundleError, match=r"expected a writable .*--out"):
        setup.run()


@pytest.mark.parametrize(
    ("installed", "message"),
    [([], r"got neither\. Run: pip install tensorrt-rtx-cu13"), (list(Flavor), r"got both\. Name one with --flavor")],
)
def test_flavor_is_never_guessed(setup: Setup, monkeypatch: pytest.MonkeyPatch, installed: list[Flavor], message: str) -> None:
    monkeypatch.setattr(trt_compat, "available", lambda: installed)
    with pytest.raises(BackendError, match=message):
        build_engines(setup.folder)
    monkeypatch.setattr(trt_compat, "available", lambda: [Flavor.TENSORRT_RTX])
    assert build_engines(setup.folder)[0].name == "tensorrt-rtx-1.7-portable"


@pytest.mark.parametrize("options", [{"flavor": "onnx"}, {"flavor": "tensorrt-rtx", "targets": ["9.0"]}])
def test_refused_before_anything_is_touched(setup: Setup, options: dict[str, Any]) -> None:
    with pytest.raises(FastSam2Error, match="expected a "):
        build_engines(setup.folder, **options)
    assert not (setup.folder / "engines").exists()
