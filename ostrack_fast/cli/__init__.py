"""The command line, `ostrack-fast`: one file per command, holding the function of the same name.

Commands import torch inside their functions, so that `--help` answers at once. They check every path before they work,
and write their files before they print.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from math import isfinite
from typing import Annotated

import typer
from rich.console import Console

from .. import __version__
from ..files import remove_unfinished
from ..interrupts import interrupt_once
from . import (
    accelerate,
    bench,
    convert,
    demo,
    evaluate,
    export,
    finetune,
    info,
    paper,
    profile,
    report,
    runs,
    score,
    serve,
    submit,
    track,
    train,
    tune,
    visualize,
)
from ._streams import flush_output, make_patient

_DEBUG = "OSTRACK_FAST_DEBUG"

app = typer.Typer(
    name="ostrack-fast",
    help="Track an object through a video with OSTrack (ECCV 2022) on fused kernels.",
    epilog=f"Errors show their traceback with --debug before the command, or with {_DEBUG}=1.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _telling(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with its errors told in a line; the command line's library would make some of them "Aborted."."""

    @wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            _check_numbers(kwargs)
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            _tell(error)

    return run


for _module in (
    demo,
    track,
    serve,
    evaluate,
    score,
    report,
    submit,
    train,
    finetune,
    runs,
    convert,
    bench,
    profile,
    tune,
    visualize,
    export,
    accelerate,
    info,
):
    app.command()(_telling(getattr(_module, _module.__name__.rpartition(".")[2])))

_paper = typer.Typer(help="The paper's tables and figures: ours beside the printed ones.", no_args_is_help=True)
for _command in paper.COMMANDS:
    _paper.command()(_telling(_command))
app.add_typer(_paper, name="paper")


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
    """Run the command line. Errors: one line on stderr, exit code 2. Interrupts: exit code 130."""
    told, sys.unraisablehook = sys.unraisablehook, _tell_unraisable
    try:
        interrupt_once()
        make_patient()
        try:
            _check_folder()
            _check_arguments(sys.argv[1:])
            app()
        except Exception as error:
            _tell(error)
        finally:
            remove_unfinished()
            # Here, where a full disk can still be told.
            flush_output()
    except OSError as error:
        _tell(error)
    except KeyboardInterrupt:  # outside of the commands, where typer does not catch it
        sys.exit(130)
    finally:
        sys.unraisablehook = told


def _tell_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """What fails while a library's objects are cleared away follows from the error that is told."""
    if os.environ.get(_DEBUG):
        sys.__unraisablehook__(unraisable)


def _check_folder() -> None:
    """Raise OSError where the current folder is gone: libraries end the process with messages about their own files."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OSError("the current folder does not exist any more: change to one that does, and run again") from None


def _check_arguments(arguments: list[str]) -> None:
    """Raise ValueError for an empty one, most often a variable of the shell: a path would be the current folder."""
    for before, argument in zip(["the first", *arguments], arguments, strict=False):
        if not argument or re.fullmatch(r"--[\w-]+=", argument):
            raise ValueError(f"an argument is empty: {argument or f'the one behind {before}'}")


def _check_numbers(options: dict[str, object]) -> None:
    """Raise ValueError for an option that is no number anyone means, which the command line's library takes for one."""
    for name, value in options.items():
        shown = f"--{name.replace('_', '-')}"
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{shown} must be a finite number, got {value}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{shown} must be less than 2^63, got {value}")


def _tell(error: Exception) -> None:
    """Print what is wrong in a line and exit with code 2; with --debug, raise it instead."""
    if os.environ.get(_DEBUG):
        raise error
    Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", end=" ")
    # Names of files may hold what moves a terminal's cursor; the lines of a list begin with spaces.
    text = re.sub(r"\n(?!  )", r"\\n", _words(error).rstrip())
    # A damaged list of names may be one line of megabytes.
    text = re.sub(r"(?m)^(.{2000}).+", r"\1...", text)
    print("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text), file=sys.stderr)
    sys.exit(2)


def _words(error: Exception) -> str:
    """What to say of an error: its own words, where they are for users, and what to do."""
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
        return "not enough memory: close other programs, or choose a smaller model"
    torch = sys.modules.get("torch")  # commands import it themselves
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return f"{error} The GPU's memory is full: end other programs on it, choose a smaller model or --device cpu."
    if torch is not None and isinstance(error, torch.AcceleratorError):
        return f"{error} The GPU failed, and this process cannot use it any more: look at nvidia-smi, then run again."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else f"{error.strerror}"
    # Of the errors of arithmetic those that Python raises itself, such as of a division by zero, are faults.
    told = (ValueError, OSError, ImportError, FloatingPointError)
    if isinstance(error, told) or type(error) is ArithmeticError:
        return str(error)
    return (
        f"{type(error).__name__}: {error}. If no file or option here is wrong, ostrack-fast is: please report what "
        f"--debug before the command shows."
    )
