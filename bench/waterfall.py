"""The waterfall, from committed results: a picture, and the tables between two marks of README.md and docs/speed.md.

    python -m ostrack_fast.bench.waterfall [ROOT]  # reads bench/results/*model*.json, writes docs/waterfall.png too

The README shows one network, docs/speed.md all of them. Bars are medians of one run with interleaved timing; each step
keeps what those before it gained. A GPU comes first.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import read, replace_between

Result = dict[str, Any]


def load(folder: Path) -> list[tuple[str, Result]]:
    """(machine in words, result) for every network at batch 1, GPUs first, fewest threads first."""
    found = []
    for path in sorted(folder.glob("*model*.json")):
        document = read(path)
        for result in document["results"]:
            if result["op"] == "model" and result["batch"] == 1:
                threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
                cpu = f"{document['machine']['cpu'].split(',')[0]}, {threads}"
                found.append((cpu if result["device"] == "cpu" else document["machine"]["gpus"][0], result))
    return sorted(found, key=lambda one: (one[1]["device"] == "cpu", one[1]["threads"]))


def is_step(name: str) -> bool:
    """Whether an implementation is a bar of the waterfall; the others are there for comparison."""
    return name == "upstream" or name.startswith("+")


def tables(found: list[tuple[str, Result]]) -> list[str]:
    """A table for every network, with a group of columns for every machine and number of threads."""
    networks: dict[str, dict[str, Result]] = defaultdict(dict)
    for where, result in found:
        networks[result["shape"].split(":")[0]][where] = result["implementations"]
    return [table(network, columns) for network, columns in networks.items()]


def table(network: str, columns: dict[str, Result]) -> str:
    heads = "".join(f" {where}: ms | x upstream |" for where in columns)
    lines = [f"| {network}, batch 1 |{heads} peak memory, MB |", "|---|" + "--:|--:|" * len(columns) + "--:|"]
    for name in dict.fromkeys(name for implementations in columns.values() for name in implementations):
        runs = [implementations.get(name) for implementations in columns.values()]
        cells = [f"{milliseconds(one)} | {one['speedup_over']['upstream']:.2f}" if one else "|" for one in runs]
        memory = [f"{one['peak_bytes'] / 1e6:.0f}" for one in runs if one and one["peak_bytes"]]
        label = name if is_step(name) else f"*{name}*"
        lines.append(f"| {label} | {' | '.join(cells)} | {memory[-1] if memory else ''} |")
    return "\n".join(lines) + "\n"


def milliseconds(one: Result) -> str:
    """Three digits: a GPU's frame takes less than one."""
    time = 1e3 * one["seconds"]
    return f"{time:.1f}" if time >= 10 else f"{time:.2f}"


def draw(found: list[tuple[str, Result]], picture: Path) -> None:
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    for number, (where, result) in enumerate(found, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_title(f"{result['shape'].split(':')[0]}\n{where}", fontsize=8)
        draw_bars(axes, {name: one for name, one in result["implementations"].items() if is_step(name)})
    figure.savefig(picture, dpi=130)


def draw_bars(axes: Axes, steps: dict[str, Result]) -> None:
    times = [1e3 * one["seconds"] for one in steps.values()]
    bars = axes.barh(list(steps), times, color=["#9a9a9a"] + ["#2f6db5"] * (len(steps) - 1))
    labels = [f" {milliseconds(one)} ms, {one['speedup_over']['upstream']:.1f}x" for one in steps.values()]
    axes.bar_label(bars, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(times))
    axes.set_xlabel("ms a frame", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    results = root / "bench" / "results"
    found = load(results)
    if not found:
        raise SystemExit(f"no *model*.json in {results}: run ostrack-fast bench model --json FILE first")
    draw(found, root / "docs" / "waterfall.png")
    written = tables(found)
    replace_between(root / "README.md", "waterfall", written[0])
    replace_between(root / "docs" / "speed.md", "waterfall", "\n".join(written))
    print(f"{len(found)} results: docs/waterfall.png, README.md and docs/speed.md written")


if __name__ == "__main__":
    main()
