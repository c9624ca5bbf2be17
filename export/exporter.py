"""Exporter -> Bundle: every graph of a model for every target, checked against torch, and the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import fastsam2
from fastsam2.bundle import FileEntry, GraphEntry, Manifest, TensorEntry, new_bundle, read_manifest, write_manifest
from fastsam2.contracts import BASE_ROLES, graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import ExportError, InternalError, expected
from fastsam2.export.checkpoints import LoadedModel, build_model
from fastsam2.export.rewrites.half_storage import store_half

ALL_TARGETS = (ExportTarget.ONNXRUNTIME, ExportTarget.TENSORRT)


def export_bundle(
    model: str,
    checkpoint: str,
    out: Path,
    *,
    image_size: int | None = None,
    postprocessing: bool = True,
    targets: Sequence[ExportTarget] = ALL_TARGETS,
    query_attention: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Export a model. The bundle appears under its name when it is complete and checked; on any failure nothing is left.

    Args:
        model: see `fastsam2.export.checkpoints.build_model`.
        checkpoint: see there.
        out: folder to make.
        image_size: side of the square input in pixels, instead of the config's.
        postprocessing: see `fastsam2.export.checkpoints.build_model`.
        targets: consumers to shape graphs for; a graph that does not depend on its consumer is written once.
        query_attention: also make the graph that query pruning needs.
        overwrite: replace an existing bundle.
        progress: called with one line per step.

    Returns:
        `out`.

    Raises:
        ExportError: if the model cannot be built, or a graph differs from torch beyond its tolerance.
        BundleError: if `out` exists and may not be replaced, or cannot be written.
    """
    wanted = tuple(ExportTarget(t) for t in targets)
    if not wanted or len(set(wanted)) != len(wanted):
        raise ExportError(expected(f"different targets of {[t.value for t in ExportTarget]}", [t.value for t in wanted], "Name each once"))
    say = progress or (lambda _: None)
    roles = (*BASE_ROLES, GraphRole.QUERY_ATTENTION) if query_attention else BASE_ROLES
    with new_bundle(out, overwrite=overwrite) as folder:
        say(f"building {model} with checkpoint {checkpoint}")
        loaded = build_model(model, checkpoint, image_size=image_size, postprocessing=postprocessing)
        graphs = [entry for role in roles for entry in _export_role(loaded, role, wanted, folder, say)]
        write_manifest(
            folder, Manifest(fastsam2_version=fastsam2.__version__, model=loaded.spec, graphs=tuple(graphs), origin=loaded.origin)
        )
        check_complete(folder)
    say(f"wrote {out}")
    return Path(out)


def _export_role(
    loaded: LoadedModel, role: GraphRole, targets: tuple[ExportTarget, ...], folder: Path, say: Callable[[str], None]
) -> list[GraphEntry]:
    """Writes and checks the graphs of one role; one entry per target."""
    from fastsam2.export import to_onnx  # imports torch, whose absence `build_model` has reported by now

    if to_onnx.depends_on_target(role):
        return [_export_graph(loaded, role, target, folder, path=_path(role, target), say=say) for target in targets]
    shared = _export_graph(loaded, role, targets[0], folder, path=PurePosixPath(f"{role.value}.onnx"), say=say)
    return [shared.model_copy(update={"target": target}) for target in targets]


def _path(role: GraphRole, target: ExportTarget) -> PurePosixPath:
    name = f"{role.value}.onnx"
    return PurePosixPath(name) if target is ExportTarget.ONNXRUNTIME else PurePosixPath(target.value, name)


def _export_graph(
    loaded: LoadedModel, role: GraphRole, target: ExportTarget, folder: Path, *, path: PurePosixPath, say: Callable[[str], None]
) -> GraphEntry:
    from fastsam2.export import to_onnx, validate

    file = folder / path
    file.parent.mkdir(exist_ok=True)
    say(f"exporting {path}")
    to_onnx.export_graph(to_onnx.build_wrapper(loaded.module, loaded.spec, role, target), loaded.spec, role, target, file)
    store_half(file)
    say(f"checking {path} against torch")
    return graph_entry(role, target, folder, path, validate.check_graph(loaded.module, loaded.spec, role, target, file))


def graph_entry(role: GraphRole, target: ExportTarget, folder: Path, path: PurePosixPath, checks: dict[str, float]) -> GraphEntry:
    """The manifest's entry of the graph in `folder`/`path`.

    Args:
        role: which graph.
        target: for which consumer.
        folder: of the bundle.
        path: of the ONNX file inside it.
        checks: what comparing it with torch gave.
    """
    spec = graph_spec(role, target)
    return GraphEntry(
        role=role,
        target=target,
        file=FileEntry.of(folder, path),
        opset=_opset(folder / path),
        inputs=tuple(TensorEntry.of(t) for t in spec.inputs),
        outputs=tuple(TensorEntry.of(t) for t in spec.outputs),
        checks=checks,
    )


def _opset(file: Path) -> int:
    import onnx

    return next(int(o.version) for o in onnx.load(file, load_external_data=False).opset_import if o.domain == "")


def check_complete(folder: Path) -> None:
    """The bundle reads back, and holds no file that its manifest does not list (as external ONNX data would be)."""
    manifest = read_manifest(folder, verify=False)
    listed = {"manifest.json", *(f.path for f in manifest.files)}
    stray = sorted({p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - listed)
    if stray:
        raise InternalError(f"exported files that the manifest does not list: {stray}")
