"""Graphs with a layer that TensorRT takes from a plugin.

    typed without the layer (precision, drift) ─ put back ─► what the builder parses, with the plugin registered

The layer neither rounds nor sums, so a graph's drift is that of the graph it was made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastsam2.bundle import Manifest
from fastsam2.contracts import PLUGIN_ROLES
from fastsam2.enums import ExportTarget, Flavor
from fastsam2.errors import BackendError, expected
from fastsam2.kernels.onnx_op import OP_TYPE, DetachedGathers, attach_top_k_gathers, detach_top_k_gathers
from fastsam2.kernels.plugin.top_k_gather_plugin import register


def check_flavor(manifest: Manifest, flavor: Flavor) -> None:
    """Refuses a bundle that needs a plugin where there are none.

    Raises:
        BackendError: if the flavor is TensorRT-RTX and a graph has a plugin's layer.
    """
    if (needing := _needing(manifest)) and flavor is Flavor.TENSORRT_RTX:
        raise BackendError(
            expected(
                f"a bundle of graphs that {flavor.value} builds",
                f"one with {' and '.join(needing)}: {OP_TYPE} is a plugin's layer, and {flavor.value} has no plugins",
                "Build it with --flavor tensorrt, or build the bundle as it was before fastsam2.export.gather: the tracker runs on that",
            )
        )


def register_plugins(manifest: Manifest, trt: Any) -> None:
    """Makes the layers of a bundle's graphs known to TensorRT in this process, for parsing and for loading engines.

    Args:
        manifest: of the bundle; where no graph needs a plugin nothing is registered.
        trt: the module `tensorrt`.

    Raises:
        BackendError: if TensorRT refuses.
    """
    if _needing(manifest):
        register(trt)


def without_layers(source: Path, out: Path) -> DetachedGathers:
    """Writes a graph without its plugin's layers.

    Args:
        source: ONNX file of a graph of `PLUGIN_ROLES`.
        out: file to write, of standard operators.

    Returns:
        The layers, for `with_layers`.
    """
    import onnx

    model = onnx.load(source)
    layers = detach_top_k_gathers(model)
    onnx.save(model, out)
    return layers


def with_layers(file: Path, layers: DetachedGathers) -> None:
    """Puts the layers back into an ONNX file."""
    import onnx

    model = onnx.load(file)
    attach_top_k_gathers(model, layers)
    onnx.save(model, file)


def _needing(manifest: Manifest) -> list[str]:
    return [g.role.value for g in manifest.graphs if g.target is ExportTarget.TENSORRT and g.role in PLUGIN_ROLES]
