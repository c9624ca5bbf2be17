"""The builder's layer listing -> which attentions were fused, and how much memory activations take.

TensorRT-RTX logs, at VERBOSE and with detailed profiling verbosity, what an engine is made of. That is kept beside the engine as it came:

    Total Activation Memory: 986120192 bytes                                  one line for each profile
    Layers:
    Name: _gemm_mha_v2_myl0_40, LayerType: kgen, ..., Metadata: [ONNX Layer: node_scaled_dot_product_attention_2]
    Name: node_MatMul_62 [profile 1]_myl1_2, ...                              the layers of further profiles follow

TensorRT says the same as JSON through its engine inspector, which needs a GPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastsam2.errors import BundleError, expected

_FUSED = re.compile(r"mha", re.IGNORECASE)  # kernels: _gemm_mha_v2, fmha_v2, fused_mha
_REGION = re.compile(r"_(myl\d+)_\d+$")  # what Myelin compiles together; never layers of two profiles
_PROFILE = re.compile(r"\[profile (\d+)\]")
_ACTIVATION = re.compile(r"^Total Activation Memory: (\d+)", re.MULTILINE)
_SOURCE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_LINE = re.compile(r"^Name: (.*?), LayerType: ([^,]*), .*$", re.MULTILINE)
_TACTIC = re.compile(r"TacticName: ([^,]*)")


@dataclass(frozen=True, slots=True)
class Layer:
    """One kernel, copy or synchronisation of an engine.

    Attributes:
        name: given by the builder.
        kind: LayerType, for example gemm, kgen or shape_call.
        tactic: name of the kernel; may be empty.
        sources: ONNX nodes it computes.
        profile: index of the optimization profile it belongs to.
    """

    name: str
    kind: str
    tactic: str
    sources: tuple[str, ...]
    profile: int

    @property
    def fused_attention(self) -> bool:
        """Whether it computes a whole attention: both products and the softmax between them."""
        return bool(_FUSED.search(self.name) or _FUSED.search(self.tactic))


@dataclass(frozen=True, slots=True)
class Listing:
    """What an engine is made of.

    Attributes:
        layers: in order of execution, profile after profile.
        activation_bytes: device memory for intermediate tensors, of each profile at its largest sizes.
    """

    layers: tuple[Layer, ...]
    activation_bytes: tuple[int, ...]

    def fused(self, profile: int = 0) -> tuple[Layer, ...]:
        """Layers of one profile that are fused attentions."""
        return tuple(layer for layer in self.layers if layer.profile == profile and layer.fused_attention)


def listing_of(messages: Sequence[str]) -> str:
    """The listing among a builder's messages: activation memory and the message "Layers:", or only the former where there is none.

    Args:
        messages: of one build, in the order they came.
    """
    kept = [message for message in messages if _ACTIVATION.match(message)]
    kept += [message for message in messages if message.startswith("Layers:")]
    return "\n".join(kept).rstrip() + "\n"


def parse_listing(text: str) -> Listing:
    """Reads a listing.

    Args:
        text: from `listing_of`, or activation memory and the JSON of TensorRT's engine inspector.

    Raises:
        BundleError: if there is no layer in it.
    """
    rows = list(_from_json(text[text.find("{") :]) if "\nName: " not in text else _from_lines(text))
    if not rows:
        todo = "Delete the engine's folder and run `fastsam2 build` again"
        raise BundleError(expected("a builder's layer listing", repr(text[:80]), todo))
    profiles = {_region(name): int(tag[1]) for name, _, _, everything in rows if (tag := _PROFILE.search(everything))}
    layers = (
        Layer(name, kind, tactic, tuple(_SOURCE.findall(everything)), profiles.get(_region(name), 0))
        for name, kind, tactic, everything in rows
    )
    return Listing(tuple(layers), tuple(int(found) for found in _ACTIVATION.findall(text)))


def _region(name: str) -> str:
    """What a layer without a profile's tag shares its profile with."""
    found = _REGION.search(name)
    return found[1] if found else name


def _from_lines(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, kind, tactic and everything that is said of each layer."""
    for line in _LINE.finditer(text):
        tactic = _TACTIC.search(line[0])
        yield line[1], line[2], tactic[1] if tactic else "", line[0]


def _from_json(text: str) -> Iterator[tuple[str, str, str, str]]:
    try:
        for layer in json.loads(text)["Layers"]:
            name, kind, tactic = (str(layer.get(key, "")) for key in ("Name", "LayerType", "TacticName"))
            yield name, kind, tactic, json.dumps(layer)
    except (ValueError, KeyError, TypeError, AttributeError):
        return
