"""The command line, `ostrack-fast`: one file per command, holding the function of the same name.

Commands import torch inside their functions, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from .. import __version__
from . import bench, demo, evaluate, info, profile, track, train, tune

_DEBUG = "OSTRACK_FAST_DEBUG"

app = typer.Typer(
    name="ostrack-fast",
    help="Track an object through a video with OSTrack (ECCV 2022) on fused kernels.",
    epilog=f"Errors show their traceback with --debug before the command, or with {_DEBUG}=1.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _module in (demo, track, evaluate, train, bench, profile, tune, info):
    app.command()(getattr(_module, _module.__name__.rpartition(".")[2]))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


def main() -> None:
    """Run the command line. Mistakes of the user: one line on stderr, exit code 2. Interrupts: exit code 130."""
    try:
        app()
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError, RuntimeError) as error:
        advice = _advice(error)
        if advice is None or os.environ.get(_DEBUG):
            raise
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", end=" ")
        print(error, advice, file=sys.stderr, sep="")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _advice(error: Exception) -> str | None:
    """What to add to the words of an error that is no fault of the program; None where it may be one."""
    if isinstance(error, MemoryError):
        return "not enough memory: close other programs, or choose a smaller model"
    if not isinstance(error, RuntimeError):
        return ""
    torch = sys.modules.get("torch")  # commands import it themselves
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "\nThe GPU's memory is full: end other programs on it, choose a smaller model or batch, or --device cpu."
    if torch is not None and isinstance(error, torch.AcceleratorError):
        return "\nThe GPU failed, and this process cannot use it any more: look at nvidia-smi, then run again."
    return None
