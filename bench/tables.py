"""The tables of bench/README.md, from the committed results: python bench/tables.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
Key = tuple[str, int, str]


def load() -> dict[str, dict[str, dict[Key, dict[str, dict[str, Any]]]]]:
    """Machine -> op -> (shape, batch, dtype) -> device and threads -> result."""
    found: dict[str, dict[str, dict[Key, dict[str, dict[str, Any]]]]] = {}
    for path in sorted((HERE / "results").glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
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
    one = result["contenders"].get(name)
    if one is None:
        return " | | |"
    speed = one["speed_over"]
    ratios = (f"{speed[rival]:.2f}" if rival in speed else "" for rival in ("published", "torch"))
    time = one["seconds"] * 1e6
    return f" {time:.{0 if time >= 100 else 1}f} ({one['share_of_ceiling']:.0%}) | {' | '.join(ratios)} |"


def table(rows: dict[Key, dict[str, dict[str, Any]]]) -> list[str]:
    """A line for each shape, batch, dtype and contender of ours; for each number of threads three columns."""
    places = sorted({where for results in rows.values() for where in results})
    head = "".join(f" {where}: µs (of ceiling) | x published | x torch |" for where in places)
    lines = [f"| shape | batch | dtype | contender |{head}", "|---|--:|---|---|" + "--:|" * 3 * len(places)]
    for (shape, batch, dtype), results in rows.items():
        names = dict.fromkeys(name for result in results.values() for name in result["contenders"])
        for name in (name for name in names if name not in ("published", "torch", "reference")):
            columns = "".join(cells(results[where], name) if where in results else " | | |" for where in places)
            lines.append(f"| {shape} | {batch} | {dtype} | {name} |{columns}")
    return lines


def main() -> None:
    parts = []
    for machine, ops in load().items():
        parts += [f"## {machine}", ""]
        for op, rows in ops.items():
            parts += [f"### {op}", "", *table(rows), ""]
    path = HERE / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n" + "\n".join(parts) + END + after, encoding="utf-8")
    print(f"{path.name}: {sum(len(ops) for ops in load().values())} tables")


if __name__ == "__main__":
    main()
