"""Where this user's caches are: exported checkpoints, and kernels compiled for a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "FASTSAM2_CACHE"


def cache_folder() -> Path:
    """`FASTSAM2_CACHE`, or `fastsam2` in the platform's folder for caches of a user."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "fastsam2" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fastsam2"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastsam2"
