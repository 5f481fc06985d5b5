"""Training by several processes, one a device, as torchrun starts them: what they share and what they agree on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

# A process that ended closes its connections and is noticed at once; this is for one that lives and does not answer.
_TIMEOUT = timedelta(minutes=10)
# NCCL and the store raise DistError. Gloo raises plain RuntimeErrors, which begin with the source file in its folder.
_GLOO = re.compile(r"\[[^\]]*\bgloo[/\\]")


@dataclass(frozen=True)
class Processes:
    """The processes of a run; by default this one alone.

    Args:
        rank: number of this process. Number 0 alone writes files.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @torch.no_grad()
    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, without a gradient."""
        if self.count == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value / self.count

    @torch.no_grad()
    def rows(self, value: Tensor) -> Tensor:
        """(B,...) of every process -> (count*B,...) in the order of the processes; all have the same shape."""
        if self.count == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def from_first(self, value: T) -> T:
        """What process 0 passed; it is pickled between processes of one run, never read from a file."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """What every process passed, in their order; pickled between processes of one run, never read from a file."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Name it where another process ended or does not answer, instead of the network's own words.

        Raises:
            ConnectionError: that is the case.
        """
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if self.count == 1 or not (isinstance(error, dist.DistError) or _GLOO.match(text)):
                raise
            text = text.partition("\n")[0]
            raise ConnectionError(
                f"process {self.rank} of {self.count} lost the others: one ended or does not answer; its own message "
                f"says why ({text:.200})"
            ) from None


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of several that torchrun started on one machine each has a GPU of its own."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started; without torchrun this one is alone.

    Raises:
        ConnectionError: the others cannot be reached. ValueError: torchrun's variables make no sense.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    processes = Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with processes.watched():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield processes
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, processes: Processes) -> nn.Module:
    """The model as it is called: its backward pass averages gradients over the processes."""
    if processes.count == 1:
        return model
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


class _Gathered(torch.autograd.Function):
    """(...) of every process -> (count,...), the same in all of them; with its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.rows(value[None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every process's loss depends on this process's value.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.processes.rank], None


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of all processes' batches together, each of the same shape.

    `torch.nn.SyncBatchNorm` does the same on GPUs and refuses CPU tensors. Statistics are at least float32, also in
    autocast.
    """

    processes = ALONE

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.processes.count == 1:
            return super().forward(x)
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), dim=(0, 2, 3), correction=0)
        means, variances = _Gathered.apply(torch.stack((mean, var)), self.processes).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean) ** 2).mean(0)
        count = self.processes.count * x.numel() // x.shape[1]
        self._update_running(mean.detach(), var.detach() * count / max(count - 1, 1))
        scale = self.weight * (var + self.eps).rsqrt()
        return (x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)

    def _update_running(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)


def share_batch_norm(model: nn.Module, processes: Processes) -> None:
    """Let every BatchNorm of the model, in place, see the batches of all processes; parameters and names stay."""
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                shared.processes = processes
                setattr(module, name, shared.to(child.weight.device).train(child.training))
