"""The crop encoder from checkpoint to description: export, parity, choice by embedding, `fastsam2 run --text auto` on the built-in nano.

Oracle unless a test names another: CLIPModel and CLIPImageProcessor of transformers, unmodified.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from PIL import Image

import fastsam2
from fastsam2.builtin import sample_path
from fastsam2.bundle import FileEntry, Manifest, RouterEntry, TextEntry, read_manifest, write_manifest
from fastsam2.cli import main
from fastsam2.config import ModelSpec, Prune
from fastsam2.contracts import GRAPHS, MANIFEST_VERSION
from fastsam2.demo import read_sample
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError, BundleError, ExportError, PromptError
from fastsam2.export import text as export_text
from fastsam2.export.crop import _normalisation
from fastsam2.export.text import add_text, load_clip_text
from fastsam2.export.wrappers.crop_encoder import MEAN, SCALE, STD, Normalisation
from fastsam2.runtime.auto_text import GREY, ClipCropEncoder, object_crop, square_on_grey
from fastsam2.runtime.video import open_video
from tests.bare_nano import bare_nano
from tests.test_bundle import edit
from tests.test_export_text import fake_bundle, graph, text_graph
from tests.tiny_clip import E_DIM, make_clip, make_tokenizer, oracle_ids, oracle_text, save, text_config

WORDS = ["red star", "a", "disc"]
SHOWN = [2, 0, 1]  # the word that each picture shows
SIDE = 32  # I of the tiny CLIP


def pictures() -> list[np.ndarray]:
    """Three squares that differ in colour and structure."""
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 60, (48, 48, 3), dtype=np.uint8)
    bright = rng.integers(200, 256, (48, 48, 3), dtype=np.uint8)
    striped = np.where((np.arange(48) // 6 % 2 == 0)[:, None, None], np.uint8([250, 20, 20]), np.uint8([20, 20, 250])).repeat(48, 1)
    return [dark, bright, striped]


class Oracle:
    """A whole CLIP with an image processor of unusual constants, whose image half says `SHOWN` of `pictures`."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer, size = make_tokenizer(), {"height": SIDE, "width": SIDE}
        self.processor = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size=size, image_mean=[0.2, 0.3, 0.4], image_std=[0.5, 0.6, 0.7]
        )
        self.model = make_clip(self.tokenizer)
        with torch.no_grad():
            for parameter in self.model.vision_model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            pooled = torch.cat([self.model.vision_model(pixel_values=self.pixels(p)).pooler_output for p in pictures()]).T  # [H, 3]
            back = torch.linalg.pinv(pooled)
            rest = torch.randn(E_DIM, len(pooled)) * 0.05
            self.model.visual_projection.weight.copy_(self.words()[SHOWN].T @ back + rest @ (torch.eye(len(pooled)) - pooled @ back))
        self.folder = save(folder, self.model, self.tokenizer)
        self.processor.save_pretrained(folder)

    def pixels(self, picture: np.ndarray) -> torch.Tensor:
        values: torch.Tensor = self.processor(Image.fromarray(picture), return_tensors="pt").pixel_values
        return values

    def words(self) -> torch.Tensor:
        return torch.from_numpy(oracle_text(self.model, oracle_ids(self.tokenizer, WORDS)))

    def embed(self, picture: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out = self.model.get_image_features(pixel_values=self.pixels(picture)).pooler_output[0]
        return (out / out.norm()).numpy()

    def word(self, picture: np.ndarray) -> str:
        return WORDS[int((self.words().numpy() @ self.embed(picture)).argmax())]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Path:
    """nano with both halves of that CLIP, a vocabulary, and a router that goes by uncertainty."""
    folder = tmp_path_factory.mktemp("described")
    (folder / "words.txt").write_text("".join(f"  {word}\n\n" for word in WORDS))
    out = add_text(bare_nano(), oracle.folder, out=folder / "bundle", vocabulary=folder / "words.txt", templates=["{}"])
    manifest = read_manifest(out)
    write_router(out / "router.onnx", manifest.model)
    added = [graph(out, GraphRole.ROUTER).model_copy(update={"target": target}) for target in manifest.targets]
    (image,) = {g.file.sha256 for g in manifest.graphs if g.role is GraphRole.IMAGE_ENCODER and g.target is ExportTarget.ONNXRUNTIME}
    trained = RouterEntry(image_encoder=image, text_encoder=None, data="none", steps=1)
    write_manifest(out, manifest.model_copy(update={"graphs": (*manifest.graphs, *added), "router": trained}))
    return out


def write_router(file: Path, spec: ModelSpec) -> None:
    """scores = softmax(uncertainty), relevance = 0 · uncertainty, context = the mean over objects: no second of export."""
    table, types = GRAPHS[GraphRole.ROUTER], {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, types[t.dtype], t.shape(spec)) for t in side] for side in (table.inputs, table.outputs)
    )
    nodes = [
        helper.make_node("Softmax", ["uncertainty"], ["scores"]),
        helper.make_node("Sub", ["uncertainty", "uncertainty"], ["relevance"]),
        helper.make_node("ReduceMean", ["uncertainty", "first"], ["context"]),
    ]
    first = helper.make_tensor("first", TensorProto.INT64, [1], [0])
    model = helper.make_graph(nodes, "router", inputs, outputs, [first])
    onnx.save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)


def test_the_manifest_says_what_was_added(bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(bundle)
    assert manifest.manifest_version == MANIFEST_VERSION == 2
    assert manifest.text is not None and manifest.text.vocabulary is not None
    entry = manifest.text.vocabulary
    assert (entry.file.path, entry.phrases, entry.templates) == ("vocabulary.txt", 3, ("{}",))
    assert (bundle / "vocabulary.txt").read_text() == "red star\na\ndisc\n"
    graphs = [manifest.graph(GraphRole.CROP_ENCODER, target) for target in manifest.targets]
    assert {g.file.path for g in graphs} == {"crop_encoder.onnx"}
    assert 0 < graphs[0].checks["crop_embedding"] < 1e-5
    assert (manifest.model.crop_size, manifest.model.text_dim) == (SIDE, E_DIM)
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["inspect", str(bundle)])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("CLIP tiny-clip", "vocabulary.txt (3 phrases in '{}')", "│ crop │ uint8 │ 1 x 3 x 32 x 32 │"):
        assert text in shown, text


def test_crops_are_embedded_as_transformers_does(bundle: Path, oracle: Oracle) -> None:
    loaded = fastsam2.load(bundle)
    encode = ClipCropEncoder(loaded.backend, SIDE, E_DIM)
    wide = np.random.default_rng(1).integers(0, 256, (20, 45, 3), dtype=np.uint8)
    padded = np.full((45, 45, 3), GREY, np.uint8)
    padded[12:32] = wide
    cases = [*((p, p) for p in pictures()), (wide, padded), (wide[:, ::-1], padded[:, ::-1]), (wide[:1, :1], wide[:1, :1])]
    embedded = []
    for crop, square in cases:
        embedded.append(encode(crop))
        assert embedded[-1].dtype == np.float32
        np.testing.assert_allclose(embedded[-1], oracle.embed(np.ascontiguousarray(square)), atol=5e-6)
    for a, b in ((0, 1), (0, 2), (1, 2), (2, 3), (3, 4)):
        assert np.abs(embedded[a] - embedded[b]).max() > 0.02, "different pictures must differ for this to say anything"
    for wrong in (wide[0], wide.astype(np.float32), wide[:0]):
        with pytest.raises(PromptError, match=r"uint8 \[H, W, 3\]"):
            encode(wrong)
    with pytest.raises(BackendError, match=r"crop_embedding of shape \(1, 8\)"):
        ClipCropEncoder(loaded.backend, SIDE, 8)(wide)


def test_the_constants_of_the_image_processor_matter(oracle: Oracle) -> None:
    """The oracle of the test above would notice CLIP's own constants in place of the checkpoint's."""
    own, others = oracle.pixels(pictures()[0]), transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    assert (own - others(Image.fromarray(pictures()[0]), return_tensors="pt").pixel_values).abs().min() > 0.1


def test_the_word_is_the_one_whose_embedding_is_the_crops(bundle: Path, oracle: Oracle) -> None:
    """The projection was solved so that each picture says a word of another place in the list; in whatever order the words come."""
    loaded = fastsam2.load(bundle)
    mask = np.ones((48, 48), np.bool_)
    wanted = [WORDS[i] for i in SHOWN]
    assert [oracle.word(p) for p in pictures()] == wanted
    for words in (None, WORDS[::-1], [WORDS[1], WORDS[2], WORDS[0]]):
        assert [loaded.describer(words).describe(p, mask) for p in pictures()] == wanted
    assert loaded.describer(["nothing"]).describe(pictures()[0], mask) == "nothing"
    assert loaded.describer().templates == ("{}",)
    assert loaded.describer(templates=["a {}", "{}"]).templates == ("a {}", "{}")


def test_run_describes_every_object_and_says_so(bundle: Path, oracle: Oracle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the word for the crop round the mask that was written. The same in Python, and typed, is the same run."""
    clip = sample_path("hard_000") / "clip.mp4"
    boxes = {o.id: ",".join(f"{n:g}" for n in o.box) for o in read_sample(sample_path("hard_000")).objects[:2]}
    assert list(boxes) == [1, 2]
    args = ["run", str(bundle), "--video", str(clip), "--frames", "3", "--prune", "router", "--keep", "0.05", "--protect", "none"]
    args += [a for i, box in boxes.items() for a in ("--box", f"{i}:{box}@{i - 1}")]
    args += ["--no-overlay", "--separate", "--threads", "1"]
    records = []
    for name, texts in (("auto", ["--text", "auto"]), ("one", ["--text", "2:auto", "--text", "1:a disc"])):
        with pytest.raises(SystemExit, match="0"):
            main([*args, "--out", str(tmp_path / name), *texts])
        records.append(json.loads((tmp_path / name / "run.json").read_text()))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("object ")]
    with open_video(str(clip), max_frames=2) as video:
        frames = list(video)
    words = {}
    for i in boxes:
        (file,) = (tmp_path / "auto" / "masks").glob(f"*{i}/0000{i - 1}.png")
        words[i] = oracle.word(square_on_grey(object_crop(frames[i - 1], np.asarray(Image.open(file)) > 0)))
    assert said == [f"object 1: {words[1]}", f"object 2: {words[2]}", f"object 2: {words[2]}"]
    found = [{o["id"]: (o["text"], o["auto_text"]) for o in record["objects"]} for record in records]
    assert found == [{i: (words[i], True) for i in boxes}, {1: ("a disc", False), 2: (words[2], True)}]
    assert [p["text"] for p in records[0]["config"]["prompts"]] == list(words.values())
    assert all(f"{i}:{word}" in records[0]["command"] for i, word in words.items()) and "auto" not in records[0]["command"].split()
    assert "describe" in records[0]["stages_ms"]

    loaded = fastsam2.load(bundle, threads=1)
    tracker, describer = loaded.tracker(prune=Prune(policy="router", keep=0.05, protect=())), loaded.describer()  # type: ignore[arg-type]
    result = [tracker.step(frames[0]), tracker.add(1, box=[float(n) for n in boxes[1].split(",")])][-1]
    tracker.describe(1, describer.describe(frames[0], result[1]))
    embedding = tracker._objects[1].text
    assert embedding is not None
    np.testing.assert_array_equal(embedding, loaded.texts.encode([words[1]])[0])  # type: ignore[union-attr]


def test_what_a_bundle_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [
        "run",
        str(bare_nano()),
        "--video",
        str(sample_path("hard_000") / "clip.mp4"),
        "--out",
        str(tmp_path / "out"),
        "--box",
        "1,1,90,90",
    ]
    for args, message in (
        (["--prune", "mask", "--text", "auto"], "texts with --prune router, got 'auto' with policy mask"),
        (["--prune", "router", "--text", "auto"], "a bundle with a text encoder"),
        (["--prune", "router", "--captioner", "somebody/blip"], "--text auto with --captioner"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*run, *args])
        assert message in capsys.readouterr().err
    with pytest.raises(BundleError, match=r"a crop encoder for automatic descriptions.*add-text --clip"):
        fastsam2.load(bare_nano()).describer()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of a few bytes instead of seconds of export."""

    def export(text: Any, spec: Any, folder: Path, say: Any) -> Any:
        (folder / "text_encoder.onnx").write_bytes(b"text")
        return text_graph(folder)

    def export_crop(image: Any, spec: Any, folder: Path, say: Any) -> Any:
        (folder / "crop_encoder.onnx").write_bytes(b"crop")
        return graph(folder, GraphRole.CROP_ENCODER)

    monkeypatch.setattr(export_text, "_export", export)
    monkeypatch.setattr(export_text, "export_crop_encoder", export_crop)


def test_a_text_half_gives_no_crop_encoder_and_takes_the_old_one_away(tmp_path: Path, oracle: Oracle, no_export: None) -> None:
    bundle, said = fake_bundle(tmp_path / "bundle"), list[str]()
    config = transformers.CLIPTextConfig(**text_config(make_tokenizer()))
    half = save(tmp_path / "half", transformers.CLIPTextModelWithProjection(config), make_tokenizer())
    add_text(bundle, oracle.folder, progress=said.append)
    manifest = read_manifest(bundle)
    assert manifest.text is not None and manifest.text.vocabulary is not None
    assert manifest.text.vocabulary.templates == ("a photo of a {}",) and manifest.text.vocabulary.phrases > 250
    assert manifest.model.crop_size == SIDE and not any("no crop encoder" in line for line in said)
    for clip, options in ((half, {}), (oracle.folder, {"text_only": True})):
        said.clear()
        out = add_text(bundle, clip, out=tmp_path / Path(clip).name / "out", progress=said.append, **options)  # type: ignore[arg-type]
        manifest = read_manifest(out)
        assert manifest.text is not None and manifest.text.vocabulary is None and not manifest.digests(GraphRole.CROP_ENCODER)
        assert not (out / "crop_encoder.onnx").exists() and not (out / "vocabulary.txt").exists()
        assert manifest.model.crop_size == 224 and any("no crop encoder" in line for line in said)
        with pytest.raises(ExportError, match=r"an image half for a vocabulary or templates.*leave both out"):
            add_text(bundle, clip, templates=["{}"], **options)  # type: ignore[arg-type]
    for bad, message in (({"vocabulary": tmp_path / "none"}, "a vocabulary in"), ({"templates": ["{} {}"]}, "templates with one")):
        with pytest.raises(PromptError, match=message):
            add_text(bundle, oracle.folder, **bad)  # type: ignore[arg-type]
    assert read_manifest(bundle).digests(GraphRole.CROP_ENCODER)


def test_half_an_image_half_is_refused(tmp_path: Path, oracle: Oracle) -> None:
    weights = dict(oracle.model.state_dict())
    removed = [name for name in weights if name.startswith("vision_model.encoder.layers.1.")]
    partial = {name: weight for name, weight in weights.items() if name not in removed}
    oracle.model.save_pretrained(tmp_path / "partial", state_dict=partial)
    oracle.tokenizer.save_pretrained(tmp_path / "partial")
    with pytest.raises(ExportError, match=rf"none for vision_model.*{len(removed) - 1} more.*--text-only"):
        load_clip_text(str(tmp_path / "partial"), text_only=False)
    assert load_clip_text(str(tmp_path / "partial")).image is None
    text_alone = {name: weight for name, weight in weights.items() if name.startswith(("text_", "logit_scale"))}
    oracle.model.save_pretrained(tmp_path / "none", state_dict=text_alone)
    oracle.tokenizer.save_pretrained(tmp_path / "none")
    assert load_clip_text(str(tmp_path / "none"), text_only=False).image is None


def test_normalisation_is_the_image_processors(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert _normalisation(folder) == Normalisation(SCALE, MEAN, STD)
    assert Normalisation() == Normalisation(1 / 255, *map(tuple, (transformers.CLIPImageProcessorPil.image_mean, STD)))
    config = tmp_path / "preprocessor_config.json"
    for given, wanted in (
        ({}, Normalisation()),
        ({"image_mean": [0.1, 0.2, 0.3], "rescale_factor": 0.5}, Normalisation(0.5, (0.1, 0.2, 0.3), STD)),
        ({"do_normalize": False, "image_std": [3, 3, 3]}, Normalisation(SCALE, (0, 0, 0), (1, 1, 1))),
        ({"do_rescale": False}, Normalisation(1.0, MEAN, STD)),
    ):
        config.write_text(json.dumps(given))
        assert _normalisation(folder) == wanted
    for bad in ("{", '{"image_mean": [1, 2]}', '{"image_std": [1, 0, 1]}', '{"image_mean": "abc"}', '{"rescale_factor": NaN}'):
        config.write_text(bad)
        with pytest.raises(ExportError, match=r"in .*preprocessor_config.json of the checkpoint, or pass --text-only"):
            _normalisation(folder)


def test_crop_encoder_and_vocabulary_go_together(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path / "bundle")
    (bundle / "text_encoder.onnx").write_bytes(b"text")
    (bundle / "crop_encoder.onnx").write_bytes(b"crop")
    (bundle / "tokenizer.json").write_bytes(b"{}")
    old = read_manifest(bundle)
    text = TextEntry(source="old", tokenizer=FileEntry.of(bundle, Path("tokenizer.json")))  # type: ignore[arg-type]
    added = [g.model_copy(update={"target": t}) for g in (text_graph(bundle), graph(bundle, GraphRole.CROP_ENCODER)) for t in ExportTarget]
    changes = {"text": text, "graphs": (*added, *old.graphs)}
    with pytest.raises(ValueError, match="a crop_encoder graph and its entry go together"):
        Manifest(**{**dict(old), **changes})
    write_manifest(bundle, old.model_copy(update=changes))
    with pytest.raises(BundleError, match="a crop_encoder graph and its entry go together"):
        read_manifest(bundle)


def test_bundles_from_before_are_read(tmp_path: Path) -> None:
    """A manifest without the fields that crop encoder and vocabulary brought."""
    bundle = fake_bundle(tmp_path / "bundle")
    (bundle / "text_encoder.onnx").write_bytes(b"text")
    (bundle / "tokenizer.json").write_bytes(b"{}")
    old = read_manifest(bundle)
    text = TextEntry(source="old", tokenizer=FileEntry.of(bundle, Path("tokenizer.json")))  # type: ignore[arg-type]
    graphs = (*(text_graph(bundle).model_copy(update={"target": t}) for t in ExportTarget), *old.graphs)
    write_manifest(bundle, old.model_copy(update={"text": text, "graphs": graphs}))
    edit(bundle, lambda raw: (raw["text"].pop("vocabulary"), raw["model"].pop("crop_size")))
    again = read_manifest(bundle)
    assert again.text == text and again.model.crop_size == 224
