"""Bundles shared by the whole test session: each is exported once, and only if a test asks for it.

An export takes up to a minute of one core, so FASTSAM2_TEST_BUNDLES may name a folder in which bundles are kept from session to session,
under a hash of everything that shapes them. Test processes that run side by side share bundles too, use one thread each, and get the tests
of one checkpoint (or else of one module) together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fastsam2.enums import ExportTarget

ROOT = Path(__file__).parents[1]
MICRO_CONFIG = ROOT / "tests" / "data" / "micro.yaml"
MICRO_SEED = 2  # the first seed on which every mutation of tests/parity/test_mutations.py shows clearly
KEEP = "FASTSAM2_TEST_BUNDLES"
LONGEST = "test_full_size"  # starts first, so that the other workers do the rest meanwhile
# Modules of fastsam2/ above the folders; the rest is the shared ground, which shapes bundles.
ENTRY_POINTS = ("__main__", "bundle_cache", "caption", "cli", "cli_measure", "cli_options", "cli_show", "demo", "doctor", "video_predictor")
SHAPED_BY = ("torch", "sam2", "onnx", "onnxscript", "onnxruntime")

Export = Callable[..., Path]


def _fingerprint() -> str:
    files = [*ROOT.glob("export/**/*.py"), *ROOT.glob("tests/data/*.yaml"), ROOT / "training/nano.yaml", ROOT / "training/nano.pt"]
    files += [file for file in ROOT.glob("fastsam2/*.py") if file.stem not in ENTRY_POINTS]
    digest = hashlib.sha256(repr([metadata.version(name) for name in SHAPED_BY]).encode())
    for file in sorted(files):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def pytest_configure() -> None:
    """One thread a process."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share official runs and loaded models on one worker, one after the other."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
            item.add_marker(pytest.mark.xdist_group(str(parameters.get("checkpoint", item.path.stem))))
    order = list(dict.fromkeys(map(_group, items)))
    items.sort(key=lambda item: (item.path.stem != LONGEST, order.index(_group(item))))


def _group(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    return str(marker.args[0])


def _run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Function (name, model, checkpoint, image_size=None, targets=ONNX Runtime) -> bundle folder; one export for each name.

    `checkpoint` is as in `export_bundle`, or a function that makes the file.
    """
    folder = Path(os.environ.get(KEEP) or _run_folder(tmp_path_factory) / "bundles") / _fingerprint()
    folder.mkdir(parents=True, exist_ok=True)

    def export(
        name: str,
        model: str | Path,
        checkpoint: str | Callable[[], Path],
        image_size: int | None = None,
        targets: Sequence[ExportTarget] = (ExportTarget.ONNXRUNTIME,),
    ) -> Path:
        from fastsam2.export.exporter import export_bundle

        out = folder / name
        with FileLock(folder / f"{name}.lock"):
            if not out.exists():
                given = checkpoint if isinstance(checkpoint, str) else str(checkpoint())
                export_bundle(str(model), given, out, image_size=image_size, targets=targets)
        return out

    return export


@pytest.fixture(scope="session")
def micro_config() -> Path:
    """A SAM 2.1 config of toy widths at 128 px."""
    return MICRO_CONFIG


@pytest.fixture(scope="session")
def bundle_micro(exported: Export) -> Path:
    """The micro model for both targets: milliseconds a frame, masks of 20-40 % of the frame."""
    return exported("micro", MICRO_CONFIG, f"random:{MICRO_SEED}", targets=tuple(ExportTarget))


@pytest.fixture(scope="session")
def bundle_tiny256_seed0(exported: Export) -> Path:
    """SAM 2.1 tiny at 256 px."""
    return exported("tiny256_seed0", "sam2.1_hiera_tiny", "random:0", 256)


@pytest.fixture(scope="session")
def bundle_tiny256_sam20(exported: Export) -> Path:
    """SAM 2.0 tiny at 256 px: no pointer offsets, no occlusion embedding."""
    return exported("tiny256_sam20", "sam2_hiera_tiny", "random:0", 256)
