"""`ostrack-fast bench`: how fast the kernels are here, against the upstream formulation and PyTorch's best."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ._lists import chosen, counts
from ._outputs import check_outputs

if TYPE_CHECKING:
    import torch

    from ..bench.case import Case

_DTYPES = ("float32", "float16", "bfloat16")


def bench(
    suite: Annotated[
        str,
        typer.Argument(help="ops, one by one; model; track, whole frames; training; ragged, odd sizes; overhead."),
    ] = "ops",
    op: Annotated[
        str | None,
        typer.Option(help="Only these ops (attention,crop), or networks (small) of other suites."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this implementation, such as native; give it again for another.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="These batch sizes, such as 1,8,64, the default on a GPU; on a CPU 1.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Only these: float32, float16, bfloat16.")] = None,
    threads: Annotated[str | None, typer.Option(help="Threads on the CPU, such as 1,2, one after the other.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    peers: Annotated[
        bool,
        typer.Option("--peers", help="model on a CPU: onnxruntime, OpenVINO and frozen torch.compile beside ours."),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write all numbers and the machine's description here.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="To time each case for, about.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smallest shapes, few rounds: does it run?")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare results with float64 and time nothing.")] = False,
) -> None:
    """Time every op, or a whole network, against the upstream formulation and PyTorch's best, and print the table.

    Results are checked before anything is timed. A case that fails gets no time, and the next one is measured all the
    same. Leave the machine alone meanwhile; compare numbers of one run only.
    """
    check_outputs((json,))

    from importlib import import_module

    import torch

    from ..bench import SUITES
    from ..bench.case import Options
    from ..devices import resolve_device

    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}: choose {', '.join(SUITES)}")
    name, _, function = SUITES[suite].partition(":")
    module = import_module(f"ostrack_fast.bench.{name}")
    on = resolve_device(device)
    if peers and (suite != "model" or on.type != "cpu"):
        raise ValueError("--peers compares whole networks on the CPU: ostrack-fast bench model --device cpu --peers")
    options = Options(
        on,
        chosen("--op", op, module.NAMES),
        counts("--batch", batch),
        _dtypes(dtype),
        quick,
        only,
        peers,
    )
    cases = list(getattr(module, function)(options))
    if seconds is None:
        seconds = 0.05 if quick else 0.5
    plan = [(count, case) for count in counts("--threads", threads) or [torch.get_num_threads()] for case in cases]
    how = {"seconds": seconds, "quick": quick, "check_only": check, "only": only}
    results, failed = _measure(suite, plan, how, json)
    _print(results)
    if not any(result["implementations"] for result in results):
        raise ValueError("nothing was measured: none of the implementations asked for can run here")
    for case, error in failed.items():
        print(f"failed: {case}: {error}")
    if failed:
        raise typer.Exit(1)


def _measure(
    suite: str, plan: list[tuple[int, Case]], how: dict[str, Any], json: Path | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Results, and the errors of cases that failed. The file is written after every case, so that nothing is lost."""
    from rich.progress import Progress

    from ..bench import report

    results: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(suite, total=len(plan))
        for count, case in plan:
            try:
                results.append(report.run(case, count, **how))
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                failed[f"{case}, {count} threads"] = f"{type(error).__name__}: {error}".splitlines()[0]
            progress.advance(bar)
            if json is not None:
                report.write(json, {"failed": failed, "results": results})
    return results, failed


def _print(results: list[dict[str, Any]]) -> None:
    # Where nobody watches, wide enough that no line breaks.
    out = Console() if Console(stderr=True).is_terminal else Console(width=140)
    for table in _tables(results):
        out.print(table)
    for reason in sorted({f"{name}: {why}" for result in results for name, why in result["skipped"].items()}):
        print(f"could not take part: {reason}")


def _tables(results: list[dict[str, Any]]) -> Iterator[Table]:
    """A table for each op and number of threads, a row for each implementation."""
    from ..bench.report import BASELINES

    for (op, device, threads), group in groupby(results, lambda r: (r["op"], r["device"], r["threads"])):
        where = device if device != "cpu" else f"cpu, {threads} thread{'s' * (threads > 1)}"
        made = Table(title=f"{op} on {where}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("shape", "batch", "dtype", "implementation"):
            made.add_column(title, no_wrap=title != "shape")
        for title in ("error", "µs", "±", "GFLOP/s", "roofline", *(f"x {name}" for name in BASELINES)):
            made.add_column(title, justify="right", no_wrap=True)
        for result in group:
            case = [escape(result["shape"]), str(result["batch"]), result["dtype"]]
            for name, one in result["implementations"].items():
                made.add_row(*case, name, f"{max(one['errors']):.1g}", *_times(result, one, BASELINES))
                case = [""] * len(case)
            made.add_section()
        yield made


def _times(result: dict[str, Any], one: dict[str, Any], baselines: tuple[str, ...]) -> list[str]:
    """The cells of what was timed."""
    if "seconds" not in one:
        return []
    low, high = one["quartiles"]
    return [
        f"{one['seconds'] * 1e6:.1f}",
        f"{(high - low) / 2 * 1e6:.1f}",
        f"{result['flops'] / one['seconds'] / 1e9:.0f}" if result["flops"] else "",
        f"{one['roofline_fraction']:.0%} {result['roofline']['bound']}",
        *(f"{one['speedup_over'][other]:.2f}" if other in one["speedup_over"] else "" for other in baselines),
    ]


def _dtypes(text: str | None) -> list[torch.dtype] | None:
    import torch

    names = chosen("--dtype", text, _DTYPES)
    return None if names is None else [getattr(torch, name) for name in names]
