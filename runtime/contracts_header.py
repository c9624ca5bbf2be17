"""The C++ view of the contracts: `runtime/cpp/include/fastsam2/contracts.hpp`, written from the Python tables.

    fastsam2/{contracts, config, enums}.py ─ python -m fastsam2.runtime.contracts_header ─► contracts.hpp

A test compares the committed header with what this module writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from fastsam2 import config, contracts
from fastsam2.contracts import GRAPHS, TensorSpec, graph_spec
from fastsam2.enums import Alarm, ExportTarget, GraphRole, Protect, PrunePolicy

HEADER = Path(__file__).resolve().parent / "cpp" / "include" / "fastsam2" / "contracts.hpp"
MAX_RANK = 4  # of fastsam2::Shape

_START = """// Written by `python -m fastsam2.runtime.contracts_header` from fastsam2/{contracts,config,enums}.py: not to be edited.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace fastsam2 {
"""
_TYPES = """
// One input or output of a graph.
struct TensorSpec {
  std::string_view name;
  std::string_view dtype;  // numpy's name of it
  std::string_view axes;   // symbols of fastsam2/contracts.py, blanks between them
};

struct GraphSpec {
  GraphRole role;
  std::span<const TensorSpec> inputs;   // in positional order
  std::span<const TensorSpec> outputs;  // in positional order
};
"""


def header() -> str:
    """The text of `contracts.hpp`."""
    parts = [_START, _constants(), *(_enum(e) for e in (GraphRole, ExportTarget, PrunePolicy, Protect, Alarm)), _TYPES, _tables()]
    return "".join(parts) + "\n}  // namespace fastsam2\n"


def _constants() -> str:
    integers = {
        "kManifestVersion": contracts.MANIFEST_VERSION,
        "kClipContext": contracts.CLIP_CONTEXT,
        "kImageStride": config.IMAGE_STRIDE,
        "kImageSizeMultiple": config.IMAGE_SIZE_MULTIPLE,
        "kLowResStride": config.LOW_RES_STRIDE,
        "kLabelPadding": contracts.LABEL_PADDING,
        "kLabelNegative": contracts.LABEL_NEGATIVE,
        "kLabelPositive": contracts.LABEL_POSITIVE,
        "kLabelBoxMin": contracts.LABEL_BOX_MIN,
        "kLabelBoxMax": contracts.LABEL_BOX_MAX,
    }
    floats = {"kMaskLogitClamp": contracts.MASK_LOGIT_CLAMP, "kNoObjectLogit": contracts.NO_OBJECT_LOGIT}
    lines = [f"inline constexpr std::int32_t {name} = {value};" for name, value in integers.items()]
    lines += [f"inline constexpr float {name} = {value!r}F;" for name, value in floats.items()]
    lines.append(f"inline constexpr std::array<double, {len(config.KEEP_BUCKETS)}> kKeepBuckets{{{_joined(config.KEEP_BUCKETS)}}};")
    return "\n" + "\n".join(lines) + "\n"


def _enum(choices: type[Enum]) -> str:
    names = ", ".join(_camel(member.name) for member in choices)
    texts = ", ".join(f'"{member.value}"' for member in choices)
    plural = f"k{choices.__name__}Names"
    return (
        f"\nenum class {choices.__name__} : std::uint8_t {{ {names} }};\n"
        f"inline constexpr std::array<std::string_view, {len(choices)}> {plural}{{{texts}}};\n"
        f"constexpr std::string_view name_of({choices.__name__} value) {{ return {plural}[static_cast<std::size_t>(value)]; }}\n"
    )


def _tables() -> str:
    lines = ["\nnamespace tables {"]
    cases = []
    for role in GRAPHS:
        for target in ExportTarget:
            spec = graph_spec(role, target)
            if target is not ExportTarget.ONNXRUNTIME and spec is GRAPHS[role]:
                continue
            name = _camel(role.value) + ("" if target is ExportTarget.ONNXRUNTIME else "For" + _camel(target.value))
            lines += [*_tensors(f"{name}Inputs", spec.inputs), *_tensors(f"{name}Outputs", spec.outputs)]
            lines.append(f"inline constexpr GraphSpec {name}{{GraphRole::{_camel(role.name)}, {name}Inputs, {name}Outputs}};")
            if target is not ExportTarget.ONNXRUNTIME:
                cases.append((role, target, name))
    lines += ["}  // namespace tables\n", "// The table of one graph as shaped for `target`."]
    lines.append("constexpr const GraphSpec& graph_spec(GraphRole role, ExportTarget target) {")
    for role, target, name in cases:
        condition = f"role == GraphRole::{_camel(role.name)} && target == ExportTarget::{_camel(target.name)}"
        lines.append(f"  if ({condition}) return tables::{name};")
    lines.append("  switch (role) {")
    lines += [f"    case GraphRole::{_camel(role.name)}: return tables::{_camel(role.value)};" for role in list(GRAPHS)[:-1]]
    last = _camel(list(GRAPHS)[-1].value)
    lines += [f"    case GraphRole::{last}: break;", "  }", f"  return tables::{last};", "}"]
    return "\n".join(lines) + "\n"


def _tensors(name: str, tensors: Sequence[TensorSpec]) -> list[str]:
    assert all(1 <= len(t.axes) <= MAX_RANK for t in tensors)
    rows = [f'    TensorSpec{{"{t.name}", "{t.dtype}", "{" ".join(t.axes)}"}},' for t in tensors]
    return [f"inline constexpr std::array<TensorSpec, {len(rows)}> {name}{{", *rows, "};"]


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _joined(values: Sequence[float]) -> str:
    return ", ".join(repr(value) for value in values)


if __name__ == "__main__":
    HEADER.write_text(header(), encoding="utf-8")
