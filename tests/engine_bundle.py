"""A bundle for the target `tensorrt` with one attention as its memory attention and trivial other graphs; a builder that builds nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from fastsam2.bundle import FileEntry, GraphEntry, Manifest, Origin, TensorEntry, write_manifest
from fastsam2.config import ModelSpec
from fastsam2.contracts import BASE_ROLES, graph_spec
from fastsam2.engines.builder import Built
from fastsam2.engines.profiles import Profile
from fastsam2.enums import ExportTarget, GraphRole
from tests.specs import model_spec

SPEC = model_spec(image_size=512)  # 1024 tokens of width 64, memory of width 16: from three objects on, one attention to 7 frames fuses
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8}
LISTING = (Path(__file__).parent / "data" / "listings" / "two_profiles.txt").read_text(encoding="utf-8")


def attention_model(spec: ModelSpec = SPEC, *, expand: bool = True) -> ModelProto:
    """A graph with the inputs and output of memory_attention: one attention of all tokens to memory rows and pointers.

    Args:
        spec: sizes.
        expand: the mask is expanded to all queries, as torch exports it.
    """
    table = graph_spec(GraphRole.MEMORY_ATTENTION, ExportTarget.TENSORRT)
    n, c, d, split = spec.tokens, spec.hidden_dim, spec.memory_dim, spec.pointer_tokens
    random = np.random.default_rng(0)
    weights = {
        "w_q": random.normal(0, c**-0.5, (c, c)),
        "w_k": random.normal(0, d**-0.5, (d, c)),
        "w_v": random.normal(0, d**-0.5, (d, c)),
        "small": np.array(1e-3),
    }
    integers = {
        "one": [1],
        "two": [2],
        "one_two": [1, 2],
        "to_rows": [0, -1, d],
        "to_heads": [0, 1, 0, 0],
        "all": [1, 1, n, 1],
        "back": [0, n, c],
    }

    def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs.split(), [output], name=f"node_{output}", **attributes)

    nodes = [
        node("Add", "position age", "sum"),
        node("Cast", "sum", "sum_f", to=TensorProto.FLOAT),
        node("Mul", "sum_f small", "code"),
        node("Unsqueeze", "code two", "code_3"),
        node("Add", "memory code_3", "rows"),
        node("Unsqueeze", "pointer_offset two", "offset_3"),
        node("Add", "pointers offset_3", "moved"),
        node("Reshape", "moved to_rows", "pointer_rows"),
        node("Concat", "rows pointer_rows", "memory_rows", axis=1),
        node("MatMul", "tokens w_q", "q_1"),
        node("Shape", "memory", "batch", start=0, end=1),
        node("Concat", "batch one one", "batch_one_one", axis=0),
        node("Expand", "q_1 batch_one_one", "q"),
        node("MatMul", "memory_rows w_k", "k"),
        node("MatMul", "memory_rows w_v", "v"),
        *(node("Unsqueeze", f"{x} one", f"{x}_4") for x in "qkv"),
        node("Unsqueeze", "memory_bias one_two", "mask_1"),
        node("Expand", "mask_1 all", "mask"),
        node("Attention", f"q_4 k_4 v_4 {'mask' if expand else 'mask_1'}", "mixed"),
        node("Reshape", "mixed back", "conditioned"),
    ]

    def info(name: str, kind: int, shape: Sequence[int | str]) -> Any:
        return helper.make_tensor_value_info(name, kind, list(shape))

    keys = f"{split}*P + M"
    graph = helper.make_graph(
        nodes,
        "memory_attention",
        [info(t.name, TYPES[t.dtype], t.shape(spec)) for t in table.inputs],
        [info("conditioned", TensorProto.FLOAT, ("B", n, c))],
        [
            *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()),
            *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in integers.items()),
        ],
        value_info=[info("q_4", TensorProto.FLOAT, ("B", 1, n, c)), *(info(f"{x}_4", TensorProto.FLOAT, ("B", 1, keys, c)) for x in "kv")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def identity_model(role: GraphRole) -> ModelProto:
    """Any valid graph, another one for each role."""
    x = helper.make_tensor_value_info(role.value, TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    return helper.make_model(
        helper.make_graph([helper.make_node("Identity", [role.value], ["out"])], role.value, [x], [y]),
        opset_imports=[helper.make_opsetid("", 23)],
    )


def write_bundle(folder: Path, spec: ModelSpec = SPEC, *, target: ExportTarget = ExportTarget.TENSORRT) -> Manifest:
    """Writes the bundle and returns its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs = []
    for role in BASE_ROLES:
        model = attention_model(spec) if role is GraphRole.MEMORY_ATTENTION else identity_model(role)
        save(model, folder / f"{role.value}.onnx")
        table = graph_spec(role, target)
        graphs.append(
            GraphEntry(
                role=role,
                target=target,
                file=FileEntry.of(folder, PurePosixPath(f"{role.value}.onnx")),
                opset=23,
                inputs=tuple(TensorEntry.of(t) for t in table.inputs),
                outputs=tuple(TensorEntry.of(t) for t in table.outputs),
                checks={},
            )
        )
    origin = Origin(
        model=spec.name,
        checkpoint="random:7",
        checkpoint_sha256=None,
        config="micro.yaml",
        torch="2.0",
        sam2="1.1.0",
        onnx="1.2",
        created=datetime(2025, 1, 2, tzinfo=timezone.utc),
    )
    manifest = Manifest(fastsam2_version="0.1.0", model=spec, graphs=tuple(graphs), origin=origin)
    write_manifest(folder, manifest)
    return manifest


class FakeBuilder:
    """Stands in for `build_engine`: engines are counted, listings have one fused attention in each of two profiles.

    Args:
        before: called with the name of a graph before it is built.
    """

    def __init__(self, before: Callable[[str], None] | None = None) -> None:
        self.before, self.built, self.profiles = before, list[tuple[str, str]](), dict[str, tuple[Profile, ...]]()

    def __call__(self, model: bytes, name: str, profiles: Sequence[Profile], *, target: str, **_: Any) -> Built:
        if self.before is not None:
            self.before(name)
        self.built.append((name, target))
        self.profiles[name] = tuple(profiles)
        return Built(f"{name} {target} {len(self.built)}".encode() + model[:64], LISTING, 0.25)
