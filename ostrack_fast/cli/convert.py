"""`ostrack-fast convert`: weights from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._outputs import check_outputs
from ._weights import Config

_SUFFIXES = {"safetensors": (".safetensors",), "published": (".pth.tar", ".pth", ".pt")}


def convert(
    source: Annotated[
        str, typer.Argument(help="Weights: a name that ships, a file, a folder, or user/model on the Hugging Face Hub.")
    ],
    target: Annotated[
        Path, typer.Argument(help="File to write: .safetensors, or .pth.tar in the layout of the published code.")
    ],
    config: Config = None,
    dtype: Annotated[str, typer.Option(help="Store the numbers as float32, float16 or bfloat16.")] = "float32",
    recipe: Annotated[
        str | None, typer.Option(help="Note with which recipe the weights were trained; else what the source says.")
    ] = None,
) -> None:
    """Convert weights between safetensors and the published checkpoints' layout.

    Nothing in the source is executed. The same source gives the same bytes.
    """
    layout = next((name for name, ends in _SUFFIXES.items() if target.name.endswith(ends)), None)
    if layout is None:
        raise ValueError(f"{target} must end in .safetensors, or in .pth.tar, .pth or .pt for the published layout")
    check_outputs((target,), sources=(source,))
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"--dtype {dtype!r} is none of float32, float16, bfloat16")

    import torch

    from ..model.checkpoint import find_weights, load_pretrained, read_notes, save_published, save_weights

    path = find_weights(source)
    if target.exists() and path.samefile(target):
        raise ValueError(f"{target} is the source itself: give the output another name")
    cfg, state = load_pretrained(path, config)
    notes = read_notes(path)
    if config is not None:
        notes.pop("preset", None)  # of the configuration that is not used
    if recipe is not None:
        notes["recipe"] = recipe
    save = save_weights if layout == "safetensors" else save_published
    save(state, cfg, target, getattr(torch, dtype), **notes)
    said = ", ".join(f"{key} {value}" for key, value in notes.items())
    print(f"{target}: {len(state)} tensors, {dtype}{f', {said}' if said else ''}")
