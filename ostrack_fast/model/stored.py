"""Files of weights, read tensor by tensor when it is known which ones are wanted.

Three formats are read: safetensors, PyTorch's zip files (1.6 and later) and its older stream of pickles. Any other
file is refused by the name of what it is. Nothing that a file holds is executed; see `unpickle`.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .kinds import kind_of
from .unpickle import MAX_BYTES, CheckpointError, Foreign, Global, Storage, StoredTensor, read_pickle

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# PyTorch's names of types of storage, and of types where the storage has none.
_TORCH_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    **{str(dtype): dtype for dtype in _SAFETENSORS_DTYPES.values()},
}
# Bytes of a number in storages that are passed over but not read.
_OTHER_SIZES = {
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.QInt8Storage": 1,
    "torch.QUInt8Storage": 1,
    "torch.QInt32Storage": 4,
    "torch.storage.UntypedStorage": 1,
}
_CHUNK = 1 << 20
# No header or directory of a checkpoint is larger: 1000 tensors take about 100 kB, and 150,000, in 10 MB, take seconds.
_MAX_HEADER = 4 << 20
_MAX_DIMENSIONS = 8
# The errors that the libraries raise for damaged files.
_DAMAGED = (
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    OverflowError,
    TypeError,
)


class Described(NamedTuple):
    """A tensor in a file: its shape and type; or, where it cannot be read, the reason in `problem`."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    problem: str | None = None


class WeightsFile(ABC):
    """An opened file of weights.

    Attributes:
        content: the object that a PyTorch file holds, or a dictionary of safetensors' tensors by name; the tensors in
            it are `StoredTensor`.
        metadata: of safetensors, else empty.
    """

    content: Any = None
    metadata: Mapping[str, str]

    def __init__(self, path: Path):
        self.path = path
        self.metadata = {}

    @abstractmethod
    def describe(self, tensor: StoredTensor) -> Described:
        """Shape and type of a tensor of `content`; nothing is read."""

    def read(self, tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Read the named tensors, each into memory of its own.

        Args:
            dtype: what floating-point tensors are converted to, one by one; None leaves them.

        Raises:
            CheckpointError: one of them cannot be read.
        """
        for name, tensor in tensors.items():
            problem = self.describe(tensor).problem
            if problem:
                raise CheckpointError(f"{self.path}: the tensor {name} {problem}")
        with damaged(self.path):
            return {name: _converted(value, dtype) for name, value in self._read(tensors)}

    @abstractmethod
    def _read(self, tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]: ...


def _converted(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def open_weights(path: Path) -> WeightsFile:
    """Look into a file of weights and read the description of its tensors.

    Raises:
        FileNotFoundError, PermissionError: as `open`.
        CheckpointError: it is no file of weights, or a damaged one.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise CheckpointError(f"{path}: is not a regular file")
    with open(path, "rb") as file:
        head = file.read(4096)
    kind = kind_of(head, facts.st_size)
    formats: dict[str, Callable[[Path], WeightsFile]] = {
        "safetensors": _Safetensors,
        "zip": _TorchZip,
        "legacy": _TorchLegacy,
    }
    if kind not in formats:
        raise CheckpointError(f"{path}: {kind}")
    with damaged(path):
        return formats[kind](path)


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Raise what a damaged file makes the code inside raise as a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError as error:
        named = str(error).startswith((f"{path}: ", f"{path} "))
        raise error if named else CheckpointError(f"{path}: {error}") from error.__cause__
    except _DAMAGED as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: is damaged or cut off ({text}): download or copy it again") from error


class _Safetensors(WeightsFile):
    def __init__(self, path: Path):
        super().__init__(path)
        with open(path, "rb") as raw:
            if struct.unpack("<Q", raw.read(8))[0] > _MAX_HEADER:
                raise CheckpointError(f"its header is larger than {_MAX_HEADER >> 20} MiB")
        with safe_open(path, framework="pt") as file:
            self.metadata = file.metadata() or {}
            self.content = {}
            # safe_open is no mapping: it has keys() but cannot be iterated.
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                self.content[name] = StoredTensor(Storage(part.get_dtype(), name), 0, tuple(part.get_shape()), ())

    def describe(self, tensor: StoredTensor) -> Described:
        dtype = _SAFETENSORS_DTYPES.get(tensor.storage.kind)
        if dtype is None:
            return Described(problem=f"is of the type {tensor.storage.kind}, which is not supported")
        return Described(tensor.size, dtype)

    def _read(self, tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
        with safe_open(self.path, framework="pt") as file:
            for name, tensor in tensors.items():
                # A copy: the library's tensor is the file itself, mapped, and dies when the file is cut.
                yield name, file.get_tensor(tensor.storage.key).clone()


class _Pickled(WeightsFile):
    """A file whose tensors a pickle describes. `sizes`: bytes of each record; `swapped`: its numbers are big-endian."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.sizes: dict[str, int] = {}
        self.swapped = False

    def describe(self, tensor: StoredTensor) -> Described:
        storage, offset, size, stride, kind = tensor if isinstance(tensor, StoredTensor) else (tensor, *[None] * 4)
        if not isinstance(storage, Storage):
            name = storage.name[:80] if isinstance(storage, (Foreign, Global)) else "an object"
            return Described(problem=f"is not stored as plain numbers, but as {name}")
        name = kind.name if isinstance(kind, Global) else storage.kind
        dtype = _TORCH_DTYPES.get(name)
        if dtype is None:
            return Described(problem=f"is of the type {name[:80]}, which is not supported")
        numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (-1,)
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers) or len(size) > _MAX_DIMENSIONS:
            return Described(problem="has an impossible shape: the file is damaged")
        if len(size) != len(stride):
            return Described(problem="has another number of strides than of dimensions: the file is damaged")
        if storage.key not in self.sizes:
            return Described(problem="has no numbers in the file, or compressed ones: the file is damaged or rewritten")
        count = self.sizes[storage.key] // dtype.itemsize
        if prod(size) and _last(tensor) >= count:
            return Described(problem="reaches outside its storage: the file is damaged")
        if prod(size) > count:
            return Described(problem="repeats its numbers: save it again after .clone()")
        return Described(size, dtype)

    def _read(self, tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
        groups: dict[str, dict[str, StoredTensor]] = {}
        for name, tensor in tensors.items():
            groups.setdefault(tensor.storage.key, {})[name] = tensor
        with self._records() as record:
            for key, group in groups.items():
                yield from self._read_record(record(key), self.sizes[key], group)

    @abstractmethod
    def _records(self) -> AbstractContextManager[Callable[[str], IO[bytes]]]:
        """Opens the file, and gives a function that gives a record, at its start, by its key."""

    def _read_record(
        self, record: IO[bytes], size: int, group: Mapping[str, StoredTensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one record, in one pass over it."""
        spans: list[tuple[int, int, np.ndarray]] = []
        flat: dict[str, Tensor] = {}
        wanted = taken = 0
        for name, tensor in group.items():
            shape, dtype, _ = self.describe(tensor)
            length = _last(tensor) + 1 - tensor.offset if prod(shape) else 0
            wanted += prod(shape) * dtype.itemsize
            taken += length * dtype.itemsize
            if wanted > 2 * size + _CHUNK or taken > 2 * wanted + _CHUNK:
                # Reading it would take much more memory than the numbers that the file holds, or that are wanted.
                raise CheckpointError(f"the tensor {name} shares its storage with others: save it after .clone()")
            flat[name] = torch.empty(length, dtype=dtype, device="cpu")
            begin = tensor.offset * dtype.itemsize
            spans.append((begin, begin + length * dtype.itemsize, _bytes(flat[name])))
        position = 0
        # To the end, because there the record's checksum is compared.
        while chunk := record.read(min(_CHUNK, size - position)):
            data = np.frombuffer(chunk, np.uint8)
            for begin, end, target in spans:
                low, high = max(begin, position), min(end, position + len(data))
                if low < high:
                    target[low - begin : high - begin] = data[low - position : high - position]
            position += len(data)
        if position < size:
            raise EOFError(f"a record ends after {position} of {size} bytes")
        for name, tensor in group.items():
            if self.swapped and flat[name].itemsize > 1:
                _bytes(flat[name]).view(f"u{flat[name].itemsize}").byteswap(inplace=True)
            yield name, flat[name].as_strided(tensor.size, tensor.stride, 0).contiguous()


def _last(tensor: StoredTensor) -> int:
    """Index of the last number of a tensor that is not empty, in its storage."""
    return tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))


def _bytes(flat: Tensor) -> np.ndarray:
    return flat.view(torch.uint8).numpy()


class _TorchZip(_Pickled):
    def __init__(self, path: Path):
        super().__init__(path)
        with open(path, "rb") as raw, zipfile.ZipFile(cast("IO[bytes]", _Bounded(raw))) as archive:
            records = archive.infolist()
            names = {record.filename for record in records}
            if len(names) < len(records):
                raise CheckpointError("two records have the same name: the file is damaged")
            pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError("is a zip archive, but no checkpoint of PyTorch: if it holds one, unpack it")
            self.root = pickles[0].removesuffix("data.pkl")
            if f"{self.root}constants.pkl" in names:
                raise CheckpointError("is a TorchScript program, not a checkpoint: save the module's state_dict()")
            record = archive.getinfo(pickles[0])
            if record.compress_type != zipfile.ZIP_STORED or record.file_size > MAX_BYTES:
                raise CheckpointError(f"its pickle is compressed, or larger than {MAX_BYTES >> 20} MiB")
            if f"{self.root}byteorder" in names:
                self.swapped = _byte_order(archive, f"{self.root}byteorder")
            # Compressed records are left out: PyTorch writes none, and a few bytes may become gigabytes.
            self.sizes = {
                each.filename.removeprefix(f"{self.root}data/"): each.file_size
                for each in records
                if each.filename.startswith(f"{self.root}data/") and each.compress_type == zipfile.ZIP_STORED
            }
            self.content = read_pickle(BytesIO(archive.read(record)))

    @contextmanager
    def _records(self) -> Iterator[Callable[[str], IO[bytes]]]:
        with open(self.path, "rb") as raw, zipfile.ZipFile(cast("IO[bytes]", _Bounded(raw))) as archive:
            yield lambda key: archive.open(f"{self.root}data/{key}")


def _byte_order(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether the numbers are big-endian."""
    with archive.open(name) as record:
        order = record.read(16)
    if order not in (b"little", b"big"):
        raise CheckpointError(f"the byte order of its numbers is {order!r}, neither little nor big")
    return order == b"big"


class _TorchLegacy(_Pickled):
    """Five pickles (magic number, version, facts of the machine, content, keys), then each record's count and numbers.

    The numbers are little-endian whatever machine wrote them.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self.offsets: dict[str, int] = {}
        with open(path, "rb") as raw:
            file = _Bounded(raw)
            for _ in ("magic number", "version", "machine"):
                read_pickle(file)
            kinds: dict[str, str] = {}
            self.content = read_pickle(file, kinds)
            keys = read_pickle(file)
            if not isinstance(keys, list) or not all(isinstance(key, str) and key in kinds for key in keys):
                raise CheckpointError("is damaged (it has no list of its records)")
            position, length = raw.tell(), path.stat().st_size
            for key in keys:
                raw.seek(position)
                (count,) = struct.unpack("<q", raw.read(8))
                name = kinds[key]
                width = _TORCH_DTYPES[name].itemsize if name in _TORCH_DTYPES else _OTHER_SIZES.get(name, 0)
                end = position + 8 + count * width
                if width == 0 or count < 0 or end > length:
                    reason = f"a record of the unknown type {name[:80]}" if width == 0 else f"cut off at {length} bytes"
                    raise CheckpointError(f"is damaged ({reason}): download or copy it again")
                self.offsets[key], self.sizes[key] = position + 8, count * width
                position = end

    @contextmanager
    def _records(self) -> Iterator[Callable[[str], IO[bytes]]]:
        with open(self.path, "rb") as file:

            def record(key: str) -> IO[bytes]:
                file.seek(self.offsets[key])
                return file

            yield record


class _Bounded:
    """A file that gives no more than `_MAX_HEADER` bytes at once, whatever the lengths in a damaged file ask for."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_HEADER:
            raise ValueError(f"{size} bytes at once are too many")
        data = self._file.read(_MAX_HEADER if size < 0 else size)
        if size < 0 and len(data) == _MAX_HEADER:
            raise ValueError("its directory is too long")
        return data

    def readline(self) -> bytes:
        return self._file.readline(_MAX_HEADER)

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        pass
