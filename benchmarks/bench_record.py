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

MUST_AGREE = ("cpu", "gpu", "threads", "fastsam2", "onnxruntime", "torch", "bundle_sha256", "video", "frames")
CASE_KEY = ("model", "image_size", "backend", "precision", "cuda_graphs", "against", "objects", "policy", "keep")
"""What tells cases apart, besides the boundary; both boundaries of a case are measured together."""


class BenchRecord:
    """The content of one bench.json.

    Args:
        out: the file; read if it is there.
        head: everything but the cases; takes the place of what the file has.

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
            other = [k for k in MUST_AGREE if known.get(k) != head.get(k)]
            if other:
                wanted, got = ({k: record.get(k) for k in other} for record in (head, known))
                todo = "Choose another --out, or delete that file"
                raise PromptError(expected(f"a file measured with {wanted}", f"{got} in {out}", todo))
            self.content = known

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether a case with these values of `CASE_KEY` was measured."""
        return any(all(case.get(k) == identity.get(k) for k in CASE_KEY) for case in self.content["cases"])

    def add(self, cases: Sequence[dict[str, Any]]) -> None:
        """Appends cases and saves the file in one step.

        Raises:
            PromptError: if it cannot be written.
        """
        content = {**self.head, "cases": [*self.content["cases"], *cases]}
        try:
            write_json(self.out, content)
        except OSError as error:
            raise PromptError(expected("a file to write", f"{self.out} ({reason(error)})", "Choose another --out")) from error
        self.content = content


def _read(file: Path) -> dict[str, Any]:
    todo = "Choose another --out"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(expected(f"a benchmark in {file}", error, todo)) from error
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list):
        raise PromptError(expected(f"a benchmark in {file}", "other JSON", todo))
    return content
