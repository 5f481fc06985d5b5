"""`ostrack-fast train`: a training run as one yaml file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ._lists import chosen


def train(
    config: Annotated[Path, typer.Argument(help="Settings of the run (yaml), or a recipe's name: ostrack_256_ce.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data, instead of the one in the settings.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run, instead of the one in the settings.")] = None,
    log_to: Annotated[
        str | None, typer.Option(help="tensorboard, wandb or both with a comma, instead of what the settings say.")
    ] = None,
) -> None:
    """Train a model, or continue the run whose checkpoint lies in the output folder.

    Ctrl-C finishes the step in hand and writes a checkpoint; the same command continues from there.
    On several GPUs or machines: torchrun --nproc-per-node=4 -m ostrack_fast.cli train CONFIG; batch_size is each one's.
    """
    from ..devices import resolve_device
    from ..training.config import read_train_config
    from ..training.distributed import joined, local_device
    from ..training.trainer import WEIGHTS, Trainer
    from ..training.writers import WRITERS

    on = local_device(resolve_device(device))
    cfg = read_train_config(config)
    names = chosen("--log-to", log_to, tuple(WRITERS))
    changes: dict[str, Any] = {} if names is None else {"log_to": tuple(names)}
    for name, folder in (("output", output), ("data_root", data_root)):
        if folder is not None:
            changes[name] = str(folder)
    cfg = replace(cfg, **changes)
    with joined(on) as processes:
        trainer = Trainer(cfg, on, processes)
        trainer.run()
    if not processes.first:
        return
    done = "done" if trainer.finished else "stopped; the same command continues"
    rest = cfg.total_pairs - trainer.total
    left = f" (the last {rest} fill no batch of {trainer.batch})" if trainer.finished and rest else ""
    print(f"{done}: {trainer.seen} of {cfg.total_pairs} pairs{left}, weights in {Path(cfg.output) / WEIGHTS}")
    if not trainer.finished:
        raise typer.Exit(130)
