"""Bundle -> engines: `fastsam2 build`.

    graph.onnx ─ convert ─► typed.onnx ─ drift within budget? ─ builder_form ─► build_engine ─► fused? small enough? ─► engines/<...>/

A graph is built again when its ONNX, the precision, the recipe, the profiles or the builder's options differ from what `engines.json` says
of the engine that is there. Engine, listing and record each appear under their name when they are complete, the record last: an
interrupted build leaves the engines that were finished, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from fastsam2.builtin import PathLike, bundle_to_change
from fastsam2.bundle import FileEntry, GraphEntry, Manifest, changed_bundle, read_manifest, write_manifest
from fastsam2.contracts import PLUGIN_ROLES
from fastsam2.engines import drift as drifts
from fastsam2.engines import trt_compat
from fastsam2.engines.builder import OPTIONS, Built, build_engine
from fastsam2.engines.fusion import Expectation, check_activation, check_fusion, expect
from fastsam2.engines.layers import parse_listing
from fastsam2.engines.network_form import builder_form
from fastsam2.engines.plugins import check_flavor, register_plugins, with_layers, without_layers
from fastsam2.engines.precision import convert
from fastsam2.engines.precision_samples import Sample, samples
from fastsam2.engines.profiles import Limits, Profile, profiles
from fastsam2.engines.records import (
    ENGINES,
    RECORD_NAME,
    EngineEntry,
    EngineSet,
    damage,
    folder_name,
    read_set,
    write_set,
)
from fastsam2.engines.targets import default_target, resolve_target
from fastsam2.enums import ExportTarget, Flavor, GraphRole, Precision
from fastsam2.errors import BackendError, BundleError, expected
from fastsam2.files import write_whole

Say = Callable[[str], None]
_RECIPE = ("precision.py", "precision.toml", "network_form.py")  # what the typed network depends on besides the graph and the precision


def build_engines(
    bundle: PathLike,
    *,
    flavor: Flavor | str | None = None,
    precision: Precision | str = Precision.FP16,
    targets: Sequence[str] = (),
    limits: Limits | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Say | None = None,
) -> tuple[Path, ...]:
    """Build an engine of every graph that a bundle has for the target `tensorrt`, where there is none that fits.

    Args:
        bundle: name of a built-in bundle, or a bundle's folder.
        flavor: that builds; None takes the one that is installed.
        precision: of the engines.
        targets: compute capabilities, `portable` or `current`, a set of engines for each; none means the flavor's default.
        limits: sizes that the engines are to have room for.
        out: a bundle to make, or to go on with, as a copy of `bundle` with engines; None puts them into the bundle itself.
        force: accept drift beyond its budget, attentions that are not fused, and activation memory beyond its limit.
        progress: called with one line per step.

    Returns:
        The folders of the sets, in the order of `targets`.

    Raises:
        BackendError: if the flavor is missing, cannot build for a target or in the precision, has no plugins and a graph needs one, or a
            graph fails: to build, by unfused attention, activation memory or drift.
        BundleError: if the bundle is damaged, has no graphs for TensorRT, or cannot be written to.
    """
    say = progress or (lambda _: None)
    if find_spec("onnx") is None:
        raise BackendError(expected("the Python package onnx, which types graphs", "no such package", "Run: pip install onnx"))
    chosen = _flavor(flavor)
    trt = trt_compat.load(chosen)
    precision = Precision(precision)
    names = dict.fromkeys(resolve_target(text, chosen, trt, precision) for text in targets or (default_target(chosen),))
    folder, manifest = _bundle(bundle, out, chosen)
    register_plugins(manifest, trt)
    with tempfile.TemporaryDirectory(prefix="fastsam2-build-") as scratch:
        work = _Work(folder, manifest, chosen, trt, precision, limits or Limits(), force, Path(scratch), say)
        return tuple(work.build_set(target) for target in names)


def _flavor(flavor: Flavor | str | None) -> Flavor:
    if flavor is not None:
        try:
            return Flavor(flavor)
        except ValueError as error:
            raise BackendError(expected(f"a flavor of {[f.value for f in Flavor]}", flavor, "Pick one of those names")) from error
    installed = trt_compat.available()
    if len(installed) == 1:
        return installed[0]
    got = "both" if installed else "neither"
    todo = "Name one with --flavor" if installed else f"Run: pip install {trt_compat.PACKAGES[Flavor.TENSORRT_RTX].pip} (needs no GPU)"
    raise BackendError(expected("tensorrt or tensorrt_rtx to be installed", got, todo))


def _bundle(bundle: PathLike, out: Path | None, flavor: Flavor) -> tuple[Path, Manifest]:
    """The folder that gets the engines, and its manifest."""
    source = bundle_to_change(bundle, out)
    ours = read_manifest(source)
    ours.graph(GraphRole.IMAGE_ENCODER, ExportTarget.TENSORRT)  # or the error that names the export
    check_flavor(ours, flavor)
    if out is None:
        return source, ours
    if not Path(out).exists():
        with changed_bundle(source, out) as (copy, manifest):
            write_manifest(copy, manifest)
        return Path(out), manifest
    theirs = read_manifest(out)
    if theirs.graphs != ours.graphs:
        raise BundleError(expected(f"a new folder, or a copy of {bundle}", f"another bundle in {out}", "Choose another --out"))
    return Path(out), theirs


def recipe() -> str:
    """SHA-256 of the files that decide what typed network a graph becomes."""
    here = Path(__file__).parent
    return hashlib.sha256(b"\0".join((here / name).read_bytes() for name in _RECIPE)).hexdigest()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the engine of one graph is to be made of."""

    precision: Precision
    source_sha256: str
    recipe_sha256: str
    profiles: tuple[Profile, ...]
    options: Mapping[str, str | bool]

    def why_build(self, folder: Path, entry: EngineEntry | None) -> str | None:
        """Why the engine that is there does not do, or None when it does."""
        if entry is None:
            return "no engine yet"
        if entry.source_sha256 != self.source_sha256:
            return "the bundle's graph changed"
        if entry.precision is not self.precision:
            return f"{self.precision.value} instead of {entry.precision.value}"
        if entry.recipe_sha256 != self.recipe_sha256:
            return "this release types the graph in another way"
        if entry.profiles != self.profiles:
            return "other profiles"
        if entry.options != dict(self.options):
            return "other builder options"
        return damage(folder, entry)


@dataclass(slots=True)
class _Work:
    """One call of `build_engines`: what its graphs and targets share."""

    folder: Path
    manifest: Manifest
    flavor: Flavor
    trt: Any
    precision: Precision
    limits: Limits
    force: bool
    scratch: Path
    say: Say
    typed: dict[GraphRole, tuple[Path, dict[str, float]]] = field(default_factory=dict)
    calls: dict[GraphRole, list[Sample]] = field(default_factory=dict)

    def build_set(self, target: str) -> Path:
        """The set of engines for one target."""
        version = str(self.trt.__version__)
        folder = self.folder / ENGINES / folder_name(self.flavor, version, target)
        fresh = EngineSet(flavor=self.flavor, version=version, target=target, limits=self.limits)
        engines = fresh.model_copy(update={"engines": self._there(folder)})
        graphs = [g for g in self.manifest.graphs if g.target is ExportTarget.TENSORRT]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for graph in graphs:
                wanted = Wanted(
                    self.precision, graph.file.sha256, recipe(), profiles(self.manifest.model, graph.role, self.limits), dict(OPTIONS)
                )
                why = wanted.why_build(folder, engines.engine(graph.role))
                label = f"{graph.role.value} for {self.flavor.value} {version}, {target}"
                if why is None:
                    self.say(f"{label}: up to date")
                    continue
                self.say(f"{label}: building ({why})")
                entry = self._build(graph, wanted, folder, target)
                engines = engines.with_engine(entry)
                write_set(folder, engines)
                self.say(f"{label}: {_summary(entry)}")
            write_set(folder, engines)
        except OSError as error:
            raise BundleError(expected(f"a writable {folder}", error, "Free space, or choose a folder with --out")) from error
        return folder

    def _there(self, folder: Path) -> tuple[EngineEntry, ...]:
        """Engines of an earlier build, without those of graphs that the bundle no longer has."""
        if not (folder / RECORD_NAME).is_file():
            return ()
        try:
            found = read_set(folder).engines
        except BundleError as error:
            self.say(f"building everything again: {error}")
            return ()
        roles = {g.role for g in self.manifest.graphs if g.target is ExportTarget.TENSORRT}
        return tuple(e for e in found if e.graph in roles)

    def _build(self, graph: GraphEntry, wanted: Wanted, folder: Path, target: str) -> EngineEntry:
        role = graph.role
        typed, drift = self._type(graph)
        expectations = self._expect(graph, wanted.profiles)
        built = build_engine(
            builder_form(typed),
            role.value,
            wanted.profiles,
            trt=self.trt,
            flavor=self.flavor,
            target=target,
            timing_cache=folder / "timing.cache",
        )
        listing = parse_listing(built.listing)
        activation = max(listing.activation_bytes, default=0)
        for index, expectation in enumerate(expectations):
            self._accept(partial(check_fusion, listing, expectation, role, self.precision, profile=index))
            for why, count in Counter(reason for _, reason in expectation.unfused).items():
                where = f", profile {wanted.profiles[index].name}" if wanted.profiles else ""
                self.say(f"{role.value}{where}: {count} of {expectation.attentions} attentions cannot fuse: {why}")
        largest = wanted.profiles[0] if wanted.profiles else None
        self._accept(partial(check_activation, activation, self.manifest.model, role, self.precision, largest))
        engine, kept = _place(folder, role, built)
        return EngineEntry(
            graph=role,
            precision=wanted.precision,
            file=engine,
            listing=kept,
            source_sha256=wanted.source_sha256,
            recipe_sha256=wanted.recipe_sha256,
            profiles=wanted.profiles,
            options=dict(wanted.options),
            fused_attention=len(listing.fused()),
            expected_attention=expectations[0].fused,
            attention=expectations[0].attentions,
            activation_bytes=activation,
            build_seconds=built.seconds,
            drift=drift,
            created=datetime.now(timezone.utc),
        )

    def _expect(self, graph: GraphEntry, profiles: Sequence[Profile]) -> list[Expectation]:
        """One expectation for each profile, or one for a graph of static shapes."""
        import onnx

        source = onnx.load(self.folder / graph.file.path)
        return [expect(source, self.manifest.model, graph.role, self.precision, profile) for profile in profiles or (None,)]

    def _type(self, graph: GraphEntry) -> tuple[Path, dict[str, float]]:
        """The typed ONNX of a graph and its drift; made once for all targets."""
        role = graph.role
        if role not in self.typed:
            source, typed = self.folder / graph.file.path, self.scratch / f"{role.value}.onnx"
            layers = None
            if role in PLUGIN_ROLES:
                standard = self.scratch / f"{role.value}.standard.onnx"
                source, layers = standard, without_layers(source, standard)
            convert(source, typed, role, self.precision)
            if not self.calls:
                self.say("running the float32 graphs, to measure drift against them")
                self.calls = samples(self.folder, self.manifest)
            drift = drifts.measure(typed, role, self.calls[PLUGIN_ROLES.get(role, role)])
            self._accept(partial(drifts.check, drift, role, self.precision))
            if layers is not None:
                with_layers(typed, layers)
            self.typed[role] = typed, drift
        return self.typed[role]

    def _accept(self, check: Callable[[], None]) -> None:
        """Raises what a check raises, or with `force` only says it."""
        try:
            check()
        except BackendError as error:
            if not self.force:
                raise
            self.say(f"accepted because of --force: {error}")


def _place(folder: Path, role: GraphRole, built: Built) -> tuple[FileEntry, FileEntry]:
    """Writes engine and listing under their names, each in one step."""
    entries = []
    for name, content in ((f"{role.value}.engine", built.engine), (f"{role.value}.layers.txt", built.listing.encode())):
        write_whole(folder / name, content)
        entries.append(FileEntry.of(folder, PurePosixPath(name)))
    return entries[0], entries[1]


def _summary(entry: EngineEntry) -> str:
    drift = max(entry.drift.values(), default=0.0)
    return (
        f"{entry.build_seconds:.1f} s, {entry.file.bytes / 1e6:.1f} MB, {entry.fused_attention} of {entry.attention} attentions fused "
        f"({entry.expected_attention} expected), {entry.activation_bytes / 1e6:.0f} MB of activations, drift at most {drift:.1e}"
    )
