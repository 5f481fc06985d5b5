"""A dataset's files however they are stored: in a folder, in zip files or in an LMDB database, under the same names."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from ..files import exists
from .images import Image, image_from, is_hidden

_LMDB_FILE = "data.mdb"
# What reading a zip file's entry raises: NotImplementedError for an unknown compression, RuntimeError for an encrypted
# entry, OSError where bzip2's data or the disk are damaged.
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError)


class Storage(Protocol):
    """Files by their names: relative, with slashes. Processes forked from one that opened it may read it too.

    Attributes:
        path: where it lies, for messages.
    """

    path: Path

    def names(self) -> Iterator[str]:
        """Every file but hidden ones, in no order."""

    def read(self, name: str) -> bytes:
        """What a file holds. Raises FileNotFoundError where there is none of this name, OSError for damage."""


def open_storage(path: str | Path) -> Storage:
    """The storage at a path: a .zip file, a folder of nothing but them, an LMDB database, or a folder of files.

    Raises:
        FileNotFoundError: there is nothing. ValueError: it is none of these. ImportError: lmdb is not installed.
    """
    path = Path(path)
    if not exists(path):
        raise FileNotFoundError(f"{path} is missing: a folder, a zip file or an LMDB database of the dataset")
    if path.is_dir() and (path / _LMDB_FILE).is_file():
        return Lmdb(path)
    if path.is_dir():
        visible = [entry for entry in sorted(path.iterdir()) if not is_hidden(entry.name)]
        archives = [entry for entry in visible if entry.suffix == ".zip"]
        # Lists of sequences may lie beside the archives.
        if archives and not any(entry.is_dir() for entry in visible):
            return Zips(path, archives)
        return Folder(path)
    if path.suffix == ".zip":
        return Zips(path, [path])
    if path.suffix in (".lmdb", ".mdb"):
        return Lmdb(path)
    raise ValueError(f"{path} is neither a folder, nor a .zip file, nor an LMDB database")


def open_packed(path: str | Path) -> Storage | None:
    """The storage at a path of zip files or of an LMDB database; None at any other. Raises as `open_storage`."""
    path = Path(path)
    if not path.is_dir() and path.suffix not in (".zip", ".lmdb", ".mdb"):
        return None
    storage = open_storage(path)
    return None if isinstance(storage, Folder) else storage


def image_reader(storage: Storage) -> Callable[[Path], Image]:
    """Decodes a storage's images, named by its path with their names behind it. Raises as `images.image_from`."""
    return lambda path: image_from(storage.read(path.relative_to(storage.path).as_posix()), path)


class Folder:
    """Files in folders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> Iterator[str]:
        for folder, inner, files in os.walk(self.path, followlinks=True):
            inner[:] = [name for name in inner if not is_hidden(name)]
            prefix = os.path.relpath(folder, self.path).replace(os.sep, "/")
            prefix = "" if prefix == "." else f"{prefix}/"
            yield from (f"{prefix}{name}" for name in files if not is_hidden(name))

    def read(self, name: str) -> bytes:
        path = self.path / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing")
        if not path.is_file():
            raise OSError(f"{path} is not a regular file")
        return path.read_bytes()


class Zips:
    """One or several zip files, read as if they were unpacked into one folder."""

    def __init__(self, path: Path, archives: list[Path]) -> None:
        self.path = path
        self._archives = archives
        self._opened: tuple[int, dict[str, zipfile.ZipFile]] = (-1, {})
        self._files()

    def _files(self) -> dict[str, zipfile.ZipFile]:
        # Forked processes would share, and move, the position in a file that is open.
        if self._opened[0] != os.getpid():
            found: dict[str, zipfile.ZipFile] = {}
            for path in self._archives:
                if not path.is_file():
                    raise ValueError(f"{path} is not a regular file")
                try:
                    archive = zipfile.ZipFile(path)
                except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                    raise ValueError(f"{path} is no whole zip file ({error}): download it again") from None
                found |= {entry.filename: archive for entry in archive.infolist() if not entry.is_dir()}
            self._opened = (os.getpid(), found)
        return self._opened[1]

    def names(self) -> Iterator[str]:
        return (name for name in self._files() if not any(map(is_hidden, name.split("/"))))

    def read(self, name: str) -> bytes:
        archive = self._files().get(name)
        if archive is None:
            raise FileNotFoundError(f"{self.path} has no file {name}")
        try:
            return archive.read(name)
        except DAMAGED as error:
            raise OSError(f"{name} in {archive.filename} cannot be read: {error}") from None


class Lmdb:
    """A database of files' contents by their names, as the field's trainers make them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = _open_lmdb(path.resolve())

    def names(self) -> Iterator[str]:
        with self._database.begin() as transaction, transaction.cursor() as cursor:
            # Names of files are bytes, as `os.fsdecode` has them; `read` takes them back.
            yield from (os.fsdecode(bytes(key)) for key in cursor.iternext(values=False))

    def read(self, name: str) -> bytes:
        with self._database.begin() as transaction:
            data = transaction.get(os.fsencode(name))
        if data is None:
            raise FileNotFoundError(f"{self.path} has no file {name}")
        return bytes(data)


@cache
def _open_lmdb(path: Path) -> Any:
    """The database, opened once, as LMDB demands of a process; read-only and without locks, forked ones share it."""
    try:
        import lmdb
    except ImportError:
        raise ImportError(f"{path} needs LMDB: pip install 'ostrack_fast[lmdb]'") from None
    file = path / _LMDB_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file} is not a regular file")
    try:
        database = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
        whole = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
    except lmdb.Error as error:
        raise ValueError(f"{path} is no LMDB database: {error}") from None
    if file.stat().st_size < whole:
        # Reading memory that is mapped beyond a file's end kills the process.
        raise ValueError(f"{path} is cut off: it has {file.stat().st_size:,} of {whole:,} bytes: copy it again")
    return database
