"""Exception families: a user's mistake and our own bug have different roots.

`FastSam2Error` and its children mean "the call, the file or the machine cannot do this": the message names what was expected, what
came and what to do next, nothing was changed, and the command line exits with 2. `InternalError` means fastsam2 broke its own rules.
"""


class FastSam2Error(Exception):
    """Root of everything a caller can put right. Build messages with `expected`."""


class ExportError(FastSam2Error):
    """A checkpoint, config or exported graph is not what the exporter can turn into a bundle."""


class BundleError(FastSam2Error):
    """A bundle is missing, truncated, altered, or of a version this release does not read."""


class BackendError(FastSam2Error):
    """The asked-for backend, provider or device is not usable on this machine."""


class VideoError(FastSam2Error):
    """A video source cannot be opened, decoded or written."""


class PromptError(FastSam2Error, ValueError):
    """A prompt, object id, frame or option value is not legal; the tracker's state is unchanged."""


class ScoreError(FastSam2Error, ValueError):
    """Masks and ground truth cannot be compared."""


class StateError(FastSam2Error, RuntimeError):
    """The call does not fit what happened so far: nothing is prompted, or an object is unknown; the state is unchanged."""


class InternalError(RuntimeError):
    """A broken invariant inside fastsam2: please report it."""


def expected(what: str, got: object, todo: str) -> str:
    """One error sentence of the house form, `expected WHAT, got GOT. TODO`, with its full stop."""
    return f"expected {what}, got {got}. {todo.rstrip('.')}."


def reason(error: Exception) -> str:
    """Kind and first line of an error that another package raised, for the `got` of `expected`."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(".:")
