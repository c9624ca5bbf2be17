"""A trained router -> a graph of a bundle that exists, checked against torch.

    bundle + RouterGraph ─► changed_bundle: router.onnx, manifest.router ─► the same bundle, or a new one

The graph uses standard operators only, so one file serves every target of the bundle. Where the bundle has a router_gather graph, that is
made again from the new router.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from fastsam2.bundle import Manifest, RouterEntry, changed_bundle, read_manifest, write_manifest
from fastsam2.config import ModelSpec
from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BundleError, ExportError, expected
from fastsam2.export.exporter import check_complete, graph_entry
from fastsam2.export.gather import write_gather
from fastsam2.export.to_onnx import example_inputs, export_graph
from fastsam2.export.wrappers.router import RouterGraph

FILE = PurePosixPath("router.onnx")
TOLERANCE = 1e-4  # float32 rounding gives 1e-6 to 1e-5 of the spread of the scores


def add_router(bundle: Path, module: RouterGraph, *, data: str, steps: int, saw_text: bool, out: Path | None = None) -> Path:
    """Add a router to a bundle, or replace the one it has.

    Args:
        bundle: folder of the bundle.
        module: the trained router, on the CPU, made for this bundle's sizes.
        data: what clips it was trained on, for the manifest.
        steps: of training.
        saw_text: texts took part in training; the router then belongs to the bundle's text encoder.
        out: a new folder; None changes the bundle itself, which stays as it was on any failure.

    Returns:
        The folder of the bundle that has the router.

    Raises:
        BundleError: if the bundle is not whole, has no text encoder that the router could have seen, or the result cannot be written.
        ExportError: if the router was made for another model, or its graph differs from torch.
    """
    bundle = Path(bundle)
    with changed_bundle(bundle, out) as (copy, manifest):
        _check_sizes(module.spec, manifest.model)
        trained_on = RouterEntry(
            image_encoder=fitted_to(manifest, GraphRole.IMAGE_ENCODER),
            text_encoder=fitted_to(manifest, GraphRole.TEXT_ENCODER) if saw_text else None,
            data=data,
            steps=steps,
            dropout_samples=module.dropout_samples,
        )
        replaced = (GraphRole.ROUTER, GraphRole.ROUTER_GATHER)
        for old in {g.file.path for g in manifest.graphs if g.role in replaced}:
            (copy / old).unlink()
        target = manifest.targets[0]
        export_graph(module, manifest.model, GraphRole.ROUTER, target, copy / FILE)
        checks = check_router(module, manifest.model, copy / FILE)
        entry = graph_entry(GraphRole.ROUTER, target, copy, FILE, checks)
        graphs = [g for g in manifest.graphs if g.role not in replaced]
        changed = manifest.model_copy(
            update={
                "graphs": (*graphs, *(entry.model_copy(update={"target": t}) for t in manifest.targets)),
                "router": trained_on,
            }
        )
        if manifest.digests(GraphRole.ROUTER_GATHER):
            changed = changed.model_copy(update={"graphs": (*changed.graphs, write_gather(copy, changed))})
        write_manifest(copy, changed)
        check_complete(copy)
    return bundle if out is None else Path(out)


def check_unchanged(folder: Path, before: object, decides: Callable[[Manifest], object]) -> None:
    """Whether what is about to be added to a bundle still fits it.

    Args:
        folder: the bundle.
        before: what `decides` said of its manifest when the work began.
        decides: what the work depends on.

    Raises:
        BundleError: if it says something else now.
    """
    if decides(read_manifest(folder)) != before:
        got = "one that another command changed meanwhile; it was kept"
        raise BundleError(expected(f"{folder} as it was when this began", got, "Call again, one command after the other"))


def fitted_to(manifest: Manifest, role: GraphRole) -> str:
    """SHA-256 of the graph that ran when something was fitted to a bundle: the one for ONNX Runtime, or else of the first target.

    Raises:
        BundleError: if the bundle has no graph of this role.
    """
    target = ExportTarget.ONNXRUNTIME if ExportTarget.ONNXRUNTIME in manifest.targets else manifest.targets[0]
    if not manifest.digests(role):
        todo = "Add one to the bundle first" if role is GraphRole.TEXT_ENCODER else "Export the bundle again"
        raise BundleError(expected(f"a bundle with a {role.value} graph", "one without", todo))
    return manifest.graph(role, target).file.sha256


def check_router(module: RouterGraph, spec: ModelSpec, file: Path) -> dict[str, float]:
    """Compare the graph in ONNX Runtime with torch, for one and for three objects.

    Returns:
        Output name -> root mean square difference / standard deviation of torch's output, the worse of the two.

    Raises:
        ExportError: if the graph does not run, or differs by more than `TOLERANCE`.
    """
    role, target = GraphRole.ROUTER, ExportTarget.ONNXRUNTIME
    names = [t.name for t in graph_spec(role, target).outputs]
    todo = "Export with the torch and onnxruntime versions of pyproject.toml"
    worst = dict.fromkeys(names, 0.0)
    try:
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for seed, count in enumerate((1, 3)):
            inputs = example_inputs(spec, role, target, {"B": count}, seed)
            inputs["has_text"][-1] = True
            with torch.inference_mode():
                want = module.eval()(*inputs.values())
            have = session.run(names, {k: v.numpy() for k, v in inputs.items()})
            for name, a, b in zip(names, want, have, strict=True):
                worst[name] = max(worst[name], _difference(a.numpy(), b))
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        got = f"{type(error).__name__}: {error}"
        raise ExportError(expected(f"the router to run in ONNX Runtime {ort.__version__}", got, todo)) from error
    for name, value in worst.items():
        if not value <= TOLERANCE:
            raise ExportError(expected(f"router output {name} within {TOLERANCE:g} of torch, relative to its spread", f"{value:.3g}", todo))
    return worst


def _difference(want: npt.NDArray[np.float32], have: npt.NDArray[np.float32]) -> float:
    if want.shape != have.shape:
        return float("inf")
    spread = max(float(want.std()), 1e-3 * float(np.abs(want).max()))  # equal scores of an untrained router have no spread of their own
    apart = float(np.sqrt(np.mean(np.square(want.astype(np.float64) - have))))
    return apart / spread if spread else apart


def _check_sizes(made_for: ModelSpec, model: ModelSpec) -> None:
    names = ("image_size", "hidden_dim", "text_dim")
    have, want = ({name: getattr(spec, name) for name in names} for spec in (made_for, model))
    if have != want:
        raise ExportError(expected(f"a router for a model of {want}", have, "Train it with this bundle: `fastsam2 train-router`"))
