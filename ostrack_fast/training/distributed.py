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
        # Small values are gathered in a third of the time in which gloo adds them up (0.5 ms for 1.9, two processes).
        return value if self.count == 1 else self.rows(value[None]).mean(0)

    @torch.no_grad()
    def rows(self, value: Tensor) -> Tensor:
        """(B,...) of every process -> (count*B,...) in the order of the processes; all have the same shape."""
        if self.count == 1:
            return value
        value = value.contiguous()
        parts = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(parts, value)
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
    # Shared statistics are the same in every process. Of local ones DDP sends the first's to the others.
    alike = any(isinstance(module, SharedBatchNorm2d) for module in model.modules())
    return nn.parallel.DistributedDataParallel(
        model, device_ids=ids, broadcast_buffers=not alike, gradient_as_bucket_view=True
    )


class _SharedBatchNorm(torch.autograd.Function):
    """BatchNorm (arXiv:1502.03167) of x (B,C,H,W) by the statistics of all processes; returns it, mean and variance.

    Its gradient is that of the sum of all processes' losses, as each depends on every process's x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        parts = torch.stack(torch.var_mean(wide, dim=(0, 2, 3), correction=0))
        variances, means = processes.rows(parts[None]).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean) ** 2).mean(0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.processes = eps, processes
        ctx.mark_non_differentiable(mean, var)
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        # As if the statistics were constants; with what flows through them, every process's, x is shifted and scaled.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sum_of_weight, sum_of_bias = ctx.processes.rows(torch.stack((of_weight, of_bias))[None]).sum(0)
        scale = (var + ctx.eps).rsqrt()
        share = weight * scale * x.shape[1] / (ctx.processes.count * x.numel())
        slope = share * scale * sum_of_weight
        level = share * sum_of_bias - slope * mean
        through = torch.addcmul(level[:, None, None], x.to(level.dtype), slope[:, None, None])
        return (of_x - through).to(x.dtype), of_weight, of_bias, None, None


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of all processes' batches together, each of the same shape.

    `torch.nn.SyncBatchNorm` does the same on GPUs and refuses CPU tensors. Statistics are at least float32, also in
    autocast.
    """

    processes = ALONE

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.processes.count == 1:
            return super().forward(x)
        found, mean, var = _SharedBatchNorm.apply(x, self.weight, self.bias, self.eps, self.processes)
        count = self.processes.count * x.numel() // x.shape[1]
        self._update_running(mean, var * count / max(count - 1, 1))
        return found

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
