"""fastsam2.bundle_cache, with exporting replaced by copying a bundle."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import fastsam2
from fastsam2 import bundle_cache
from fastsam2.bundle import MANIFEST_NAME, new_bundle, read_manifest
from fastsam2.bundle_cache import cache_folder, cached_bundle, is_bundle
from fastsam2.errors import BundleError, ExportError
from fastsam2.export import exporter

TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"


@pytest.fixture
def exports(bundle_micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of every export."""
    made: list[tuple[Any, ...]] = []

    def export_bundle(model: str, checkpoint: str, out: Path, *, image_size: int | None, postprocessing: bool, targets: object) -> Path:
        made.append((model, checkpoint, image_size, postprocessing))
        with new_bundle(out) as folder:
            shutil.copytree(bundle_micro, folder, dirs_exist_ok=True)
        return out

    monkeypatch.setattr(exporter, "export_bundle", export_bundle)
    monkeypatch.setenv("FASTSAM2_CACHE", str(tmp_path / "cache"))
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    (tmp_path / "model.pt").write_bytes(b"weights")
    return str(tmp_path / "model.pt")


def test_exports_once(exports: list[tuple[Any, ...]], checkpoint: str, tmp_path: Path) -> None:
    first = cached_bundle(TINY, checkpoint)
    assert first.parent == tmp_path / "cache"
    assert first.name.startswith("sam2.1_hiera_tiny-")
    read_manifest(first)
    copy = shutil.copy(checkpoint, tmp_path / "renamed.pt")
    for config in (TINY, "sam2.1_hiera_t", "sam2.1_hiera_t.yaml", "sam2.1_hiera_tiny", "facebook/sam2.1-hiera-tiny"):
        assert cached_bundle(config, str(copy)) == first
    assert exports == [("sam2.1_hiera_tiny", checkpoint, None, True)]


def test_everything_that_shapes_a_bundle_is_in_its_key(
    exports: list[tuple[Any, ...]], checkpoint: str, micro_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copy(micro_config, tmp_path / "own.yaml"))
    made = [
        cached_bundle(TINY, checkpoint),
        cached_bundle(TINY, checkpoint, image_size=512),
        cached_bundle(TINY, checkpoint, postprocessing=False),
        cached_bundle("configs/sam2/sam2_hiera_t.yaml", checkpoint),
        cached_bundle(TINY, "random:3"),
        cached_bundle(str(own), checkpoint),
    ]
    own.write_text(own.read_text() + "\n# changed\n")
    made.append(cached_bundle(str(own), checkpoint))
    Path(checkpoint).write_bytes(b"other weights")
    made.append(cached_bundle(TINY, checkpoint))
    monkeypatch.setattr(fastsam2, "__version__", "9.9")
    made.append(cached_bundle(TINY, checkpoint))
    monkeypatch.setattr(bundle_cache, "MANIFEST_VERSION", 99)
    made.append(cached_bundle(TINY, checkpoint))
    assert len(set(made)) == len(made) == len(exports)
    assert exports[2] == ("sam2.1_hiera_tiny", checkpoint, None, False)


@pytest.mark.parametrize("damage", ["truncated graph", "altered graph", "no manifest", "no graph", "empty folder"])
def test_damaged_entry_is_made_again(damage: str, exports: list[tuple[Any, ...]], checkpoint: str) -> None:
    entry = cached_bundle(TINY, checkpoint)
    graph = entry / "mask_decoder.onnx"
    if damage == "truncated graph":
        graph.write_bytes(graph.read_bytes()[:100])
    elif damage == "altered graph":
        graph.write_bytes(bytes(graph.stat().st_size))
    elif damage == "no manifest":
        (entry / MANIFEST_NAME).unlink()
    elif damage == "no graph":
        graph.unlink()
    else:
        shutil.rmtree(entry)
        entry.mkdir()
    assert cached_bundle(TINY, checkpoint) == entry
    assert len(exports) == 2
    read_manifest(entry)


def test_failed_export_leaves_nothing(exports: list[tuple[Any, ...]], checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: str, checkpoint: str, out: Path, **_: object) -> Path:
        with new_bundle(out) as folder:
            (folder / "half.onnx").write_bytes(b"half")
            raise ExportError("too far from torch")

    monkeypatch.setattr(exporter, "export_bundle", fail)
    with pytest.raises(ExportError, match="too far"):
        cached_bundle(TINY, checkpoint)
    assert list(cache_folder().iterdir()) == []


def test_another_process_may_finish_first(
    exports: list[tuple[Any, ...]], checkpoint: str, bundle_micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(model: str, checkpoint: str, out: Path, **_: object) -> Path:
        shutil.copytree(bundle_micro, out)
        raise BundleError("the path exists")

    monkeypatch.setattr(exporter, "export_bundle", overtaken)
    assert is_bundle(cached_bundle(TINY, checkpoint))


def test_what_cannot_be_exported_is_named_before_anything_is_made(exports: list[tuple[Any, ...]], checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"configs/none\.yaml"):
        cached_bundle("configs/none.yaml", checkpoint)
    with pytest.raises(ExportError, match="which is no file"):
        cached_bundle(TINY, str(tmp_path / "missing.pt"))
    assert not exports
    assert not cache_folder().exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FASTSAM2_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    places = {}
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        places[platform] = cache_folder().relative_to(tmp_path).as_posix()
    assert places == {"linux": ".cache/fastsam2", "darwin": "Library/Caches/fastsam2", "win32": "AppData/Local/fastsam2/Cache"}
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fastsam2"
    monkeypatch.setenv("FASTSAM2_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
