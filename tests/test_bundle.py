"""fastsam2.bundle: what is written reads back, and every damage is refused with its reason. Invariants only; no model is involved."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import fastsam2
from fastsam2.bundle import FileEntry, GraphEntry, Manifest, Origin, TensorEntry, changed_bundle, new_bundle, read_manifest, write_manifest
from fastsam2.contracts import BASE_ROLES, MANIFEST_VERSION, graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError
from tests.specs import model_spec

ROOT = Path(__file__).parents[1]
SPEC = model_spec()
ORIGIN = Origin(
    model="micro",
    checkpoint="random:0",
    checkpoint_sha256=None,
    config="micro.yaml",
    torch="2.13.0",
    sam2="1.1.0",
    onnx="1.23.2",
    created=datetime(2025, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
)


def make_manifest(folder: Path, targets: tuple[ExportTarget, ...] = tuple(ExportTarget)) -> Manifest:
    """Files of a few bytes in place of ONNX; the memory encoder is shared by all targets."""
    graphs = []
    for role in BASE_ROLES:
        for target in targets:
            shared = role is GraphRole.MEMORY_ENCODER or target is ExportTarget.ONNXRUNTIME
            path = PurePosixPath(f"{role.value}.onnx") if shared else PurePosixPath(target.value, f"{role.value}.onnx")
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(f"bytes of {path}".encode())
            spec = graph_spec(role, target)
            graphs.append(
                GraphEntry(
                    role=role,
                    target=target,
                    file=FileEntry.of(folder, path),
                    opset=23,
                    inputs=tuple(TensorEntry.of(t) for t in spec.inputs),
                    outputs=tuple(TensorEntry.of(t) for t in spec.outputs),
                    checks={t.name: 1e-6 for t in spec.outputs},
                )
            )
    return Manifest(fastsam2_version="0.1.0", model=SPEC, graphs=tuple(graphs), origin=ORIGIN)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_manifest(folder, make_manifest(folder))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "manifest.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    change(raw)
    file.write_text(json.dumps(raw), encoding="utf-8")


def test_what_is_written_reads_back(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest == make_manifest(bundle)
    assert manifest.manifest_version == MANIFEST_VERSION
    assert manifest.origin.created.isoformat() == "2025-01-02T03:04:05+00:00"


def test_graph_finds_by_role_and_target(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    trt = manifest.graph(GraphRole.MEMORY_ATTENTION, ExportTarget.TENSORRT)
    assert trt.file.path == "tensorrt/memory_attention.onnx"
    assert trt.inputs[-1].name == "memory_bias"
    ort = manifest.graph(GraphRole.MEMORY_ATTENTION, ExportTarget.ONNXRUNTIME)
    assert ort.file.path == "memory_attention.onnx"
    assert "memory_bias" not in [t.name for t in ort.inputs]
    assert manifest.targets == (ExportTarget.ONNXRUNTIME, ExportTarget.TENSORRT)


def test_targets_may_share_a_file(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    files = [manifest.graph(GraphRole.MEMORY_ENCODER, t).file for t in manifest.targets]
    assert files[0] == files[1]


def test_missing_target_names_the_export_command(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, (ExportTarget.ONNXRUNTIME,))
    assert manifest.targets == (ExportTarget.ONNXRUNTIME,)
    with pytest.raises(
        BundleError,
        match=r"\['onnxruntime'\].*--model micro --checkpoint random:0 --image-size 128 --target onnxruntime --target tensorrt --out",
    ):
        manifest.graph(GraphRole.IMAGE_ENCODER, ExportTarget.TENSORRT)


def test_export_command_of_a_downloaded_checkpoint(bundle: Path) -> None:
    edit(bundle, lambda raw: raw["origin"].update(checkpoint="facebook/sam2.1-hiera-tiny"))
    with pytest.raises(BundleError, match="--checkpoint hub --image-size"):
        read_manifest(bundle).graph(GraphRole.ROUTER, ExportTarget.ONNXRUNTIME)


def test_missing_role_is_named(bundle: Path) -> None:
    with pytest.raises(BundleError, match="a router graph for target onnxruntime"):
        read_manifest(bundle).graph(GraphRole.ROUTER, ExportTarget.ONNXRUNTIME)


def test_graph_listed_twice_is_refused(bundle: Path) -> None:
    edit(bundle, lambda raw: raw["graphs"].append(raw["graphs"][0]))
    with pytest.raises(BundleError, match=r"listed twice: \[\('image_encoder', 'onnxruntime'\)\]"):
        read_manifest(bundle)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected a bundle folder.*fastsam2 export"):
        read_manifest(tmp_path / "nowhere")


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected manifest\.json in"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 1000, -3])
def test_truncated_manifest(bundle: Path, length: int) -> None:
    file = bundle / "manifest.json"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(BundleError, match="broken or truncated"):
        read_manifest(bundle)


def test_manifest_that_is_not_text(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BundleError, match="broken or truncated"):
        read_manifest(bundle)


def test_manifest_that_is_not_an_object(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError, match="integer manifest_version"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (MANIFEST_VERSION + 1, "Upgrade fastsam2"),
        (MANIFEST_VERSION - 1, "Export again with this release"),
        ("1", "integer manifest_version"),
        (True, "integer manifest_version"),
        (None, "integer manifest_version"),
    ],
)
def test_other_manifest_versions(bundle: Path, version: object, reason: str) -> None:
    edit(bundle, lambda raw: raw.update(manifest_version=version, added_later=1))
    with pytest.raises(BundleError, match=reason):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model.image_size", lambda raw: raw["model"].update(image_size=100)),
        ("model.hidden_dim", lambda raw: raw["model"].pop("hidden_dim")),
        ("origin.torch", lambda raw: raw["origin"].pop("torch")),
        ("origin.created", lambda raw: raw["origin"].update(created="2025-01-02T03:04:05")),
        ("precision", lambda raw: raw.update(precision="fp64")),
        ("graphs", lambda raw: raw.update(graphs=[])),
        ("graphs.0.file.sha256", lambda raw: raw["graphs"][0]["file"].update(sha256="abc")),
        ("graphs.1.target", lambda raw: raw["graphs"][1].update(target="abacus")),
        ("graphs.0.opset", lambda raw: raw["graphs"][0].update(opset="23")),
        ("graphs.0.surprise", lambda raw: raw["graphs"][0].update(surprise=1)),
    ],
)
def test_schema_errors_name_the_field(bundle: Path, field: str, change: Callable[[dict[str, Any]], object]) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=rf"a legal {field.replace('.', chr(92) + '.')} in"):
        read_manifest(bundle)


@pytest.mark.parametrize("path", ["../x.onnx", "/etc/passwd", "a/../../x", "./x", "a//b", "", "C:/x", "a\\..\\x", "a\0b"])
def test_paths_that_leave_the_folder(bundle: Path, path: str) -> None:
    (bundle.parent / "x.onnx").write_bytes(b"outside")
    edit(bundle, lambda raw: raw["graphs"][0]["file"].update(path=path))
    with pytest.raises(BundleError, match=r"graphs\.0\.file\.path.*not a plain relative path"):
        read_manifest(bundle)


@pytest.mark.parametrize("verify", [True, False])
def test_missing_file(bundle: Path, verify: bool) -> None:
    (bundle / "tensorrt/image_encoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"file tensorrt/image_encoder\.onnx in"):
        read_manifest(bundle, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_truncated_file(bundle: Path, verify: bool) -> None:
    file = bundle / "mask_decoder.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"bytes in .*mask_decoder\.onnx.*truncated"):
        read_manifest(bundle, verify=verify)


def test_tampered_file_is_found_by_its_hash_only(bundle: Path) -> None:
    file = bundle / "memory_encoder.onnx"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"SHA-256 .*memory_encoder\.onnx.*altered"):
        read_manifest(bundle)
    assert read_manifest(bundle, verify=False).model == SPEC


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda g: g["inputs"][0].update(dtype="float32"), r"inputs of image_encoder for onnxruntime to hold pixels uint8 \[1, 3, S, S\]"),
        (lambda g: g["inputs"][0].update(name="image"), "got image uint8"),
        (lambda g: g["outputs"][1].update(axes=["1", "C", "L", "L"]), r"high_res_0 float32 \[1, C/8, L, L\]"),
        (lambda g: g["outputs"].pop(), r"outputs \['tokens', 'high_res_0', 'high_res_1'\] of image_encoder"),
        (lambda g: g.update(role="router"), "router graph and its entry go together"),
    ],
)
def test_other_tensor_table(bundle: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    edit(bundle, lambda raw: change(raw["graphs"][0]))
    with pytest.raises(BundleError, match=reason):
        read_manifest(bundle)


def test_a_router_of_another_model_is_refused(bundle: Path) -> None:
    (bundle / "router.onnx").write_bytes(b"router")

    def add(raw: dict[str, Any], image_encoder: str) -> None:
        spec = graph_spec(GraphRole.ROUTER, ExportTarget.ONNXRUNTIME)
        entry = GraphEntry(
            role=GraphRole.ROUTER,
            target=ExportTarget.ONNXRUNTIME,
            file=FileEntry.of(bundle, PurePosixPath("router.onnx")),
            opset=23,
            inputs=tuple(TensorEntry.of(t) for t in spec.inputs),
            outputs=tuple(TensorEntry.of(t) for t in spec.outputs),
            checks={},
        )
        raw["graphs"].append(entry.model_dump(mode="json"))
        raw["router"] = {"image_encoder": image_encoder, "text_encoder": None, "data": "clips", "steps": 3}

    own = read_manifest(bundle).digests(GraphRole.IMAGE_ENCODER)
    edit(bundle, lambda raw: add(raw, min(own)))
    manifest = read_manifest(bundle)
    assert manifest.router is not None
    assert "router.onnx" in {f.path for f in manifest.files}
    edit(bundle, lambda raw: raw["router"].update(image_encoder="0" * 64))
    with pytest.raises(BundleError, match=r"a router for the image_encoder .*another model.*train-router"):
        read_manifest(bundle)


def test_changed_bundle_keeps_the_old_one_until_the_end(bundle: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file()}
    with pytest.raises(RuntimeError), changed_bundle(bundle) as (copy, manifest):
        (copy / "memory_encoder.onnx").write_bytes(b"other")
        write_manifest(copy, manifest)
        raise RuntimeError
    assert {p: p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file()} == before
    for out in (None, tmp_path / "second"):
        with changed_bundle(bundle, out) as (copy, manifest):
            write_manifest(copy, manifest.model_copy(update={"fastsam2_version": "9"}))
        assert read_manifest(bundle if out is None else out).fastsam2_version == "9"


def test_of_two_changes_at_once_the_later_one_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="another command changed meanwhile; it was kept"), changed_bundle(bundle) as (slow, manifest):
        with changed_bundle(bundle) as (quick, same):
            write_manifest(quick, same.model_copy(update={"fastsam2_version": "9"}))
        write_manifest(slow, manifest.model_copy(update={"fastsam2_version": "8"}))
    assert read_manifest(bundle).fastsam2_version == "9"
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(f".{bundle.name}")] == []


def test_new_bundle_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_bundle(out) as folder:
        assert folder.parent == out.parent
        assert folder.name.startswith(".out.partial-")
        (folder / "a").write_text("1")
        assert not out.exists()
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert (out / "a").read_text() == "1"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_new_bundle_leaves_nothing_on_failure(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), new_bundle(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_failed_overwrite_keeps_the_old_bundle(bundle: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_bundle(bundle, overwrite=True):
        raise KeyboardInterrupt
    assert read_manifest(bundle) == make_manifest(bundle)
    assert list(bundle.parent.iterdir()) == [bundle]


def test_existing_path_is_refused_before_the_block(bundle: Path) -> None:
    with pytest.raises(BundleError, match="--overwrite"), new_bundle(bundle):
        pytest.fail("the block must not run")


def test_overwrite_replaces_the_whole_bundle(bundle: Path) -> None:
    with new_bundle(bundle, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert [p.name for p in bundle.iterdir()] == ["manifest.json"]
    assert list(bundle.parent.iterdir()) == [bundle]


def test_overwrite_follows_a_link_and_keeps_it(bundle: Path) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    with new_bundle(link, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert link.is_symlink()
    assert (bundle / "manifest.json").read_text() == "new"


def test_overwrite_never_removes_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BundleError, match="not a bundle"), new_bundle(tmp_path / "photos", overwrite=True):
        pytest.fail("the block must not run")
    with pytest.raises(BundleError, match="not a bundle"), new_bundle(tmp_path / "photos/cat.jpg", overwrite=True):
        pytest.fail("the block must not run")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_failed_rename_restores_the_old_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleError, match="name the finished bundle"), new_bundle(bundle, overwrite=True):
        pass
    assert read_manifest(bundle) == make_manifest(bundle)
    assert list(bundle.parent.iterdir()) == [bundle]


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="a folder to write in"), new_bundle(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def test_import_is_light_and_names_are_lazy() -> None:
    heavy = ["numpy", "pydantic", "torch", "onnx", "onnxruntime", "PIL", "av"]
    code = f"import sys, fastsam2; loaded = set({heavy}) & set(sys.modules); assert not loaded, loaded; fastsam2.Prune(); fastsam2.Result"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Tracer'"):
        _ = fastsam2.Tracer
    assert set(fastsam2.__all__) <= set(dir(fastsam2))
