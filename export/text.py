"""A bundle and a CLIP checkpoint -> the bundle with a text encoder, and with what describes objects automatically.

    checkpoint (transformers: hub id or folder) -> text_encoder.onnx + tokenizer.json + TextEntry, ModelSpec.text_dim
    its image half, where it has one, and a list of phrases -> crop_encoder.onnx + vocabulary.txt (`export/crop.py`)

The text encoder does not depend on the target, so one file serves every target of the bundle. `tokenizer.json` is the fast tokenizer
without truncation; its padding section only records which id pads, because lengths are decided by `runtime/text.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
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
from fastsam2.errors import ExportError, expected, reason
from fastsam2.export.checkpoints import INSTALL
from fastsam2.export.crop import LARGEST_BYTES, ClipImage, export_crop_encoder, load_clip_image, write_vocabulary
from fastsam2.export.exporter import check_complete, graph_entry
from fastsam2.export.rewrites.half_storage import store_half
from fastsam2.vocabulary import DEFAULT_TEMPLATES, DEFAULT_VOCABULARY, check_templates, read_vocabulary

if TYPE_CHECKING:
    import torch

TEXT_ENCODER_FILE, TOKENIZER_FILE = PurePosixPath("text_encoder.onnx"), PurePosixPath("tokenizer.json")
_LEGACY_END = 2  # the eos_token_id of old CLIP configs, which is not the end token; see wrappers/text_encoder.py
_CHECKED_TEXTS = (1, 5)
_OTHER = "Name a CLIP checkpoint on the hub, such as openai/clip-vit-base-patch32, or its folder"


@dataclass(frozen=True, slots=True)
class ClipText:
    """A CLIP checkpoint, as far as it becomes part of a bundle.

    Attributes:
        model: `CLIPModel` or `CLIPTextModelWithProjection`, on the CPU, float32, eval.
        tokenizer: `tokenizers.Tokenizer` that neither truncates nor pads.
        vocabulary: number of ids the model knows.
        begin: id of the begin token.
        end: id of the end token.
        padding: id that fills up to 77: the tokenizer's own, else `end`.
        padding_token: its text.
        image: the image half; None where the checkpoint has none, or it was not asked for.
    """

    model: Any
    tokenizer: Any
    vocabulary: int
    begin: int
    end: int
    padding: int
    padding_token: str
    image: ClipImage | None = None


def add_text(
    bundle: Path | str,
    clip: str,
    *,
    out: Path | None = None,
    vocabulary: Path | None = None,
    templates: Sequence[str] | None = None,
    text_only: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Add the text encoder of a CLIP checkpoint to a bundle, or replace the one it has.

    A checkpoint with an image half gives a crop encoder and a vocabulary as well, which `--text auto` needs; those the bundle had before
    are dropped. So are a text projection or a router that was fitted to another text encoder, and a router whose text input is of
    another width. On any failure the bundle stays as it was.

    Args:
        bundle: folder, or name of a built-in bundle, which then needs `out`.
        clip: hub id or local folder of a transformers CLIP checkpoint (`CLIPModel` or `CLIPTextModelWithProjection`) of any width, with
            a fast tokenizer and a context of 77 tokens.
        out: a new folder for the result; None changes `bundle` itself.
        vocabulary: file with the phrases to choose from, see `read_vocabulary`; None takes the list that ships with the package.
        templates: sentences with one `{}` each, where the phrase goes; `DEFAULT_TEMPLATES` when None.
        text_only: leave out the image half.
        progress: called with one line per step.

    Returns:
        The folder of the result.

    Raises:
        ExportError: if a package is missing, the checkpoint is not such a CLIP, or a graph differs from torch beyond its tolerance; or
            if a vocabulary or templates are given and no crop encoder can be made.
        PromptError: if the vocabulary or the templates are not legal.
        BundleError: if the bundle is not whole, or the result cannot be written.
    """
    say, source_folder = progress or (lambda _: None), bundle_to_change(bundle, out)
    for name in ("torch", "sam2", "onnx", "onnxscript"):
        _package(name, INSTALL)
    phrases = read_vocabulary(DEFAULT_VOCABULARY if vocabulary is None else vocabulary)
    sentences = check_templates(DEFAULT_TEMPLATES if templates is None else templates)
    with changed_bundle(source_folder, out) as (folder, old):
        say(f"loading {clip}")
        text = load_clip_text(clip, text_only=text_only)
        image = text.image
        if image is None and (vocabulary is not None or templates is not None):
            got = "--text-only" if text_only else f"the text half alone in {clip}"
            raise ExportError(expected("an image half for a vocabulary or templates", got, f"{_OTHER}; or leave both out"))
        sizes = {"text_dim": int(text.model.text_projection.out_features)}
        if image is not None:
            sizes["crop_size"] = int(image.model.vision_model.config.image_size)
        spec = ModelSpec(**{**old.model.model_dump(exclude={"crop_size"}), **sizes})
        graphs = [_export(text, spec, folder, say)]
        _write_tokenizer(text, folder / TOKENIZER_FILE)
        entry = TextEntry(source=_source(clip), tokenizer=FileEntry.of(folder, TOKENIZER_FILE))
        if image is None:
            say("no crop encoder: objects of this bundle are described by hand")
        else:
            graphs.append(export_crop_encoder(image, spec, folder, say))
            entry = entry.model_copy(update={"vocabulary": write_vocabulary(phrases, sentences, folder)})
        manifest = _merged(old, spec, graphs, entry, say)
        for gone in {f.path for f in old.files} - {f.path for f in manifest.files}:
            (folder / gone).unlink()
        write_manifest(folder, manifest)
        check_complete(folder)
    result = Path(source_folder if out is None else out)
    say(f"wrote {result}")
    return result


def load_clip_text(clip: str, *, text_only: bool = True) -> ClipText:
    """Load a checkpoint.

    Args:
        clip: see `add_text`.
        text_only: leave `image` out.

    Raises:
        ExportError: see `add_text`.
    """
    transformers = _package("transformers", "Run `pip install torch transformers`")
    with _quiet(transformers):
        model, config, missing = _load_model(transformers, clip)
        fast = _load_tokenizer(transformers, clip)
        image = None if text_only else load_clip_image(model, missing, clip)
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
    return ClipText(model, tokenizer, int(text.vocab_size), begin, end, padding, str(tokenizer.id_to_token(padding)), image)


def _package(name: str, todo: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(expected(f"the package {name} for adding a text encoder", f"an import error ({error})", todo)) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no report of weights that are meant to be left out."""
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


def _load_model(transformers: Any, clip: str) -> tuple[Any, Any, list[str]]:
    """The model, its config, and the names of weights that the checkpoint lacks.

    A whole CLIP is loaded as one: in a text model's place its projection could get another width.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(clip)
    except Exception as error:  # the hub's client and transformers raise many unrelated families
        raise ExportError(expected(f"a CLIP checkpoint in {clip}", reason(error), _OTHER)) from error
    kinds = {"clip": "CLIPModel", "clip_text_model": "CLIPTextModelWithProjection"}
    if config.model_type not in kinds:
        raise ExportError(expected(f"a CLIP checkpoint in {clip}", f"one of type {config.model_type!r}", _OTHER))
    try:
        model, found = getattr(transformers, kinds[config.model_type]).from_pretrained(
            clip, output_loading_info=True, attn_implementation="eager"
        )
    except Exception as error:
        raise ExportError(expected(f"the weights of a CLIP model in {clip}", reason(error), _OTHER)) from error
    lacking = sorted(k for k in found["missing_keys"] if not k.endswith("position_ids"))
    missing = [k for k in lacking if k.startswith("text_")]
    if missing:
        got = f"none for {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        raise ExportError(expected(f"weights of text model and text projection in {clip}", got, _OTHER))
    bytes_needed = sum(4 * p.numel() for part in (model.text_model, model.text_projection) for p in part.parameters())
    if bytes_needed > LARGEST_BYTES:
        got = f"{bytes_needed / 2**30:.1f} GiB in float32"
        raise ExportError(expected(f"a text model of less than 2 GiB in {clip}", got, "Name a smaller CLIP checkpoint"))
    return model.float().eval().requires_grad_(False), config, lacking


def _load_tokenizer(transformers: Any, clip: str) -> Any:
    try:
        fast = transformers.AutoTokenizer.from_pretrained(clip, use_fast=True)
    except Exception as error:
        todo = "Copy tokenizer.json and tokenizer_config.json of the checkpoint into it as well"
        raise ExportError(expected(f"a tokenizer in {clip}", reason(error), todo)) from error
    if not getattr(fast, "is_fast", False):
        todo = "Save it once with AutoTokenizer and its package tokenizers, which writes tokenizer.json"
        raise ExportError(expected(f"a fast tokenizer in {clip}", type(fast).__name__, todo))
    return fast


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
    """The difference to torch on several batch sizes; see `check_samples`."""
    from fastsam2.export.validate import check_samples

    samples = (_random_texts(text, count, seed) for seed, count in enumerate(_CHECKED_TEXTS))
    return check_samples(wrapper, GraphRole.TEXT_ENCODER, samples, file)


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


def _source(clip: str) -> str:
    return Path(clip).resolve().name if Path(clip).is_dir() else clip


def _merged(old: Manifest, spec: ModelSpec, graphs: Sequence[GraphEntry], text: TextEntry, say: Callable[[str], None]) -> Manifest:
    """The old manifest with the graphs of the new CLIP, and with what was fitted to its text encoder and nothing that was to another.

    Args:
        old: of the bundle before.
        spec: of the bundle now.
        graphs: the new text encoder first.
        text: its entry, without a projection.
        say: called with a line for each thing that is dropped.
    """
    graph, kept = graphs[0], [g for g in old.graphs if g.role not in (GraphRole.TEXT_ENCODER, GraphRole.CROP_ENCODER)]
    projection = None if old.text is None else old.text.projection
    if projection is not None and projection.text_encoder != graph.file.sha256:
        say("dropped the text projection, which was fitted to another text encoder: make one with `fastsam2 fit-text`")
        projection = None
    router = old.router
    if router is not None and (spec.text_dim != old.model.text_dim or router.text_encoder not in (None, graph.file.sha256)):
        say("dropped the router, which was trained for another text encoder: make one with `fastsam2 train-router`")
        kept, router = [g for g in kept if g.role not in (GraphRole.ROUTER, GraphRole.ROUTER_GATHER)], None
    added = [g.model_copy(update={"target": target}) for g in graphs for target in old.targets]
    changes = {"model": spec, "graphs": (*kept, *added), "text": text.model_copy(update={"projection": projection}), "router": router}
    return Manifest(**{**dict(old), **changes})
