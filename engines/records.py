"""Engines of a bundle and what is known of them: `engines/<flavor>-<version>-<target>/engines.json`, written and read by the same models.

    build ─► EngineSet ─► engines.json ─► load_engines (runtime) ─► accepted, or why not and the command that builds it again
                                     └──► inspect_engines

An engine belongs to one flavor, one version of it, one target and one ONNX file. The format is described in `docs/engines.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from fastsam2.bundle import FileEntry, Manifest, Sha256, sha256_of
from fastsam2.engines.layers import parse_listing
from fastsam2.engines.profiles import Limits, Profile, profiles
from fastsam2.engines.targets import PORTABLE
from fastsam2.enums import ExportTarget, Flavor, GraphRole, Precision
from fastsam2.errors import BundleError, expected
from fastsam2.files import write_whole

ENGINES = "engines"  # folder inside a bundle
RECORD_NAME = "engines.json"
RECORD_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EngineEntry(_Record):
    """One engine."""

    graph: GraphRole
    precision: Precision
    file: FileEntry  # path relative to the folder of engines.json
    listing: FileEntry  # the builder's layer listing
    source_sha256: Sha256  # of the bundle's ONNX
    recipe_sha256: Sha256  # of what makes the typed network of it
    profiles: tuple[Profile, ...]  # the dense one first; none for static shapes
    options: dict[str, str | bool]  # of the builder
    fused_attention: int = Field(ge=0)  # in the dense profile
    expected_attention: int = Field(ge=0)
    attention: int = Field(ge=0)  # all of the graph
    activation_bytes: int = Field(ge=0)  # of the profile that takes most
    build_seconds: FiniteFloat = Field(ge=0)
    drift: dict[str, FiniteFloat]  # output -> difference to float32, see fastsam2.engines.drift
    created: AwareDatetime  # UTC


class EngineSet(_Record):
    """The content of `engines.json`."""

    record_version: int = RECORD_VERSION
    flavor: Flavor
    version: str  # of the flavor's package
    target: str  # portable, or a compute capability
    limits: Limits
    engines: tuple[EngineEntry, ...] = ()

    @model_validator(mode="after")
    def _no_graph_twice(self) -> EngineSet:
        graphs = [e.graph for e in self.engines]
        if len(set(graphs)) < len(graphs):
            raise ValueError("a graph is listed twice")
        return self

    @property
    def folder_name(self) -> str:
        """Name of the folder under `engines/`."""
        return folder_name(self.flavor, self.version, self.target)

    def engine(self, graph: GraphRole) -> EngineEntry | None:
        """The engine of one graph, if there is one."""
        return next((e for e in self.engines if e.graph is graph), None)

    def with_engine(self, entry: EngineEntry) -> EngineSet:
        """This set with `entry` in the place of the engine of the same graph."""
        others = [e for e in self.engines if e.graph is not entry.graph]
        return self.model_copy(update={"engines": tuple(sorted([*others, entry], key=lambda e: list(GraphRole).index(e.graph)))})


def folder_name(flavor: Flavor, version: str, target: str) -> str:
    """`<flavor>-<version>-<target>`."""
    return f"{flavor.value}-{version}-{target}"


def build_command(bundle: Path, flavor: Flavor, target: str, precision: Precision | None = None, limits: Limits | None = None) -> str:
    """The command that builds a set of engines (again)."""
    words = [f"fastsam2 build {bundle} --flavor {flavor.value} --compute-capability {target}"]
    if precision is not None:
        words.append(f"--precision {precision.value}")
    if limits is not None:
        words.append(f"--max-objects {limits.max_objects}")
        if limits.max_prompt_frames != Limits().max_prompt_frames:
            words.append(f"--max-prompt-frames {limits.max_prompt_frames}")
        words += [f"--keep-buckets {keep:g}" for keep in limits.keep_buckets]
    return " ".join(words)


def write_set(folder: Path, engines: EngineSet) -> None:
    """Writes `engines.json` into `folder`, in one step."""
    write_whole(folder / RECORD_NAME, engines.model_dump_json(indent=2) + "\n")


def read_set(folder: Path) -> EngineSet:
    """Reads the `engines.json` of one folder; its files are not looked at.

    Raises:
        BundleError: if it is missing, damaged, of another version, or lies in a folder of another name.
    """
    file, todo = folder / RECORD_NAME, f"Delete {folder} and build again with `fastsam2 build`"
    try:
        raw = json.loads(text := file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(expected(f"readable JSON in {file}", error, todo)) from error
    version = raw.get("record_version") if isinstance(raw, dict) else None
    if version != RECORD_VERSION:
        raise BundleError(expected(f"record_version {RECORD_VERSION} in {file}", repr(version), todo))
    try:
        engines = EngineSet.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the record"
        raise BundleError(expected(f"a legal {field} in {file}", first["msg"], todo)) from error
    if engines.folder_name != folder.name:
        raise BundleError(expected(f"engines of {folder.name} in {file}", engines.folder_name, todo))
    return engines


def damage(folder: Path, entry: EngineEntry, *, verify: bool = True) -> str | None:
    """What is wrong with the files of one engine, or None.

    Args:
        folder: of the set.
        entry: the engine.
        verify: also compare SHA-256; presence and size always are.
    """
    for file in (entry.file, entry.listing):
        path = folder / file.path
        try:
            if not path.is_file():
                return f"{file.path} is missing"
            if (size := path.stat().st_size) != file.bytes:
                return f"{file.path} has {size} bytes instead of {file.bytes}"
            if verify and sha256_of(path) != file.sha256:
                return f"{file.path} was altered since it was built"
        except OSError as error:
            return f"{file.path} cannot be read ({error})"
    return None


def load_engines(
    bundle: Path, manifest: Manifest, flavor: Flavor, *, version: str, target: str, verify: bool = True
) -> tuple[Path, EngineSet]:
    """The engines of a bundle for one flavor, version and target, after every check that does not need a GPU.

    Args:
        bundle: folder of the bundle.
        manifest: of the bundle.
        flavor: that is going to run them.
        version: of its package.
        target: `portable` or a compute capability; see `targets_for`.
        verify: also compare the SHA-256 of every file.

    Returns:
        Folder that the entries' paths are relative to; the engines, one for each graph of the bundle's target `tensorrt`.

    Raises:
        BundleError: if an engine is missing, damaged, or was built from another ONNX file, for other limits or in another precision than
            the rest; says which and how to build it again.
    """
    folder = Path(bundle) / ENGINES / folder_name(flavor, version, target)
    if not (folder / RECORD_NAME).is_file():
        there = sorted(p.parent.name for p in folder.parent.glob(f"*/{RECORD_NAME}")) if folder.parent.is_dir() else []
        raise BundleError(
            expected(f"engines {folder.name} in {bundle}", f"{there or 'none'}", f"Build them: {build_command(bundle, flavor, target)}")
        )
    engines = read_set(folder)
    precisions = {e.precision for e in engines.engines}
    precision = next(iter(precisions)) if len(precisions) == 1 else None
    todo = f"Build again: {build_command(bundle, flavor, target, precision, engines.limits)}"
    if len(precisions) > 1:
        names = sorted(p.value for p in precisions)
        raise BundleError(expected(f"engines of one precision in {folder}", f"{names}, as an interrupted build leaves them", todo))
    for graph in manifest.graphs:
        if graph.target is not ExportTarget.TENSORRT:
            continue
        entry = engines.engine(graph.role)
        if entry is None:
            raise BundleError(expected(f"an engine of {graph.role.value} in {folder}", "none", todo))
        if entry.source_sha256 != graph.file.sha256:
            raise BundleError(expected(f"an engine of this bundle's {graph.role.value}", f"one of another ONNX file in {folder}", todo))
        if entry.profiles != profiles(manifest.model, graph.role, engines.limits):
            got = "another profile, as an interrupted build leaves it"
            raise BundleError(expected(f"{graph.role.value} in {folder} to have room for {engines.limits}", got, todo))
        if (wrong := damage(folder, entry, verify=verify)) is not None:
            raise BundleError(expected(f"whole engine files in {folder}", wrong, todo))
    return folder, engines


def targets_for(bundle: Path, flavor: Flavor, *, version: str, capability: str) -> tuple[str, ...]:
    """Targets that a bundle has engines for and that run on a GPU, the one made for it first.

    Args:
        bundle: folder of the bundle.
        flavor: that is going to run them.
        version: of its package.
        capability: of the GPU, such as "8.9".
    """
    fitting = (capability, *((PORTABLE,) if tuple(map(int, capability.split("."))) >= (8, 0) else ()))
    return tuple(t for t in fitting if (Path(bundle) / ENGINES / folder_name(flavor, version, t) / RECORD_NAME).is_file())


def inspect_engines(bundle: Path, manifest: Manifest) -> list[Mapping[str, Any]]:
    """Every engine of a bundle, one JSON object each, fused attentions counted again from the kept listing.

    Args:
        bundle: folder of the bundle.
        manifest: of the bundle.

    Raises:
        BundleError: if a record cannot be read, or an engine's files are damaged.
    """
    found: list[Mapping[str, Any]] = []
    sources = {g.role: g.file.sha256 for g in manifest.graphs if g.target is ExportTarget.TENSORRT}
    for file in sorted((Path(bundle) / ENGINES).glob(f"*/{RECORD_NAME}")):
        folder = file.parent
        engines = read_set(folder)
        for entry in engines.engines:
            if (wrong := damage(folder, entry)) is not None:
                todo = f"Build again: {build_command(bundle, engines.flavor, engines.target, entry.precision, engines.limits)}"
                raise BundleError(expected(f"whole engine files in {folder}", wrong, todo))
            listing = parse_listing((folder / entry.listing.path).read_text(encoding="utf-8"))
            found.append(
                {
                    "graph": entry.graph.value,
                    "flavor": engines.flavor.value,
                    "version": engines.version,
                    "target": engines.target,
                    "precision": entry.precision.value,
                    "file": f"{ENGINES}/{folder.name}/{entry.file.path}",
                    "bytes": entry.file.bytes,
                    "sha256": entry.file.sha256,
                    "source_sha256": entry.source_sha256,
                    "of_this_bundle": entry.source_sha256 == sources.get(entry.graph),
                    "profiles": [profile.model_dump(mode="json") for profile in entry.profiles],
                    "fused_attention": len(listing.fused()),
                    "expected_attention": entry.expected_attention,
                    "attention": entry.attention,
                    "activation_bytes": max(listing.activation_bytes, default=entry.activation_bytes),
                    "build_seconds": entry.build_seconds,
                    "drift": dict(entry.drift),
                }
            )
    return found
