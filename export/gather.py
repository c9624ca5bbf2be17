"""The switch that places the top-k gather in a graph: a bundle with a router -> the same bundle with `tensorrt/router_gather.onnx`.

    bundle ─► changed_bundle: router.onnx + TopKGather ─► the same bundle, or a new one

For applications on full TensorRT, where one engine scores the rows of a frame and gathers the best. The tracker does not use it: it gathers
between graphs, on every backend.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import onnx

from fastsam2.builtin import PathLike, bundle_to_change
from fastsam2.bundle import GraphEntry, Manifest, changed_bundle, write_manifest
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.export.exporter import check_complete, graph_entry
from fastsam2.export.wrappers.router_gather import router_gather

FILE = PurePosixPath(ExportTarget.TENSORRT.value, f"{GraphRole.ROUTER_GATHER.value}.onnx")


def add_gather(bundle: PathLike, *, out: Path | None = None) -> Path:
    """Add the graph that scores and gathers memory rows, or make it again.

    Args:
        bundle: name of a built-in bundle, or a bundle's folder; with a router and the target `tensorrt`.
        out: a new folder; None changes the bundle itself, which stays as it was on any failure.

    Returns:
        The folder of the bundle that has the graph. TensorRT-RTX does not build it: keep the bundle without it for that.

    Raises:
        BundleError: if the bundle is not whole, has no router for the target `tensorrt`, or the result cannot be written.
        ExportError: if the operator does not take the model's memory rows.
    """
    source = bundle_to_change(bundle, out)
    with changed_bundle(source, out) as (copy, manifest):
        graphs = tuple(g for g in manifest.graphs if g.role is not GraphRole.ROUTER_GATHER)
        write_manifest(copy, manifest.model_copy(update={"graphs": (*graphs, write_gather(copy, manifest))}))
        check_complete(copy)
    return source if out is None else Path(out)


def write_gather(folder: Path, manifest: Manifest) -> GraphEntry:
    """Write the graph into a bundle that is being made.

    Args:
        folder: of the bundle.
        manifest: its manifest, with a router for the target `tensorrt`.

    Returns:
        The manifest's entry. Its checks are the router's: selection and copy add no rounding.

    Raises:
        ExportError: if the operator does not take the model's memory rows.
    """
    router = manifest.graph(GraphRole.ROUTER, ExportTarget.TENSORRT)
    file = folder / FILE
    file.parent.mkdir(exist_ok=True)
    onnx.save(router_gather(onnx.load(folder / router.file.path), manifest.model), file)
    return graph_entry(GraphRole.ROUTER_GATHER, ExportTarget.TENSORRT, folder, FILE, router.checks)
