"""How fast this machine copies memory and multiplies matrices: the two lines of a roofline, measured where graphs run.

    python -m benchmarks.machine --threads 2 --out benchmarks/results/machine_cpu.json
    python -m benchmarks.machine --gpu 0 --precision fp16 --out machine_gpu.json

A rate is the best of many repetitions: what the machine can do, not what it usually does. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsam2.benchmarks.conditions import conditions
from fastsam2.enums import Precision
from fastsam2.errors import BackendError, FastSam2Error, expected, reason
from fastsam2.files import write_json
from fastsam2.runtime.backends.onnxruntime import usable_cores

CPU_COPY_BYTES, CPU_SIDE = 256 << 20, 2048
GPU_COPY_BYTES, GPU_SIDE = 1 << 30, 8192
REPEATS = 12

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine reaches.

    Attributes:
        copy_bytes_per_s: read and written, of a copy that no cache holds.
        multiply_adds_per_s: of a product of two square matrices.
        precision: of the matrices.
    """

    copy_bytes_per_s: float
    multiply_adds_per_s: float
    precision: str


def cpu_machine(threads: int, *, copy_bytes: int = CPU_COPY_BYTES, side: int = CPU_SIDE, repeats: int = REPEATS) -> Machine:
    """Measures the CPU in float32; products by ONNX Runtime, which runs the graphs.

    Args:
        threads: that copy, and inside the product.
        copy_bytes: of the copy.
        side: rows and columns of both matrices.
        repeats: of which the best counts.

    Raises:
        BackendError: if the package onnx, which writes the graph of the product, is not installed.
    """
    source, target = np.ones(copy_bytes, np.uint8), np.zeros(copy_bytes, np.uint8)
    parts = np.linspace(0, copy_bytes, threads + 1, dtype=np.int64).tolist()
    with ThreadPoolExecutor(threads) as pool:

        def copy_part(begin: int, end: int) -> None:
            np.copyto(target[begin:end], source[begin:end])

        copying = best_seconds(lambda: list(pool.map(copy_part, parts[:-1], parts[1:])), repeats)
    multiplying = best_seconds(_cpu_product(side, threads), repeats)
    return Machine(2 * copy_bytes / copying, side**3 / multiplying, Precision.FP32.value)


def gpu_machine(
    gpu: int, precision: Precision, *, copy_bytes: int = GPU_COPY_BYTES, side: int = GPU_SIDE, repeats: int = REPEATS
) -> tuple[Machine, dict[str, Any]]:
    """Measures a GPU through torch, between CUDA events; float32 without TF32.

    Args:
        gpu: index.
        precision: of the matrices.
        copy_bytes: of the copy.
        side: rows and columns of both matrices.
        repeats: of which the best counts.

    Returns:
        The rates; "name", "compute_capability" and "total" bytes of the GPU.

    Raises:
        BackendError: if torch or that GPU is missing.
    """
    wanted = f"GPU {gpu} for torch"
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise BackendError(expected(wanted, reason(error), "Install a CUDA build of torch")) from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu >= count:
        raise BackendError(
            expected(wanted, f"{count} GPUs with torch {torch.__version__}", "Install a CUDA build of torch, or choose --gpu")
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}[precision]
    with torch.cuda.device(gpu):

        def seconds(call: Call) -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        source = torch.ones(copy_bytes, dtype=torch.uint8, device="cuda")
        target = torch.zeros_like(source)
        copying = min(seconds(lambda: target.copy_(source)) for _ in range(repeats + 1))
        a, b = (torch.ones(side, side, dtype=dtype, device="cuda") for _ in range(2))
        product = torch.empty_like(a)
        multiplying = min(seconds(lambda: torch.mm(a, b, out=product)) for _ in range(repeats + 1))
        facts = torch.cuda.get_device_properties(gpu)
    known = {"name": facts.name, "compute_capability": f"{facts.major}.{facts.minor}", "total": facts.total_memory}
    return Machine(2 * copy_bytes / copying, side**3 / multiplying, precision.value), known


def best_seconds(call: Call, repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The shortest of `repeats` calls, after one that does not count."""
    call()
    took = []
    for _ in range(repeats):
        begin = clock()
        call()
        took.append(clock() - begin)
    return min(took)


def _cpu_product(side: int, threads: int) -> Call:
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise BackendError(
            expected("the package onnx to measure products", f"an import error ({error})", "Run `pip install fastsam2[export-tools]`")
        ) from error
    import onnxruntime

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {name: np.ones((side, side), np.float32) for name in "ab"}
    return lambda: session.run(None, feeds)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of the CPU")
    parser.add_argument("--gpu", type=int, help="measure this GPU instead of the CPU")
    parser.add_argument("--precision", choices=[p.value for p in Precision], default=Precision.FP32.value, help="of a GPU's matrices")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        if args.gpu is None:
            machine, gpu = cpu_machine(args.threads), None
        else:
            machine, gpu = gpu_machine(args.gpu, Precision(args.precision))
    except FastSam2Error as error:
        parser.exit(2, f"error: {error}\n")
    record = {**conditions(args.threads, "benchmarks.machine", gpu=gpu), "machine": asdict(machine)}
    write_json(args.out, record)
    print(f"{machine.copy_bytes_per_s / 1e9:.1f} GB/s copied, {machine.multiply_adds_per_s / 1e9:.1f} G multiply-adds/s")


if __name__ == "__main__":
    main()
