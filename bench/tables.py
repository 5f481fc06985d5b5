"""The tables of bench/README.md, from the committed results: python -m ostrack_fast.bench.tables [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .report import BASELINES, read

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
Key = tuple[str, int, str]


def load(folder: Path) -> dict[str, dict[str, dict[Key, dict[str, dict[str, Any]]]]]:
    """Machine -> op -> (shape, batch, dtype) -> device and threads -> result."""
    found: dict[str, dict[str, dict[Key, dict[str, dict[str, Any]]]]] = {}
    for path in sorted(folder.glob("*.json")):
        document = read(path)
        for result in document.get("results", []):
            if "op" not in result or result["op"] in ("model", "track", "training"):
                continue
            machine = document["machine"]
            on_cpu = result["device"] == "cpu"
            name = machine["cpu"].split(",")[0] if on_cpu else machine["gpus"][0]
            where = f"{result['threads']} thread" + "s" * (result["threads"] > 1) if on_cpu else "GPU"
            key = result["shape"], result["batch"], result["dtype"]
            found.setdefault(name, {}).setdefault(result["op"], {}).setdefault(key, {})[where] = result
    return found


def cells(result: dict[str, Any], name: str) -> str:
    one = result["implementations"].get(name)
    if one is None:
        return " | | |"
    speedup = one["speedup_over"]
    ratios = (f"{speedup[baseline]:.2f}" if baseline in speedup else "" for baseline in BASELINES)
    time = one["seconds"] * 1e6
    return f" {time:.{0 if time >= 100 else 1}f} ({one['roofline_fraction']:.0%}) | {' | '.join(ratios)} |"


def table(rows: dict[Key, dict[str, dict[str, Any]]]) -> list[str]:
    """A line for each shape, batch, dtype and implementation of ours; for each number of threads three columns."""
    columns = sorted({where for results in rows.values() for where in results})
    head = "".join(f" {where}: µs (of roofline) | x upstream | x torch |" for where in columns)
    lines = [f"| shape | batch | dtype | implementation |{head}", "|---|--:|---|---|" + "--:|" * 3 * len(columns)]
    for (shape, batch, dtype), results in rows.items():
        names = dict.fromkeys(name for result in results.values() for name in result["implementations"])
        for name in (name for name in names if name not in BASELINES):
            numbers = "".join(cells(results[where], name) if where in results else " | | |" for where in columns)
            lines.append(f"| {shape} | {batch} | {dtype} | {name} |{numbers}")
    return lines


def main() -> None:
    bench = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    parts, count = [], 0
    for machine, ops in load(bench / "results").items():
        parts += [f"## {machine}", ""]
        for op, rows in ops.items():
            parts += [f"### {op}", "", *table(rows), ""]
            count += 1
    path = bench / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n" + "\n".join(parts) + END + after, encoding="utf-8")
    print(f"{path.name}: {count} tables")


if __name__ == "__main__":
    main()
