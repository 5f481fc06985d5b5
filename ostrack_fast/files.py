"""Atomic writes: a file appears under its name whole or not at all; failed and killed writes leave nothing.

And the one way in which JSON files are read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .interrupts import last_wish

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, which neither replaces nor removes a file that is open: no lock is needed, or possible
    fcntl = None

# Where there are no locks, an older temporary file is taken for a killed run's.
_DAY = 24 * 3600

# Seconds between two looks for a reader of a pipe.
_PATIENCE = 0.05

# Temporary files are named by this and random digits alone: the name of the file itself may already have all the 255
# bytes a name can have, and any later run recognizes what a killed one left.
_PREFIX = ".ostrack_fast-"

# Those not yet removed, by the process that made them: forked children inherit the table.
_unfinished: dict[Path, int] = {}


def write_atomically(path: str | Path, write: Callable[[str], object], suffix: str | None = None) -> None:
    """Call `write(temporary path)`, flush to disk, then rename: `path` is never half-written.

    See `AtomicFile` for what becomes of links, devices, pipes, and mode and owner of an existing file. If `write`
    raises, the temporary file is removed and an existing `path` stays as it was.

    Args:
        path: the file to write; its folder is made if missing.
        write: gets the name of the temporary file.
        suffix: of the temporary file, for writers that go by it; by default the one of `path`.

    Raises:
        OSError: the file cannot be written; the message names `path`. Whatever `write` raises.
    """
    with naming(path), AtomicFile(path, suffix) as file:
        write(file.name)
        file.publish()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8. Raises as `write_atomically`."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no regular file, or no JSON; the message names it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None


class AtomicFile:
    """A temporary file that takes the name of `path` once it is complete. A context manager; leaving it cleans up.

    A symbolic link is followed, and the file it points to replaced. Devices, pipes, and the file that is this process's
    standard output cannot be replaced: `publish` copies the finished file into them. Where a file is replaced its mode
    stays, and its owner as far as this user may set it.

    Args:
        path: the file to write; its folder is made if missing, and cleared of what killed runs left in it.
        suffix: of the temporary file; by default the one of `path`.

    Attributes:
        name: of the temporary file, which exists and is empty.
    """

    def __init__(self, path: str | Path, suffix: str | None = None):
        replaces = exists(path)
        self._special = replaces and is_special(path)
        # The name behind a link, but not behind one of the system's: /dev/stdout may lead to a pipe, which has none.
        self._target = Path(path if self._special else os.path.realpath(path))
        folder = Path(tempfile.gettempdir()) if self._special else self._target.parent
        folder.mkdir(parents=True, exist_ok=True)
        _remove_litter(folder)
        suffix = Path(path).suffix if suffix is None else suffix
        suffix = suffix if suffix.isascii() and len(suffix) < 16 else ""
        # What replaces a file that others may not read must not be readable while it is written.
        self._temporary, self._lock = _locked_file(folder, suffix, 0o600 if replaces else 0o666)
        self._folder: int | None = None
        self.name = str(self._temporary)
        if not is_utf8(self.name):
            # OpenCV crashes on such names, and PyTorch refuses them.
            self._folder = os.open(folder, os.O_RDONLY)
            self.name = f"/proc/self/fd/{self._folder}/{self._temporary.name}"

    def publish(self) -> None:
        """Flush the file to disk and give it its name, or copy it into the device, pipe or standard output."""
        with open(self._temporary, "rb+") as file:
            os.fsync(file.fileno())
            if self._special:
                _copy_into(self._target, file)
                return
        if self._target.exists():
            before = self._target.stat()
            # Only root may give a file away, and others give it only to their own groups.
            for owner in ((before.st_uid, -1), (-1, before.st_gid)) if hasattr(os, "chown") else ():
                with contextlib.suppress(PermissionError):
                    os.chown(self._temporary, *owner)
            os.chmod(self._temporary, stat.S_IMODE(before.st_mode))
        os.replace(self._temporary, self._target)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.unlink(missing_ok=True)
        _unfinished.pop(self._temporary, None)
        if self._lock is not None:
            os.close(self._lock)
        if self._folder is not None:
            os.close(self._folder)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let every OSError of the system say that it is `path` that cannot be written, not some temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"{path} cannot be written: {os.strerror(error.errno)}") from error


def check_writable(path: str | Path) -> None:
    """Find out before the work, as far as that can be known, that a file can be written to `path`.

    Raises:
        ValueError: it is a folder. OSError: it cannot be written, saying why.
    """
    with naming(path):
        if exists(path) and is_special(path):
            if _standard_stream(path) is None and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "")
        elif os.path.isdir(path):
            raise ValueError(f"{path} is a folder: give the name of a file to write")
        else:
            check_folder(Path(os.path.realpath(path)).parent)


def check_folder(folder: str | Path) -> None:
    """As `check_writable` for a folder to be made, or one that is there. Raises OSError."""
    folder = Path(folder)
    with naming(folder):
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "")
        temporary, lock = _locked_file(there, "", 0o600)
        os.unlink(temporary)
        _unfinished.pop(temporary, None)
        if lock is not None:
            os.close(lock)


def exists(path: str | Path) -> bool:
    """Whether there is something of this name. Raises OSError for what no name can be: too long, a circular link."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def is_special(path: str | Path) -> bool:
    """Whether what is called `path` exists and can only be written into: a device, a pipe, this process's output."""
    try:
        kind = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or _standard_stream(path) is not None


def _standard_stream(path: str | Path) -> int | None:
    """1 or 2 if `path` is what standard output or standard error goes to."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
    return None


def _copy_into(path: Path, file: BinaryIO) -> None:
    stream = _standard_stream(path)
    if stream is not None and sys.stdout is not None:
        sys.stdout.flush()
    with open(_opened(path) if stream is None else os.dup(stream), "wb") as out:
        shutil.copyfileobj(file, out)


def _opened(path: Path) -> int:
    """The descriptor of a device or pipe that is written to. Nobody may read a pipe yet: a wish to stop ends the wait.

    The system's own waiting would go on, since the signals of `Interrupts` interrupt nothing.
    """
    begun = time.monotonic()
    while stat.S_ISFIFO(os.stat(path).st_mode):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if last_wish() >= begun:
                raise OSError(f"{path} is a pipe that nobody reads: nothing was written to it") from None
            time.sleep(_PATIENCE)
        else:
            os.set_blocking(descriptor, True)
            return descriptor
    return os.open(path, os.O_WRONLY)


def _locked_file(folder: Path, suffix: str, mode: int) -> tuple[Path, int | None]:
    """A new empty file and its descriptor, which holds a lock on it for as long as this process lives.

    None, and a closed file, on a system without such locks.
    """
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}{suffix}"
        _unfinished[path] = os.getpid()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        if fcntl is None:
            os.close(descriptor)
            return path, None
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        # Another process took it for litter before it was locked.
        os.close(descriptor)


def remove_unfinished() -> None:
    """Remove this process's temporary files, at its end: a Ctrl-C may come before a `with` begins, or as one ends."""
    for path, process in _unfinished.items():
        if process == os.getpid():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _remove_litter(folder: Path) -> None:
    """Remove the temporary files of runs that were killed: nobody holds a lock on them any more."""
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    for path in left:
        if fcntl is None:
            with contextlib.suppress(OSError):
                if time.time() - os.stat(path).st_mtime > _DAY:
                    os.unlink(path)
            continue
        # A lock that is held is a run at work; a file that cannot be opened or removed is another user's.
        with contextlib.suppress(OSError), open(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def is_utf8(name: str) -> bool:
    """Whether a file's name is text; names on disk are bytes, and Python keeps others in surrogate characters."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
