"""A bundle and a CLIP checkpoint -> the bundle with a text encoder.

    checkpoint (transformers: hub id or folder) -> text_encoder.onnx + tokenizer.json + TextEntry, ModelSpec.text_dim

The text encoder does not depend on the target, so one file serves every target of the bundle. `tokenizer.json` is the fast tokenizer
without truncation; its padding section only records which id pads, because lengths are decided by `runtime/text.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam2.builtin import bundle_to_change
from fastsam2.bundle import FileEntry, GraphEntry, Manifest, TextEntry, changed_bundle, write_manifest
from fastsam2.config import ModelSpec
from fastsam2.contracts import CLIP_CONTEXT
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import ExportError, expected
from fastsam2.export.checkpoints import INSTALL
from fastsam2.export.exporter import check_complete, graph_entry
from fastsam2.export.rewrites.half_storage import store_half

if TYPE_CHECKING:
    import torch

TEXT_ENCODER_FILE, TOKENIZER_FILE = PurePosixPath("text_encoder.onnx"), PurePosixPath("tokenizer.json")
_LEGACY_END = 2  # the eos_token_id of old CLIP configs, which is not the end token; see wrappers/text_encoder.py
_CHECKED_TEXTS = (1, 5)
_LARGEST_BYTES = 2**31 - 2**20  # of one protobuf file, less what is not weights
_OTHER = "Name a CLIP checkpoint on the hub, such as openai/clip-vit-base-patch32, or its folder"


@dataclass(frozen=True, slots=True)
class ClipText:
    """The text side of a CLIP checkpoint.

    Attributes:
        model: `CLIPModel` or `CLIPTextModelWithProjection`, on the CPU, float32, eval.
        tokenizer: `tokenizers.Tokenizer` that neither truncates nor pads.
        vocabulary: number of ids the model knows.
        begin: id of the begin token.
        end: id of the end token.
        padding: id that fills up to 77: the tokenizer's own, else `end`.
        padding_token: its text.
    """

    model: Any
    tokenizer: Any
    vocabulary: int
    begin: int
    end: int
    padding: int
    padding_token: str


def add_text(bundle: Path | str, clip: str, *, out: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Add the text encoder of a CLIP checkpoint to a bundle, or replace the one it has.

    A text projection or a router that was fitted to another text encoder is dropped, and so is a router whose text input is of another
    width. On any failure the bundle stays as it was.

    Args:
        bundle: folder, or name of a built-in bundle, which then needs `out`.
        clip: hub id or local folder of a transformers CLIP checkpoint (`CLIPModel` or `CLIPTextModelWithProjection`) of any width, with
            a fast tokenizer and a context of 77 tokens.
        out: a new folder for the result; None changes `bundle` itself.
        progress: called with one line per step.

    Returns:
        The folder of the result.

    Raises:
        ExportError: if a package is missing, the checkpoint is not such a CLIP, or the graph differs from torch beyond its tolerance.
        BundleError: if the bundle is not whole, or the result cannot be written.
    """
    say, source_folder = progress or (lambda _: None), bundle_to_change(bundle, out)
    for name in ("torch", "sam2", "onnx", "onnxscript"):
        _package(name, INSTALL)
    with changed_bundle(source_folder, out) as (folder, old):
        say(f"loading the text half of {clip}")
        text = load_clip_text(clip)
        spec = ModelSpec(**{**old.model.model_dump(), "text_dim": int(text.model.text_projection.out_features)})
        graph = _export(text, spec, folder, say)
        _write_tokenizer(text, folder / TOKENIZER_FILE)
        source = Path(clip).resolve().name if Path(clip).is_dir() else clip
        manifest = _merged(old, spec, graph, TextEntry(source=source, tokenizer=FileEntry.of(folder, TOKENIZER_FILE)), say)
        for gone in {f.path for f in old.files} - {f.path for f in manifest.files}:
            (folder / gone).unlink()
        write_manifest(folder, manifest)
        check_complete(folder)
    result = Path(source_folder if out is None else out)
    say(f"wrote {result}")
    return result


def load_clip_text(clip: str) -> ClipText:
    """Load the text side of a checkpoint.

    Args:
        clip: see `add_text`.

    Raises:
        ExportError: see `add_text`.
    """
    transformers = _package("transformers", "Run `pip install torch transformers`")
    with _quiet(transformers):
        model, config = _load_model(transformers, clip)
        fast = _load_tokenizer(transformers, clip)
    text = getattr(config, "text_config", config)
    if text.max_position_embeddings != CLIP_CONTEXT:
        raise ExportError(expected(f"a context of {CLIP_CONTEXT} tokens in {clip}", text.max_position_embeddings, _OTHER))
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_str(fast.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    around: list[int] = tokenizer.encode("").ids
    if len(around) != 2:
        raise ExportError(expected(f"a tokenizer in {clip} that puts begin and end round a text", f"{len(around)} tokens round ''", _OTHER))
    begin, end = around
    padding = end if fast.pad_token_id is None else int(fast.pad_token_id)
    known = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(known.values())
    if largest >= text.vocab_size or len(known) <= 256:
        got = f"ids up to {largest} for {len(known)} tokens"
        raise ExportError(expected(f"a tokenizer in {clip} for the model's {text.vocab_size} ids", got, "Take both from one checkpoint"))
    wanted = max(largest, end, padding) if text.eos_token_id == _LEGACY_END else text.eos_token_id
    if end != wanted:
        raise ExportError(
            expected(f"{clip} to take its embedding at the end token {end}", f"a config that takes it at {wanted}", "Mend its eos_token_id")
        )
    return ClipText(model, tokenizer, int(text.vocab_size), begin, end, padding, str(tokenizer.id_to_token(padding)))


def _package(name: str, todo: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(expected(f"the package {name} for adding a text encoder", f"an import error ({error})", todo)) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no report of the vision half's weights, which are meant to be left out."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load_model(transformers: Any, clip: str) -> tuple[Any, Any]:
    """The model and its config. A whole CLIP is loaded as one: in a text model's place its projection could get another width."""
    try:
        config = transformers.AutoConfig.from_pretrained(clip)
    except Exception as error:  # the hub's client and transformers raise many unrelated families
        raise ExportError(expected(f"a CLIP checkpoint in {clip}", _reason(error), _OTHER)) from error
    kinds = {"clip": "CLIPModel", "clip_text_model": "CLIPTextModelWithProjection"}
    if config.model_type not in kinds:
        raise ExportError(expected(f"a CLIP checkpoint in {clip}", f"one of type {config.model_type!r}", _OTHER))
    try:
        model, found = getattr(transformers, kinds[config.model_type]).from_pretrained(
            clip, output_loading_info=True, attn_implementation="eager"
        )
    except Exception as error:
        raise ExportError(expected(f"the weights of a CLIP model in {clip}", _reason(error), _OTHER)) from error
    missing = sorted(k for k in found["missing_keys"] if k.startswith("text_") and not k.endswith("position_ids"))
    if missing:
        got = f"none for {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        raise ExportError(expected(f"weights of text model and text projection in {clip}", got, _OTHER))
    bytes_needed = sum(4 * p.numel() for part in (model.text_model, model.text_projection) for p in part.parameters())
    if bytes_needed > _LARGEST_BYTES:
        got = f"{bytes_needed / 2**30:.1f} GiB in float32"
        raise ExportError(expected(f"a text model of less than 2 GiB in {clip}", got, "Name a smaller CLIP checkpoint"))
    return model.float().eval().requires_grad_(False), config


def _load_tokenizer(transformers: Any, clip: str) -> Any:
    try:
        fast = transformers.AutoTokenizer.from_pretrained(clip, use_fast=True)
    except Exception as error:
        todo = "Copy tokenizer.json and tokenizer_config.json of the checkpoint into it as well"
        raise ExportError(expected(f"a tokenizer in {clip}", _reason(error), todo)) from error
    if not getattr(fast, "is_fast", False):
        todo = "Save it once with AutoTokenizer and its package tokenizers, which writes tokenizer.json"
        raise ExportError(expected(f"a fast tokenizer in {clip}", type(fast).__name__, todo))
    return fast


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(".:")


def _export(text: ClipText, spec: ModelSpec, folder: Path, say: Callable[[str], None]) -> GraphEntry:
    from fastsam2.export.to_onnx import export_graph
    from fastsam2.export.wrappers.text_encoder import TextEncoderGraph

    wrapper, target, file = TextEncoderGraph(text.model), ExportTarget.ONNXRUNTIME, folder / TEXT_ENCODER_FILE
    say(f"exporting {TEXT_ENCODER_FILE}")
    export_graph(wrapper, spec, GraphRole.TEXT_ENCODER, target, file)
    store_half(file)
    say(f"checking {TEXT_ENCODER_FILE} against torch")
    checks = {"text": _check(wrapper, text, file)}
    return graph_entry(GraphRole.TEXT_ENCODER, target, folder, TEXT_ENCODER_FILE, checks)


def _check(wrapper: torch.nn.Module, text: ClipText, file: Path) -> float:
    """Root mean square difference to torch / standard deviation of torch's output, the worst of several batch sizes.

    Raises:
        ExportError: beyond `validate.TOLERANCE`.
    """
    import onnxruntime as ort
    import torch

    from fastsam2.export.validate import TOLERANCE

    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for seed, count in enumerate(_CHECKED_TEXTS):
        ids = _random_texts(text, count, seed)
        with torch.inference_mode():
            want = wrapper(torch.from_numpy(ids)).numpy().astype(np.float64)
        (have,) = session.run(["text"], {"ids": ids})
        deviation = float("inf") if have.shape != want.shape else float(np.sqrt(np.mean(np.square(want - have))) / max(want.std(), 1e-12))
        worst = max(worst, deviation)
    if not worst <= TOLERANCE:
        raise ExportError(
            expected(
                f"{GraphRole.TEXT_ENCODER.value} within {TOLERANCE:g} of torch, relative to its spread",
                f"{worst:.3g}",
                "The exported graph is wrong for this checkpoint or this torch version; please report both",
            )
        )
    return worst


def _random_texts(text: ClipText, count: int, seed: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """int32 [count, 77]: texts of 1 to 75 random tokens between begin and end, the longest first."""
    rng = np.random.default_rng(seed)
    ids = np.full((count, CLIP_CONTEXT), text.padding, np.int32)
    ordinary = np.setdiff1d(np.arange(text.vocabulary), [text.begin, text.end, text.padding])
    for row, words in zip(ids, [CLIP_CONTEXT - 2, *rng.integers(1, CLIP_CONTEXT - 1, count - 1)], strict=True):
        row[: words + 2] = [text.begin, *rng.choice(ordinary, words), text.end]
    return ids


def _write_tokenizer(text: ClipText, file: Path) -> None:
    text.tokenizer.enable_padding(length=CLIP_CONTEXT, pad_id=text.padding, pad_token=text.padding_token)
    text.tokenizer.save(str(file))
    text.tokenizer.no_padding()


def _merged(old: Manifest, spec: ModelSpec, graph: GraphEntry, text: TextEntry, say: Callable[[str], None]) -> Manifest:
    """The old manifest with the new text encoder, and with what was fitted to it and nothing that was fitted to another."""
    kept = [g for g in old.graphs if g.role is not GraphRole.TEXT_ENCODER]
    projection = None if old.text is None else old.text.projection
    if projection is not None and projection.text_encoder != graph.file.sha256:
        say("dropped the text projection, which was fitted to another text encoder: make one with `fastsam2 fit-text`")
        projection = None
    router = old.router
    if router is not None and (spec.text_dim != old.model.text_dim or router.text_encoder not in (None, graph.file.sha256)):
        say("dropped the router, which was trained for another text encoder: make one with `fastsam2 train-router`")
        kept, router = [g for g in kept if g.role is not GraphRole.ROUTER], None
    added = [graph.model_copy(update={"target": target}) for target in old.targets]
    changes = {"model": spec, "graphs": (*kept, *added), "text": text.model_copy(update={"projection": projection}), "router": router}
    return Manifest(**{**dict(old), **changes})
