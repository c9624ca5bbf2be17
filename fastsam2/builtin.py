"""What ships inside the package: bundles under `models/`, sample clips under `samples/`.

"nano" ─► fastsam2/models/nano        "./nano", Path("nano"), "bundles/nano" ─► that folder
"""

from __future__ import annotations

import os
from pathlib import Path

from fastsam2.errors import BundleError, VideoError, expected

PACKAGE = Path(__file__).resolve().parent
MODELS = PACKAGE / "models"
SAMPLES = PACKAGE / "samples"
_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))

PathLike = str | os.PathLike[str]


def builtin_bundles() -> tuple[str, ...]:
    """Names of the bundles that ship with the package, sorted."""
    return _folders(MODELS)


def builtin_samples() -> tuple[str, ...]:
    """Names of the sample clips that ship with the package, sorted."""
    return _folders(SAMPLES)


def bundle_path(bundle: PathLike) -> Path:
    """The folder that a bundle's name or path stands for.

    A text without a separator is a name: a built-in bundle of that name wins over a folder of that name in the working directory. Texts
    with a separator and `Path` objects are always paths, so `./nano` and `Path("nano")` are the local folder.

    Args:
        bundle: name of a built-in bundle, or a bundle's folder.

    Returns:
        The folder; whether it holds a legal bundle is for `read_manifest` to say.

    Raises:
        BundleError: if a name is neither built in nor a local folder; lists the built-in ones.
    """
    path = _resolve(bundle, MODELS)
    if path is None:
        names = list(builtin_bundles())
        todo = "Name one of them, or the folder that `fastsam2 export` wrote" if names else "Make a bundle with `fastsam2 export`"
        raise BundleError(expected(f"a bundle folder, or a built-in bundle of {names}", bundle, todo))
    return path


def bundle_to_change(bundle: PathLike, out: Path | None) -> Path:
    """The folder of a bundle that something is going to be added to; what ships with the package stays as it is.

    Args:
        bundle: as in `bundle_path`.
        out: where the result goes; None for the bundle itself.

    Raises:
        BundleError: as `bundle_path`, and for a built-in bundle without `out`.
    """
    folder = bundle_path(bundle)
    if out is None and folder.resolve().is_relative_to(MODELS.resolve()):
        raise BundleError(expected("--out for a built-in bundle", f"{bundle} alone", "Name a new folder: the built-in one stays as it is"))
    return folder


def sample_path(sample: PathLike) -> Path:
    """The folder that a sample clip's name or path stands for, by the rule of `bundle_path`.

    Raises:
        VideoError: if a name is neither built in nor a local folder; lists the built-in ones.
    """
    path = _resolve(sample, SAMPLES)
    if path is None:
        names = list(builtin_samples())
        raise VideoError(
            expected(f"a sample folder, or a built-in sample of {names}", sample, "A sample has clip.mp4, clip.json and truth/")
        )
    return path


def _resolve(given: PathLike, home: Path) -> Path | None:
    """The folder `given` stands for; None for a name that is nowhere."""
    if not isinstance(given, str) or any(separator in given for separator in _SEPARATORS):
        return Path(given)
    if given in _folders(home):
        return home / given
    return Path(given) if Path(given).is_dir() else None


def _folders(home: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in home.glob("[!._]*") if p.is_dir()))
