"""The one logger of a TensorRT module, for building and for running.

TensorRT goes on writing to the first logger that it ever got, so a module has one for the whole process, and it is never collected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from weakref import ref

_QUOTED_MESSAGES, _QUOTED_CHARACTERS = 3, 400


class Recording:
    """What is logged as long as somebody holds it: all messages, and those of errors."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.errors: list[str] = []


def quoted(messages: Iterable[str]) -> str:
    """The first few messages in one line, each once."""
    lines = dict.fromkeys(" ".join(message.split())[:_QUOTED_CHARACTERS] for message in messages)
    return " | ".join(list(lines)[:_QUOTED_MESSAGES]) or "no message"


@cache
def logger_of(trt: Any) -> Any:
    """The logger of one module, an `ILogger` that keeps the last errors.

    `said()` quotes these and forgets them, as `clear()` does; `record()` gives a new `Recording`, which takes the place of the one before.
    """

    class Log(trt.ILogger):  # type: ignore[misc]  # the module is known only now
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last: deque[str] = deque(maxlen=_QUOTED_MESSAGES)
            self.recording: Callable[[], Recording | None] = lambda: None

        def log(self, severity: Any, message: str) -> None:
            failed = severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
            if failed:
                self.last.append(message)
            if (recording := self.recording()) is not None:
                recording.messages.append(message)
                if failed:
                    recording.errors.append(message)

        def clear(self) -> None:
            self.last.clear()

        def said(self) -> str:
            text = quoted(self.last)
            self.last.clear()
            return text

        def record(self) -> Recording:
            recording = Recording()
            self.recording = ref(recording)
            return recording

    return Log()
