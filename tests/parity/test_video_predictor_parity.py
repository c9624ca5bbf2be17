"""The drop-in gives the masks of the official predictor for the same calls.

Oracle: facebookresearch/sam2's `SAM2VideoPredictor`, float32 on the CPU, with the same weights, on the same PNG frames. Its memories are
widened to float32 before they are read, as autocast does on a GPU: without a pointer beside them torch refuses to mix bfloat16 and float32.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastsam2.bundle import read_manifest
from fastsam2.contracts import GRAPHS
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.export import exporter, to_onnx
from fastsam2.export.checkpoints import LoadedModel, build_model
from fastsam2.export.wrappers.mask_decoder import MaskDecoderGraph
from fastsam2.runtime import memory_bank
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.backends.protocol import Backend
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.memory_bank import ClipMemory
from fastsam2.runtime.selection import Selection
from fastsam2.video_predictor import SAM2VideoPredictor
from tests import official_extension

from .clip_scripts import NO_OVERLAP, SCRIPTS, THERE_AND_BACK, Script, Session
from .clips import Clip, make_clip
from .compare import THRESHOLDS, Track, compare, logit_delta, mask_iou
from .conftest import CHECKPOINTS
from .official import save_checkpoint

DOCUMENT = Path(__file__).parents[2] / "docs" / "drop_in.md"
TINY_CASES = (THERE_AND_BACK, SCRIPTS["late_object"])  # one pass each, at what the official size costs
CASES = [*(("micro", script) for script in SCRIPTS.values()), *(("tiny256_seed0", script) for script in TINY_CASES)]
OPTIONS = {
    "fill_hole_area": 0,
    "non_overlap_masks": False,
    "clear_non_cond_mem_around_input": False,
    "add_all_frames_to_correct_as_cond": False,
    "max_cond_frames_in_attn": -1,
}

Sessions = Callable[..., tuple[Session, Session]]


def _widen_memories(model: Any) -> None:
    attend = model._prepare_memory_conditioned_features

    def patched(*, output_dict: Any, **others: Any) -> Any:
        wide = {
            kind: {t: {**out, "maskmem_features": out["maskmem_features"].float()} for t, out in outputs.items()}
            for kind, outputs in output_dict.items()
        }
        return attend(output_dict=wide, **others)

    model._prepare_memory_conditioned_features = patched


def _add_missing_method(model: Any) -> None:
    """sam2 1.1.0 calls this method and does not have it; it has `_clear_non_cond_mem_around_input` for all objects at once."""
    assert not hasattr(model, "_clear_obj_non_cond_mem_around_input")

    def clear(state: Any, frame: int, index: int) -> None:
        for t in range(frame - model.num_maskmem, frame + model.num_maskmem + 1):
            state["output_dict_per_obj"][index]["non_cond_frame_outputs"].pop(t, None)

    model._clear_obj_non_cond_mem_around_input = clear


def _peek_official(state: Any, object_id: int, frame: int) -> tuple[npt.NDArray[np.float32], float]:
    outputs = state["output_dict_per_obj"][state["obj_id_to_idx"][object_id]]
    kept = outputs["cond_frame_outputs"].get(frame) or outputs["non_cond_frame_outputs"][frame]
    return kept["pred_masks"][0, 0].numpy(), float(kept["object_score_logits"].item())


def _peek_ours(state: Any, object_id: int, frame: int) -> tuple[npt.NDArray[np.float32], float]:
    kept = state["clip"].objects[object_id].outputs[frame]
    return kept.logits, kept.score


@pytest.fixture(scope="module")
def official_model(new_official: Callable[[str], Any]) -> Callable[[str], Any]:
    """Checkpoint name -> the official predictor, built once."""

    @lru_cache(maxsize=1)
    def get(checkpoint: str) -> Any:
        model = new_official(checkpoint)
        _widen_memories(model)
        _add_missing_method(model)
        return model

    return get


@pytest.fixture(scope="module")
def clip_of(clips: dict[str, Clip], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Clip, Path]]:
    """Clip name -> the clip and its folder."""
    known = {**clips, "short": make_clip("short", 4, frames=12)}
    folders: dict[str, Path] = {}

    def get(name: str) -> tuple[Clip, Path]:
        if name not in folders:
            folders[name] = known[name].write_official(tmp_path_factory.mktemp(name))
        return known[name], folders[name]

    return get


@pytest.fixture
def sessions(
    official_model: Callable[[str], Any], bundle: Callable[[str], LoadedBundle], clip_of: Callable[[str], tuple[Clip, Path]]
) -> Sessions:
    """(checkpoint, script) -> finished sessions of the official predictor and of ours."""

    def run(checkpoint: str, script: Script, **options: Any) -> tuple[Session, Session]:
        clip, folder = clip_of(script.clip)
        done = []
        for predictor, peek in ((official_model(checkpoint), _peek_official), (SAM2VideoPredictor(bundle(checkpoint)), _peek_ours)):
            for name, value in {**OPTIONS, **script.options, **options}.items():
                assert hasattr(predictor, name)
                setattr(predictor, name, value)
            done.append(Session(predictor, predictor.init_state(str(folder)), clip, peek))
            script.calls(done[-1])
        return done[0], done[1]

    return run


def _check(official: Session, ours: Session) -> None:
    """Every frame of every pass, and every answer, within the thresholds."""
    compare(official.run, ours.run).check()
    assert [ids for ids, _ in official.answers] == [ids for ids, _ in ours.answers]
    for (_, wanted), (_, given) in zip(official.answers, ours.answers, strict=True):
        for want, got in zip(wanted, given, strict=True):
            assert mask_iou(want > 0, got > 0) >= THRESHOLDS["video_iou"]["minimum"]
            assert logit_delta(Track(want, 0.0, want), Track(got, 0.0, got)) <= THRESHOLDS["logits"]["maximum"]


@pytest.mark.parametrize(("checkpoint", "script"), CASES, ids=[f"{checkpoint}-{script.name}" for checkpoint, script in CASES])
def test_calls_give_the_official_masks(checkpoint: str, script: Script, sessions: Sessions) -> None:
    official, ours = sessions(checkpoint, script)
    assert official.answers
    _check(official, ours)


@pytest.mark.xdist_group("micro")
@pytest.mark.filterwarnings("error:.*Skipping the post-processing step")
def test_filled_holes_are_the_official_ones(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    official_extension.install(monkeypatch)
    unfilled, _ = sessions("micro", SCRIPTS["reverse_after_forward"])
    official, ours = sessions("micro", SCRIPTS["reverse_after_forward"], fill_hole_area=8)
    _check(official, ours)
    assert any(not np.array_equal(track.low_res, unfilled.run[key].low_res) for key, track in official.run.items())


@pytest.mark.xdist_group("micro")
def test_masks_do_not_overlap_where_asked(sessions: Sessions) -> None:
    """A pixel has no defined owner where the official logits of both objects are equal within the dead band."""
    official, ours = sessions("micro", NO_OVERLAP)
    _, overlapping = sessions("micro", NO_OVERLAP, non_overlap_masks=False)
    assert any((overlapping.run[t, 1].video > 0)[overlapping.run[t, 2].video > 0].any() for t, _ in overlapping.run)
    for t in {frame for frame, _ in official.run}:
        assert not ((ours.run[t, 1].video > 0) & (ours.run[t, 2].video > 0)).any()
        size = official.run[t, 1].video.shape
        low_res = torch.from_numpy(np.stack([official.run[t, i].low_res for i in (1, 2)]))
        first, second = torch.nn.functional.interpolate(low_res[None], size=size, mode="bilinear")[0].numpy()
        decided = np.abs(first - second) > THRESHOLDS["video_iou"]["dead_band"] * float(low_res.std())
        assert decided.mean() > 0.5
        for i in (1, 2):
            want, got = official.run[t, i], ours.run[t, i]
            assert np.abs(want.video - got.video)[decided].mean() <= THRESHOLDS["logits"]["maximum"] * want.low_res.std()


class PlainBackend:
    """The graphs that `apply_postprocessing=False` changes in place of those of a bundle; the decoder in torch, to save its long export.

    Args:
        inner: runs the other graphs, and the memory encoder of `bundle`.
        plain: the model.
    """

    def __init__(self, inner: Backend, plain: LoadedModel) -> None:
        self.name, self.inner = inner.name, inner
        self.decoder = MaskDecoderGraph(plain.module, plain.spec)

    def run(self, role: GraphRole, inputs: Any) -> dict[str, Any]:
        """See `Backend.run`."""
        if role is not GraphRole.MASK_DECODER:
            return self.inner.run(role, inputs)
        spec = GRAPHS[role]
        with torch.inference_mode():
            outputs = self.decoder(*(torch.from_numpy(np.ascontiguousarray(inputs[t.name])) for t in spec.inputs))
        return {t.name: value.numpy() for t, value in zip(spec.outputs, outputs, strict=True)}


@pytest.mark.xdist_group("micro")
def test_plain_graphs_are_official_without_postprocessing(
    sessions: Sessions,
    bundle_path: Callable[[str], Path],
    official_model: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = official_model("micro")
    monkeypatch.setattr(model, "binarize_mask_from_pts_for_mem_enc", False)
    monkeypatch.setattr(model.sam_mask_decoder, "dynamic_multimask_via_stability", False)
    official, postprocessed = sessions("micro", SCRIPTS["correction"])
    assert compare(official.run, postprocessed.run).low_res_iou < 0.98
    plain = build_model(str(CHECKPOINTS["micro"].config), f"random:{CHECKPOINTS['micro'].seed}", postprocessing=False)
    folder = Path(shutil.copytree(bundle_path("micro"), tmp_path / "plain"))
    manifest, target = read_manifest(folder), ExportTarget.ONNXRUNTIME
    encoder = folder / manifest.graph(GraphRole.MEMORY_ENCODER, target).file.path
    wrapper = to_onnx.build_wrapper(plain.module, plain.spec, GraphRole.MEMORY_ENCODER, target)
    to_onnx.export_graph(wrapper, plain.spec, GraphRole.MEMORY_ENCODER, target, encoder)
    backend = PlainBackend(OnnxRuntimeBackend(folder, manifest, threads=1), plain)
    ours = SAM2VideoPredictor(LoadedBundle(folder, manifest, backend))
    session = Session(ours, ours.init_state(list(official.clip.frames)), official.clip, _peek_ours)
    SCRIPTS["correction"].calls(session)
    _check(official, session)


@pytest.mark.slow
def test_bundle_without_postprocessing_is_exported_and_runs(micro_config: Path, sessions: Sessions, tmp_path: Path) -> None:
    """The whole way of `apply_postprocessing=False`; every graph is checked against torch as it is exported."""
    checkpoint = f"random:{CHECKPOINTS['micro'].seed}"
    folder = exporter.export_bundle(
        str(micro_config), checkpoint, tmp_path / "plain", postprocessing=False, targets=(ExportTarget.ONNXRUNTIME,)
    )
    _, postprocessed = sessions("micro", SCRIPTS["correction"])
    ours = SAM2VideoPredictor(load(folder, threads=1))
    session = Session(ours, ours.init_state(list(postprocessed.clip.frames)), postprocessed.clip, _peek_ours)
    SCRIPTS["correction"].calls(session)
    assert compare(postprocessed.run, session.run).low_res_iou < 0.98


def _without_later_frames(memory: ClipMemory, frame: int, *, reverse: bool = False, **others: Any) -> Selection:
    """A backward pass that ignores what a forward pass left behind it."""
    chosen = memory_bank.Memory.selection(memory, frame, reverse=reverse, **others)
    if not reverse:
        return chosen
    kept = {t for t, held in memory.frames.items() if held.prompt}
    rows = tuple(row for row in chosen.rows if row[0] in kept)
    return Selection(rows, tuple(p for p in chosen.pointers if p[0] in kept), chosen.pointer_span)


def _streaming_span(memory: ClipMemory, frame: int, *, num_frames: int | None = None, **others: Any) -> Selection:
    """Pointer offsets divided as in a stream without end."""
    chosen = memory_bank.Memory.selection(memory, frame, num_frames=num_frames, **others)
    return Selection(chosen.rows, chosen.pointers, memory.spec.max_object_pointers - 1)


@pytest.mark.xdist_group("micro")
@pytest.mark.parametrize(
    ("name", "mutation"), [("reverse_after_forward", _without_later_frames), ("short_clip", _streaming_span)], ids=["reverse", "span"]
)
def test_mutated_drop_in_fails(name: str, mutation: Any, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipMemory, "selection", mutation)
    official, ours = sessions("micro", SCRIPTS[name])
    comparison = compare(official.run, ours.run)
    assert not comparison.invalid
    assert comparison.different
    assert comparison.low_res_iou < 0.99


def _built_at_256(build: Callable[..., Any], *arguments: Any) -> Any:
    predictor = build(*arguments, device="cpu", hydra_overrides_extra=["++model.image_size=256"])
    if not isinstance(predictor, SAM2VideoPredictor):
        _widen_memories(predictor)
    return predictor


@pytest.mark.xdist_group("tiny256_seed0")
def test_script_with_one_changed_import(bundle_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/drop_in.md as it stands, and with the import that it names; only device and image size are set from outside."""
    clip = make_clip("example", 1, frames=5)
    clip.write_official(tmp_path / "clip")
    save_checkpoint(CHECKPOINTS["tiny256_seed0"].official(), tmp_path / "sam2.1_hiera_tiny.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSAM2_CACHE", str(tmp_path / "cache"))

    def export_bundle(model: str, checkpoint: str, out: Path, **options: Any) -> Path:
        assert (model, checkpoint, options["image_size"], options["postprocessing"]) == (
            "sam2.1_hiera_tiny",
            "sam2.1_hiera_tiny.pt",
            256,
            True,
        )
        return Path(shutil.copytree(bundle_path("tiny256_seed0"), out))

    monkeypatch.setattr(exporter, "export_bundle", export_bundle)
    (example,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    changed, rest = example.split("\n", 1)
    imports = re.fullmatch(r"(from fastsam2 import \w+)  # before: (.*)", changed)
    assert imports
    masks = []
    for line in imports.groups():
        names: dict[str, Any] = {}
        exec(line, names)
        names["build_sam2_video_predictor"] = partial(_built_at_256, names["build_sam2_video_predictor"])
        exec(rest, names)
        masks.append(names["masks"])
    ours, official = masks
    assert ours.keys() == official.keys() == set(range(5))
    for frame, by_id in official.items():
        assert by_id.keys() == ours[frame].keys() == {1, 7}
        for object_id, mask in by_id.items():
            assert mask.any()
            assert mask_iou(mask, ours[frame][object_id]) >= THRESHOLDS["video_iou"]["minimum"]
