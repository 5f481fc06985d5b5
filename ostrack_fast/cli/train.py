"""`ostrack-fast train`: a training run as one yaml file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="Settings of the run (yaml).")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="Folder of the run, instead of the one in the settings.")] = None,
) -> None:
    """Train a model, or continue the run whose checkpoint lies in the output folder.

    Ctrl-C finishes the step in hand and writes a checkpoint; the same command continues from there.
    """
    from ..devices import resolve_device
    from ..training.config import read_train_config
    from ..training.trainer import WEIGHTS, Trainer

    chosen = resolve_device(device)
    cfg = read_train_config(config)
    if output is not None:
        cfg = replace(cfg, output=str(output))
    trainer = Trainer(cfg, chosen)
    trainer.run()
    done = "done" if trainer.finished else "stopped; the same command continues"
    rest = cfg.total_pairs - cfg.trained_pairs
    left = f" (the last {rest} fill no batch of {cfg.batch_size})" if trainer.finished and rest else ""
    print(f"{done}: {trainer.seen} of {cfg.total_pairs} pairs{left}, weights in {Path(cfg.output) / WEIGHTS}")
    if not trainer.finished:
        raise typer.Exit(130)
