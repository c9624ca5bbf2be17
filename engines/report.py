"""`python -m fastsam2.engines.report BUNDLE... --out FILE.json`: what is known of built engines, one row a graph, for the record.

    engines/*/engines.json, layer listings ─ inspect_engines ─► rows; rows of other engines that the file has already stay

So models can be built, recorded and deleted one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastsam2
from fastsam2.builtin import bundle_path
from fastsam2.bundle import read_manifest
from fastsam2.engines.records import inspect_engines
from fastsam2.errors import BundleError, FastSam2Error, expected
from fastsam2.files import write_whole

OBJECT = "engines built from the graphs of a bundle; not run"
KEY = ("model", "image_size", "weights", "graph", "flavor", "version", "target", "precision", "largest_batch")

Row = Mapping[str, Any]


def rows_of(bundle: Path) -> list[Row]:
    """One row for each engine of a bundle, in the order of their folders and graphs.

    Record right after building: `load_average` (processes that want a core, mean of 15 minutes) tells whether `build_seconds`, wall clock,
    had the machine to itself.

    Args:
        bundle: folder of the bundle.

    Raises:
        BundleError: if the bundle or an engine is damaged, or there is no engine.
    """
    manifest = read_manifest(bundle)
    found = inspect_engines(bundle, manifest)
    if not found:
        raise BundleError(expected(f"engines in {bundle}", "none", f"Build them: fastsam2 build {bundle}"))
    return [
        {
            "model": manifest.model.name,
            "image_size": manifest.model.image_size,
            "weights": manifest.origin.checkpoint,
            **{key: engine[key] for key in ("graph", "flavor", "version", "target", "precision")},
            "largest_batch": max((profile["sizes"]["B"][2] for profile in engine["profiles"] if "B" in profile["sizes"]), default=1),
            **{key: engine[key] for key in ("build_seconds", "bytes", "fused_attention", "expected_attention", "attention")},
            "activation_bytes": engine["activation_bytes"],
            "worst_drift": max(engine["drift"].values()),
            "load_average": round(os.getloadavg()[2], 1),
        }
        for engine in found
    ]


def conditions() -> Row:
    """The machine and the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "fastsam2": fastsam2.__version__}


def merged(file: Path, rows: Sequence[Row]) -> Mapping[str, Any]:
    """The record in `file` with `rows` in it, in the place of rows of the same engines.

    Raises:
        BundleError: if the file is of another machine or release, or no such record.
    """
    here, before = conditions(), list[Row]()
    if file.is_file():
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            theirs, before = held["conditions"], held["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(expected(f"a record of engines in {file}", repr(error), "Name another file with --out")) from error
        if theirs != here:
            raise BundleError(expected(f"{file} to be of {here}", theirs, "Name another file with --out: times do not compare"))
    latest = {tuple(row[name] for name in KEY): row for row in (*before, *rows)}
    return {"object": OBJECT, "conditions": here, "rows": list(latest.values())}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with the error on stderr."""
    parser = argparse.ArgumentParser(prog="python -m fastsam2.engines.report", description="Record what is known of built engines.")
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="bundle with engines")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="record to make, or to add to")
    options = parser.parse_args(arguments)
    try:
        record = merged(options.out, [row for bundle in options.bundles for row in rows_of(bundle_path(bundle))])
        write_whole(options.out, json.dumps(record, indent=1) + "\n")
    except (FastSam2Error, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
