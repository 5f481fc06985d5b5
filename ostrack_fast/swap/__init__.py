"""Faster modules in any network, in place: `accelerate(network, mode="ops")`.

A module is told by its attributes, never by its class. Where one is called as it was checked, its own forward is
replaced by the ops of this package; every other call goes to the module's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import resolve_device, resolve_dtype
from .kinds import kinds_of
from .report import INPUTS, Report, Row, exercise
from .state import State
from .swapped import Session, Swapped

__all__ = ["Report", "Row", "report_of", "swap_modules"]

# In float32 a network's outputs may differ by this share of their largest number: rounding, of one layer after another.
_TOLERANCE = 1e-3


def report_of(network: nn.Module) -> Report | None:
    """The report of a network whose modules were replaced, or None."""
    for module in network.modules():
        for value in module.__dict__.values():
            if isinstance(value, Swapped):
                return value.session.report
    return None


def swap_modules(
    network: nn.Module,
    inputs: Any = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    verify: bool = True,
) -> Report:
    """Replace, in place, what the ops of this package compute. See `accelerate`, which documents the arguments."""
    before = report_of(network)
    if before is not None:
        before.restore()
    weights = [each for each in network.parameters() if each.is_floating_point()]
    if not weights:
        raise ValueError(f"the given {type(network).__name__} has no parameters")
    where = weights[0].device
    if device != "auto" and resolve_device(device) != where:
        raise ValueError(f"the network is on {where}: move it to {device} first, modules are replaced where they are")
    session = Session(resolve_dtype(dtype, where))
    for name, module in network.named_modules():
        for method, kinds in kinds_of(module).items():
            session.swaps.append(Swapped(session, kinds, method, name, module))
    if not session.swaps:
        raise ValueError(f"the given {type(network).__name__} has no module that the ops of this package compute")
    session.report = report = Report(network.eval(), session)
    try:
        call = _caller(network, inputs)
        if call is not None:
            exercise(report, session, call)
    except BaseException:
        report.restore()
        raise
    if verify and report.error is not None and session.dtype == torch.float32 and not report.error <= _TOLERANCE:
        report.restore()
        raise ValueError(
            f"with its modules replaced, the outputs of the given {type(network).__name__} differ by "
            f"{report.error:.2g} times their largest number, which may be {_TOLERANCE:g}: it was left as it was"
        )
    return report


def _caller(network: nn.Module, inputs: Any) -> Callable[[], Any] | None:
    """A function that runs the network's own forward, and leaves what the network keeps between calls as it was."""
    guessed = inputs is None
    if guessed:
        inputs = _guess(network)
        if inputs is None:
            return None
    elif not (callable(inputs) or isinstance(inputs, (tuple, list, Mapping))):
        raise ValueError(f"inputs must be {INPUTS}, got {type(inputs).__name__}")

    def call() -> Any:
        with _same_state(network):
            given = copy.deepcopy(inputs) if not callable(inputs) else inputs
            if callable(given):
                return given(network)
            return network(**given) if isinstance(given, Mapping) else network(*given)

    if guessed:
        try:
            with torch.no_grad(), next(_swaps(network)).session.originals():
                call()
        except Exception:  # a guess about a stranger's forward may fail in any way, and then nothing is lost
            return None
    return call


def _swaps(network: nn.Module) -> Iterator[Swapped]:
    for module in network.modules():
        yield from (value for value in module.__dict__.values() if isinstance(value, Swapped))


def _guess(network: nn.Module) -> tuple[Tensor, Tensor] | None:
    """A template and a search image, in the sizes that the position tables say, or None."""
    tables = {name.rpartition(".")[2]: each for name, each in network.named_parameters() if "pos_embed_" in name}
    patches = [each for each in network.modules() if isinstance(each, nn.Conv2d) and each.kernel_size == each.stride]
    if not {"pos_embed_z", "pos_embed_x"} <= tables.keys() or not patches:
        return None
    patch, generator = patches[0], torch.Generator().manual_seed(0)
    images = []
    for name in ("pos_embed_z", "pos_embed_x"):
        side = isqrt(tables[name].shape[1]) * patch.kernel_size[0]
        shape = 1, patch.in_channels, side, side
        images.append(torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(patch.weight))
    return images[0], images[1]


@contextmanager
def _same_state(network: nn.Module) -> Iterator[None]:
    """Attributes and buffers that a forward sets on modules are set back afterwards."""
    state = State(network)
    try:
        yield
    finally:
        state.restore()
