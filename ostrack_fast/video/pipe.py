"""Bytes that come once and in order, from a pipe or a download, for a reader that wants a file's name."""

from __future__ import annotations

import os
import shutil
import tempfile
from http.client import HTTPException
from threading import Thread
from typing import BinaryIO

_PIECE = 1 << 16
_MAX_HEAD = 1 << 20


class Pipe:
    """A stream under a name that FFmpeg can open.

    Frames come as the bytes do, but for files of the MP4 family whose index stands at the end, as cameras and this
    package write them: those are copied to a temporary file first, which has no name and so cannot be left behind.

    Args:
        stream: open for reading, unbuffered; it is closed at its end.

    Attributes:
        name: what to open.
        seekable: whether all is there already.
        problem: why the stream ended too early, if it did.

    Raises:
        OSError, HTTPException: the stream broke off while its beginning, or a file that needs its end, was read.
    """

    def __init__(self, stream: BinaryIO):
        self.problem: Exception | None = None
        head = b""
        decided: bool | None = None
        while decided is None and (piece := stream.read(_PIECE)):
            head += piece
            decided = _has_index_last(head)
        self.seekable = bool(decided)
        if self.seekable:
            with stream, tempfile.TemporaryFile() as spool:
                spool.write(head)
                shutil.copyfileobj(stream, spool)
                _check_end(stream)
                spool.flush()
                # FFmpeg opens it again by its descriptor, as long as this object lives.
                self._descriptor = os.dup(spool.fileno())
        else:
            self._descriptor, into = os.pipe()
            Thread(target=self._pump, args=(head, stream, into), daemon=True).start()
        self.name = f"/dev/fd/{self._descriptor}"

    def _pump(self, head: bytes, stream: BinaryIO, into: int) -> None:
        with stream, open(into, "wb", buffering=0) as out:
            try:
                while head:
                    head = head[out.write(head) :] or stream.read(_PIECE)
                _check_end(stream)
            except BrokenPipeError:
                return  # the reader has seen enough
            except (OSError, HTTPException) as error:
                # Before `out` is closed, which is what the reader takes for the end.
                self.problem = error

    def close(self) -> None:
        """Read no further."""
        os.close(self._descriptor)


def _check_end(stream: BinaryIO) -> None:
    """Raise OSError where a download stopped before it was whole: its stream ends as if it were."""
    missing = getattr(stream, "length", None)
    if isinstance(missing, int) and missing > 0:
        raise OSError(f"the connection ended {missing} bytes early")


def _has_index_last(head: bytes) -> bool | None:
    """Whether a file that begins so is of the MP4 family (ISO 14496-12), its data before its index; None: read on."""
    if len(head) >= 8 and head[4:8] != b"ftyp":
        return False
    at = 0
    while at + 16 <= len(head):
        size, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(head[at + 8 : at + 16], "big")
        if kind == b"moov":
            return False
        if kind == b"mdat" or size < 8:
            return True
        at += size
    return True if len(head) > _MAX_HEAD else None
