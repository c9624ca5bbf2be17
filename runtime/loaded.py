"""A bundle opened for use: `fastsam2.load`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fastsam2.builtin import bundle_path
from fastsam2.bundle import Manifest, read_manifest
from fastsam2.config import ModelSpec, Prune
from fastsam2.enums import BackendName, ExportTarget, GraphRole, PrunePolicy, QueryPolicy
from fastsam2.errors import BackendError, BundleError, expected
from fastsam2.runtime.auto_text import ClipCropEncoder, VocabularyDescriber
from fastsam2.runtime.backends.open import open_backend
from fastsam2.runtime.backends.protocol import Backend, Float
from fastsam2.runtime.image import ImagePredictor
from fastsam2.runtime.stages import DEFAULT_MEMORY_BUDGET_MB
from fastsam2.runtime.text import TextEncoder
from fastsam2.runtime.tracker import DEFAULT_MAX_PROMPT_FRAMES, Tracker
from fastsam2.vocabulary import read_vocabulary


class LoadedBundle:
    """Sessions and manifest of one bundle; makes trackers that share them.

    Args:
        folder: the bundle.
        manifest: of the bundle.
        backend: runs its graphs.

    Attributes:
        passed_over: backend -> why `auto` did not choose it.
    """

    def __init__(self, folder: Path, manifest: Manifest, backend: Backend) -> None:
        self.folder, self.manifest, self.backend = folder, manifest, backend
        self.passed_over: dict[str, str] = {}

    @property
    def target(self) -> ExportTarget:
        """Which form of the graphs the backend runs."""
        tensorrt = self.backend.name in (BackendName.TENSORRT.value, BackendName.TENSORRT_RTX.value)
        return ExportTarget.TENSORRT if tensorrt else ExportTarget.ONNXRUNTIME

    def close(self) -> None:
        """Release what the backend holds of a GPU, now and not when the process ends; trackers of this bundle cannot run after it."""
        close = getattr(self.backend, "close", None)
        if close is not None:
            close()

    @property
    def spec(self) -> ModelSpec:
        """Sizes of the model."""
        return self.manifest.model

    def device_facts(self) -> dict[str, Any] | None:
        """The GPU and what is held there, for records; None where graphs run on the CPU."""
        describe = getattr(self.backend, "describe", None)
        return None if describe is None else dict(describe())

    @cached_property
    def texts(self) -> TextEncoder | None:
        """Encodes descriptions; None where the bundle has no text encoder.

        Raises:
            BackendError: if the package tokenizers is not installed.
        """
        if self.manifest.text is None:
            return None
        return TextEncoder(self.backend, self.folder / self.manifest.text.tokenizer.path, self.spec.text_dim)

    def tracker(
        self,
        *,
        prune: Prune | None = None,
        corrections_as_prompts: bool = False,
        max_prompt_frames: int = DEFAULT_MAX_PROMPT_FRAMES,
        fill_hole_area: int = 0,
        memory_budget_mb: int = DEFAULT_MEMORY_BUDGET_MB,
    ) -> Tracker:
        """A new tracker with a memory of its own; arguments as in `Tracker`.

        Raises:
            PromptError: if an option is out of range.
            BackendError: if corrections may become more prompt frames than the engines have room for.
            BundleError: if rows are to be chosen by the router, or queries to be pruned, and the bundle lacks the graph for it.
        """
        routes = prune is not None and prune.policy is PrunePolicy.ROUTER
        if routes and self.manifest.router is None:
            todo = "Train one with `fastsam2 train-router`, or choose another policy, for example mask"
            raise BundleError(expected("a bundle with a router", f"{self.folder} without", todo))
        if prune is not None and prune.queries is not QueryPolicy.ALL:
            self.manifest.graph(GraphRole.QUERY_ATTENTION, self.target)  # raises, and names the command that adds it
        return Tracker(
            self.backend,
            self.spec,
            prune=prune,
            corrections_as_prompts=corrections_as_prompts,
            max_prompt_frames=max_prompt_frames,
            fill_hole_area=fill_hole_area,
            memory_budget_mb=memory_budget_mb,
            texts=_WhenAsked(self) if routes and self.manifest.text is not None else None,
        )

    def describer(self, vocabulary: Sequence[str] | None = None, *, templates: Sequence[str] | None = None) -> VocabularyDescriber:
        """Describes objects from the picture with a phrase of a vocabulary; what it says is for `Tracker.describe`.

        Runs the text encoder once for each phrase and template; up to 1024 of these are remembered for the next call.

        Args:
            vocabulary: phrases to choose from; those of the bundle when None.
            templates: sentences with one `{}` each, where the phrase goes; those of the bundle when None.

        Raises:
            BundleError: if the bundle has no crop encoder.
            PromptError: if vocabulary or templates are not legal, see `VocabularyDescriber`.
            BackendError: if the package tokenizers is not installed, or the text encoder cannot run.
        """
        entry, texts = None if self.manifest.text is None else self.manifest.text.vocabulary, self.texts
        if entry is None or texts is None:
            todo = "Add a whole CLIP with `fastsam2 add-text --clip openai/clip-vit-base-patch32`, or describe objects by hand"
            raise BundleError(expected("a bundle with a crop encoder for automatic descriptions", f"{self.folder} without", todo))
        return VocabularyDescriber(
            texts,
            ClipCropEncoder(self.backend, self.spec.crop_size, self.spec.text_dim),
            read_vocabulary(self.folder / entry.file.path) if vocabulary is None else vocabulary,
            entry.templates if templates is None else templates,
        )

    def image(self) -> ImagePredictor:
        """A predictor for single pictures."""
        return ImagePredictor(self.tracker())


class _WhenAsked:
    """Encodes descriptions; the package tokenizers is needed for the first of them, and not where there is none."""

    def __init__(self, loaded: LoadedBundle) -> None:
        self._loaded = loaded

    def encode(self, texts: Sequence[str]) -> Float:
        """See `TextEncoder.encode`."""
        encoder = self._loaded.texts
        assert encoder is not None, "the bundle has a text encoder"
        return encoder.encode(texts)


def load(
    path: str | os.PathLike[str],
    *,
    backend: str = BackendName.ONNXRUNTIME.value,
    threads: int | None = None,
    gpu: int = 0,
    cuda_graphs: bool = False,
) -> LoadedBundle:
    """Open a bundle.

    Args:
        path: name of a built-in bundle ("nano"), or a folder made by `fastsam2 export`; which of the two is decided by `bundle_path`.
        backend: name of a backend; nothing else is used in its place. "auto" takes the first that is ready of tensorrt, tensorrt-rtx,
            onnxruntime-cuda and onnxruntime, "gpu" the first of these but the last.
        threads: CPU threads inside one operator; None uses every core this process may use.
        gpu: which GPU, as CUDA_VISIBLE_DEVICES leaves them; the CPU backend reads it not.
        cuda_graphs: replay engines as CUDA graphs in steady state; the CPU backend reads it not.

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
    folder = folder.absolute()  # graphs are read when they run first; the working directory may be another one then
    opened, passed_over = open_backend(folder, manifest, BackendName(backend), threads=threads, gpu=gpu, cuda_graphs=cuda_graphs)
    loaded = LoadedBundle(folder, manifest, opened)
    loaded.passed_over = passed_over
    return loaded
