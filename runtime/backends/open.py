"""From the name of a backend to the backend. Nothing that a GPU needs is imported before it is asked for."""

from __future__ import annotations

from pathlib import Path

from fastsam2.bundle import Manifest
from fastsam2.cache import cache_folder
from fastsam2.enums import BackendName, Flavor
from fastsam2.errors import BackendError, BundleError, expected
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.backends.protocol import Backend

GPU_BACKENDS = (BackendName.TENSORRT, BackendName.TENSORRT_RTX, BackendName.ONNXRUNTIME_CUDA)
"""In the order in which `auto` tries them."""


def open_backend(
    folder: Path, manifest: Manifest, name: BackendName, *, threads: int | None = None, gpu: int = 0, cuda_graphs: bool = False
) -> tuple[Backend, dict[str, str]]:
    """Open a backend.

    Args:
        folder: of the bundle.
        manifest: of the bundle.
        name: which; another one is never opened in its place, but for `auto` and `gpu`.
        threads: CPU threads inside one operator; None uses every core this process may use.
        gpu: which GPU.
        cuda_graphs: replay engines as CUDA graphs, see `runtime.gpu.graphs`; backends on the CPU read it not.

    Returns:
        The backend; for `auto` and `gpu`, why each backend that would have come before it was passed over.

    Raises:
        BackendError: if it cannot be used here; for `gpu`, if none can.
        BundleError: if the bundle has no engines for it.
    """
    if name is BackendName.ONNXRUNTIME:
        return OnnxRuntimeBackend(folder, manifest, threads=threads), {}
    if name not in (BackendName.AUTO, BackendName.GPU):
        return _on_gpu(folder, manifest, name, threads, gpu, cuda_graphs), {}
    passed_over: dict[str, str] = {}
    for candidate in GPU_BACKENDS:
        try:
            return _on_gpu(folder, manifest, candidate, threads, gpu, cuda_graphs), passed_over
        except (BackendError, BundleError) as error:
            passed_over[candidate.value] = str(error)
    if name is BackendName.GPU:
        whys = " ".join(dict.fromkeys(passed_over.values()))
        todo = "Run `fastsam2 doctor`, or use the CPU"
        raise BackendError(expected(f"one of {list(passed_over)} to be ready on GPU {gpu}", f"none: {whys}", todo))
    return OnnxRuntimeBackend(folder, manifest, threads=threads), passed_over


def _on_gpu(folder: Path, manifest: Manifest, name: BackendName, threads: int | None, index: int, cuda_graphs: bool) -> Backend:
    from fastsam2.runtime.gpu.backend import GpuBackend
    from fastsam2.runtime.gpu.driver import PyCudaGpu
    from fastsam2.runtime.gpu.engines import Engines
    from fastsam2.runtime.gpu.graphs import GraphEngines
    from fastsam2.runtime.gpu.onnxruntime import OrtEngines
    from fastsam2.runtime.gpu.tensorrt import TensorRTEngines

    gpu = PyCudaGpu(index)
    try:
        engines: Engines
        if name is BackendName.ONNXRUNTIME_CUDA:
            engines = OrtEngines(folder, manifest, gpu, threads=threads)
        else:
            engines = TensorRTEngines(folder, manifest, gpu, Flavor(name.value), cache_folder=cache_folder())
        return GpuBackend(gpu, GraphEngines(engines, gpu) if cuda_graphs else engines, manifest.model)
    except BaseException:
        gpu.close()
        raise
