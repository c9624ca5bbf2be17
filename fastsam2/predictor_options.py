"""Options of the drop-in predictor, from keywords and hydra overrides.

    "++model.fill_hole_area=8", non_overlap_masks=True  ->  PredictorOptions

An option that the graphs cannot honour is refused, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fastsam2.config import POSTPROCESSING
from fastsam2.enums import BackendName
from fastsam2.errors import BackendError, PromptError, expected

_OVERRIDE = re.compile(r"\+{0,2}model\.([\w.]+)=(.*)", re.DOTALL)
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_NO_EFFECT = ("compile_image_encoder",)  # changes speed, not masks


def backend_of(device: object) -> tuple[BackendName, int]:
    """The backend that the official argument `device` stands for, and which GPU.

    Args:
        device: None, "cpu", "cuda", "cuda:1", or a `torch.device` of these.

    Raises:
        BackendError: if it is something else.
    """
    kind, _, index = str("cpu" if device is None else device).partition(":")
    if kind == "cpu":
        return BackendName.ONNXRUNTIME, 0
    if kind == "cuda" and (index.isdigit() or not index):
        return BackendName.GPU, int(index or 0)
    raise BackendError(expected('the device "cpu" or "cuda"', repr(device), 'Pass device="cpu", or leave the device out'))


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorOptions:
    """Options by their official names.

    Args:
        fill_hole_area: background holes of at most this many low-resolution pixels are filled; 0 fills none, which is what the official
            wheel does for want of its CUDA extension.
        non_overlap_masks: of objects that overlap, the one with the highest logit keeps the pixel.
        clear_non_cond_mem_around_input: forget memories near a frame on which an object is prompted.
        add_all_frames_to_correct_as_cond: a corrected frame's memory counts as a prompt frame.
        max_cond_frames_in_attn: most prompt frames an object attends to; -1 for no limit.
        image_size: side of the square model input in pixels, instead of the config's.

    Raises:
        PromptError: if a value is out of range.
    """

    fill_hole_area: int = 0
    non_overlap_masks: bool = False
    clear_non_cond_mem_around_input: bool = False
    add_all_frames_to_correct_as_cond: bool = False
    max_cond_frames_in_attn: int = -1
    image_size: int | None = None

    def __post_init__(self) -> None:
        least = {"fill_hole_area": 0, "max_cond_frames_in_attn": -1, "image_size": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in least:
                if not isinstance(value, bool):
                    raise PromptError(expected(f"{field.name} true or false", repr(value), f"The default is {field.default}"))
            elif value != field.default and (type(value) is not int or value < least[field.name]):
                raise PromptError(expected(f"{field.name} >= {least[field.name]}", repr(value), f"The default is {field.default}"))
        if self.max_cond_frames_in_attn == 0:
            raise PromptError(expected("max_cond_frames_in_attn >= 1, or -1", 0, "-1 sets no limit"))


def read_options(overrides: Sequence[str], keywords: Mapping[str, Any], *, postprocessing: bool) -> PredictorOptions:
    """Options from `++model.NAME=VALUE` overrides and keywords; a keyword wins.

    Args:
        overrides: as hydra takes them.
        keywords: by name.
        postprocessing: overrides that ask for what postprocessing does anyway are legal.

    Raises:
        PromptError: if an option is unknown, cannot be honoured or is out of range.
    """
    known = {field.name for field in fields(PredictorOptions)}
    values: dict[str, Any] = {}
    for override in overrides:
        found = _OVERRIDE.fullmatch(override)
        if not found:
            raise PromptError(expected("overrides of the form ++model.NAME=VALUE", repr(override), f"NAME is one of {sorted(known)}"))
        name, value = found[1], _value(found[2])
        if name in known:
            values[name] = value
        elif name not in _NO_EFFECT and not (postprocessing and name in POSTPROCESSING and value == POSTPROCESSING[name]):
            raise _refusal(override, known)
    for name, value in keywords.items():
        if name not in known:
            raise _refusal(f"{name}={value!r}", known)
        values[name] = value
    return PredictorOptions(**values)


def _refusal(got: str, known: set[str]) -> PromptError:
    todo = "Other options of a model shape its graphs: write them into a config file of your own and give its path as config_file"
    return PromptError(expected(f"an option of {sorted(known)}", repr(got), todo))


def _value(text: str) -> Any:
    """A scalar as hydra reads it."""
    text = text.strip().strip("'\"")
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
