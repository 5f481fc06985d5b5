"""What a second training process gains: pairs a second of one process and of two, each of one thread on a CPU.

    python -m ostrack_fast.bench.processes > FILE

Each process trains `small` on batches of the same size, as under torchrun: with its gradients and BatchNorm statistics
averaged over gloo. One and two processes take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from dataclasses import replace
from statistics import median

import torch
from torch.multiprocessing.spawn import spawn

from ostrack_fast import machine
from ostrack_fast.config import get_config
from ostrack_fast.training.config import TrainConfig
from ostrack_fast.training.distributed import joined
from ostrack_fast.training.losses import LossConfig
from ostrack_fast.training.trainer import Trainer

from .suite_training import random_pairs

_ROUNDS = 2
_CPU = torch.device("cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="pairs of a process's step")
    parser.add_argument("--steps", type=int, default=3, help="in each turn")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    spawn(_train, (port, options.batch, options.steps, queue), nprocs=2)
    found: dict[str, list[float]] = queue.get()
    one, two = (median(found[count]) for count in ("1", "2"))
    kept = {"batch": options.batch, "pairs_per_second": found, "gain": two / one}
    print(json.dumps({"machine": machine.describe()} | kept, indent=1))
    return 0


def _train(rank: int, port: int, batch: int, steps: int, queue: torch.multiprocessing.SimpleQueue) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    model = replace(get_config("small"), drop_path=0.0)
    cfg = TrainConfig(
        model=model, data={}, output="", loss=LossConfig(box_cells="target"), batch_size=batch, precision="float32",
        ce_start_epoch=0.0, ce_warmup_epochs=0.0,
    )  # fmt: skip
    pairs = random_pairs(model, batch, _CPU)
    found: dict[str, list[float]] = {"1": [], "2": []}
    with joined(_CPU) as processes:
        trainers = {"1": Trainer(cfg, _CPU), "2": Trainer(cfg, _CPU, processes)}
        for turn in range(1 + _ROUNDS):
            for count, trainer in trainers.items():
                torch.distributed.barrier()
                start = time.perf_counter()
                # While one trains alone the other waits, without a thread that is busy.
                for _ in range(steps if turn else 1):
                    if count == "2" or rank == 0:
                        trainer.step(pairs)
                if turn:
                    found[count].append(steps * batch * int(count) / (time.perf_counter() - start))
    if rank == 0:
        queue.put(found)


if __name__ == "__main__":
    sys.exit(main())
