"""fastsam2.export.text and the text_encoder graph. Oracle unless a test names another: the unmodified classes of transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from fastsam2.bundle import (
    FileEntry,
    GraphEntry,
    Manifest,
    ProjectionEntry,
    RouterEntry,
    TensorEntry,
    TextEntry,
    read_manifest,
    write_manifest,
)
from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import ExportError
from fastsam2.export import text as export_text
from fastsam2.export.text import add_text, load_clip_text
from fastsam2.export.wrappers.text_encoder import TextEncoderGraph
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.text import TextEncoder
from tests.test_bundle import make_manifest
from tests.tiny_clip import E_DIM, TEXTS, make_clip, make_tokenizer, oracle_ids, oracle_text, save, text_config


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_wrapper_is_the_text_half_of_transformers(legacy: bool, whole: bool) -> None:
    tokenizer = make_tokenizer()
    clip = make_clip(tokenizer, legacy=legacy)
    model = clip
    if not whole:
        model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text_config(tokenizer, legacy=legacy))).eval()
        model.load_state_dict({k: v for k, v in clip.state_dict().items() if k.startswith("text_")})
    ids = oracle_ids(tokenizer, TEXTS)
    with torch.no_grad():
        got = TextEncoderGraph(model)(ids.int()).numpy()
    want = oracle_text(model, ids)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(want[0] - want[1:]).max(1).min() > 0.02, "different texts must differ for this to say anything"
    assert TextEncoderGraph(model).text_dim == E_DIM


@pytest.mark.parametrize("legacy", [False, True])
def test_what_follows_the_end_token_has_no_influence(legacy: bool) -> None:
    """Invariant: attention is causal and the embedding is read at the end token, so any padding gives the same bits of meaning."""
    tokenizer = make_tokenizer()
    graph = TextEncoderGraph(make_clip(tokenizer, legacy=legacy))
    ids = oracle_ids(tokenizer, ["red star"]).int()
    end = int((ids[0] == tokenizer.eos_token_id).nonzero()[0])
    padded, other_word = ids.clone(), ids.clone()
    padded[0, end + 1 :] = torch.randint(0, tokenizer.eos_token_id, (76 - end,), generator=torch.Generator().manual_seed(0)).int()
    other_word[0, end - 1] = 5
    with torch.no_grad():
        plain, noisy, changed = (graph(x) for x in (ids, padded, other_word))
    torch.testing.assert_close(noisy, plain, atol=1e-6, rtol=0)
    assert (changed - plain).abs().max() > 0.02


def fake_bundle(folder: Path) -> Path:
    """A bundle for both targets whose graphs are a few bytes."""
    folder.mkdir(parents=True)
    write_manifest(folder, make_manifest(folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, list[str]]]:
    """A bundle with the text encoder of a CLIP whose weights float16 holds, that CLIP, and what was said."""
    folder = tmp_path_factory.mktemp("added")
    clip = make_clip(make_tokenizer())
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.copy_(parameter.half().float())
    said: list[str] = []
    bundle = fake_bundle(folder / "bundle")
    checkpoint = save(folder / "tiny-clip", clip, make_tokenizer())
    out = add_text(bundle, checkpoint, out=folder / "with_text", text_only=True, progress=said.append)  # the image half: test_crop.py
    assert contents(bundle).keys() == {*contents(out).keys()} - {"text_encoder.onnx", "tokenizer.json"}
    yield out, clip, said


def test_the_manifest_says_what_was_added(added: tuple[Path, Any, list[str]]) -> None:
    out, _, said = added
    manifest = read_manifest(out)
    assert manifest.model.text_dim == E_DIM
    assert manifest.text is not None
    assert (manifest.text.source, manifest.text.projection, manifest.router) == ("tiny-clip", None, None)
    graphs = [manifest.graph(GraphRole.TEXT_ENCODER, target) for target in ExportTarget]
    assert {g.file.path for g in graphs} == {"text_encoder.onnx"}
    assert 0 < graphs[0].checks["text"] < 1e-5
    assert graphs[0].opset == 23
    assert said[-1] == f"wrote {out}"


def test_the_bundle_embeds_as_transformers_does(added: tuple[Path, Any, list[str]]) -> None:
    out, clip, _ = added
    manifest = read_manifest(out)
    encoder = TextEncoder(OnnxRuntimeBackend(out, manifest, threads=1), out / "tokenizer.json", manifest.model.text_dim)
    for texts in (TEXTS[:1], TEXTS):
        got = encoder.encode(texts)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, oracle_text(clip, oracle_ids(make_tokenizer(), texts)), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(TEXTS), axis=1), 1, atol=1e-6)


def test_weights_that_float16_holds_take_half_the_bytes(added: tuple[Path, Any, list[str]]) -> None:
    out, clip, _ = added
    count = sum(p.numel() for p in [*clip.text_model.parameters(), *clip.text_projection.parameters()])
    elements = dict.fromkeys((onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16), 0)
    for weight in onnx.load(out / "text_encoder.onnx").graph.initializer:
        if weight.data_type in elements:
            elements[weight.data_type] += int(np.prod(weight.dims))
    assert elements[onnx.TensorProto.FLOAT16] > 0.9 * count
    assert sum(elements.values()) == pytest.approx(count, rel=0.01), "each weight once"


def test_a_graph_that_is_not_the_model_is_refused(added: tuple[Path, Any, list[str]]) -> None:
    out = added[0]
    text = load_clip_text(str(out.parent / "tiny-clip"))
    assert export_text._check(TextEncoderGraph(text.model), text, out / "text_encoder.onnx") < 1e-5
    with torch.no_grad():
        text.model.text_model.embeddings.position_embedding.weight[3, 0] += 0.1
    with pytest.raises(ExportError, match=r"text_encoder within 0.001 of torch"):
        export_text._check(TextEncoderGraph(text.model), text, out / "text_encoder.onnx")


Stub = Callable[[bytes], None]


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Call it to make `add_text` write these bytes as the graph, instead of exporting for seconds."""

    def stub(content: bytes) -> None:
        def export(text: Any, spec: Any, folder: Path, say: Any) -> GraphEntry:
            (folder / "text_encoder.onnx").write_bytes(content)
            return text_graph(folder)

        def export_crop(image: Any, spec: Any, folder: Path, say: Any) -> GraphEntry:
            (folder / "crop_encoder.onnx").write_bytes(b"crop")
            return graph(folder, GraphRole.CROP_ENCODER)

        monkeypatch.setattr(export_text, "_export", export)
        monkeypatch.setattr(export_text, "export_crop_encoder", export_crop)

    return stub


def graph(folder: Path, role: GraphRole) -> GraphEntry:
    spec = graph_spec(role, ExportTarget.ONNXRUNTIME)
    inputs, outputs = (tuple(TensorEntry.of(t) for t in side) for side in (spec.inputs, spec.outputs))
    file = FileEntry.of(folder, PurePosixPath(f"{role.value}.onnx"))
    return GraphEntry(role=role, target=ExportTarget.ONNXRUNTIME, file=file, opset=23, inputs=inputs, outputs=outputs, checks={})


def text_graph(folder: Path) -> GraphEntry:
    return graph(folder, GraphRole.TEXT_ENCODER)


def bundle_with_companions(folder: Path, *, router_saw_text: bool, width: int = E_DIM) -> Path:
    """A bundle with a text encoder, a projection fitted to it, and a router."""
    fake_bundle(folder)
    old = read_manifest(folder)
    for name in ("text_encoder.onnx", "old_tokenizer.json", "projection.npy", "router.onnx"):
        (folder / name).write_bytes(b"old " + name.encode())
    (image,) = {g.file.sha256 for g in old.graphs if g.role is GraphRole.IMAGE_ENCODER and g.target is ExportTarget.ONNXRUNTIME}
    text, router = text_graph(folder), graph(folder, GraphRole.ROUTER)
    projection = ProjectionEntry(
        file=FileEntry.of(folder, PurePosixPath("projection.npy")),
        image_encoder=image,
        text_encoder=text.file.sha256,
        samples=1,
        ridge=0.0,
        condition=1.0,
    )
    entry = TextEntry(source="old", tokenizer=FileEntry.of(folder, PurePosixPath("old_tokenizer.json")), projection=projection)
    seen = text.file.sha256 if router_saw_text else None
    trained = RouterEntry(image_encoder=image, text_encoder=seen, data="x", steps=1)
    graphs = (*(g.model_copy(update={"target": t}) for g in (text, router) for t in ExportTarget), *old.graphs)
    spec = old.model.model_copy(update={"text_dim": width})
    write_manifest(folder, Manifest(**{**dict(old), "graphs": graphs, "model": spec, "text": entry, "router": trained}))
    read_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("clip"), make_clip(make_tokenizer()), make_tokenizer())


@pytest.mark.parametrize(
    ("content", "router_saw_text", "width", "projection_stays", "router_stays"),
    [
        (b"new", True, E_DIM, False, False),
        (b"new", False, E_DIM, False, True),
        (b"new", False, 8, False, False),
        (b"old text_encoder.onnx", True, E_DIM, True, True),
    ],
)
def test_what_was_fitted_to_another_text_encoder_is_dropped(
    tmp_path: Path,
    exports: Stub,
    clip_folder: str,
    content: bytes,
    router_saw_text: bool,
    width: int,
    projection_stays: bool,
    router_stays: bool,
) -> None:
    """Invariant: the result reads back whole, and holds exactly what still fits."""
    bundle = bundle_with_companions(tmp_path / "bundle", router_saw_text=router_saw_text, width=width)
    exports(content)
    said: list[str] = []
    add_text(bundle, clip_folder, progress=said.append)
    manifest, files = read_manifest(bundle), contents(bundle)
    assert manifest.text is not None
    assert (manifest.text.projection is not None) == projection_stays == ("projection.npy" in files)
    assert (manifest.router is not None) == router_stays == ("router.onnx" in files)
    assert any("projection" in line for line in said) != projection_stays
    assert any("router" in line for line in said) != router_stays
    assert files["text_encoder.onnx"] == content
    assert "old_tokenizer.json" not in files
    assert manifest.model.text_dim == E_DIM


def test_a_failure_leaves_the_bundle_as_it_was(tmp_path: Path, clip_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_with_companions(tmp_path / "bundle", router_saw_text=True)
    before = contents(tmp_path)

    def fail(*_: object) -> GraphEntry:
        raise ExportError("too far from torch")

    monkeypatch.setattr(export_text, "_export", fail)
    with pytest.raises(ExportError, match="too far"):
        add_text(bundle, clip_folder)
    assert contents(tmp_path) == before


def test_what_is_no_such_clip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    config = transformers.CLIPTextConfig(**text_config(tokenizer))

    def refused(clip: str, match: str) -> None:
        with pytest.raises(ExportError, match=match):
            load_clip_text(clip)

    refused(str(tmp_path / "none"), "expected a CLIP checkpoint")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    refused(str(tmp_path / "bert"), "of type 'bert'")
    model = transformers.CLIPTextModelWithProjection(config)
    refused(save(tmp_path / "bare", model), "expected a tokenizer in")
    refused(save(tmp_path / "headless", transformers.CLIPTextModel(config), tokenizer), "none for text_projection.weight")
    refused(save(tmp_path / "long", make_clip(tokenizer, context=248), tokenizer), "77 tokens.*got 248")
    other = transformers.CLIPTextConfig(**{**text_config(tokenizer), "eos_token_id": 7})
    refused(save(tmp_path / "end", transformers.CLIPTextModelWithProjection(other), tokenizer), "end token 518.*at 7")
    small = transformers.CLIPTextConfig(**{**text_config(tokenizer), "vocab_size": 300})
    refused(save(tmp_path / "small", transformers.CLIPTextModelWithProjection(small), tokenizer), "300 ids, got ids up to 518")
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(str(tmp_path / "bare"), "pip install torch transformers")


def test_a_text_model_with_projection_is_loaded_alone(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("!")
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text_config(tokenizer))).half()
    text = load_clip_text(save(tmp_path / "half", model, tokenizer))
    assert {p.dtype for p in text.model.parameters()} == {torch.float32}
    assert (text.begin, text.end, text.padding_token) == (tokenizer.bos_token_id, tokenizer.eos_token_id, "!")
