"""Standard output and error that cost no result: where the reader has gone, or the encoding lacks letters."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Outlet(io.FileIO):
    """A descriptor whose reader may go away: what is written then is dropped, instead of ending the program."""

    def __init__(self, descriptor: int, dropped: type[OSError]):
        super().__init__(descriptor, "w", closefd=False)
        self._dropped: tuple[type[OSError], ...] = (dropped,)

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except self._dropped:
            return memoryview(data).nbytes
        except OSError as error:
            # Told once: what is left in buffers would fail again.
            self._dropped = (OSError,)
            raise OSError(error.errno, error.strerror, "standard output") from None


def make_patient() -> None:
    """Replace sys.stdout and sys.stderr; one that something else has put in their place only escapes.

    A closed pipe (`| head`) is no error, nor is anything that keeps messages from standard error. What the encoding
    cannot say is written as an escape.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed by whoever started this: the next file opened would get the number, and a library's messages.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _patient(sys.stdout, sys.__stdout__, BrokenPipeError)
    sys.stderr = _patient(sys.stderr, sys.__stderr__, OSError)


def _patient(stream: Any, original: Any, dropped: type[OSError]) -> Any:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream is not original:
        stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    outlet = io.BufferedWriter(_Outlet(stream.fileno(), dropped))
    return io.TextIOWrapper(outlet, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)


def flush_output() -> None:
    """Flush standard output. Raises OSError, such as of a full disk, and then drops what could not be written."""
    if sys.stdout is not None:
        sys.stdout.flush()
