"""Where weights lie: in the package, in a file, in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

_SUFFIXES = (".safetensors", ".pth.tar", ".pth", ".pt", ".tar", ".bin", ".ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


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
    """
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
        from huggingface_hub import errors
    except ImportError as error:
        raise FileNotFoundError(
            f"no weights {name!r}: there is no such file, and to look on the Hugging Face Hub needs "
            "pip install 'ostrack_fast[hub]'"
        ) from error
    repository, _, revision = name.partition("@")

    def download(file: str) -> Path:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None))

    try:
        try:
            return download("model.safetensors")
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise
            files = huggingface_hub.model_info(repository, revision=revision or None).siblings or []
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"no weights {name!r}: neither a file here nor a public model on the Hugging Face Hub; for a private one "
            "log in with `hf auth login`"
        ) from error
    # The client lets errors of the library below it through, and gives their base another name than its own.
    except (OSError, getattr(errors, "HTTPError", OSError)) as error:
        raise FileNotFoundError(
            f"the weights {name!r} are no file here, not in the Hugging Face cache, and the Hub cannot be reached "
            f"({type(error).__name__}). Connect and run again, or download the model elsewhere and give the path of "
            "its file; HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 keeps to the cache"
        ) from error
    return download(_only_weights([file.rfilename for file in files], f"{name} on the Hugging Face Hub"))
