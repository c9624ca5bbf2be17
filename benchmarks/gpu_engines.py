"""Stored engines on a GPU: whether TensorRT accepts, loads and runs each of them, and how far its outputs are from ONNX Runtime.

seeded inputs ─ engine on the GPU ─► outputs ─┐
              └ the bundle's ONNX, CPU ─► outputs ─┴─► root mean square difference / spread, per output
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fastsam2.builtin import bundle_path
from fastsam2.bundle import Manifest, read_manifest
from fastsam2.config import ModelSpec
from fastsam2.contracts import PLUGIN_ROLES, graph_spec
from fastsam2.deviation import relative_rms
from fastsam2.engines import trt_compat
from fastsam2.engines.build import build_engines
from fastsam2.engines.plugins import register_plugins
from fastsam2.engines.records import load_engines, targets_for
from fastsam2.engines.trt_log import logger_of
from fastsam2.enums import ExportTarget, Flavor, GraphRole
from fastsam2.errors import BackendError, FastSam2Error, expected
from fastsam2.runtime.backends.onnxruntime import CPU_PROVIDER, open_session, usable_cores
from fastsam2.runtime.gpu.array import DeviceArray, Pool
from fastsam2.runtime.gpu.driver import Gpu, PyCudaGpu
from fastsam2.runtime.gpu.engines import Engines
from fastsam2.runtime.gpu.tensorrt import TensorRTEngines, invalid_because

Array = npt.NDArray[Any]
OpenEngines = Callable[[Path, Manifest, Gpu, Flavor], Engines]

# Rounding to half precision differs by 2e-2 at most (engines/drift.toml); another choice among the decoder's masks, or a wrong result, by
# about 1. Inputs here are random, which magnifies rounding.
LARGEST_DIFFERENCE = 0.1
LOADED_ONLY = "one of its inputs lies in host memory, which no engine of the tracker has, and ONNX Runtime does not know its layer"
FINAL_KERNELS: OpenEngines = partial(TensorRTEngines, specialize_at_once=True)  # nothing is timed that TensorRT-RTX would replace later
_REPEATS = 20


def graph_inputs(spec: ModelSpec, role: GraphRole, target: ExportTarget, sizes: Mapping[str, int], *, seed: int = 0) -> dict[str, Array]:
    """Seeded legal inputs of a graph.

    Args:
        spec: model sizes.
        role: graph.
        target: which form of it.
        sizes: value of each dynamic axis but R, which follows from M and P.
        seed: of the random generator.
    """
    random = np.random.default_rng(seed)
    sizes = {**sizes, "R": sizes["M"] + spec.pointer_tokens * sizes["P"]}
    below = {"position": spec.table_rows - 1, "age": spec.num_maskmem, "source": sizes["K"], "k": sizes["K"]}
    below["ids"] = 256  # every CLIP knows all bytes
    scale = {"low_res_logits": 8.0, "mask_prompt": 8.0, "object_score": 8.0, "memory_bias": 0.0}
    inputs: dict[str, Array] = {}
    for tensor in graph_spec(role, target).inputs:
        shape = tensor.sized(spec, sizes)
        match tensor.name, tensor.dtype:
            case _, "uint8":
                value: Array = random.integers(0, 256, shape)
            case _, "bool":
                value = random.random(shape) < 0.5
            case "labels", _:
                value = random.integers(0, 2, shape)
            case "query_position", _:  # no row of the tables twice
                value = np.sort(np.stack([random.permutation(spec.table_rows - 1)[: shape[1]] for _ in range(shape[0])]))
            case _, "int32":
                value = random.integers(0, below[tensor.name], shape)
            case "points", _:
                value = random.random(shape) * spec.image_size
            case "mask", _:
                value = random.random(shape) > 0.7
            case "pointer_offset" | "uncertainty" | "iou", _:
                value = random.random(shape)
            case "text", _:
                value = random.standard_normal(shape)
                value /= np.linalg.norm(value, axis=-1, keepdims=True)
            case _:
                value = random.standard_normal(shape) * scale.get(tensor.name, 1.0)
        inputs[tensor.name] = np.ascontiguousarray(value, tensor.dtype)
    return inputs


def calls(spec: ModelSpec, objects: int) -> dict[str, dict[str, int]]:
    """Sizes of the dynamic axes: an object's second frame, and a batch with full memories."""
    full = {"M": spec.num_maskmem * spec.tokens, "P": spec.max_object_pointers}
    return {
        "first": {"B": 1, "K": spec.tokens, "M": spec.tokens, "P": 1, "Q": 2, "T": 1},
        "steady": {"B": objects, "K": max(1, spec.tokens // 2), **full, "Q": 1, "T": 2},
    }


def accepted(folder: Path, manifest: Manifest, flavor: Flavor, capability: str) -> dict[GraphRole, dict[str, Any]]:
    """What TensorRT says of each engine's file before anything else is tried; its last errors go to stderr.

    Args:
        folder: of the bundle.
        manifest: of the bundle.
        flavor: whose engines.
        capability: of the GPU, whose context is current.

    Returns:
        Graph -> "file", "bytes", "precision", "deserialized", and, where the flavor answers it, "validity" with its "diagnosis".

    Raises:
        BackendError: if the flavor's package is missing.
        BundleError: if there are no engines for this GPU, or they do not fit the bundle.
    """
    trt = trt_compat.load(flavor)
    register_plugins(manifest, trt)
    version = str(trt.__version__)
    there = targets_for(folder, flavor, version=version, capability=capability)
    home, engines = load_engines(folder, manifest, flavor, version=version, target=there[0] if there else capability)
    log = logger_of(trt)
    runtime = trt.Runtime(log)
    found: dict[GraphRole, dict[str, Any]] = {}
    for entry in engines.engines:
        data = (home / entry.file.path).read_bytes()
        facts = found[entry.graph] = {"file": f"{home.name}/{entry.file.path}", "bytes": len(data), "precision": entry.precision.value}
        if hasattr(runtime, "get_engine_validity"):
            validity, bits = runtime.get_engine_validity(data)
            facts["validity"], facts["diagnosis"] = validity.name, invalid_because(trt, bits)
        print(f"{entry.graph.value}: {json.dumps(facts)}", file=sys.stderr, flush=True)  # should the next call end the process
        facts["deserialized"] = runtime.deserialize_cuda_engine(data) is not None
        print(f"{entry.graph.value}: {json.dumps(facts)}; {log.said()}", file=sys.stderr, flush=True)
    return found


def check_engines(
    bundle: Path | str,
    flavor: Flavor,
    *,
    objects: int = 2,
    open_gpu: Callable[[], Gpu] = PyCudaGpu,
    open_engines: OpenEngines = FINAL_KERNELS,
    look: Callable[[Path, Manifest, Flavor, str], dict[GraphRole, dict[str, Any]]] = accepted,
) -> dict[str, Any]:
    """Runs every engine of a bundle with each of `calls`.

    Args:
        bundle: folder, or name of a built-in one.
        flavor: whose engines.
        objects: batch of the steady state; less where an engine has no room for as many.
        open_gpu: makes the GPU.
        open_engines: makes what runs engines on it.
        look: `accepted`.

    Returns:
        "ok" (every engine ran, its outputs are finite and not farther than LARGEST_DIFFERENCE from ONNX Runtime), "gpu" and "graphs":
        what `look` says, and per call "difference" per output, "first_ms" (the run that loads the engine) and "ms", or "error"; graphs
        of `PLUGIN_ROLES` are loaded but not run, and say why ("skipped").

    Raises:
        BackendError: if GPU or flavor is missing.
        BundleError: if there are no engines for this GPU, or they do not fit the bundle.
    """
    folder = bundle_path(bundle)
    manifest = read_manifest(folder)
    gpu = open_gpu()
    try:
        gpu.activate()
        graphs = look(folder, manifest, flavor, gpu.capability)
        engines = open_engines(folder, manifest, gpu, flavor)
        pool = Pool(gpu)
        for role, facts in graphs.items():
            if role in PLUGIN_ROLES:
                facts |= {"skipped": LOADED_ONLY, "ok": facts["deserialized"]}
                continue
            try:
                session = open_session(folder / manifest.graph(role, engines.target).file.path, CPU_PROVIDER, {}, usable_cores())
                for name, sizes in calls(manifest.model, min(objects, engines.max_objects(role) or objects)).items():
                    facts[name] = _compare(manifest.model, role, sizes, engines, pool, session)
            except FastSam2Error as error:
                facts["error"] = str(error)
            facts["ok"] = "error" not in facts and all(facts[name]["ok"] for name in calls(manifest.model, 1))
            print(f"{role.value}: {json.dumps(facts)}", file=sys.stderr, flush=True)
        engines.close()
        pool.close()
        return {
            "ok": bool(graphs) and all(facts["ok"] for facts in graphs.values()),
            "gpu": f"{gpu.name}, compute capability {gpu.capability}",
            "graphs": {role.value: facts for role, facts in graphs.items()},
        }
    finally:
        gpu.close()


def build_and_check(
    bundle: Path | str,
    flavor: Flavor,
    out: Path,
    *,
    target: str = "current",
    check: Callable[[Path], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Builds the engines of a bundle on this machine, into a copy of it, and checks them there.

    Args:
        bundle: folder, or name of a built-in one.
        flavor: that builds.
        out: the copy; goes on where an earlier build stopped.
        target: as in `fastsam2 build --compute-capability`.
        check: of the copy; `check_engines` unless given.

    Returns:
        What the check returns, with "bundle" (the copy) and "build_seconds".

    Raises:
        BackendError: if the flavor does not build here.
        BundleError: if the bundle cannot be copied.
    """
    start = time.perf_counter()
    # what misses a limit is built and checked all the same: the lines say so, and the engines' records have the numbers
    build_engines(
        bundle, flavor=flavor, targets=(target,), out=out, force=True, progress=lambda line: print(line, file=sys.stderr, flush=True)
    )
    seconds = time.perf_counter() - start
    found = check_engines(out, flavor) if check is None else check(out)
    return {**found, "bundle": str(out), "build_seconds": seconds}


def _compare(
    spec: ModelSpec, role: GraphRole, sizes: Mapping[str, int], engines: Engines, pool: Pool, session: ort.InferenceSession
) -> dict[str, Any]:
    """One call on the GPU and on the CPU."""
    table, gpu = graph_spec(role, engines.target), pool.gpu
    inputs = graph_inputs(spec, role, engines.target, sizes)
    on_gpu = {name: _uploaded(pool, array) for name, array in inputs.items()}
    made = {t.name: pool.empty(t.sized(spec, sizes), t.dtype) for t in table.outputs}
    start = time.perf_counter()
    engines.enqueue(role, on_gpu, made)
    gpu.synchronize()
    first_ms = (time.perf_counter() - start) * 1e3
    start = time.perf_counter()
    for _ in range(_REPEATS):
        engines.enqueue(role, on_gpu, made)
    gpu.synchronize()
    ms = (time.perf_counter() - start) * 1e3 / _REPEATS
    have = {name: np.empty(array.shape, array.dtype) for name, array in made.items()}
    for name, array in made.items():
        gpu.download(have[name], array.address)
    gpu.synchronize()
    want = dict(zip(have, session.run(list(have), inputs), strict=True))
    if not all(np.isfinite(array).all() for array in want.values()):
        raise BackendError(expected("finite outputs of ONNX Runtime", "infinite ones or NaN", "Check the bundle's weights"))
    difference = {name: relative_rms(have[name], want[name]) for name in have}
    ok = all(value <= LARGEST_DIFFERENCE for value in difference.values())
    return {"ok": ok, "sizes": dict(sizes), "first_ms": first_ms, "ms": ms, "difference": difference}


def _uploaded(pool: Pool, array: Array) -> DeviceArray:
    target = pool.empty(array.shape, array.dtype)
    staged = pool.gpu.pinned(array.nbytes)
    staged[:] = array.reshape(-1).view(np.uint8)
    pool.gpu.upload(target.address, staged)
    pool.gpu.synchronize()
    return target
