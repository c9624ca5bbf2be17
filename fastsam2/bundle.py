"""The bundle: a folder of ONNX graphs and a `manifest.json`, written and read by the same models.

    export ─► new_bundle ─► write_manifest ─► folder ─► read_manifest ─► runtime
    text encoder, router ─► changed_bundle ─► write_manifest ─┘

The format, the versioning rule and every reason for a refusal are described in `docs/bundle.md`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from fastsam2.config import ModelSpec
from fastsam2.contracts import MANIFEST_VERSION, PLUGIN_ROLES, TensorSpec, graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError, expected
from fastsam2.vocabulary import check_templates

MANIFEST_NAME = "manifest.json"
_HASH_CHUNK_BYTES = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Record):
    """One file of the bundle."""

    path: str  # relative to the bundle's folder, "/" between parts
    bytes: int = Field(ge=0)
    sha256: Sha256  # lower-case hex

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = path.split("/")
        if any(p in ("", ".", "..") for p in parts) or any(c in path for c in "\\:\0"):
            raise ValueError(f"{path!r} is not a plain relative path inside the bundle")
        return path

    @classmethod
    def of(cls, folder: Path, path: PurePosixPath) -> FileEntry:
        """Measures the file `folder`/`path`, which must exist."""
        file = folder / path
        return cls(path=str(path), bytes=file.stat().st_size, sha256=sha256_of(file))


class TensorEntry(_Record):
    """One input or output of a graph; axes are the symbols of `fastsam2.contracts`."""

    name: str
    dtype: str  # numpy dtype name
    axes: tuple[str, ...]

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorEntry:
        """The entry that `spec` asks for."""
        return cls(name=spec.name, dtype=spec.dtype, axes=spec.axes)


class GraphEntry(_Record):
    """One graph. Entries of different targets may name the same file when the graph does not depend on the target."""

    role: GraphRole
    target: ExportTarget
    file: FileEntry
    opset: int = Field(gt=0)  # of the default ONNX domain
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    checks: dict[str, FiniteFloat]  # output -> largest |difference| to torch measured at export / standard deviation of the output


class ProjectionEntry(_Record):
    """A linear map from text embeddings to tokens, fitted in closed form (`fastsam2 fit-text`)."""

    file: FileEntry  # .npy, float32 [E, C]
    image_encoder: Sha256  # of the graphs it was fitted to
    text_encoder: Sha256
    samples: int = Field(gt=0)
    ridge: FiniteFloat = Field(ge=0)
    condition: FiniteFloat  # condition number of the regularised normal equations


class VocabularyEntry(_Record):
    """What the crop encoder of a bundle that has one chooses from."""

    file: FileEntry  # vocabulary.txt, as `fastsam2.vocabulary` reads it
    phrases: int = Field(gt=0)  # how many there are
    templates: tuple[str, ...]  # sentences with one {}, where the phrase goes

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        return check_templates(templates)


class TextEntry(_Record):
    """What belongs to the text encoder of a bundle that has one."""

    source: str  # hub id, or name of the folder it came from
    tokenizer: FileEntry  # tokenizer.json, as the package tokenizers reads it
    projection: ProjectionEntry | None = None
    vocabulary: VocabularyEntry | None = None  # goes with the crop_encoder graph, the image half of the same CLIP


class RouterEntry(_Record):
    """What the router of a bundle that has one was trained on."""

    image_encoder: Sha256  # of the graphs
    text_encoder: Sha256 | None  # None: it never saw a text
    data: str  # what clips
    steps: int = Field(gt=0)
    dropout_samples: int = Field(default=0, ge=0)  # patterns of dropped hidden values that scores are the mean of


class Origin(_Record):
    """Where the weights came from and what exported them."""

    model: str
    checkpoint: str  # file name, random:<seed> or hub id
    checkpoint_sha256: Sha256 | None  # None for random weights
    config: str  # path inside the sam2 package, or the name of a user's file
    torch: str  # versions
    sam2: str
    onnx: str
    created: AwareDatetime  # UTC


class Manifest(_Record):
    """The content of `manifest.json`."""

    manifest_version: int = MANIFEST_VERSION
    fastsam2_version: str
    precision: Literal["fp32"] = "fp32"
    model: ModelSpec
    graphs: tuple[GraphEntry, ...] = Field(min_length=1)
    origin: Origin
    text: TextEntry | None = None
    router: RouterEntry | None = None

    @model_validator(mode="after")
    def _no_graph_twice(self) -> Manifest:
        keys = [(g.role.value, g.target.value) for g in self.graphs]
        twice = sorted({k for k in keys if keys.count(k) > 1})
        if twice:
            raise ValueError(f"graphs listed twice: {twice}")
        return self

    @model_validator(mode="after")
    def _companions_have_graphs(self) -> Manifest:
        roles = {g.role for g in self.graphs}
        vocabulary = None if self.text is None else self.text.vocabulary
        for role, entry in (
            (GraphRole.TEXT_ENCODER, self.text),
            (GraphRole.CROP_ENCODER, vocabulary),
            (GraphRole.ROUTER, self.router),
        ):
            if (role in roles) != (entry is not None):
                raise ValueError(f"a {role.value} graph and its entry go together; only one of them is there")
        for role, plain in PLUGIN_ROLES.items():
            if role in roles and plain not in roles:
                raise ValueError(f"a {role.value} graph goes with the {plain.value} graph that it was made from, which is not there")
        return self

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the bundle but the manifest, each once."""
        extra = [] if self.text is None else [self.text.tokenizer]
        if self.text is not None and self.text.projection is not None:
            extra.append(self.text.projection.file)
        if self.text is not None and self.text.vocabulary is not None:
            extra.append(self.text.vocabulary.file)
        return tuple(dict.fromkeys([*(g.file for g in self.graphs), *extra]))

    def digests(self, role: GraphRole) -> frozenset[str]:
        """SHA-256 of the graphs of `role`, of all targets; empty where there is none."""
        return frozenset(g.file.sha256 for g in self.graphs if g.role is role)

    @property
    def targets(self) -> tuple[ExportTarget, ...]:
        """The targets that have graphs here, in the order of the enum."""
        return tuple(t for t in ExportTarget if any(g.target is t for g in self.graphs))

    def graph(self, role: GraphRole, target: ExportTarget) -> GraphEntry:
        """The graph of `role` shaped for `target`.

        Raises:
            BundleError: if the bundle has no such graph.
        """
        for entry in self.graphs:
            if entry.role is role and entry.target is target:
                return entry
        wanted = [t.value for t in ExportTarget if t is target or t in self.targets]
        checkpoint = "hub" if "/" in self.origin.checkpoint else self.origin.checkpoint  # file names and random:<seed> have no slash
        raise BundleError(
            expected(
                f"{'an' if role.value[0] in 'aeiou' else 'a'} {role.value} graph for target {target.value}",
                f"a bundle with targets {[t.value for t in self.targets]} and roles {sorted({g.role.value for g in self.graphs})}",
                f"Export again: fastsam2 export --model {self.model.name} --checkpoint {checkpoint} --image-size {self.model.image_size} "
                + " ".join(f"--target {t}" for t in wanted)
                + (" --query-attention" if role is GraphRole.QUERY_ATTENTION else "")
                + " --out FOLDER",
            )
        )


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, lower-case hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into `folder`."""
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path, *, verify: bool = True) -> Manifest:
    """Reads and checks a bundle.

    Args:
        folder: the bundle.
        verify: also compare every file's SHA-256; presence and size are always compared.

    Raises:
        BundleError: if the bundle is missing, incomplete, altered, malformed or of another manifest version; says which and what to do.
    """
    folder = Path(folder)
    manifest = _parse(folder)
    for entry in manifest.graphs:
        _check_tensors(entry)
    for file in manifest.files:
        _check_file(folder, file, verify=verify)
    _check_companions(folder, manifest)
    return manifest


@contextmanager
def changed_bundle(folder: Path, out: Path | None = None) -> Iterator[tuple[Path, Manifest]]:
    """A copy of a bundle to add files to. When the block ends well it takes the bundle's place, or appears as `out`.

    Args:
        folder: the bundle.
        out: a new folder; None replaces the bundle by two renames, and leaves it as it was when the block fails.

    Yields:
        The copy, to write files and the new manifest into; the present manifest.

    Raises:
        BundleError: if the bundle is not whole or was changed meanwhile, or the result cannot be written.
    """
    manifest = read_manifest(folder)
    with new_bundle(folder if out is None else out, overwrite=out is None) as copy:
        for entry in manifest.files:
            (copy / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / entry.path, copy / entry.path)
        yield copy, manifest
        if out is None and read_manifest(folder) != manifest:
            todo = "Call again, one command after the other"
            raise BundleError(expected(f"{folder} as it was read", "a bundle that another command changed meanwhile; it was kept", todo))


@contextmanager
def new_bundle(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well and disappears when it does not.

    Args:
        out: where the bundle is to appear.
        overwrite: replace an existing bundle (or empty folder), at the end and by two renames; other folders are never replaced.

    Yields:
        The temporary folder, empty.

    Raises:
        BundleError: if `out` exists and may not be replaced, or its parent is not writable.
    """
    out = Path(out).resolve()
    _check_replaceable(out, overwrite=overwrite)
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = out.with_name(f".{out.name}.partial-{unique}")
    replaced = out.with_name(f".{out.name}.replaced-{unique}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise BundleError(expected("a folder to write in", f"{out.parent} ({error})", "Choose another --out")) from error
    try:
        yield partial
        _check_replaceable(out, overwrite=overwrite)
        _swap(partial, out, replaced)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def _check_replaceable(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise BundleError(expected("a path that does not exist yet", out, "Choose another --out; `fastsam2 export` also has --overwrite"))
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_NAME).is_file()):
        raise BundleError(expected("a bundle to overwrite", f"{out}, which is not a bundle", "Choose another --out; nothing was removed"))


def _swap(partial: Path, out: Path, replaced: Path) -> None:
    try:
        if out.exists():
            out.rename(replaced)
        try:
            partial.rename(out)
        except BaseException:
            if replaced.exists():
                replaced.rename(out)
            raise
    except OSError as error:
        raise BundleError(expected(f"to name the finished bundle {out}", error, "Choose another --out and export again")) from error


def _parse(folder: Path) -> Manifest:
    export_again = "Export the bundle again with `fastsam2 export`, or copy it again in full"
    if not folder.is_dir():
        raise BundleError(expected("a bundle folder", f"{folder}, which is no folder", "Make one with `fastsam2 export`"))
    file = folder / MANIFEST_NAME
    if not file.is_file():
        raise BundleError(expected(f"{MANIFEST_NAME} in {folder}", "a folder without it", "Name the folder that `fastsam2 export` wrote"))
    try:
        text = file.read_text(encoding="utf-8")
        raw = json.loads(text)
    except (OSError, ValueError) as error:  # ValueError: broken UTF-8 or broken JSON
        raise BundleError(expected(f"readable JSON in {file}", f"a broken or truncated file ({error})", export_again)) from error
    version = raw.get("manifest_version") if isinstance(raw, dict) else None
    if type(version) is not int:
        raise BundleError(expected(f"an integer manifest_version in {file}", repr(version), export_again))
    if version != MANIFEST_VERSION:
        todo = "Upgrade fastsam2: a newer release wrote it" if version > MANIFEST_VERSION else "Export again with this release"
        raise BundleError(expected(f"manifest_version {MANIFEST_VERSION} in {file}", version, todo))
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise BundleError(expected(f"a legal {field} in {file}", first["msg"], export_again)) from error


def _check_tensors(entry: GraphEntry) -> None:
    where = f"{entry.role.value} for {entry.target.value}"
    todo = "Another release wrote this bundle: export again with this one"
    spec = graph_spec(entry.role, entry.target)
    for kind, listed, wanted in (("inputs", entry.inputs, spec.inputs), ("outputs", entry.outputs, spec.outputs)):
        table = tuple(TensorEntry.of(t) for t in wanted)
        if listed == table:
            continue
        if len(listed) != len(table):
            raise BundleError(expected(f"{kind} {[t.name for t in table]} of {where}", [t.name for t in listed], todo))
        have, want = next(pair for pair in zip(listed, table, strict=True) if pair[0] != pair[1])
        raise BundleError(expected(f"{kind} of {where} to hold {_text(want)}", _text(have), todo))


def _check_companions(folder: Path, manifest: Manifest) -> None:
    """The router and the text projection were made for the graphs they lie beside."""
    fitted: list[tuple[str, str, str, str | None]] = []
    if manifest.router is not None:
        fitted.append(("a router", "fastsam2 train-router", manifest.router.image_encoder, manifest.router.text_encoder))
    if manifest.text is not None and manifest.text.projection is not None:
        projection = manifest.text.projection
        fitted.append(("a text projection", "fastsam2 fit-text", projection.image_encoder, projection.text_encoder))
    for what, command, image, text in fitted:
        for role, digest in ((GraphRole.IMAGE_ENCODER, image), (GraphRole.TEXT_ENCODER, text)):
            if digest is not None and digest not in manifest.digests(role):
                raise BundleError(
                    expected(f"{what} for the {role.value} of {folder}", "one of another model", f"Make it again with `{command}`")
                )


def _text(tensor: TensorEntry) -> str:
    return f"{tensor.name} {tensor.dtype} [{', '.join(tensor.axes)}]"


def _check_file(folder: Path, entry: FileEntry, *, verify: bool) -> None:
    file = folder / entry.path
    todo = "Copy the bundle again in full, or export it again with `fastsam2 export`"
    try:
        if not file.is_file():
            raise BundleError(expected(f"file {entry.path} in {folder}", "none", todo))
        size = file.stat().st_size
        if size != entry.bytes:
            raise BundleError(expected(f"{entry.bytes} bytes in {file}", f"{size} bytes (truncated or replaced)", todo))
        if verify and (digest := sha256_of(file)) != entry.sha256:
            raise BundleError(expected(f"SHA-256 {entry.sha256} of {file}", f"{digest} (altered since export)", todo))
    except OSError as error:
        raise BundleError(expected(f"a readable {file}", error, "Check its permissions")) from error
