"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Call `write(temporary path)`, flush to disk, then rename: `path` is never half-written.

    The temporary file lies in the folder of `path`, which is made if missing, and has its suffix. If `write` raises,
    it is removed and an existing `path` stays as it was.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        write(str(temporary))
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """A new empty file in the folder of `path`, so that renaming it to `path` cannot cross file systems."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    return Path(temporary)


def publish(temporary: Path, path: Path) -> None:
    """Flush a file to disk and rename it to `path`, with the permissions of a file made the ordinary way."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
