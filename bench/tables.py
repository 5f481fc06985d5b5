"""The tables of bench/README.md, from the committed results: python -m ostrack_fast.bench.tables [FOLDER]."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from .report import BASELINES, read, replace_between

Result = dict[str, Any]
Key = tuple[str, int, str]  # shape, batch, dtype
Rows = dict[Key, dict[str, Result]]  # by device and threads


def load(folder: Path) -> dict[str, dict[str, Rows]]:
    """Machine -> op -> rows."""
    found: dict[str, dict[str, Rows]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for path in sorted(folder.glob("*.json")):
        document = read(path)
        for result in document.get("results", []):
            if "op" not in result or result["op"] in ("model", "track", "training"):
                continue
            machine, threads = document["machine"], result["threads"]
            on_cpu = result["device"] == "cpu"
            name = machine["cpu"].split(",")[0] if on_cpu else machine["gpus"][0]
            where = f"{threads} thread" + "s" * (threads > 1) if on_cpu else "GPU"
            found[name][result["op"]][result["shape"], result["batch"], result["dtype"]][where] = result
    return found


def cells(result: Result | None, name: str) -> str:
    one = result["implementations"].get(name) if result else None
    if one is None:
        return " | | |"
    ratios = (f"{one['speedup_over'][each]:.2f}" if each in one["speedup_over"] else "" for each in BASELINES)
    time = one["seconds"] * 1e6
    return f" {time:.{0 if time >= 100 else 1}f} ({one['roofline_fraction']:.0%}) | {' | '.join(ratios)} |"


def table(rows: Rows) -> list[str]:
    """A line for each shape, batch, dtype and implementation of ours; for each number of threads three columns."""
    columns = sorted({where for results in rows.values() for where in results})
    head = "".join(f" {where}: µs (of roofline) | x upstream | x torch |" for where in columns)
    lines = [f"| shape | batch | dtype | implementation |{head}", "|---|--:|---|---|" + "--:|" * 3 * len(columns)]
    for (shape, batch, dtype), results in rows.items():
        for name in dict.fromkeys(name for result in results.values() for name in result["implementations"]):
            if name not in BASELINES:
                numbers = "".join(cells(results.get(where), name) for where in columns)
                lines.append(f"| {shape} | {batch} | {dtype} | {name} |{numbers}")
    return lines


def main() -> None:
    bench = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    parts = []
    for machine, ops in load(bench / "results").items():
        parts += [f"## {machine}", ""]
        for op, rows in ops.items():
            parts += [f"### {op}", "", *table(rows), ""]
    replace_between(bench / "README.md", "tables", "\n".join(parts))
    print(f"README.md: {sum(part.startswith('### ') for part in parts)} tables")


if __name__ == "__main__":
    main()
