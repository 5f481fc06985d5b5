"""What pages show of the committed results: tables between two marks, and the picture of the waterfall.

    python docs/measured.py [ROOT]

bench/README.md gets a table for every op, docs/speed.md and README.md the waterfall, whose bars are medians of one run
with interleaved timing: each step keeps what those before it gained. The README shows one network, a GPU first.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ostrack_fast.files import write_text

Result = dict[str, Any]
BASELINES = ("upstream", "torch")
_NO_OPS = ("model", "track", "training", "overhead")


def load(folder: Path) -> list[tuple[str, Result]]:
    """(machine in words, result) of every file, GPUs first, fewest threads first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for result in document.get("results", []):
            threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
            cpu = f"{document['machine']['cpu'].split(',')[0]}, {threads}"
            found.append((cpu if result["device"] == "cpu" else document["machine"]["gpus"][0], result))
    return sorted(found, key=lambda one: (one[1]["device"] == "cpu", one[1]["threads"]))


def markdown(words: int, head: list[str], rows: list[list[str]]) -> str:
    """A table, whose first columns hold words and the others numbers."""
    lines = [f"| {' | '.join(cells)} |\n" for cells in (head, *rows)]
    return lines[0] + "|" + "---|" * words + "--:|" * (len(head) - words) + "\n" + "".join(lines[1:])


def op_tables(found: list[tuple[str, Result]]) -> str:
    """A table for each op, and for each GPU one of its own.

    A row is a case and an implementation of ours; a machine's number of threads has three columns.
    """
    ops: dict[str, dict[tuple, dict[str, Result]]] = defaultdict(lambda: defaultdict(dict))
    for where, result in found:
        if result["op"] not in _NO_OPS:
            for name, one in result["implementations"].items():
                key = result["shape"], str(result["batch"]), result["dtype"], name
                ops[result["op"] + ("" if result["device"] == "cpu" else f", {where}")][key][where] = one
    parts = []
    for op, rows in sorted(ops.items()):
        columns = list(dict.fromkeys(where for cells in rows.values() for where in cells))
        head = ["shape", "batch", "dtype", "implementation"]
        head += [title for where in columns for title in (f"{where}: µs (of roofline)", "x upstream", "x torch")]
        lines = [
            [*key, *(cell for where in columns for cell in _op_cells(cells.get(where)))]
            for key, cells in rows.items()
            if key[3] not in BASELINES
        ]
        parts += [f"### {op}", "", markdown(4, head, lines)]
    return "\n".join(parts)


def _op_cells(one: Result | None) -> list[str]:
    if one is None:
        return ["", "", ""]
    time = one["seconds"] * 1e6
    ratios = (f"{one['speedup_over'][each]:.2f}" if each in one["speedup_over"] else "" for each in BASELINES)
    return [f"{time:.{0 if time >= 100 else 1}f} ({one['roofline_fraction']:.0%})", *ratios]


def waterfalls(found: list[tuple[str, Result]]) -> list[str]:
    """A table for every network at batch 1: implementations by machines."""
    networks: dict[str, dict[str, Result]] = defaultdict(dict)
    for where, result in found:
        networks[result["shape"].split(":")[0]][where] = result["implementations"]
    made = []
    for network, columns in networks.items():
        heads = [title for where in columns for title in (f"{where}: ms", "x upstream")]
        rows = []
        fullest_first = sorted(columns.values(), key=len, reverse=True)
        names = dict.fromkeys(name for runs in fullest_first for name in runs)
        for name in sorted(names, key=lambda name: not _is_step(name)):
            runs = [each.get(name) for each in columns.values()]
            pairs = ((_ms(one), f"{one['speedup_over']['upstream']:.2f}") if one else ("", "") for one in runs)
            cells = [cell for pair in pairs for cell in pair]
            memory = [f"{one['peak_bytes'] / 1e6:.0f}" for one in runs if one and one["peak_bytes"]]
            rows.append([name if _is_step(name) else f"*{name}*", *cells, memory[-1] if memory else ""])
        made.append(markdown(1, [f"{network}, batch 1", *heads, "peak memory, MB"], rows))
    return made


def _is_step(name: str) -> bool:
    """Whether an implementation is a bar of the waterfall; the others are there for comparison."""
    return name == "upstream" or name.startswith("+")


def _ms(one: Result) -> str:
    """Three digits: a GPU's frame takes less than one."""
    time = 1e3 * one["seconds"]
    return f"{time:.1f}" if time >= 10 else f"{time:.2f}"


def draw(found: list[tuple[str, Result]], picture: Path) -> None:
    """The waterfalls side by side, three in a row; grey is what there is to compare with."""
    columns = min(3, len(found))
    figure = Figure(figsize=(4.2 * columns, 3.0 * -(-len(found) // columns)), layout="constrained")
    for number, (where, result) in enumerate(found, 1):
        steps = result["implementations"]
        axes = figure.add_subplot(-(-len(found) // columns), columns, number)
        axes.set_title(f"{result['shape'].split(':')[0]}\n{where}", fontsize=8)
        times = [1e3 * one["seconds"] for one in steps.values()]
        bars = axes.barh(list(steps), times, color=["#2f6db5" if name.startswith("+") else "#9a9a9a" for name in steps])
        labels = [f" {_ms(one)} ms, {one['speedup_over']['upstream']:.1f}x" for one in steps.values()]
        axes.bar_label(bars, labels, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.45 * max(times))
        axes.set_xlabel("ms a frame", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=130)


def replace_between(path: Path, mark: str, text: str) -> None:
    """Put text in a page between the comments `mark` and `end of mark`."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    write_text(path, f"{before}{begin}\n{text}{end}{rest.split(end)[1]}")


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    found = load(root / "bench" / "results")
    networks = [one for one in found if one[1]["op"] == "model" and one[1]["batch"] == 1]
    if not networks:
        raise SystemExit(f"no network in {root}/bench/results: run ostrack-fast bench model --json FILE first")
    draw(networks, root / "docs" / "waterfall.png")
    written = waterfalls(networks)
    replace_between(root / "README.md", "waterfall", written[0])
    replace_between(root / "docs" / "speed.md", "waterfall", "\n".join(written))
    replace_between(root / "bench" / "README.md", "tables", op_tables(found))
    print(f"{len(found)} results: README.md, docs/speed.md, docs/waterfall.png and bench/README.md written")


if __name__ == "__main__":
    main()
