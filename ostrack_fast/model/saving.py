"""Weights written to files: the same weights give the same bytes, written atomically."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..config import PUBLISHED_NAMES, ModelConfig, preset_of
from ..files import write_atomically

_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_weights(
    state: Mapping[str, Tensor], cfg: ModelConfig, path: str | Path, dtype: torch.dtype = torch.float32, **notes: str
) -> None:
    """Write a safetensors file that `OSTrack.from_pretrained` reads.

    Args:
        dtype: floating-point tensors are stored in this type.
        notes: further metadata, such as `recipe` or `licence`. `preset` is added where the configuration is one.

    Raises:
        ValueError: a tensor is of a type that safetensors files of this package do not hold.
    """
    metadata = {"format": "pt", "config": json.dumps(cfg.to_dict()), **_notes(cfg, notes)}
    tensors = _stored(state, dtype)
    write_atomically(path, lambda temporary: _write_safetensors(temporary, tensors, metadata))


def save_published(
    state: Mapping[str, Tensor], cfg: ModelConfig, path: str | Path, dtype: torch.dtype = torch.float32, **notes: str
) -> None:
    """Write a checkpoint in the layout of the published code, `{"net": state dict, ...}`, of plain types only.

    The published tracker reads it, and so does `torch.load` with `weights_only=True`. Arguments as `save_weights`.
    """
    settings = {"script_name": "ostrack", "config": json.dumps(cfg.to_dict()), **_notes(cfg, notes)}
    published = {preset: name for name, preset in PUBLISHED_NAMES.items()}
    if "preset" in settings:
        settings["config_name"] = published.get(settings["preset"], settings["preset"])
    content = {"net": OrderedDict(_stored(state, dtype)), "net_type": "OSTrack", "settings": settings}

    def write(temporary: str) -> None:
        # Into an opened file: given a path, PyTorch writes the file's name into the file.
        with open(temporary, "wb") as file:
            save_torch(content, file)

    write_atomically(path, write)


class _Remembering:
    """A file for `torch.save`, which says of a failed write only that positions are unexpected."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def save_torch(content: object, file: BinaryIO) -> None:
    """`torch.save` into an opened file. Raises OSError where that cannot be written, such as on a full disk."""
    stream = _Remembering(file)
    try:
        torch.save(content, stream)  # type: ignore[arg-type]
    except RuntimeError:
        if stream.error is not None:
            raise stream.error from None
        raise


def _notes(cfg: ModelConfig, notes: Mapping[str, str]) -> dict[str, str]:
    preset = preset_of(cfg)
    return dict(sorted({**({"preset": preset} if preset else {}), **notes}.items()))


def _stored(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In the order of the names, each tensor with memory of its own."""
    converted = {k: (v.to(dtype) if v.is_floating_point() else v) for k, v in sorted(state.items())}
    return {k: v.detach().cpu().contiguous().clone() for k, v in converted.items()}


def _write_safetensors(path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The format, in 10 lines: the library writes metadata in an order that changes from run to run."""
    header: dict[str, object] = {"__metadata__": metadata}
    # Larger numbers first: every tensor then begins at a multiple of its numbers' size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    end = 0
    for name, value in ordered:
        if value.dtype not in _SAFETENSORS_NAMES:
            raise ValueError(f"{name} is of the type {value.dtype}, which the file cannot hold")
        begin, end = end, end + value.nbytes
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, value in ordered:
            file.write(value.flatten().view(torch.uint8).numpy().data)
