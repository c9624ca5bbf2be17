"""bench.json: the conditions of a benchmark and its cases, saved whole after every group.

{conditions, bundle, video, frames, "cases": [...]} ─ a later run with the same conditions ─► the same file with more cases
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastsam2.errors import PromptError, expected, reason
from fastsam2.files import write_json

_MACHINE = ("cpu", "gpu", "compute_capability", "driver", "threads")
_VERSIONS = ("fastsam2", "python", "onnxruntime", "torch", "sam2", "tensorrt", "tensorrt-rtx-cu13")
MUST_AGREE = (*_MACHINE, *_VERSIONS, "bundle_sha256", "video", "video_size", "frames")
_OWN = ("date", "commit")  # of the head, which cases keep as their own
CASE_KEY = ("model", "image_size", "backend", "precision", "cuda_graphs", "against", "objects", "policy", "keep")
"""What tells cases apart, besides the boundary; both boundaries of a case are measured together."""


class BenchRecord:
    """The content of one bench.json.

    Args:
        out: the file; read if it is there.
        head: everything but the cases; what a file that is there already says of itself stays.

    Attributes:
        head: as given; may be added to.
        content: what the file says.

    Raises:
        PromptError: if the file is no benchmark, or was measured under other conditions.
    """

    def __init__(self, out: Path, head: Mapping[str, Any]) -> None:
        self.out = out
        self.head = dict(head)
        self.content: dict[str, Any] = {**head, "cases": []}
        if out.exists():
            known = _read(out)
            self._agree(known, [k for k in MUST_AGREE if k != "video_size"])  # which is known once the clip is open
            self.content = known

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether a case with these values of `CASE_KEY` was measured."""
        return any(all(case.get(k) == identity.get(k) for k in CASE_KEY) for case in self.content["cases"])

    def add(self, cases: Sequence[dict[str, Any]]) -> None:
        """Appends cases and saves the file in one step.

        Raises:
            PromptError: if it cannot be written, or what was added to `head` differs from what the file says.
        """
        known = self.content
        if known["cases"]:
            self._agree(known, MUST_AGREE)
        own = {k: self.head[k] for k in _OWN if k in self.head}
        content = {**self.head, **(known if known["cases"] else {}), "cases": [*known["cases"], *({**case, **own} for case in cases)]}
        try:
            write_json(self.out, content)
        except OSError as error:
            raise PromptError(expected("a file to write", f"{self.out} ({reason(error)})", "Choose another --out")) from error
        self.content = content

    def _agree(self, known: Mapping[str, Any], names: Sequence[str]) -> None:
        other = [k for k in names if known.get(k) != self.head.get(k)]
        if other:
            wanted, got = ({k: record.get(k) for k in other} for record in (self.head, known))
            todo = "Choose another --out, or delete that file"
            raise PromptError(expected(f"a file measured with {wanted}", f"{got} in {self.out}", todo))


def _read(file: Path) -> dict[str, Any]:
    todo = "Choose another --out"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(expected(f"a benchmark in {file}", error, todo)) from error
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list):
        raise PromptError(expected(f"a benchmark in {file}", "other JSON", todo))
    return content
