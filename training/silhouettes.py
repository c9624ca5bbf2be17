"""Real silhouettes with real motion: SA-V masklets as outlines over time.

SA-V annotations (facebook, CC BY 4.0) hold COCO run-length masks, column by column. Reads `sav_000001_manual.json` and files like it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fastsam2.training.shapes import Outline

FILE = "sav_000001_manual.json"
ENVIRONMENT = "FASTSAM2_TEST_DATA"


def decode_rle(counts: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A COCO compressed run-length string as a mask.

    Args:
        counts: LEB128-like text of pycocotools (`rleFrString` in cocoapi/common/maskApi.c).
        size: height and width.

    Returns:
        uint8 [H, W] of 0 and 1.
    """
    runs: list[int] = []
    p = 0
    while p < len(counts):
        value, shift, more = 0, 0, True
        while more:
            c = ord(counts[p]) - 48
            value |= (c & 0x1F) << shift
            more = bool(c & 0x20)
            p, shift = p + 1, shift + 5
            if not more and c & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    flat = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs)
    return flat.reshape(size[::-1]).T


class Silhouette:
    """One masklet as outlines in object units: centred where it is on average over its life, scaled to a mean radius of 1.

    Args:
        outlines: one per annotated frame, in pixels.
    """

    def __init__(self, outlines: list[Outline]) -> None:
        middles = [np.concatenate(o).mean(0) for o in outlines]
        radius = float(np.mean([np.sqrt(sum(abs(cv2.contourArea(p)) for p in o) / np.pi) for o in outlines]))
        middle = np.mean(middles, axis=0)
        # half of the real path stays, so that the object neither leaves its unit box nor slides rigidly
        origins = [(m + middle) / 2 for m in middles]
        self.outlines = [[((p - m) / radius).astype(np.float32) for p in o] for o, m in zip(outlines, origins, strict=True)]

    def at(self, t: float) -> Outline:
        """The outline at time `t`, in annotated frames; played forwards and backwards for ever."""
        last = len(self.outlines) - 1
        return self.outlines[round(abs((t + last) % (2 * last) - last))]


def load_silhouettes(path: Path, *, least_area: int = 400) -> list[Silhouette]:
    """Every masklet that is present, in one main piece, for at least 20 annotated frames running.

    Args:
        path: an SA-V `*_manual.json`.
        least_area: frames with fewer pixels end a run.
    """
    record: dict[str, Any] = json.loads(path.read_text())
    per_frame: list[list[dict[str, Any]]] = record["masklet"]
    found = []
    for index in range(len(per_frame[0])):
        run: list[Outline] = []
        for entries in [*per_frame, None]:
            outline = None if entries is None else _outline(entries[index], least_area)
            if outline is not None:
                run.append(outline)
                continue
            if len(run) >= 20:
                found.append(Silhouette(run))
            run = []
    return found


def _outline(rle: dict[str, Any], least_area: int) -> Outline | None:
    mask = decode_rle(rle["counts"], (rle["size"][0], rle["size"][1]))
    pieces, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    largest = max((p for p in pieces if len(p) > 4), key=cv2.contourArea, default=None)
    if largest is None or cv2.contourArea(largest) < least_area:
        return None
    return [largest[:, 0].astype(np.float32)]


def available_silhouettes() -> list[Silhouette]:
    """Those of the folder that the environment variable FASTSAM2_TEST_DATA names; none without it."""
    folder = os.environ.get(ENVIRONMENT)
    path = Path(folder) / FILE if folder else None
    return load_silhouettes(path) if path is not None and path.is_file() else []
