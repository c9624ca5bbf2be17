"""Clips, checkpoints and the official runs of them.

Tests of one checkpoint follow each other (`tests/conftest.py`): what was run or encoded with it is kept until the next one comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

import fastsam2
from fastsam2.builtin import bundle_path as builtin_bundle
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.training.finish import WEIGHTS
from fastsam2.training.model import CONFIG

from .clips import Clip, drawn_clip, make_clip
from .compare import Run
from .official import Images, cache_images, official_predictor, run_official, save_checkpoint
from .ours import CachedImages
from .scenarios import Scenario

TINY_CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
CURTAIN = range(9, 15)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights that both sides run.

    Attributes:
        bundle: fixture that exports them.
        config: what the official predictor is built from, a path inside the sam2 package or of a file.
        seed: of the weights.
        image_size: pixels; None keeps the config's.
        score_gain, score_bias: see `condition_weights`.
        weights: a checkpoint instead of seeded weights.
    """

    bundle: str
    config: str | Path
    seed: int
    image_size: int | None = None
    score_gain: float = 1.0
    score_bias: float = 3.0
    weights: Path | None = None

    def official(self) -> torch.nn.Module:
        """The official predictor."""
        return official_predictor(
            self.config,
            self.seed,
            image_size=self.image_size,
            score_gain=self.score_gain,
            score_bias=self.score_bias,
            weights=self.weights,
        )


MICRO_CONFIG = Path(__file__).parents[1] / "data" / "micro.yaml"
CHECKPOINTS = {
    "micro": Checkpoint("bundle_micro", MICRO_CONFIG, seed=2),
    "tiny256_seed0": Checkpoint("bundle_tiny256_seed0", TINY_CONFIG, seed=0, image_size=256),
    # On the curtain clip the object hides behind the curtain and comes back, |score| > 0.1 throughout; on the others some prompts hide it.
    "tiny256_occlusion": Checkpoint("bundle_tiny256_occlusion", TINY_CONFIG, seed=1, image_size=256, score_gain=30.0, score_bias=-0.75),
    "tiny256_sam20": Checkpoint("bundle_tiny256_sam20", "configs/sam2/sam2_hiera_t.yaml", seed=0, image_size=256),
    "tiny1024": Checkpoint("bundle_tiny1024", TINY_CONFIG, seed=0),
    "nano": Checkpoint("bundle_nano", CONFIG, seed=0, weights=WEIGHTS),
}


@pytest.fixture(scope="session")
def clips() -> dict[str, Clip]:
    """Clips by name."""
    return {
        "wide": make_clip("wide", 1),
        "tall": make_clip("tall", 2, width=200, height=280),
        "curtain": make_clip("curtain", 3, curtain=CURTAIN),
        "full_size": make_clip("full_size", 1, frames=20),
        "drawn": drawn_clip(),
    }


@pytest.fixture(scope="session")
def new_official() -> Callable[[str], Any]:
    """Checkpoint name -> a new official predictor; those of one checkpoint share the pictures that they encode."""
    images_of = lru_cache(maxsize=1)(lambda checkpoint: Images())

    def build(checkpoint: str) -> torch.nn.Module:
        model = CHECKPOINTS[checkpoint].official()
        cache_images(model, images_of(checkpoint))
        return model

    return build


@pytest.fixture(scope="session")
def official_run(
    clips: dict[str, Clip], new_official: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Scenario], Run]:
    """(checkpoint name, scenario) -> what the official predictor says, computed once."""
    folders: dict[str, Path] = {}

    @lru_cache(maxsize=1)
    def runs_of(checkpoint: str) -> tuple[Any, dict[str, Run]]:
        return new_official(checkpoint), {}

    def run(checkpoint: str, scenario: Scenario) -> Run:
        if scenario.clip not in folders:
            folders[scenario.clip] = clips[scenario.clip].write_official(tmp_path_factory.mktemp(scenario.clip))
        predictor, runs = runs_of(checkpoint)
        if scenario.name not in runs:
            runs[scenario.name] = run_official(predictor, scenario, clips[scenario.clip], folders[scenario.clip])
        return runs[scenario.name]

    return run


@pytest.fixture(scope="session")
def bundle_path(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Checkpoint name -> folder of its bundle."""

    def path(checkpoint: str) -> Path:
        found: Any = request.getfixturevalue(CHECKPOINTS[checkpoint].bundle)
        assert isinstance(found, Path)
        return found

    return path


@pytest.fixture(scope="session")
def bundle(bundle_path: Callable[[str], Path]) -> Callable[[str], LoadedBundle]:
    """Checkpoint name -> its bundle, loaded."""

    @lru_cache(maxsize=1)
    def load(checkpoint: str) -> LoadedBundle:
        loaded = fastsam2.load(bundle_path(checkpoint), threads=1)
        loaded.backend = CachedImages(loaded.backend)
        return loaded

    return load


@pytest.fixture(scope="session")
def bundle_tiny256_occlusion(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM 2.1 tiny at 256 px whose object score crosses zero, exported from a checkpoint file as a user would."""
    checkpoint = CHECKPOINTS["tiny256_occlusion"]
    return exported(
        f"tiny256_seed{checkpoint.seed}_gain{checkpoint.score_gain}_bias{checkpoint.score_bias}",
        "sam2.1_hiera_tiny",
        lambda: save_checkpoint(checkpoint.official(), tmp_path_factory.mktemp("checkpoint") / "occlusion.pt"),
        checkpoint.image_size,
    )


@pytest.fixture(scope="session")
def bundle_nano() -> Path:
    """The trained model that ships with the package."""
    return builtin_bundle("nano")


@pytest.fixture(scope="session")
def bundle_tiny1024(exported: Callable[..., Path]) -> Path:
    """SAM 2.1 tiny as published, but for its weights."""
    return exported("tiny1024", "sam2.1_hiera_tiny", "random:0")
