"""The checkpoint a run resumes from: sealed with a checksum, and the one before it kept."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..files import write_atomically
from ..model.saving import save_torch

CHECKPOINT = "last.pt"
PREVIOUS = "previous.pt"
DAMAGED = "damaged.pt"
_NEXT = "next.pt"
_DIGEST_BYTES = 32
_NO_COMMENT = b"\0\0"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Make `state` the folder's checkpoint, and the one there its predecessor.

    Killed at any moment, or on a full disk, a run leaves at least one whole checkpoint.

    Raises:
        OSError: it cannot be written, on a full disk for one; the checkpoints there stay as they were.
    """

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            save_torch(state, file)
        _seal(temporary)

    write_atomically(folder / _NEXT, write)
    if (folder / CHECKPOINT).exists():
        os.replace(folder / CHECKPOINT, folder / PREVIOUS)
    os.replace(folder / _NEXT, folder / CHECKPOINT)


def _seal(path: str | Path) -> None:
    """Append the SHA-256 of a zip file as its comment, where no reader of zip files minds it."""
    with open(path, "rb+") as file:
        file.seek(-len(_NO_COMMENT), os.SEEK_END)
        if file.read() != _NO_COMMENT:
            raise RuntimeError(f"{path} has a comment already")
        file.seek(-len(_NO_COMMENT), os.SEEK_END)
        file.write(_DIGEST_BYTES.to_bytes(2, "little"))
        file.seek(0)
        digest = _digest(file)
        file.seek(0, os.SEEK_END)
        file.write(digest.digest())


def _digest(file: BinaryIO, size: int = sys.maxsize) -> Any:
    digest = hashlib.sha256()
    while size and (data := file.read(min(size, 1 << 20))):
        digest.update(data)
        size -= len(data)
    return digest


def is_whole(path: Path) -> bool:
    """Whether the checksum of a checkpoint fits its bytes; of one without (an earlier version's), the zip file's."""
    size = path.stat().st_size - _DIGEST_BYTES
    with open(path, "rb") as file:
        if size > 0 and _digest(file, size).digest() == file.read():
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            return not archive.comment and archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError):
        return False


def find_checkpoint(folder: Path, device: torch.device) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a folder and what it holds, its tensors on `device`; None where there is none.

    If the last one is damaged, the one before it is used: stderr says so, and the damaged file is renamed.

    Raises:
        ValueError: all that there are are damaged.
    """
    last, previous = folder / CHECKPOINT, folder / PREVIOUS
    if last.exists():
        state = _read(last, device)
        if state is not None:
            return last, state
    state = _read(previous, device) if previous.exists() else None
    if state is None:
        if last.exists() or previous.exists():
            bad, other = (last, previous) if last.exists() else (previous, last)
            also = "also damaged" if other.exists() else "missing"
            raise ValueError(
                f"{bad} is damaged (its checksum does not fit) and {other} is {also}: "
                "delete what is damaged to start anew, or choose another output folder"
            )
        return None
    if last.exists():
        os.replace(last, folder / DAMAGED)
        print(f"{last} is damaged, now {DAMAGED}: the run continues from {previous}", file=sys.stderr)
    else:
        print(f"{last} is missing: the run continues from {previous}", file=sys.stderr)
    return previous, state


def _read(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What a checkpoint holds; None for a damaged one."""
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    if not is_whole(path):
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"{path} is no checkpoint of a training run: {str(error).splitlines()[0]:.200}") from None
