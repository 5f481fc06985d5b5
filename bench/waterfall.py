"""The waterfall, from committed results: a picture, and the tables between two marks of README.md and docs/speed.md.

    python -m ostrack_fast.bench.waterfall [ROOT]  # reads bench/results/*model*.json, writes docs/waterfall.png too

The README shows one network, docs/speed.md all of them. Bars are medians of one run with interleaved timing; each step
keeps what those before it gained. A GPU comes first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from .report import read

BEGIN, END = "<!-- waterfall -->", "<!-- end of waterfall -->"


def load(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(machine in words, result) for every network at batch 1, GPUs first, fewest threads first."""
    found = []
    for path in sorted(folder.glob("*model*.json")):
        document = read(path)
        machine = document["machine"]
        for result in document["results"]:
            if result["op"] == "model" and result["batch"] == 1:
                gpu = result["device"] != "cpu"
                threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
                where = machine["gpus"][0] if gpu else f"{machine['cpu'].split(',')[0]}, {threads}"
                found.append((where, result))
    return sorted(found, key=lambda one: (one[1]["device"] == "cpu", one[1]["threads"]))


def steps(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in result["implementations"].items() if name == "upstream" or name.startswith("+")}


def tables(found: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """A table for every network, with a group of columns for every machine and number of threads."""
    networks: dict[str, dict[str, dict[str, Any]]] = {}
    for where, result in found:
        networks.setdefault(result["shape"].split(":")[0], {})[where] = result
    written = []
    for network, results in networks.items():
        columns = "".join(f" {where}: ms | x upstream |" for where in results)
        parts = [f"| {network}, batch 1 |{columns} peak memory, MB |", "|---|" + "--:|--:|" * len(results) + "--:|"]
        for name in dict.fromkeys(name for result in results.values() for name in result["implementations"]):
            label = name if name == "upstream" or name.startswith("+") else f"*{name}*"
            memory = ""
            for result in results.values():
                one = result["implementations"].get(name)
                if one is None:
                    label += " | |"
                    continue
                label += f" | {milliseconds(one)} | {one['speedup_over']['upstream']:.2f}"
                if one["peak_bytes"]:
                    memory = f"{one['peak_bytes'] / 1e6:.0f}"
            parts.append(f"| {label} | {memory} |")
        written.append("\n".join(parts) + "\n")
    return written


def replace_between_marks(path: Path, text: str) -> None:
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def milliseconds(one: dict[str, Any]) -> str:
    """Three digits: a GPU's frame takes less than one."""
    time = 1e3 * one["seconds"]
    return f"{time:.1f}" if time >= 10 else f"{time:.2f}"


def draw(found: list[tuple[str, dict[str, Any]]], picture: Path) -> None:
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.0 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, (where, result) in zip(axes.flat, found, strict=False):
        bars = steps(result)
        times = [1e3 * one["seconds"] for one in bars.values()]
        rows_of_bars = range(len(bars))
        colours = ["#9a9a9a"] + ["#2f6db5"] * (len(bars) - 1)
        axis.barh(rows_of_bars, times, color=colours)
        for row, one in zip(rows_of_bars, bars.values(), strict=True):
            label = f" {milliseconds(one)} ms, {one['speedup_over']['upstream']:.1f}x"
            axis.text(1e3 * one["seconds"], row, label, va="center", fontsize=7)
        axis.set_yticks(rows_of_bars, list(bars), fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.45 * max(times))
        axis.set_xlabel("ms a frame", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(f"{result['shape'].split(':')[0]}\n{where}", fontsize=8)
    figure.savefig(picture, dpi=130)


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    results = root / "bench" / "results"
    found = load(results)
    if not found:
        raise SystemExit(f"no *model*.json in {results}: run ostrack-fast bench model --json FILE first")
    draw(found, root / "docs" / "waterfall.png")
    written = tables(found)
    replace_between_marks(root / "README.md", written[0])
    replace_between_marks(root / "docs" / "speed.md", "\n".join(written))
    print(f"{len(found)} results: docs/waterfall.png, README.md and docs/speed.md written")


if __name__ == "__main__":
    main()
