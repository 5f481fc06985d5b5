"""Where weights lie: in the package, in a file, in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

_SUFFIXES = (".safetensors", ".pth.tar", ".pth", ".pt", ".tar", ".bin", ".ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_PATIENCE = 10  # seconds for an answer of the Hub


def shipped_weights() -> list[str]:
    """Names `OSTrack.from_pretrained` finds inside the package."""
    folder = resources.files("ostrack_fast") / "weights"
    return sorted(
        item.name.removesuffix(".safetensors") for item in folder.iterdir() if item.name.endswith(".safetensors")
    )


def find_weights(name_or_path: str | Path) -> Path:
    """The file that a name, a path or a Hub id stands for; a Hub id is downloaded, or found in the Hub's cache.

    Raises:
        FileNotFoundError: there is none, or it cannot be reached, saying what to do.
        TypeError: it is no name.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"weights are given by a name or a path, got {type(name_or_path).__name__}")
    name, path = str(name_or_path), Path(name_or_path)
    if name in shipped_weights():
        return Path(str(resources.files("ostrack_fast") / "weights" / f"{name}.safetensors"))
    if name and path.is_dir():
        files = [each.name for each in path.iterdir() if each.is_file() and not each.name.startswith(".")]
        return path / _only_weights(files, f"the folder {name}")
    if name and os.path.lexists(path):  # a broken link too, which opening it will tell
        return path
    # A name that looks like a file's is that of a missing file: "weights/x.pth" is no id on the Hub.
    if not isinstance(name_or_path, Path) and _HUB_ID.fullmatch(name) and not name.endswith(_SUFFIXES):
        return _from_hub(name)
    raise FileNotFoundError(
        f"no weights {name!r}: neither a file, nor a folder, nor a name that ships ({', '.join(shipped_weights())}), "
        "nor an id on the Hugging Face Hub such as user/model"
    )


def short_name(weights: str) -> str:
    """What is made of weights is called by the name of their file or folder, without the suffixes of weights."""
    name = Path(os.path.abspath(weights)).name
    return next((name.removesuffix(each) for each in _SUFFIXES if name.endswith(each)), name) or "weights"


def _only_weights(names: list[str], where: str) -> str:
    """The file of weights among these: model.safetensors, else the only one."""
    if "model.safetensors" in names:
        return "model.safetensors"
    for suffixes in ((".safetensors",), _SUFFIXES):
        fitting = sorted(name for name in names if name.endswith(suffixes))
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise FileNotFoundError(f"{where} holds several files of weights, choose one: {', '.join(fitting[:5])}")
    raise FileNotFoundError(f"{where} holds no weights: no file that ends in {', '.join(_SUFFIXES)}")


def _from_hub(name: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise FileNotFoundError(
            f"no weights {name!r}: there is no such file, and to look on the Hugging Face Hub needs "
            "pip install 'ostrack_fast[hub]'"
        ) from error
    repository, _, revision = name.partition("@")
    which: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    cached: Path | None = None
    with _told(name):
        try:
            # Asked once: to a Hub that cannot be reached the download would try to connect for a minute.
            files = huggingface_hub.model_info(**which, timeout=_PATIENCE).siblings or []
            names = [file.rfilename for file in files]
        except _unreachable() as error:
            if isinstance(error, _not_there()):
                raise
            try:
                cached = Path(huggingface_hub.snapshot_download(**which, local_files_only=True))
            except FileNotFoundError:
                raise error from None
            names = [path.name for path in cached.iterdir()]
    file = _only_weights(names, f"{name} on the Hugging Face Hub" if cached is None else f"{name} in {cached}")
    if cached is not None:
        return cached / file
    with _told(name):
        return Path(huggingface_hub.hf_hub_download(filename=file, **which))


def _not_there() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    return errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError


def _unreachable() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    # The client lets errors of the library below it through, and gives their base another name than its own.
    return OSError, getattr(errors, "HTTPError", OSError)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Make what the Hub's client raises a FileNotFoundError that says what to do."""
    try:
        yield
    except _not_there() as error:
        raise FileNotFoundError(
            f"no weights {name!r}: neither a file here nor a public model on the Hugging Face Hub; for a private one "
            "log in with `hf auth login`"
        ) from error
    except _unreachable() as error:
        raise FileNotFoundError(
            f"the weights {name!r} are no file here, not in the Hugging Face cache, and the Hub cannot be reached "
            f"({type(error).__name__}). Connect and run again, or download the model elsewhere and give the path of "
            f"its file; HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 keeps to the cache. Without a network there are "
            f"{', '.join(shipped_weights())}"
        ) from error
