"""From the name of a backend to the backend. Nothing that a GPU needs is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastsam2.bundle import Manifest
from fastsam2.cache import cache_folder
from fastsam2.enums import BackendName, Flavor
from fastsam2.errors import BackendError, BundleError, FastSam2Error, expected
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.backends.protocol import Backend

if TYPE_CHECKING:
    from fastsam2.runtime.gpu.driver import Gpu

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
    choice = name in (BackendName.AUTO, BackendName.GPU)
    backend, errors = _first_ready(folder, manifest, GPU_BACKENDS if choice else (name,), threads, gpu, cuda_graphs)
    passed_over = {candidate.value: str(error) for candidate, error in errors.items()}
    if backend is not None:
        return backend, passed_over
    if name is BackendName.AUTO:
        return OnnxRuntimeBackend(folder, manifest, threads=threads), passed_over
    if name is BackendName.GPU:
        whys = " ".join(dict.fromkeys(passed_over.values()))
        todo = "Run `fastsam2 doctor`, or use the CPU"
        raise BackendError(expected(f"one of {list(passed_over)} to be ready on GPU {gpu}", f"none: {whys}", todo))
    raise errors[name]


def _first_ready(
    folder: Path, manifest: Manifest, names: Sequence[BackendName], threads: int | None, index: int, cuda_graphs: bool
) -> tuple[Backend | None, dict[BackendName, FastSam2Error]]:
    """The first of `names` that is ready on a GPU, which is opened once; why those before it are not."""
    from fastsam2.runtime.gpu.driver import PyCudaGpu

    errors: dict[BackendName, FastSam2Error] = {}
    try:
        gpu = PyCudaGpu(index)
    except BackendError as error:
        return None, dict.fromkeys(names, error)
    try:
        for name in names:
            try:
                return _on_gpu(folder, manifest, name, gpu, threads, cuda_graphs), errors
            except (BackendError, BundleError) as error:
                errors[name] = error
    except BaseException:
        gpu.close()
        raise
    gpu.close()
    return None, errors


def _on_gpu(folder: Path, manifest: Manifest, name: BackendName, gpu: Gpu, threads: int | None, cuda_graphs: bool) -> Backend:
    from fastsam2.runtime.gpu.backend import GpuBackend
    from fastsam2.runtime.gpu.engines import Engines
    from fastsam2.runtime.gpu.graphs import GraphEngines
    from fastsam2.runtime.gpu.onnxruntime import OrtEngines
    from fastsam2.runtime.gpu.tensorrt import TensorRTEngines

    engines: Engines
    if name is BackendName.ONNXRUNTIME_CUDA:
        engines = OrtEngines(folder, manifest, gpu, threads=threads)
    else:
        itself = cuda_graphs and name is BackendName.TENSORRT_RTX
        engines = TensorRTEngines(folder, manifest, gpu, Flavor(name.value), cuda_graphs=itself, cache_folder=cache_folder())
    if cuda_graphs and engines.cuda_graphs() is None:
        engines = GraphEngines(engines, gpu)
    return GpuBackend(gpu, engines, manifest.model)
