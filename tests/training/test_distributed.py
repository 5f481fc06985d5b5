"""Several processes, as torchrun starts them: they train what one with the whole batch trains."""

import json
import os
import shutil
import socket
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from ostrack_fast.baselines import NETWORKS
from ostrack_fast.model import OSTrack
from ostrack_fast.training.checkpoint import CHECKPOINT
from ostrack_fast.training.config import read_train_config
from ostrack_fast.training.dataset import make_loader
from ostrack_fast.training.distributed import Processes, share_batch_norm
from ostrack_fast.training.trainer import Trainer

from .test_dataset import DataConfig, Numbered, PairDataset
from .tiny_run import MODEL, run

# With stochastic depth and candidates eliminated: whatever is drawn must be drawn for the whole batch.
DOCUMENT = {
    "model": {"preset": "small", "template_size": 32, "search_size": 64, "embed_dim": 32, "depth": 3, "num_heads": 1,
              "head_channels": 16, "ce_layers": [1], "ce_keep_ratio": [0.7], "drop_path": 0.3},
    "data": {"videos": {"path": "."}}, "output": "pair", "epochs": 1, "pairs_per_epoch": 32, "batch_size": 4,
    "loss": {"box_cells": "target", "attention": 0.1}, "optim": {"lr": 1e-3, "ema": 0.9, "lr_batch": 8},
    "ce_start_epoch": 0, "ce_warmup_epochs": 0.5, "precision": "float32", "workers": 0,
}  # fmt: skip
# Kills process 1 without a word in its third step: before it, or in its backward pass.
DYING = """
import os, sys
from ostrack_fast.cli import main
from ostrack_fast.training.trainer import Trainer
step = Trainer.step
def die(self, batch):
    if self.processes.rank == 1 and self.seen == 16:
        if where == "before":
            os._exit(9)
        self.model.get_parameter("box_head.conv1_ctr.0.bias").register_hook(lambda gradient: os._exit(9))
    return step(self, batch)
Trainer.step = die
where = sys.argv.pop()
main()
"""


def write(folder, square, **changes):
    path = folder / "t.yaml"
    path.write_text(json.dumps({**DOCUMENT, "data_root": str(square), **changes}))
    return path


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def environment(**changes):
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **changes}


@pytest.fixture(scope="module")
def trained_by_two(square, tmp_path_factory):
    """The folder of a run of four steps by two processes of 4 pairs, and its yaml file."""
    folder = tmp_path_factory.mktemp("two")
    path = write(folder, square)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", free_port(),
        "-m", "ostrack_fast.cli", "train", str(path), "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count("done: 32 of 32 pairs") == 1, "one process alone reports"
    return folder / "pair", path


def difference(state, other):
    assert state.keys() == other.keys()
    return max((state[name].double() - other[name].double()).abs().max().item() for name in state)


def test_two_processes_of_four_are_one_of_eight(trained_by_two, tmp_path):
    folder, path = trained_by_two
    one = run(replace(read_train_config(path), batch_size=8), tmp_path / "one")
    two = torch.load(folder / CHECKPOINT, weights_only=True)
    assert two["seen"] == one.seen == 32
    start = Trainer(replace(read_train_config(path), batch_size=8)).model.state_dict()
    assert difference(start, two["model"]) > 3e-3, "it trained"
    assert difference(one.model.state_dict(), two["model"]) < 5e-4
    assert difference(one.average.state, two["average"]) < 5e-4
    # Stochastic depth drew the same numbers, too.
    assert torch.equal(two["random"], torch.load(tmp_path / "one" / CHECKPOINT, weights_only=True)["random"])
    assert OSTrack.from_pretrained(folder / "weights.safetensors").cfg.depth == 3


def test_another_number_of_processes_continues(trained_by_two, tmp_path):
    folder, path = trained_by_two
    shutil.copytree(folder, tmp_path / "more")
    longer = replace(read_train_config(path), batch_size=8, epochs=1.5)
    # The schedules count in epochs, and these end with the run.
    resumed, whole = run(longer, tmp_path / "more"), run(longer, tmp_path / "whole")
    assert resumed.seen == whole.seen == 48
    assert difference(resumed.model.state_dict(), whole.model.state_dict()) < 5e-4
    with pytest.raises(ValueError, match="another batch_size"):
        run(replace(longer, batch_size=4), tmp_path / "more")


def test_micro_batches_are_one_batch_but_for_batch_norm(square, tmp_path):
    path = write(tmp_path, square, model={**DOCUMENT["model"], "drop_path": 0}, loss={})
    cfg = read_train_config(path)
    seen = []
    for size, parts, again in ((8, 1, "none"), (4, 2, "mlp"), (4, 2, "block")):
        trainer = Trainer(replace(cfg, batch_size=size, accumulate=parts, activation_checkpointing=again))
        # Frozen statistics: those of a micro-batch are its own.
        trainer.model.box_head.eval()
        batch = next(iter(make_loader(Steady(), size, 0, 0, micro_batches=parts)))
        trainer.step(batch)
        assert trainer.seen == 8
        seen.append(trainer.model.state_dict())
    start = Trainer(replace(cfg, batch_size=8)).model.state_dict()
    whole, *others = seen
    for other in others:
        assert difference(whole, other) < 1e-4 < 5e-4 < difference(start, whole)


class Steady(PairDataset):
    """Pairs of noise."""

    def __init__(self):
        super().__init__([(Numbered(10), 1)], DataConfig(length=40))

    def __getitem__(self, index):
        random = torch.Generator().manual_seed(index)
        images = {
            name: torch.randint(0, 256, (side, side, 3), generator=random, dtype=torch.uint8)
            for name, side in (("template", 32), ("search", 64))
        }
        boxes = {name: 0.2 + 0.2 * torch.rand(4, generator=random) for name in ("search_box", "template_box")}
        return images | boxes


def test_each_process_loads_its_part_of_a_batch():
    class Numbers(Steady):
        def __getitem__(self, index):
            return {"number": index}

    def numbers(**share):
        return [batch["number"].tolist() for batch in make_loader(Numbers(), 2, 0, 8, **share)][:2]

    assert numbers(rank=0, processes=2) == [[8, 9], [12, 13]]
    assert numbers(rank=1, processes=2) == [[10, 11], [14, 15]]
    assert numbers(rank=1, processes=2, micro_batches=2) == [[10, 11, 14, 15], [18, 19, 22, 23]]


def started(count, arguments, folder):
    """Processes that find each other as those of torchrun do, and their port."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_PORT=port),
        )
        for rank in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["before", "backward"])
def test_a_process_that_dies_is_reported(square, tmp_path, where):
    """The one left ends by itself, with a line that says so."""
    # With statistics of its own it waits for the other's gradients, behind its backward pass.
    path = write(tmp_path, square, output="run", batch_norm="local")
    processes = started(2, ["-c", DYING, "train", str(path), "--device", "cpu", where], tmp_path)
    errors = [process.communicate(timeout=500)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 9], errors
    assert "process 0 of 2 lost the others" in errors[0] and "Traceback" not in errors[0]


# Three processes, whose parts of seven values are unequal, average several times.
AVERAGING = """
import mmap, os, sys
import torch
from torch import nn
from ostrack_fast.training import distributed
if sys.argv[1] == "apart" and os.environ["RANK"] == "1":
    def refuse(*arguments):
        raise OSError
    mmap.mmap = refuse
found = []
memory = distributed.shared_memory
distributed.shared_memory = lambda *arguments: found.append(memory(*arguments)) or found[0]
with distributed.joined(torch.device("cpu")) as processes:
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    network = distributed.wrap(model, processes, "all")
    assert (found[0] is not None) == (sys.argv[1] == "together")
    for _ in range(3):
        x = torch.randn(3, 6)
        model.zero_grad()
        network(x[processes.rank]).square().sum().backward()
        seen = [parameter.grad.clone() for parameter in model.parameters()]
        for several in zip(*processes.gathered(seen)):
            assert all(torch.equal(several[0], each) for each in several), several
        alone = torch.autograd.grad(model(x).square().sum() / 3, list(model.parameters()))
        torch.testing.assert_close(seen, list(alone))
"""


@pytest.mark.parametrize("where", ["together", "apart"])
def test_gradients_are_averaged_by_shared_memory_where_there_is_any(tmp_path, where):
    processes = started(3, ["-c", AVERAGING, where], tmp_path)
    errors = [process.communicate(timeout=500)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors


def test_freed_memory_is_kept():
    """In a process of its own, which is that of a run: pages that were freed need not be cleared again."""
    script = """
import resource, torch
from ostrack_fast.training.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, kept = map(int, done.stdout.split())
    assert before > 1000 and kept < before / 10


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.distributed.DistNetworkError("anything"), True),
        (torch.distributed.DistBackendError("anything"), True),
        # What gloo raises, and an error of the training itself that speaks of such things.
        (RuntimeError("[/build/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error"), True),
        (RuntimeError("the connection to the data server timed out"), False),
    ],
)
def test_a_lost_process_is_told_by_the_kind_of_error(error, lost):
    with pytest.raises(ConnectionError if lost else type(error)) as caught, Processes(1, 3).watched():
        raise error
    assert ("process 1 of 3 lost the others" in str(caught.value)) == lost


@pytest.mark.parametrize("network", NETWORKS)
def test_shared_batch_norm_of_one_process_is_that_of_pytorch(network):
    torch.manual_seed(0)
    plain = NETWORKS[network](replace(MODEL, ce_layers=(), ce_keep_ratio=())).train()
    # Whatever the network, the heads have all of its BatchNorms.
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules()) == 12
    shared = deepcopy(plain)
    share_batch_norm(shared, Processes())
    images = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64)
    seen = []
    for model in (plain, shared):
        torch.manual_seed(1)  # of stochastic depth
        out = model(*images)
        (out["score_map"].square().sum() + 2 * out["size_map"].sum() + out["offset_map"].square().sum()).backward()
        gradients = {f"gradient of {name}": each.grad for name, each in model.box_head.named_parameters()}
        seen.append({"score": out["score_map"], **gradients, **model.state_dict()})
    one, other = seen
    assert one.keys() == other.keys() and len(one) > 100
    for name in one:
        # Biases before a BatchNorm have a gradient of 0, which is computed as rounding errors of terms up to 40.
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=5e-5, msg=name)
    evaluated = [model.eval()(*images)["score_map"] for model in (plain, shared)]
    torch.testing.assert_close(*evaluated)
