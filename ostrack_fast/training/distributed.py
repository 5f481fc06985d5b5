"""Training by several processes, one a device, as torchrun starts them: what they share and what they agree on."""

from __future__ import annotations

import mmap
import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from ..model.head import CenterHead
from ..ops.sparse_map import SparseMap

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


def wrap(model: nn.Module, processes: Processes, batch_norm: Literal["all", "local"]) -> nn.Module:
    """The model as it is called: its backward pass averages gradients over the processes."""
    if processes.count == 1:
        return model
    device = next(model.parameters()).device
    values = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    memory = shared_memory(processes, values) if device.type == "cpu" else None
    network = nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        # Shared statistics are the same in every process. Of local ones the first's are sent to the others.
        broadcast_buffers=batch_norm == "local",
        bucket_cap_mb=None if memory is None else 2**20,  # all gradients in one
        gradient_as_bucket_view=True,
    )
    if memory is not None:
        average = partial(_average, processes, memory)
        # A lambda, as DDP refuses annotations of other types than its own, and those of this file are strings.
        network.register_comm_hook(None, lambda _, bucket: average(bucket.buffer()))
    return network


def shared_memory(processes: Processes, values: int) -> Tensor | None:
    """(processes,values) in float32, the same memory in all processes; None where they cannot share it.

    That is where they run on several machines or in several containers, or where memory is short. It has no name in a
    file system, whose size would limit it: it ends with the last process that maps it, however that ends.
    """
    size = 4 * processes.count * values
    name = f"gradients-{secrets.token_hex(8)}"
    path, file, memory = "", -1, None
    if processes.first and sys.platform == "linux":
        try:
            file = os.memfd_create(name)
            os.posix_fallocate(file, 0, size)
            path = f"/proc/{os.getpid()}/fd/{file}"
        except OSError:
            pass
    path, name = processes.from_first((path, name))
    try:
        # Elsewhere the same path is another file.
        if os.readlink(path) == f"/memfd:{name} (deleted)":
            with open(path, "r+b") as opened:
                memory = mmap.mmap(opened.fileno(), size)
    except OSError:
        pass
    everywhere = all(processes.gathered(memory is not None))
    if file >= 0:
        os.close(file)
    if not everywhere or memory is None:
        return None
    return torch.frombuffer(memory, dtype=torch.float32).view(processes.count, values)


def _average(processes: Processes, memory: Tensor, gradients: Tensor) -> Future[Tensor]:
    """The mean of all processes' gradients, in place, by memory (processes,values) that is the same in all of them.

    Each process averages an equal part, so all have the same bits. 63 MB take two processes 10 ms, and by TCP 60. Gloo
    tells when the others are ready, and that one has ended.
    """
    rank, count = processes.rank, processes.count
    others = [other for other in range(count) if other != rank]
    parts = gradients.tensor_split(count)
    # Part p of row r: what process r adds to the part that p averages; where r is p, that part's average. No two
    # processes write the same, and none writes before all have read what was there, one step or half a step ago.
    shared = [row.tensor_split(count) for row in memory]
    for other in others:
        torch.mul(parts[other], 1 / count, out=shared[rank][other])
    parts[rank].mul_(1 / count)
    dist.barrier()
    for other in others:
        parts[rank].add_(shared[other][rank])
    shared[rank][rank].copy_(parts[rank])
    dist.barrier()
    for other in others:
        parts[other].copy_(shared[other][other])
    averaged: Future[Tensor] = Future()
    averaged.set_result(gradients)
    return averaged


class _SharedBatchNorm(torch.autograd.Function):
    """BatchNorm (arXiv:1502.03167) of x (B,C,H,W) by the statistics of all processes; returns it, mean and variance.

    Its gradient is that of the sum of all processes' losses, as each depends on every process's x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # A quarter of `torch.var_mean`'s time. Without running statistics to update, the momentum is not read.
        parts = torch.stack(torch.ops.aten.batch_norm_update_stats(wide, None, None, 0.0))
        means, variances = processes.rows(parts[None]).unbind(1)
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


def share_batch_norm(model: nn.Module, processes: Processes) -> None:
    """Let every BatchNorm of the model, which are its heads', see the batches of all processes while it trains.

    `torch.nn.SyncBatchNorm` does the same on GPUs and refuses CPU tensors.
    """
    for head in model.modules():
        if isinstance(head, CenterHead):
            head.run_layers = partial(_run_layers, processes)


def _run_layers(processes: Processes, layers: Sequence[nn.Module], maps: Sequence[Tensor | SparseMap]) -> list[Tensor]:
    """As `CenterHead.run_layers`, with one exchange for all BatchNorms: each waits for the slowest process.

    Every process's maps have the same shape. Statistics are at least float32, also in autocast.
    """
    if not all(isinstance(layer, nn.Sequential) and layer.training for layer in layers):
        return CenterHead.run_layers(layers, maps)
    convolutions, norms, _ = zip(*cast("Sequence[nn.Sequential]", layers), strict=True)
    x = torch.cat(CenterHead.run_layers(convolutions, maps), dim=1)
    weight, bias = (torch.cat([norm.get_parameter(name) for norm in norms]) for name in ("weight", "bias"))
    x, means, variances = _SharedBatchNorm.apply(x, weight, bias, norms[0].eps, processes)
    count = processes.count * x.numel() // x.shape[1]
    variances = variances * count / max(count - 1, 1)
    for norm, mean, var in zip(norms, means.chunk(len(norms)), variances.chunk(len(norms)), strict=True):
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var, norm.momentum)
    return [*x.relu_().chunk(len(norms), dim=1)]
