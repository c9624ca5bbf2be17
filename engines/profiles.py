"""Dynamic axes of `fastsam2.contracts` and the limits of a build -> optimization profiles.

    memory [B, M, D], B <= 4 objects, M <= 7 frames of N rows   ─►   memory: 1 x 1 x D ... 4 x 7N x D

One profile is enough, and the default: it spans every size, so that every size runs the kernels that were chosen for the largest. Whether
attention fuses is decided by the largest sizes of a profile (`engines/fusion.toml`), so the smaller profile of a keep bucket may lose the
fused kernels of the dense one, and with them memory. Where it keeps them it saves memory: tiny at 1024 px with four objects takes 332 MB of
activations in the profile of keep 0.02, and 986 MB in the dense one.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from fastsam2.config import ModelSpec, bucket_rows
from fastsam2.contracts import SHAPE_INPUTS, graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError, expected

DENSE = "dense"
MAX_POINTS = 64  # prompt points of one object
MAX_TEXTS = 8  # descriptions encoded at once

Sizes = dict[str, tuple[int, int, int]]  # symbol of an axis -> smallest, most likely and largest size
Shape = tuple[int, ...]


class Limits(BaseModel):
    """What engines are to have room for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_objects: int = Field(default=4, ge=1)  # in one batch; more run in turns
    max_prompt_frames: int = Field(default=1, ge=1)  # prompted frames attended to, besides the latest frames
    keep_buckets: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()  # keep fractions with a profile of their own

    @classmethod
    def of(cls, *, max_objects: int, max_prompt_frames: int, keep_buckets: tuple[float, ...]) -> Limits:
        """The limits that a user asked for.

        Raises:
            BackendError: if a number is out of range.
        """
        try:
            return cls(max_objects=max_objects, max_prompt_frames=max_prompt_frames, keep_buckets=tuple(sorted(set(keep_buckets))))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise BackendError(
                expected(f"a legal {field}", f"{first['input']} ({first['msg']})", "Use 4 objects, 1 frame, 0.05")
            ) from error


class Profile(BaseModel):
    """One optimization profile of a graph."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str  # "dense", or "keep 0.05"
    sizes: dict[str, tuple[int, int, int]]  # of the dynamic axes that the graph has
    shapes: dict[str, tuple[Shape, Shape, Shape]]  # input with dynamic axes -> smallest, most likely and largest shape
    values: dict[str, tuple[int, int, int]] = Field(default_factory=dict)  # input [1] that is a size itself -> the same; left out if empty

    @model_serializer(mode="wrap")
    def _leave_out_no_values(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = serialize(self)
        return made if self.values else {key: value for key, value in made.items() if key != "values"}


def axis_sizes(spec: ModelSpec, limits: Limits, *, keep: float | None = None) -> Sizes:
    """Sizes of every dynamic axis.

    Args:
        spec: of the model.
        limits: what to have room for.
        keep: fraction of rows kept of the frames between the prompted ones and the newest, which stay dense; None keeps all.
    """
    n = spec.tokens
    kept = n if keep is None else bucket_rows(keep, n)
    dense_frames = limits.max_prompt_frames + 1
    rows = dense_frames * n + (spec.num_maskmem - 2) * kept
    pointers = limits.max_prompt_frames + spec.max_object_pointers - 1
    split = spec.pointer_tokens
    return {
        "B": (1, 1, limits.max_objects),
        "K": (1, max(1, n // 2), n),
        "M": (1, rows, rows),
        "P": (1, pointers, pointers),
        "R": (1 + split, rows + split * pointers, rows + split * pointers),
        "Q": (1, 1, MAX_POINTS),
        "T": (1, 1, MAX_TEXTS),
    }


def profiles(spec: ModelSpec, role: GraphRole, limits: Limits) -> tuple[Profile, ...]:
    """Profiles of one graph, the dense one first; none where all shapes are static.

    Args:
        spec: of the model.
        role: graph, as shaped for the target `tensorrt`.
        limits: what to have room for.
    """
    dynamic = {axis for tensor in graph_spec(role, ExportTarget.TENSORRT).inputs for axis in tensor.dynamic().values()}
    if not dynamic:
        return ()
    found = [_profile(spec, role, DENSE, axis_sizes(spec, limits))]
    if "M" in dynamic:
        found += [_profile(spec, role, f"keep {keep:g}", axis_sizes(spec, limits, keep=keep)) for keep in limits.keep_buckets]
    return tuple(found)


def _profile(spec: ModelSpec, role: GraphRole, name: str, sizes: Sizes) -> Profile:
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
    used: set[str] = set()
    for tensor in graph_spec(role, ExportTarget.TENSORRT).inputs:
        if axes := tensor.dynamic():
            used |= set(axes.values())
            low, likely, high = (tensor.sized(spec, {axis: size[i] for axis, size in sizes.items()}) for i in range(3))
            shapes[tensor.name] = (low, likely, high)
    values = {t.name: sizes[SHAPE_INPUTS[t.name]] for t in graph_spec(role, ExportTarget.TENSORRT).inputs if t.name in SHAPE_INPUTS}
    return Profile(name=name, sizes={axis: sizes[axis] for axis in sorted(used)}, shapes=shapes, values=values)
