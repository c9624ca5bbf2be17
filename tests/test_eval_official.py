"""Written masks against the official predictor, used as its script `tools/vos_inference.py` does for objects that appear later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastsam2.benchmarks.eval import evaluate
from tests import eval_folders as folders
from tests.conftest import MICRO_CONFIG, MICRO_SEED
from tests.parity.official import official_predictor

LENGTH = 17  # official pointer offsets of shorter clips are divided by the number of frames, which a stream does not know


def test_masks_are_those_of_the_official_predictor(tmp_path: Path, bundle_micro: Path) -> None:
    """Each object alone from the frame it begins on; at every pixel of the video the highest logit wins, if it is positive."""
    truth = folders.write_lvos(tmp_path / "data", length=LENGTH)["abCD1234"]
    evaluate(str(bundle_micro), dataset="lvos", root=tmp_path / "data", videos=["abCD1234"], out=tmp_path / "eval.json")
    predictor = official_predictor(MICRO_CONFIG, MICRO_SEED)
    frames = tmp_path / "data/val/JPEGImages/abCD1234"
    state = predictor.init_state(str(frames))
    logits = torch.full((LENGTH, 2, *folders.SIZE), -1024.0)
    for row, (object_id, first) in enumerate({1: 0, 2: 2}.items()):
        predictor.reset_state(state)
        predictor.add_new_mask(state, first, object_id, truth[first] == object_id)
        for t, _, own in predictor.propagate_in_video(state, start_frame_idx=first):
            logits[t, row] = own[0, 0]
    highest, winner = logits.max(dim=1)
    wanted = np.where((highest > 0).numpy(), winner.numpy() + 1, 0)
    written = [np.asarray(Image.open(tmp_path / f"eval_submission/Annotations/abCD1234/{f.stem}.png")) for f in sorted(frames.iterdir())]
    different = np.stack(written) != wanted
    assert len(written) == LENGTH and different.mean() < 1e-4, "float32 sums in another order move a pixel here and there"
    for object_id in (1, 2):
        assert 0.01 < (wanted == object_id).mean() < 0.95
