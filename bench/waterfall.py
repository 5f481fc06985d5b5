"""The waterfall of the README, from committed results: a picture, and the table between its two marks.

    python bench/waterfall.py            # bench/results/*model*.json -> docs/waterfall.png and README.md

Bars are medians of one run in which all contenders took turns; each step keeps what those before it gained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS, PICTURE, README = ROOT / "bench" / "results", ROOT / "docs" / "waterfall.png", ROOT / "README.md"
BEGIN, END = "<!-- waterfall -->", "<!-- end of waterfall -->"


def load() -> list[tuple[str, dict[str, Any]]]:
    """(machine in words, result) for every network at batch 1, GPUs first, fewest threads first."""
    found = []
    for path in sorted(RESULTS.glob("*model*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        machine = document["machine"]
        for result in document["results"]:
            if result["op"] == "model" and result["batch"] == 1:
                gpu = result["device"] != "cpu"
                threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
                where = machine["gpus"][0] if gpu else f"{machine['cpu'].split(',')[0]}, {threads}"
                found.append((where, result))
    return sorted(found, key=lambda one: (one[1]["device"] == "cpu", one[1]["threads"]))


def steps(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in result["contenders"].items() if name == "published" or name.startswith("+")}


def table(found: list[tuple[str, dict[str, Any]]]) -> str:
    """For every network a table, with a group of columns for every machine and number of threads."""
    networks: dict[str, dict[str, dict[str, Any]]] = {}
    for where, result in found:
        networks.setdefault(result["shape"].split(":")[0], {})[where] = result
    parts = []
    for network, results in networks.items():
        places = "".join(f" {where}: ms | x published |" for where in results)
        parts += [f"| {network}, batch 1 |{places} peak memory, MB |", "|---|" + "--:|--:|" * len(results) + "--:|"]
        for name in dict.fromkeys(name for result in results.values() for name in result["contenders"]):
            label = name if name == "published" or name.startswith("+") else f"*{name}*"
            memory = ""
            for result in results.values():
                one = result["contenders"].get(name)
                if one is None:
                    label += " | |"
                    continue
                label += f" | {1e3 * one['seconds']:.1f} | {one['speed_over']['published']:.2f}"
                if one["peak_bytes"]:
                    memory = f"{one['peak_bytes'] / 1e6:.0f}"
            parts.append(f"| {label} | {memory} |")
        parts.append("")
    return "\n".join(parts)


def draw(found: list[tuple[str, dict[str, Any]]]) -> None:
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.0 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, (where, result) in zip(axes.flat, found, strict=False):
        bars = steps(result)
        times = [1e3 * one["seconds"] for one in bars.values()]
        places = range(len(bars))
        colours = ["#9a9a9a"] + ["#2f6db5"] * (len(bars) - 1)
        axis.barh(places, times, color=colours)
        for place, one in zip(places, bars.values(), strict=True):
            label = f" {1e3 * one['seconds']:.1f} ms, {one['speed_over']['published']:.1f}x"
            axis.text(1e3 * one["seconds"], place, label, va="center", fontsize=7)
        axis.set_yticks(places, list(bars), fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.45 * max(times))
        axis.set_xlabel("ms a frame", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(f"{result['shape'].split(':')[0]}\n{where}", fontsize=8)
    figure.savefig(PICTURE, dpi=130)


def main() -> None:
    found = load()
    if not found:
        raise SystemExit(f"no *model*.json in {RESULTS}: run ostrack-fast bench model --json FILE first")
    draw(found)
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n{table(found)}{END}{after}", encoding="utf-8")
    print(f"{len(found)} networks: {PICTURE.relative_to(ROOT)} and {README.name} written")


if __name__ == "__main__":
    main()
