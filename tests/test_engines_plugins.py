"""A graph with a plugin's layer through `build_engines`, with a TensorRT that records what it is told: nothing is built."""

from __future__ import annotations

from enum import Enum
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fastsam2.bundle import FileEntry, GraphEntry, RouterEntry, TensorEntry, read_manifest, write_manifest
from fastsam2.contracts import BASE_ROLES, graph_spec
from fastsam2.engines import build, drift, targets, trt_compat
from fastsam2.engines.build import build_engines
from fastsam2.engines.precision_samples import Array, Sample
from fastsam2.engines.profiles import Limits, Profile, profiles
from fastsam2.engines.records import load_engines, read_set
from fastsam2.enums import ExportTarget, Flavor, GraphRole
from fastsam2.errors import BackendError
from fastsam2.export.gather import add_gather
from tests.engine_bundle import SPEC, TYPES, write_bundle
from tests.test_engines_builder import FakeTrt

ROUTER, GATHER, TENSORRT = GraphRole.ROUTER, GraphRole.ROUTER_GATHER, ExportTarget.TENSORRT


def router_model() -> ModelProto:
    """A graph with the inputs and outputs of the router: scores follow the tokens and the uncertainty."""
    table = graph_spec(ROUTER, TENSORRT)
    weight = np.random.default_rng(0).normal(0, SPEC.hidden_dim**-0.5, (SPEC.hidden_dim, 1)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["tokens", "w"], ["worth_3"], name="project"),
        helper.make_node("Squeeze", ["worth_3", "last"], ["context"], name="squeeze"),
        helper.make_node("Add", ["context", "uncertainty"], ["worth"], name="add"),
        helper.make_node("Softmax", ["worth"], ["scores"], axis=1, name="softmax"),
        helper.make_node("Neg", ["worth"], ["relevance"], name="neg"),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, TYPES[t.dtype], t.shape(SPEC)) for t in tensors] for tensors in (table.inputs, table.outputs)
    )
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([2], np.int64), "last")]
    graph = helper.make_graph(nodes, "router", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def calls_of_router(file: Path) -> list[Sample]:
    random = np.random.default_rng(1)
    inputs: dict[str, Array] = {}
    for tensor in graph_spec(ROUTER, TENSORRT).inputs:
        shape = [2 if isinstance(d, str) else d for d in tensor.shape(SPEC)]
        inputs[tensor.name] = random.normal(size=shape).astype(tensor.dtype)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return [Sample(inputs, dict(zip(names, session.run(names, inputs), strict=True)))]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle for the target `tensorrt` with a router, and the graph that gathers too."""
    folder = tmp_path / "bundle"
    manifest = write_bundle(folder)
    onnx.save(router_model(), folder / "router.onnx")
    table, digest = graph_spec(ROUTER, TENSORRT), manifest.graph(GraphRole.IMAGE_ENCODER, TENSORRT).file.sha256
    entry = GraphEntry(
        role=ROUTER,
        target=TENSORRT,
        file=FileEntry.of(folder, PurePosixPath("router.onnx")),
        opset=23,
        inputs=tuple(TensorEntry.of(t) for t in table.inputs),
        outputs=tuple(TensorEntry.of(t) for t in table.outputs),
        checks={},
    )
    router = RouterEntry(image_encoder=digest, text_encoder=None, data="none", steps=1)
    write_manifest(folder, manifest.model_copy(update={"graphs": (*manifest.graphs, entry), "router": router}))
    return folder


class Creator:
    name = plugin_version = plugin_namespace = ""


class Base:
    """What plugins inherit from."""


class PluginTrt(FakeTrt):
    """With a plugin registry; `registry` holds names of creators."""

    IPluginV3 = type("IPluginV3", (Base,), {})
    IPluginV3OneCore = type("IPluginV3OneCore", (Base,), {})
    IPluginV3OneBuild = type("IPluginV3OneBuild", (Base,), {})
    IPluginV3OneRuntime = type("IPluginV3OneRuntime", (Base,), {})
    IPluginCreatorV3One = Creator
    PluginFieldType = Enum("PluginFieldType", ["INT32"])

    def __init__(self, name: str = "tensorrt") -> None:
        super().__init__()
        self.__name__, self.creators = name, list[Any]()

    def PluginField(self, *arguments: Any) -> Any:
        return arguments

    def PluginFieldCollection(self, fields: list[Any]) -> Any:
        return fields

    def get_plugin_registry(self) -> Any:
        def register_creator(creator: Any, namespace: str) -> bool:
            self.creators.append(creator)
            self.told.append(("register", creator.name, creator.plugin_version, namespace))
            return True

        return SimpleNamespace(all_creators=tuple(self.creators), register_creator=register_creator)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> PluginTrt:
    """Full TensorRT on a GPU of 8.9; only the drift of the router is measured."""
    made = PluginTrt()
    measure = drift.measure

    def measure_routers(typed: Path, role: GraphRole, samples: Any) -> Any:
        return measure(typed, role, samples) if role in (ROUTER, GATHER) else {"out": 0.0}

    monkeypatch.setattr(trt_compat, "load", lambda flavor: made)
    monkeypatch.setattr(targets, "current_capability", lambda: "8.9")
    monkeypatch.setattr(
        build, "samples", lambda folder, manifest: {**{r: [] for r in BASE_ROLES}, ROUTER: calls_of_router(bundle / "router.onnx")}
    )
    monkeypatch.setattr(drift, "measure", measure_routers)
    return made


def parsed(trt: PluginTrt) -> dict[str, ModelProto]:
    """What was parsed, by the graph's name; the router comes twice."""
    models = [onnx.load_from_string(raw) for raw in trt.of("parse")]
    return {("gather" if any(n.domain for n in m.graph.node) else m.graph.name): m for m in models}


def test_the_layer_is_put_back_behind_the_typed_router(bundle: Path, trt: PluginTrt) -> None:
    add_gather(bundle)
    (folder,) = build_engines(bundle, flavor=Flavor.TENSORRT)
    models = parsed(trt)
    gather, router = models["gather"], models["router"]
    (node,) = [n for n in gather.graph.node if n.domain]
    assert node == gather.graph.node[-1] and list(gather.graph.node)[:-1] == list(router.graph.node)
    assert (node.domain, node.op_type, list(node.input)) == ("fastsam2", "TopKGather", ["scores", "rows", "k"])
    (product,) = [n for n in gather.graph.node if n.op_type == "MatMul"]
    weights = {i.name: i.data_type for i in gather.graph.initializer}
    assert weights[product.input[1]] == TensorProto.FLOAT16, "typed as the router"
    assert {(o.domain, o.version) for o in gather.opset_import} == {("", 23), ("fastsam2", 1)}
    given = {v.name: v.type.tensor_type.elem_type for v in (*gather.graph.input, *gather.graph.output)}
    table = graph_spec(GATHER, TENSORRT)
    assert given == {t.name: TYPES[t.dtype] for t in (*table.inputs, *table.outputs)}
    engines = read_set(folder)
    both = engines.engine(GATHER), engines.engine(ROUTER)
    assert both[0] is not None and both[1] is not None
    assert both[0].drift == both[1].drift and 0 < both[0].drift["scores"] < 5e-3


def test_the_plugin_is_registered_once_before_anything_is_parsed(bundle: Path, trt: PluginTrt) -> None:
    add_gather(bundle)
    build_engines(bundle, flavor=Flavor.TENSORRT)
    told = [call[0] for call in trt.told]
    assert trt.of("register") == [("TopKGather", "1", "fastsam2")]
    assert told.index("register") < told.index("parse")
    build_engines(bundle, flavor=Flavor.TENSORRT, precision="bf16")
    assert len(trt.of("register")) == 1


def test_k_is_any_number_of_rows(bundle: Path, trt: PluginTrt) -> None:
    add_gather(bundle)
    (folder,) = build_engines(bundle, flavor=Flavor.TENSORRT, limits=Limits(max_objects=3))
    assert trt.of("set_shape_input") == [("k", [1], [SPEC.tokens // 2], [SPEC.tokens])]
    assert [values for name, *values in trt.of("set_shape") if name == "rows"] == [[(b, SPEC.tokens, SPEC.memory_dim) for b in (1, 1, 3)]]
    assert "k" not in [name for name, *_ in trt.of("set_shape")]
    there, engines = load_engines(bundle, read_manifest(bundle), Flavor.TENSORRT, version=trt.__version__, target="8.9")
    assert there == folder and {e.graph for e in engines.engines} == {*BASE_ROLES, ROUTER, GATHER}
    assert build_engines(bundle, flavor=Flavor.TENSORRT, limits=Limits(max_objects=3)) == (folder,)
    assert len(trt.of("parse")) == len(engines.engines), "nothing is built again"


def test_profiles_say_values_only_where_there_are_some() -> None:
    (with_k,), (without,) = (profiles(SPEC, role, Limits()) for role in (GATHER, ROUTER))
    assert with_k.values == {"k": (1, 512, 1024)} and with_k.model_dump()["values"] == with_k.values
    assert without.values == {} and "values" not in without.model_dump(mode="json") and '"values"' not in without.model_dump_json()
    for profile in (with_k, without):
        assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_bundles_without_the_graph_need_no_plugin(bundle: Path, trt: PluginTrt) -> None:
    build_engines(bundle, flavor=Flavor.TENSORRT)
    assert trt.of("register") == [] and trt.of("set_shape_input") == [] and "gather" not in parsed(trt)


def test_tensorrt_rtx_refuses_before_anything_is_written(bundle: Path, trt: PluginTrt, tmp_path: Path) -> None:
    """With a bundle that has the graph; the one it was added to is built."""
    out = add_gather(bundle, out=tmp_path / "with")
    trt.__name__ = "tensorrt_rtx"
    message = r"tensorrt-rtx builds, got one with router_gather: TopKGather is a plugin's layer.*--flavor tensorrt"
    for target in (None, tmp_path / "copy"):
        with pytest.raises(BackendError, match=message):
            build_engines(out, flavor=Flavor.TENSORRT_RTX, targets=["portable"], out=target)
    assert not (out / "engines").exists() and not (tmp_path / "copy").exists() and trt.told == []
    build_engines(bundle, flavor=Flavor.TENSORRT_RTX, targets=["portable"])
    assert len(trt.of("parse")) == len(BASE_ROLES) + 1


def test_a_refused_registration_is_an_error(bundle: Path, trt: PluginTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    add_gather(bundle)
    registry = SimpleNamespace(all_creators=(), register_creator=lambda creator, namespace: False)
    monkeypatch.setattr(trt, "get_plugin_registry", lambda: registry)
    with pytest.raises(BackendError, match=r"TensorRT to register fastsam2::TopKGather, got a refusal"):
        build_engines(bundle, flavor=Flavor.TENSORRT)
    assert not (bundle / "engines").exists()
