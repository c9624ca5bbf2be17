"""Names of what ships inside the package, and when a name is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastsam2 import builtin
from fastsam2.errors import BundleError, VideoError
from fastsam2.runtime.loaded import load


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two bundles and a sample ship; the working directory has folders `nano` and `mine`."""
    package = tmp_path / "package"
    for name in ("models/nano", "models/big", "models/__pycache__", "models/.hidden", "samples/hard_000"):
        (package / name).mkdir(parents=True)
    (package / "models" / "README.md").touch()
    for name in ("here/nano", "here/mine"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(builtin, "MODELS", package / "models")
    monkeypatch.setattr(builtin, "SAMPLES", package / "samples")
    monkeypatch.chdir(tmp_path / "here")
    return package


def test_names(shipped: Path) -> None:
    assert builtin.builtin_bundles() == ("big", "nano")
    assert builtin.builtin_samples() == ("hard_000",)


def test_a_name_is_the_built_in_bundle_and_a_path_the_folder(shipped: Path, tmp_path: Path) -> None:
    assert builtin.bundle_path("nano") == shipped / "models" / "nano"
    assert builtin.bundle_path("./nano") == Path("nano") == builtin.bundle_path(Path("nano"))
    assert builtin.bundle_path(str(tmp_path / "nowhere")) == tmp_path / "nowhere"
    assert builtin.bundle_path("mine") == Path("mine")
    assert builtin.sample_path("hard_000") == shipped / "samples" / "hard_000"
    assert builtin.sample_path("./hard_000") == Path("hard_000")


def test_unknown_names() -> None:
    with pytest.raises(BundleError, match=r"built-in bundle of \['big', 'nano'\], got tiny"):
        builtin.bundle_path("tiny")
    with pytest.raises(VideoError, match=r"built-in sample of \['hard_000'\], got easy"):
        builtin.sample_path("easy")
    with pytest.raises(BundleError, match=r"built-in bundle of .*got tiny"):
        load("tiny")


def test_load_takes_names(shipped: Path) -> None:
    with pytest.raises(BundleError, match=rf"manifest.json in {shipped / 'models' / 'nano'}"):
        load("nano")
    with pytest.raises(BundleError, match=r"manifest.json in nano"):
        load("./nano")


def test_no_bundle_ships(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "MODELS", shipped / "none")
    with pytest.raises(BundleError, match=r"of \[\], got tiny. Make a bundle with `fastsam2 export`"):
        builtin.bundle_path("tiny")
