"""`ostrack-fast accelerate`: what `ostrack_fast.accelerate` makes of a network of one's own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer


def accelerate(
    check: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="A function, of a module or of a file FILE.py, that returns the network, or the network and its "
            "inputs: a tuple, a dict, or a function of the network that runs it. It is imported, and so executed.",
        ),
    ],
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
) -> None:
    """Show which modules of a network can be replaced, what is left and why, and how far its outputs move."""
    name, _, factory = check.partition(":")
    if not name or not factory:
        raise ValueError(f"--check {check!r} must be MODULE:FACTORY, as in mypackage.models:build")

    from rich.console import Console

    from ..drop_in import accelerate as replace

    try:
        network, inputs = _made(name, factory)
    except ValueError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"--check {check} fails in its own code, --debug shows where: {what}") from error
    report = replace(network, dtype=dtype, mode="ops", inputs=inputs)
    console = Console(markup=False)
    console.print(report.table())
    report.restore()


def _made(name: str, factory: str) -> tuple[Any, Any]:
    """The network and its inputs, or None for these."""
    from torch import nn

    function = getattr(_imported(name), factory, None)
    if not callable(function):
        raise ValueError(f"{name} has no function {factory}")
    made = function()
    network, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name}:{factory} returned {type(made).__name__}: a torch.nn.Module is needed")
    return network, inputs


def _imported(name: str) -> ModuleType:
    """A module by its name, or by its file."""
    from importlib import import_module
    from importlib.util import module_from_spec, spec_from_file_location

    if not name.endswith(".py"):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}: put its folder on PYTHONPATH, or give the file, FILE.py:FACTORY") from error
    spec = spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None or not Path(name).is_file():
        raise ValueError(f"there is no file {name}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
