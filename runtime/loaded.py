"""A bundle opened for use: `fastsam2.load`."""

from __future__ import annotations

import os

from fastsam2.builtin import bundle_path
from fastsam2.bundle import Manifest, read_manifest
from fastsam2.config import ModelSpec, Prune
from fastsam2.enums import BackendName
from fastsam2.errors import BackendError, expected
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.backends.protocol import Backend
from fastsam2.runtime.image import ImagePredictor
from fastsam2.runtime.stages import DEFAULT_MEMORY_BUDGET_MB
from fastsam2.runtime.tracker import DEFAULT_MAX_PROMPT_FRAMES, Tracker


class LoadedBundle:
    """Sessions and manifest of one bundle; makes trackers that share them.

    Args:
        manifest: of the bundle.
        backend: runs its graphs.
    """

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self.manifest, self.backend = manifest, backend

    @property
    def spec(self) -> ModelSpec:
        """Sizes of the model."""
        return self.manifest.model

    def tracker(
        self,
        *,
        prune: Prune | None = None,
        corrections_as_prompts: bool = False,
        max_prompt_frames: int = DEFAULT_MAX_PROMPT_FRAMES,
        fill_hole_area: int = 0,
        memory_budget_mb: int = DEFAULT_MEMORY_BUDGET_MB,
    ) -> Tracker:
        """A new tracker with a memory of its own; arguments as in `Tracker`."""
        return Tracker(
            self.backend,
            self.spec,
            prune=prune,
            corrections_as_prompts=corrections_as_prompts,
            max_prompt_frames=max_prompt_frames,
            fill_hole_area=fill_hole_area,
            memory_budget_mb=memory_budget_mb,
        )

    def image(self) -> ImagePredictor:
        """A predictor for single pictures."""
        return ImagePredictor(self.tracker())


def load(path: str | os.PathLike[str], *, backend: str = BackendName.ONNXRUNTIME.value, threads: int | None = None) -> LoadedBundle:
    """Open a bundle.

    Args:
        path: name of a built-in bundle ("nano"), or a folder made by `fastsam2 export`; which of the two is decided by `bundle_path`.
        backend: name of a backend; nothing else is used in its place.
        threads: CPU threads inside one operator; None uses every core this process may use.

    Raises:
        BundleError: if the bundle is missing, damaged, altered, or of another version.
        BackendError: if the backend is unknown or cannot be used here.
    """
    folder = bundle_path(path)
    if backend not in {b.value for b in BackendName}:
        raise BackendError(
            expected(
                f"a backend of {[b.value for b in BackendName]}", repr(backend), "Run `fastsam2 doctor` to see what this machine can run"
            )
        )
    manifest = read_manifest(folder)
    return LoadedBundle(manifest, OnnxRuntimeBackend(folder, manifest, threads=threads))
