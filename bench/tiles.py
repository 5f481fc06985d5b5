"""Write kernels/tiles.json, the tiles that ship: what was measured stays, the rest is what the model says of an H100.

python bench/tiles.py                    # after a change of the model, or a new preset
python bench/tiles.py results/tiles.json # also takes what `ostrack-fast tune` measured
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # layers are built here, not run

from ostrack_fast import Engine, build_ostrack, ops
from ostrack_fast.benchmark.tune import products
from ostrack_fast.config import PRESETS
from ostrack_fast.files import write_atomically
from ostrack_fast.kernels import tiles

H100_CAPABILITY, H100_MULTIPROCESSORS = 9, 132
BATCHES = (1, 8, 64)
TABLE = Path(__file__).parents[1] / "kernels" / "tiles.json"  # of this checkout, wherever the package is installed


def problems() -> dict[tiles.Problem, None]:
    """Every product of every preset in half precision, in the order of the network."""
    found: dict[tiles.Problem, None] = {}
    for preset in PRESETS:
        with ops.use("triton"):
            engine = Engine(build_ostrack(preset), "cpu", "float16")
        for batch in BATCHES:
            for name, layer, (x, *_) in products(engine, batch):
                if name not in ("q", "kv"):  # products that only a CPU takes apart
                    found[layer.problem(x.numel() // x.shape[-1]).bucket()] = None
    return found


def main() -> None:
    table = tiles.modelled_table(problems(), H100_CAPABILITY, H100_MULTIPROCESSORS)
    for path in (TABLE, *map(Path, sys.argv[1:])):
        if path.exists():
            known = tiles.read_table(path)
            table |= {key: entry for key, entry in known.items() if entry.source != tiles.MODELLED}
    write_atomically(TABLE, lambda path: tiles.save_configs(path, table))
    measured = sum(entry.source != tiles.MODELLED for entry in table.values())
    print(f"{TABLE}: {len(table)} tiles, {measured} of them measured")


if __name__ == "__main__":
    main()
