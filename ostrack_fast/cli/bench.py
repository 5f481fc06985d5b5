"""`ostrack-fast bench`: how fast the kernels are here, against the upstream formulation and PyTorch's best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    import torch

_DTYPES = ("float32", "float16", "bfloat16")


def bench(
    suite: Annotated[str, typer.Argument(help="ops, one by one; model; track, whole frames; training.")] = "ops",
    op: Annotated[
        str | None,
        typer.Option(help="Only these ops (attention,crop), or networks (small) of other suites."),
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Only these batch sizes, such as 1,8,64.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Only these: float32, float16, bfloat16.")] = None,
    threads: Annotated[str | None, typer.Option(help="Threads on the CPU, such as 1,2, one after the other.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="Write all numbers and the machine's description here.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smallest shapes, few rounds: does it run?")] = False,
) -> None:
    """Time every op, or a whole network, against the upstream formulation and PyTorch's best, and print the table.

    Results are checked before anything is timed. Leave the machine alone meanwhile; compare numbers of one run only.
    """
    if json is not None and json.is_dir():
        raise ValueError(f"{json} is a folder: give the name of a file to write")

    from importlib import import_module

    from rich.progress import Progress

    from ..bench import SUITES, report
    from ..bench.case import Options
    from ..devices import resolve_device

    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}: choose {', '.join(SUITES)}")
    module = import_module(f"ostrack_fast.bench.suite_{suite}")
    options = Options(
        resolve_device(device), _chosen("--op", op, module.NAMES), _counts("--batch", batch), _dtypes(dtype), quick
    )
    planned = list(module.cases(options))
    cases = [case for case in planned if batch or not case.too_long]
    left_out = [str(case) for case in planned if not batch and case.too_long]
    results = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        counts = _counts("--threads", threads) or [_torch_threads()]
        bar = progress.add_task(suite, total=len(counts) * len(cases))
        for count in counts:
            results += report.run(cases, count, 0.05 if quick else 0.5, quick, lambda: progress.advance(bar))
    # Where nobody watches, wide enough that no line breaks.
    out = Console() if console.is_terminal else Console(width=140)
    for table in report.tables(results):
        out.print(table)
    if left_out:
        print(f"{len(left_out)} cases of large batches left out as too long for a CPU; --batch 8,64 runs them")
    for reason in sorted({f"{name}: {why}" for result in results for name, why in result["skipped"].items()}):
        print(f"could not take part: {reason}")
    if json is not None:
        report.write(json, {"left_out": left_out, "results": results})


def _chosen(option: str, text: str | None, known: tuple[str, ...]) -> list[str] | None:
    names = None if text is None else text.split(",")
    for name in names or ():
        if name not in known:
            raise ValueError(f"{option} {name!r} is unknown: choose {', '.join(known)}")
    return names


def _dtypes(text: str | None) -> list[torch.dtype] | None:
    import torch

    names = _chosen("--dtype", text, _DTYPES)
    return None if names is None else [getattr(torch, name) for name in names]


def _counts(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise ValueError(f"{option} {text!r} is not a list of positive numbers, such as 1,8")
    return counts


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()
