"""`ostrack-fast train`: a training run as one yaml file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="Settings of the run (yaml), or a recipe's name: ostrack_256_ce.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data, instead of the one in the settings.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run, instead of the one in the settings.")] = None,
) -> None:
    """Train a model, or continue the run whose checkpoint lies in the output folder.

    Ctrl-C finishes the step in hand and writes a checkpoint; the same command continues from there.
    On several GPUs or machines: torchrun --nproc-per-node=4 -m ostrack_fast.cli train CONFIG; batch_size is each one's.
    """
    from ..devices import resolve_device
    from ..training.config import read_train_config
    from ..training.distributed import joined, local_device
    from ..training.trainer import WEIGHTS, Trainer

    chosen = local_device(resolve_device(device))
    cfg = read_train_config(config)
    if output is not None:
        cfg = replace(cfg, output=str(output))
    if data_root is not None:
        cfg = replace(cfg, data_root=str(data_root))
    with joined(chosen) as processes:
        trainer = Trainer(cfg, chosen, processes)
        trainer.run()
    if not processes.first:
        return
    done = "done" if trainer.finished else "stopped; the same command continues"
    rest = cfg.total_pairs - trainer.total
    left = f" (the last {rest} fill no batch of {trainer.batch})" if trainer.finished and rest else ""
    print(f"{done}: {trainer.seen} of {cfg.total_pairs} pairs{left}, weights in {Path(cfg.output) / WEIGHTS}")
    if not trainer.finished:
        raise typer.Exit(130)
