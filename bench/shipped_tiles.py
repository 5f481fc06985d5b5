"""Write kernels/tiles.json, the tiles that ship: what was measured stays, the rest is what the model says of an H100.

TRITON_INTERPRET=1 python -m ostrack_fast.bench.shipped_tiles                 # after a change of the model or a preset
TRITON_INTERPRET=1 python -m ostrack_fast.bench.shipped_tiles tiles.json ...  # with what `ostrack-fast tune` measured
"""

from __future__ import annotations

import sys
from pathlib import Path

from ostrack_fast import Engine, build_ostrack, ops
from ostrack_fast.config import PRESETS
from ostrack_fast.files import write_atomically
from ostrack_fast.kernels import tiles

from .tuning import gemms

H100_CAPABILITY, H100_MULTIPROCESSORS = 9, 132
BATCHES = (1, 8, 64)


def problems() -> dict[tiles.Problem, None]:
    """Every GEMM of every preset in half precision, in the order of the network."""
    found: dict[tiles.Problem, None] = {}
    for preset in PRESETS:
        with ops.use("triton"):
            engine = Engine(build_ostrack(preset), "cpu", "float16")
        for batch in BATCHES:
            for name, layer, rows in gemms(engine, batch):
                if name not in ("q", "kv"):  # GEMMs that only a CPU takes apart
                    found[layer.problem(rows).bucket()] = None
    return found


def main() -> None:
    table = tiles.modelled_table(problems(), H100_CAPABILITY, H100_MULTIPROCESSORS)
    for path in (tiles.TABLE, *map(Path, sys.argv[1:])):
        known = tiles.read_table(path)
        table |= {key: entry for key, entry in known.items() if entry.source != tiles.MODELLED}
    write_atomically(tiles.TABLE, lambda path: tiles.save_configs(path, table))
    measured = sum(entry.source != tiles.MODELLED for entry in table.values())
    print(f"{tiles.TABLE}: {len(table)} tiles, {measured} of them measured")


if __name__ == "__main__":
    main()
