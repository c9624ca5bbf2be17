"""From averaged weights to what is shipped: a half-size checkpoint, a bundle, scores on held-out clips, the sample clip."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import fastsam2
from fastsam2.bundle import Manifest, changed_bundle, read_manifest, write_manifest
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError, expected
from fastsam2.export.checkpoints import build_model
from fastsam2.export.exporter import check_complete, export_bundle
from fastsam2.runtime.overlay import PALETTE
from fastsam2.training.evaluate import Method, evaluate, first_mask_copied, nearest_colour, summary, with_official, with_tracker
from fastsam2.training.held_out import FPS, SETS, HeldOutClip, make_clip, make_set
from fastsam2.training.model import CONFIG
from fastsam2.training.saves import halved

WEIGHTS = CONFIG.with_name("nano.pt")
"""The checkpoint in the repository, in the official form."""


def write_weights(average: Path, out: Path) -> Path:
    """Round weights to float16, which is how they are shipped and evaluated; loading them gives float32 again.

    Args:
        average: `average.pt` of a training run.
        out: checkpoint to write, {"model": tensors}.
    """
    model = torch.load(average, map_location="cpu", weights_only=True)["model"]
    torch.save({"model": halved(model)}, out)
    return out


def export(
    weights: Path, out: Path, *, image_size: int | None = None, targets: Iterable[ExportTarget] = (ExportTarget.ONNXRUNTIME,)
) -> Path:
    """Export a nano checkpoint, replacing the bundle at `out`."""
    return export_bundle(str(CONFIG), str(weights), out, image_size=image_size, targets=tuple(targets), overwrite=True)


def giver_of_text(source: Path) -> Manifest:
    """Manifest of a bundle that `carry_text` can copy from.

    Raises:
        BundleError: if it is not whole, or has no text encoder.
    """
    giver = read_manifest(source)
    if giver.text is None:
        raise BundleError(expected("a bundle with a text encoder", f"{source}, which has none", "Add one with fastsam2 add-text"))
    return giver


def carry_text(source: Path, bundle: Path) -> None:
    """Give a bundle the text and crop encoder of another; they know nothing of the weights of the rest.

    A text projection and a router belong to the weights and are not carried over: `fastsam2 fit-text`, `fastsam2 train-router`.

    Args:
        source: folder of a bundle with descriptions.
        bundle: folder of one as `export` writes it; stays as it was on any failure.

    Raises:
        BundleError: if `source` has no text encoder.
    """
    giver = giver_of_text(source)
    assert giver.text is not None
    graphs = [g for g in giver.graphs if g.role in (GraphRole.TEXT_ENCODER, GraphRole.CROP_ENCODER)]
    text = giver.text.model_copy(update={"projection": None})
    files = {g.file.path for g in graphs} | {text.tokenizer.path} | ({text.vocabulary.file.path} if text.vocabulary else set())
    with changed_bundle(bundle) as (folder, old):
        for path in sorted(files):
            shutil.copyfile(source / path, folder / path)
        spec = old.model.model_copy(update={"text_dim": giver.model.text_dim, "crop_size": giver.model.crop_size})
        write_manifest(folder, old.model_copy(update={"graphs": (*old.graphs, *graphs), "text": text, "model": spec}))
        check_complete(folder)


def score(weights: Path, bundle: Path, *, sets: Iterable[str] = SETS, official: bool, say: Callable[[str], None] = print) -> dict[str, Any]:
    """J&F of the bundle, the baselines and, if asked for, the official predictor in torch with the same weights.

    Returns:
        {set: {method: summary}}, as in `evaluate.summary`.
    """
    loaded = fastsam2.load(bundle)
    methods: dict[str, Method] = {
        "first_mask_copied": first_mask_copied,
        "nearest_colour": nearest_colour,
        "fastsam2": with_tracker(loaded),
    }
    if official:
        methods["official"] = with_official(build_model(str(CONFIG), str(weights), image_size=loaded.spec.image_size).module)
    out: dict[str, Any] = {}
    for name in sets:
        clips = list(make_set(name))
        out[name] = {}
        for method, run in methods.items():
            out[name][method] = summary(evaluate(run, clips))
            say(f"{name} {method}: J&F {out[name][method]['j_and_f']:.2f}")
    return out


def machine() -> dict[str, Any]:
    """What the model was trained or scored on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": platform.processor() or platform.machine(), "gpu": gpu, "torch": torch.__version__, "python": platform.python_version()}


def write_sample(folder: Path, clip: HeldOutClip | None = None) -> Path:
    """Write a clip as `fastsam2 demo` reads it: `clip.mp4`, `truth/*.png`, `clip.json`. Without one, the first of the hard set.

    The mp4 is compressed, so its frames differ a little from the ones the set is scored on.
    """
    import av

    clip = clip or make_clip("hard", 0)
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    height, width = clip.frames.shape[1:3]
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    for index, ids in enumerate(clip.truth):
        image = Image.fromarray(ids, mode="P")
        image.putpalette(PALETTE.tobytes())
        image.save(folder / "truth" / f"{index:05d}.png", optimize=True)
    objects = [
        {"id": i, "caption": caption, "first_frame": 0, "box": [float(v) for v in box]}
        for i, caption, box in zip(clip.ids, clip.captions, clip.boxes, strict=True)
    ]
    record = {
        "name": clip.name,
        "set": clip.name.rsplit("_", 1)[0],
        "seed": list(clip.seed),
        "size": [height, width],
        "frames": len(clip.frames),
        "fps": FPS,
        "objects": objects,
    }
    (folder / "clip.json").write_text(json.dumps(record, indent=2) + "\n")
    return folder
