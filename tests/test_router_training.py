"""Attention mass, what the router learns from and how, and the way to a bundle. The model is nano, clips have a few small frames."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fastsam2.benchmarks.datasets import Clip
from fastsam2.bundle import FileEntry, GraphEntry, RouterEntry, TensorEntry, TextEntry, changed_bundle, read_manifest, write_manifest
from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError, PromptError, StateError, VideoError
from fastsam2.export.to_onnx import example_inputs
from fastsam2.export.wrappers.router import RouterGraph
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.backends.protocol import Array, Float
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.training import router as router_training
from fastsam2.training.attention_mass import AttentionTap, attention_weights, with_taps
from fastsam2.training.clip_source import PROCEDURAL, open_clips, procedural_clip
from fastsam2.training.router import captured_mass, read_projection, train, train_router, train_router_command
from fastsam2.training.router_samples import Recorder, Samples, query_weight
from fastsam2.training.text_fit import fit_text, pairs, see
from tests import eval_folders
from tests.bare_nano import bare_nano
from tests.words import encode

NANO = bare_nano()
TARGET = ExportTarget.ONNXRUNTIME


@pytest.fixture(scope="module")
def nano() -> LoadedBundle:
    return load(NANO, threads=1)


@pytest.fixture(scope="module")
def tap(nano: LoadedBundle) -> AttentionTap:
    return AttentionTap(NANO, nano.backend, threads=1)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Two objects, nine frames."""
    return next(c for i in range(20) if len((c := procedural_clip((7, i), 9)).expressions) == 2)


def attention_inputs(nano: LoadedBundle, *, rows: int, pointers: int) -> dict[str, Array]:
    inputs = example_inputs(nano.spec, GraphRole.MEMORY_ATTENTION, TARGET, {"B": 2, "M": rows, "P": pointers}, seed=3)
    return {k: v.numpy() for k, v in inputs.items()}


def test_the_tap_leaves_the_graph_as_it_is(nano: LoadedBundle, tap: AttentionTap) -> None:
    """Oracle: the plain graph, bit for bit."""
    inputs = attention_inputs(nano, rows=300, pointers=2)
    plain = nano.backend.run(GraphRole.MEMORY_ATTENTION, inputs)["conditioned"]
    np.testing.assert_array_equal(tap.run(GraphRole.MEMORY_ATTENTION, inputs)["conditioned"], plain)
    call = tap.take()
    assert len(call) == 1
    assert call[0].rows == 300
    assert tap.take() == []


def test_weights_and_values_give_the_nodes_own_output(nano: LoadedBundle, tap: AttentionTap) -> None:
    """Oracle: what the fused node of each layer answers, from the same queries, keys and values."""
    inputs = attention_inputs(nano, rows=300, pointers=2)
    assert len(tap.nodes) == 2  # layers of nano
    for node in tap.nodes:
        query, key, value, output = tap.tensors(inputs, [node.query, node.key, node.value, node.output])
        assert key.shape[1] == 300 + nano.spec.pointer_tokens * 2
        for b in range(2):
            got = attention_weights(query[b], key[b], node)[0] @ value[b]
            np.testing.assert_allclose(got, output[b], atol=2e-5 * float(np.abs(output).max()))


def test_the_mass_of_all_keys_is_the_weight_of_all_queries(nano: LoadedBundle, tap: AttentionTap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: softmax sums to 1; one query's own weights; any number of queries at once gives the same."""
    call = tap.attend(attention_inputs(nano, rows=280, pointers=3))
    np.testing.assert_allclose(call.mass().sum(1), nano.spec.tokens, rtol=1e-5)
    weight = np.random.default_rng(0).random((2, nano.spec.tokens), np.float32)
    np.testing.assert_allclose(call.mass(weight).sum(1), weight.sum(1), rtol=1e-5)
    one = np.zeros((2, nano.spec.tokens), np.float32)
    one[:, 17] = 1
    layers = [attention_weights(q[1], k[1], node)[0, 17] for (q, k), node in zip(call.layers, tap.nodes, strict=True)]
    np.testing.assert_allclose(call.mass(one)[1], np.mean(layers, axis=0), rtol=1e-4, atol=1e-8)
    monkeypatch.setattr("fastsam2.training.attention_mass._QUERIES_AT_ONCE", 37)
    np.testing.assert_allclose(call.mass(weight), tap.attend(attention_inputs(nano, rows=280, pointers=3)).mass(weight), rtol=1e-4)


def test_a_graph_without_attention_over_the_memory_is_refused() -> None:
    """The image encoder has attention nodes, over counts of keys that are fixed."""
    assert any(n.op_type == "MultiHeadAttention" for n in onnx.load(str(NANO / "image_encoder.onnx")).graph.node)
    with pytest.raises(BundleError, match=r"MultiHeadAttention nodes over the memory rows in .*image_encoder\.onnx, got none"):
        with_taps(NANO / "image_encoder.onnx")


def test_query_weight_is_half_on_the_object_and_half_on_all() -> None:
    """Oracle: a square object of whole cells, counted by hand."""
    logits = np.full((2, 32, 32), -1024, np.float32)
    logits[0, 8:16, 8:16] = 1024  # cells 2..3 in both directions, so 1..4 with the ones it touches
    weight = query_weight(logits, 8)
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-6)
    grid = weight[0].reshape(8, 8)
    np.testing.assert_allclose(grid[1:5, 1:5], 0.5 / 64 + 0.5 / 16)
    assert np.count_nonzero(grid > 0.6 / 64) == 16
    np.testing.assert_allclose(weight[1], 1 / 64)


class Spy:
    """A backend that keeps the inputs of memory_attention and the masks of the decoder."""

    name = "spy"

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        self.backend = backend
        self.attended: list[dict[str, Array]] = []
        self.decoded: list[Array] = []

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        out = self.backend.run(role, inputs)
        if role is GraphRole.MEMORY_ATTENTION:
            self.attended.append({k: v.copy() for k, v in inputs.items()})
        if role is GraphRole.MASK_DECODER:
            self.decoded.append(out["low_res_logits"][:, 0])
        return out


def test_samples_are_the_trackers_rows_and_the_attention_they_received(nano: LoadedBundle, tap: AttentionTap, clip: Clip) -> None:
    """Oracle: the tracker on the same clip. Its masks; and its memory_attention calls, in which a row's age tells its frame."""
    recorder = Recorder(tap, nano.spec, encode=encode)
    samples = recorder.record(clip)
    assert samples is not None
    assert isinstance(nano.backend, OnnxRuntimeBackend)
    spy = Spy(nano.backend)
    tracker = LoadedBundle(NANO, nano.manifest, spy).tracker()
    tracker.step(clip.frames[0])
    for i, mask in clip.masks(0).items():
        tracker.add(i, mask=mask)
    mass = np.zeros((2, 9, nano.spec.tokens))
    for t in range(1, 9):
        result = tracker.step(clip.frames[t])
        for row, i in enumerate(clip.ids):
            np.testing.assert_array_equal(recorder.logits[t][i], result.low_res_logits[row])
        inputs = spy.attended[-1]
        received = tap.attend(inputs).mass(query_weight(spy.decoded[-1], nano.spec.grid))
        for b in range(2):
            for age in range(1, nano.spec.num_maskmem - 1):
                rows = np.flatnonzero(inputs["age"][b] == age)
                if len(rows):
                    mass[b, t - 1 - age] += received[b, rows]
    # frame 0 is the prompt; frames 1 to 5 are read at least twice after they were the newest, 6 once
    assert len(samples) == 2 * 5
    assert samples.tokens.shape == (5, nano.spec.tokens, nano.spec.hidden_dim)
    want = {(t, b): mass[b, t] / mass[b, t].sum() for t in range(1, 6) for b in range(2)}
    for row in range(len(samples)):
        t = int(samples.frame[row]) + 1
        object_index = next(b for b in range(2) if np.allclose(samples.text[row], encode(clip.expressions[b + 1])[0]))
        np.testing.assert_allclose(samples.target[row], want[t, object_index], rtol=1e-3, atol=1e-7)
    assert samples.has_text.all()


def test_a_clip_that_is_too_short_gives_no_samples(nano: LoadedBundle, tap: AttentionTap, clip: Clip) -> None:
    """Rows of frame 1 are read twice after being the newest when there are frames 3 and 4."""
    recorder = Recorder(tap, nano.spec)
    assert recorder.record(clip, frames=4) is None
    samples = recorder.record(clip, frames=5)
    assert samples is not None
    assert len(samples) == 2
    assert not samples.has_text.any()


def drawn_samples(spec: Any, count: int, *, by_text: Float | None = None, seed: int = 0) -> Samples:
    """Samples whose attention lies where the object is, or where tokens resemble the projected text."""
    rng = np.random.default_rng(seed)
    g = spec.grid
    logits = np.full((count, 4 * g, 4 * g), -8, np.float32)
    for own in logits:
        y, x = rng.integers(0, 4 * g - 16, 2)
        own[y : y + 16, x : x + 16] = 8
    tokens = rng.standard_normal((count, spec.tokens, spec.hidden_dim)).astype(np.float32)
    text = encode([f"thing-{seed}-{i}" for i in range(count)])
    coverage = np.stack([(own.reshape(g, 4, g, 4).mean((1, 3)) > 0).reshape(-1) for own in logits])
    weight = np.where(coverage, 30.0, 1.0)
    if by_text is not None:
        direction = text @ by_text
        apart = tokens - tokens.mean(1, keepdims=True)
        cosine = np.einsum("nc,nkc->nk", direction, apart) / np.linalg.norm(direction, axis=1)[:, None] / np.linalg.norm(apart, axis=2)
        weight = np.exp(20 * cosine)
    return Samples(
        tokens=tokens.astype(np.float16),
        frame=np.arange(count),
        logits=logits.astype(np.float16),
        score=np.full(count, 5, np.float32),
        iou=np.full(count, 0.8, np.float32),
        text=text,
        has_text=np.ones(count, np.bool_),
        target=(weight / weight.sum(1, keepdims=True)).astype(np.float32),
    )


def test_samples_survive_the_disk_and_joining(nano: LoadedBundle, tmp_path: Path) -> None:
    """Oracle: the arrays before."""
    a, b = drawn_samples(nano.spec, 2), drawn_samples(nano.spec, 3)
    b.save(tmp_path / "b.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["b.npz"]
    joined = Samples.join([a, Samples.load(tmp_path / "b.npz")])
    assert len(joined) == 5
    np.testing.assert_array_equal(joined.tokens[joined.frame[2:]], b.tokens)
    np.testing.assert_array_equal(joined.target, np.concatenate([a.target, b.target]))


def fresh(nano: LoadedBundle, projection: Float | None = None) -> RouterGraph:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return RouterGraph(nano.spec, None if projection is None else torch.from_numpy(projection))


class Stopped(Exception):
    pass


def test_training_learns_and_an_interrupted_run_ends_like_another(
    nano: LoadedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: weights of the run without interruption, bit for bit; the excess over the target's entropy falls below a fifth."""
    monkeypatch.setattr(router_training, "_BATCH", 6)
    samples = drawn_samples(nano.spec, 24)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight, resumed = fresh(nano), fresh(nano)
    train(straight, samples, steps=100, seed=4, work=tmp_path / "a")

    def stop(line: str) -> None:
        if line.startswith("step 60/"):
            raise Stopped

    monkeypatch.setattr(router_training, "_SAVE_EVERY", 25)
    with pytest.raises(Stopped):
        train(resumed, samples, steps=100, seed=4, work=tmp_path / "b", progress=stop)
    lines: list[str] = []
    resumed = fresh(nano)
    train(resumed, samples, steps=100, seed=4, work=tmp_path / "b", progress=lines.append)
    assert lines[0] == "going on from step 50"
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    log = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [20, 40, 60, 80, 100]
    untrained = 1 - float(-(samples.target * np.log(samples.target)).sum(1).mean()) / np.log(nano.spec.tokens)
    assert log[-1]["excess"] < 0.2 * untrained * np.log(nano.spec.tokens)
    captured, worst = captured_mass(straight, nano.spec, samples)
    assert set(captured) == {"router", "router as it keeps", "router + text", "router + other text", "mask", "uniform", "random", "oracle"}
    for keep in (0.05, 0.25):
        assert captured["router"][keep] > captured["router as it keeps"][keep]
        assert captured["router as it keeps"][keep] > 1.3 * max(captured["random"][keep], captured["uniform"][keep])
        assert all(0 < worst[name][keep] <= own[keep] <= captured["oracle"][keep] + 1e-6 for name, own in captured.items())
    assert captured["random"][0.25] == pytest.approx(0.25, abs=0.05)  # a quarter of the rows, drawn blindly


def test_the_router_learns_to_read_a_text(nano: LoadedBundle, tmp_path: Path) -> None:
    """Attention that only the text tells, on frames not trained on. Oracle: with another text or none the router does not know it."""
    projection = np.random.default_rng(1).standard_normal((512, nano.spec.hidden_dim)).astype(np.float32)
    module = fresh(nano, projection)
    module.shared.weight.detach().zero_()  # tokens are noise here, and 32 frames of noise would be learned by heart
    module.shared.weight.requires_grad_(False)
    train(module, drawn_samples(nano.spec, 32, by_text=projection), steps=100, seed=0, work=tmp_path)
    captured, _ = captured_mass(module, nano.spec, drawn_samples(nano.spec, 12, by_text=projection, seed=1))
    assert captured["router + text"][0.05] > 0.8 * captured["oracle"][0.05]
    assert captured["router + text"][0.05] > 2 * max(captured["router"][0.05], captured["router + other text"][0.05])


def with_text_encoder(bundle: Path, *, router: bool = False) -> Path:
    """nano with files that stand for a text encoder, and for a router that read texts; nothing here runs them."""
    shutil.copytree(NANO, bundle)
    with changed_bundle(bundle) as (copy, manifest):
        graphs = list(manifest.graphs)
        roles = (GraphRole.TEXT_ENCODER, *((GraphRole.ROUTER,) if router else ()))
        for role in roles:
            (copy / f"{role.value}.onnx").write_text(role.value)
            spec, file = graph_spec(role, TARGET), FileEntry.of(copy, PurePosixPath(f"{role.value}.onnx"))
            inputs, outputs = (tuple(TensorEntry.of(t) for t in side) for side in (spec.inputs, spec.outputs))
            graphs += [
                GraphEntry(role=role, target=t, file=file, opset=23, inputs=inputs, outputs=outputs, checks={}) for t in manifest.targets
            ]
        (copy / "tokenizer.json").write_text("{}")
        text = TextEntry(source="words", tokenizer=FileEntry.of(copy, PurePosixPath("tokenizer.json")))
        digest = next(g.file.sha256 for g in graphs if g.role is GraphRole.TEXT_ENCODER)
        image = next(g.file.sha256 for g in graphs if g.role is GraphRole.IMAGE_ENCODER)
        entry = RouterEntry(image_encoder=image, text_encoder=digest, data="none", steps=1) if router else None
        write_manifest(copy, manifest.model_copy(update={"graphs": tuple(graphs), "text": text, "router": entry}))
    return bundle


def test_from_clips_to_a_bundle_with_projection_and_router(tmp_path: Path) -> None:
    """The whole way, on four clips. Oracle: the manifest read back with hashes; files that belong together name each other."""
    bundle = with_text_encoder(tmp_path / "bundle", router=True)
    clips = [procedural_clip((7, i), 6) for i in range(4)]
    heard: list[str] = []
    fitted = fit_text(bundle, clips[:3], held_out=clips[3:], encode=encode, threads=1, progress=heard.append)
    assert heard[-1].startswith("dropped the router")
    manifest = read_manifest(bundle)
    assert manifest.text is not None
    projection = manifest.text.projection
    assert projection is not None
    assert {projection.image_encoder} == manifest.digests(GraphRole.IMAGE_ENCODER)
    assert {projection.text_encoder} == manifest.digests(GraphRole.TEXT_ENCODER)
    assert (projection.samples, projection.ridge, projection.condition) == (fitted.samples, fitted.ridge, fitted.condition)
    assert manifest.router is None, "it had read texts through another projection"
    assert not (bundle / "router.onnx").exists()
    loaded = load(bundle, threads=1)
    w = read_projection(loaded)
    assert w is not None
    x, y = pairs(see(loaded, clips[:3]), encode)
    assert 0 < fitted.explained == pytest.approx(1 - np.square(x @ w - y).sum() / np.square(y).sum(), rel=1e-4)
    assert 0 <= fitted.sign.right <= 1

    out = tmp_path / "routed"
    report = train_router(
        bundle, clips[:2], held_out=clips[2:3], steps=20, work=tmp_path / "work", data="four clips", out=out, encode=encode, threads=1
    )
    manifest = read_manifest(out)
    assert report.bundle == out
    assert manifest.router is not None
    assert report.saw_text
    assert {manifest.router.text_encoder} == manifest.digests(GraphRole.TEXT_ENCODER)
    assert (manifest.router.data, manifest.router.steps) == ("four clips", 20)
    saved = json.loads((tmp_path / "work/report.json").read_text())
    assert saved["captured"]["oracle"]["0.25"] == report.captured["oracle"][0.25] > report.captured["random"][0.25]
    assert [line.split()[0] for line in report.table().splitlines()] == ["policy", *(name.split()[0] for name in report.captured)]
    assert report.samples[0] == sum(len(Samples.load(file)) for file in (tmp_path / "work/samples/train").glob("0000[01]-*.npz"))
    weights = torch.load(tmp_path / "work/state.pt", weights_only=True)["module"]
    np.testing.assert_array_equal(weights["text_projection"].numpy(), w)


def test_work_of_another_run_is_refused_and_the_same_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: clips that cannot be tracked a second time; the message names what differs."""
    monkeypatch.setattr(router_training, "add_router", lambda folder, *args, out, **named: out)
    said: list[str] = []

    def run(*, steps: int, scene: int = 0, **change: Any) -> router_training.RouterReport:
        clip = procedural_clip((7, scene), 6)
        clip.name = "always the same"
        return train_router(
            NANO, [clip], held_out=[clip], steps=steps, work=tmp_path / "work", data="x", out=tmp_path / "out", threads=1,
            progress=said.append, **change,
        )  # fmt: skip

    first = run(steps=3)
    assert not first.saw_text
    assert set(first.captured) == {"router", "router as it keeps", "mask", "uniform", "random", "oracle"}
    assert any("learns without descriptions" in line for line in said)
    said.clear()
    monkeypatch.setattr(Recorder, "record", lambda *_, **__: pytest.fail("tracked again"))
    again = run(steps=3)
    assert again.captured == first.captured
    assert "going on from step 3" in said
    with pytest.raises(StateError, match=r"the work of this run in .*got one with another seed, steps\. Choose another --work"):
        run(steps=4, seed=1)
    monkeypatch.undo()
    with pytest.raises(StateError, match=r"got one with another clips to report on, clips to train on\. Choose another --work"):
        run(steps=3, scene=1)


def test_a_bundle_that_is_changed_meanwhile_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router learned from one image encoder must not be put beside another."""
    bundle = with_text_encoder(tmp_path / "bundle", router=False)
    clips = [procedural_clip((7, i), 6) for i in range(2)]

    def replace_encoder(*_: Any, **__: Any) -> Any:
        with changed_bundle(bundle) as (copy, manifest):
            file = next(g.file for g in manifest.graphs if g.role is GraphRole.IMAGE_ENCODER)
            model = onnx.load(copy / file.path)
            model.doc_string = "another"
            onnx.save(model, copy / file.path)
            own = FileEntry.of(copy, PurePosixPath(file.path))
            graphs = tuple(g.model_copy(update={"file": own}) if g.file.path == file.path else g for g in manifest.graphs)
            write_manifest(copy, manifest.model_copy(update={"graphs": graphs}))
        return {}, {}

    monkeypatch.setattr(router_training, "captured_mass", replace_encoder)
    before = {path for path in bundle.iterdir()}
    with pytest.raises(BundleError, match="as it was when this began, got one that another command changed meanwhile"):
        train_router(bundle, clips[:1], held_out=clips[1:], steps=1, work=tmp_path / "work", data="x", threads=1)
    assert {path for path in bundle.iterdir()} == before


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    clip = procedural_clip((7, 0), 3)
    with pytest.raises(BundleError, match="--out for a built-in bundle"):
        train_router_command("nano", work=tmp_path / "work")
    with pytest.raises(BundleError, match="--out for a built-in bundle"):
        fit_text("nano", [clip], held_out=[clip], encode=encode)
    with pytest.raises(BundleError, match="a bundle with a text encoder"):
        fit_text(NANO, [clip], held_out=[clip], encode=encode, out=tmp_path / "out")
    with pytest.raises(PromptError, match="steps >= 1, got 0"):
        train_router_command("nano", steps=0, out=tmp_path / "out", work=tmp_path / "work")
    with pytest.raises(VideoError, match="clips to train on in which an object can be tracked"):
        train_router(NANO, [clip], held_out=[clip], steps=1, work=tmp_path / "work", data="x", out=tmp_path / "out", threads=1)
    with pytest.raises(VideoError, match="the folder of a data set"):
        train_router_command("nano", data=str(tmp_path / "nowhere"), out=tmp_path / "out", work=tmp_path / "work")
    assert not (tmp_path / "out").exists()


def test_clips_to_train_on_and_to_report_on_differ() -> None:
    """Oracle: names, which hold the seeds; the same seed gives the same pictures."""
    train_clips, report_clips = open_clips(PROCEDURAL, clips=3, report_clips=2, frames=4)
    names = [[c.name for c in clips] for clips in (train_clips, report_clips)]
    assert len(set(names[0] + names[1])) == 5
    a, b = procedural_clip((7, 3), 4), procedural_clip((7, 3), 4)
    np.testing.assert_array_equal(a.frames[2], b.frames[2])
    np.testing.assert_array_equal(a.frames[1:][1], a.frames[2])
    assert a.ids == tuple(a.expressions)
    with pytest.raises(VideoError, match="clips >= 1, got 0"):
        open_clips(PROCEDURAL, clips=0, report_clips=1, frames=4)


PLACES = ["train/meta_expressions.json", "train/expression_meta.json", "meta_expressions/train/meta_expressions.json", None]


@pytest.mark.parametrize("place", PLACES)
def test_texts_are_found_where_their_authors_put_them(tmp_path: Path, place: str | None) -> None:
    ids, names = eval_folders.moving(4, {1: 0}), eval_folders.numbers(4)
    for video in ("a", "b"):
        eval_folders.write_frames(tmp_path / "train/JPEGImages" / video, ids, names)
        eval_folders.write_palette(tmp_path / "train/Annotations" / video, dict(zip(names, ids, strict=True)))
    texts = {"videos": {video: {"expressions": {"0": {"exp": f"thing {video}", "obj_id": "1"}}} for video in ("a", "b")}}
    file = tmp_path / (place or "mine.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(texts))
    named = None if place else file
    clips = [c for part in open_clips(str(tmp_path / "train"), clips=1, report_clips=1, frames=4, expressions=named) for c in part]
    assert {c.name: dict(c.expressions) for c in clips} == {video: {1: (f"thing {video}",)} for video in ("a", "b")}
