"""Weights in and out, without ever executing what a file contains.

Our own files are safetensors with the configuration in their metadata. The published `.pth.tar` checkpoints pickle
objects of the training code beside the tensors: here the tensors are read, and every foreign object becomes an inert
placeholder; nothing a file names is imported or called.
"""

from __future__ import annotations

import collections
import json
import pickle
import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import PRESETS, ModelConfig, get_config
from ..files import write_atomically

State = dict[str, Tensor]


def shipped_weights() -> list[str]:
    """Names `OSTrack.from_pretrained` finds inside the package."""
    folder = resources.files("ostrack_fast") / "weights"
    return sorted(
        item.name.removesuffix(".safetensors") for item in folder.iterdir() if item.name.endswith(".safetensors")
    )


def load_pretrained(name_or_path: str | Path, cfg: ModelConfig | str | None = None) -> tuple[ModelConfig, State]:
    """Configuration and float32 state dict of shipped weights or of a file; see `OSTrack.from_pretrained`."""
    path = Path(name_or_path)
    if str(name_or_path) in shipped_weights():
        path = Path(str(resources.files("ostrack_fast") / "weights" / f"{name_or_path}.safetensors"))
    elif not path.is_file():
        raise FileNotFoundError(
            f"no weights {str(name_or_path)!r}: neither a file nor a name that ships ({', '.join(shipped_weights())})"
        )
    if isinstance(cfg, str):
        cfg = get_config(cfg)
    state, stored = read_state(path)
    cfg = cfg or stored or _guess_config(state, path)
    return cfg, fitting(state, cfg, str(path))


def read_state(path: Path) -> tuple[State, ModelConfig | None]:
    """The tensors of a checkpoint by name, and the configuration if the file carries one.

    Raises:
        ValueError: the file is none of the formats named in this module, or holds no state dict.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # safe_open is no mapping: it has keys() but cannot be iterated.
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error}); was a download cut off?") from error
        return state, ModelConfig.from_dict(json.loads(metadata["config"])) if "config" in metadata else None
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is neither safetensors nor a torch checkpoint in zip format (torch 1.6 and later); "
            "re-save older files with torch.save(torch.load(path), path)"
        )
    content = _read_torch_zip(path)
    for key in ("net", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict (looked for 'net', 'model', 'state_dict' and the top level)")
    return {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}, None


def save_weights(
    state: State, cfg: ModelConfig, path: str | Path, dtype: torch.dtype = torch.float32, **notes: str
) -> None:
    """Write a safetensors file that `OSTrack.from_pretrained` reads; it appears whole or not at all.

    Args:
        dtype: floating-point tensors are stored in this type.
        notes: further metadata, such as `recipe` or `licence`.
    """
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().cpu() for k, v in state.items()}
    metadata = {"format": "pt", "config": json.dumps(cfg.to_dict()), **notes}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def _guess_config(state: State, path: Path) -> ModelConfig:
    """A published checkpoint's configuration from its shapes, and from its name whether it eliminates."""
    cfg = config_of(state, str(path))
    plain = "_mae_32x4" in str(path) and cfg != PRESETS["ostrack_large_256_ce"]
    return replace(cfg, ce_layers=(), ce_keep_ratio=()) if plain else cfg


def config_of(state: State, what: str, **changes: Any) -> ModelConfig:
    """The preset that a state dict's shapes fit. Elimination leaves no trace in them: by default there is some.

    Raises:
        ValueError: no preset fits; `what` names the state dict.
    """
    for name in ("ostrack_256_ce", "ostrack_384_ce", "ostrack_large_256_ce", "small"):
        cfg = PRESETS[name]
        z, x = state.get("backbone.pos_embed_z"), state.get("backbone.pos_embed_x")
        expected = ((1, cfg.template_grid**2, cfg.embed_dim), (1, cfg.search_grid**2, cfg.embed_dim))
        if z is not None and x is not None and (tuple(z.shape), tuple(x.shape)) == expected:
            return replace(cfg, **changes)
    raise ValueError(f"{what} carries no configuration and its shapes fit no preset: pass cfg=")


def fitting(state: State, cfg: ModelConfig, what: str) -> State:
    """The state dict in float32.

    Raises:
        ValueError: it does not fit the configuration; `what` names it.
    """
    # Imported here: ostrack.py needs this module to define OSTrack.
    from .ostrack import OSTrack

    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in OSTrack(cfg).state_dict().items()}
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [
        f"{k} {tuple(state[k].shape)} instead of {expected[k]}"
        for k in expected.keys() & state.keys()
        if tuple(state[k].shape) != expected[k]
    ]
    problems = [
        f"{title} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(wrong)))
        if names
    ]
    if problems:
        raise ValueError(f"{what} does not fit the configuration: {'; '.join(problems)}")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


class _Inert:
    """Stands in for any object of foreign code: accepts construction and state, keeps and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _strided_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    """A copy of the described view of a flat storage; what it may reach is checked before anything is read."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min([offset, *size, *stride], default=0) < 0 or (0 not in size and last >= storage.numel()):
        raise ValueError("a tensor of the checkpoint reaches outside its storage: the file is damaged")
    return storage.as_strided(size, stride, offset).clone()


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _strided_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and tensors; everything else becomes `_Inert`."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, root: str):
        super().__init__(file, encoding="utf-8")
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        return _ALLOWED.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"the checkpoint stores an object of an unknown kind {kind!r}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _read_torch_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if not pickles:
                raise ValueError(f"{path} is a zip file, but no torch checkpoint")
            with archive.open(pickles[0]) as file:
                return _TensorUnpickler(file, archive, pickles[0].removesuffix("/data.pkl")).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a torch checkpoint ({error}); was a download cut off?") from error
