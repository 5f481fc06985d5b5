"""What was replaced in a network, what was left and why, and how much of its work that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..devices import full_float32
from .block import eliminates
from .compare import difference, difference_of_values
from .kinds import METHODS
from .swapped import Session, Swapped, Verdict

INPUTS = "a tuple of arguments, a dict of keyword arguments, or a function of the network that runs it"


class Row(NamedTuple):
    """One module: its name, kind and state, why it was left, and of the calls that were checked the largest error.

    `share` is of the FLOPs of the network's forward, `speed` the original's time over the replacement's; both are None
    where nothing was measured.
    """

    name: str
    kind: str
    state: str  # "replaced", "left" or "not called"
    why: str
    share: float | None
    error: float | None
    speed: float | None


class Report:
    """The replacements in a network, as they are now.

    Attributes:
        network: the network, changed in place.
        dtype: compute dtype of the matmuls.
        errors: of every output of the network's own forward, the largest difference as a share of its largest number;
            None if the forward was not run. Where candidates are eliminated, in float32 the order of numbers counts
            nothing. With less precision, an output follows the order of kept candidates, of which some may be others,
            or the cell of the maximum, which may change.
        speed: the network's time before over its time with the replacements, of its own forward; None if that was not
            run. If it was below 1, everything has been undone.
    """

    def __init__(self, network: nn.Module, session: Session):
        self.network, self.dtype = network, session.dtype
        self.errors: dict[str, float] | None = None
        self.speed: float | None = None
        self._session, self._flops = session, dict[str, int]()
        self._last: list[Row] | None = None

    def restore(self) -> nn.Module:
        """Undo everything; returns the network."""
        for swap in self._session.swaps:
            swap.restore()
        self._session.swaps.clear()
        return self.network

    def leave(self, why: str) -> None:
        """Undo everything; the rows go on telling what had been replaced, and now this reason."""
        rows = [row._replace(state="left", why=why) if row.state == "replaced" else row for row in self.rows]
        self.restore()
        self._last = rows

    @property
    def rows(self) -> list[Row]:
        """One for each module that a replacement serves or could serve; those within a replaced one are part of it."""
        if self._last is not None:
            return self._last
        states = [(swap, _state_of(swap)) for swap in self._session.swaps]
        served = {swap.name for swap, verdict in states if verdict is not None and verdict.form is not None}
        return [self._row(*each) for each in states if not _within(each[0].name, served) and not _spare(*each, served)]

    def _row(self, swap: Swapped, verdict: Verdict | None) -> Row:
        state = "not called" if verdict is None else "left" if verdict.form is None else "replaced"
        found = verdict or Verdict(swap.kinds[0], None)
        share = None if self._flops.get("", 0) == 0 else self._flops_of(swap.name, verdict) / self._flops[""]
        return Row(swap.name, found.kind, state, found.why, share, found.error, found.speed)

    def _flops_of(self, name: str, verdict: Verdict | None) -> int:
        if name in self._flops or verdict is None:
            return self._flops.get(name, 0)
        # Another of its methods was called than `forward`: at least what the modules in it compute.
        return sum(flops for each, flops in self._flops.items() if each.rpartition(".")[0] == name)

    @property
    def error(self) -> float | None:
        """The largest of `errors`."""
        return None if self.errors is None else max(self.errors.values(), default=0.0)

    @property
    def covered(self) -> float | None:
        """The share of the FLOPs of the network's own forward that replaced modules compute, or None."""
        if not self._flops.get(""):
            return None
        return sum(row.share or 0.0 for row in self.rows if row.state == "replaced")

    def table(self) -> Table:
        """For `rich`: rows of the same kind, state and reason together."""
        table = Table("kind", "state", "modules", "FLOPs", "error", "speed", "first of them", title=str(self))
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.kind, row.state, row.why), []).append(row)
        for (kind, state, why), rows in groups.items():
            shares = [row.share for row in rows if row.share is not None]
            errors, speeds = ([getattr(row, each) for row in rows] for each in ("error", "speed"))
            table.add_row(
                kind,
                f"{state}: {why}" if why else state,
                str(len(rows)),
                f"{sum(shares):.1%}" if shares else "",
                _span(errors, "{:.1e}", max),
                _span(speeds, "{:.2f}x", min),
                rows[0].name,
            )
        return table

    def __str__(self) -> str:
        rows = self.rows
        replaced = sum(row.state == "replaced" for row in rows)
        text = f"{replaced} of {len(rows)} modules replaced in {str(self.dtype).removeprefix('torch.')}"
        if self.covered is not None:
            text += f", {self.covered:.0%} of the FLOPs"
        if not self.errors:
            return text + "; the network's own forward was not run: pass inputs="
        text += f"; outputs of the network differ by {self.error:.1e} ({max(self.errors, key=self.errors.__getitem__)})"
        return text if self.speed is None else f"{text}; {self.speed:.2f} times as fast"


def _span(values: list[float | None], form: str, choose: Callable[[list[float]], float]) -> str:
    known = [each for each in values if each is not None]
    return form.format(choose(known)) if known else ""


def _state_of(swap: Swapped) -> Verdict | None:
    """Of its calls so far: the worst of those served, or one of those left to the original."""
    verdicts = list(swap.verdicts.values())
    served = [each for each in verdicts if each.form is not None]
    return max(served, key=lambda each: each.error or 0.0) if served else verdicts[0] if verdicts else None


def _spare(swap: Swapped, verdict: Verdict | None, served: set[str]) -> bool:
    """Whether it needs no row, because of the module's methods another is served."""
    left = verdict is None or verdict.form is None
    return left and (swap.method not in METHODS or swap.name in served)


def _within(name: str, served: set[str]) -> bool:
    parts = name.split(".")
    return name != "" and any(".".join(parts[:i]) in served for i in range(len(parts)))


class _FlopCounter(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, which follows gradients too and fails at some calls without any."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += 0 if count is None else count(*args, **(kwargs or {}), out_val=result)
        return result


def flops_by_module(network: nn.Module, call: Callable[[], Any]) -> tuple[dict[str, int], Any]:
    """FLOPs of matmuls and convolutions by the module they lie in ("" is the whole call), and the call's result."""
    names = {module: name for name, module in network.named_modules()}
    found, begun = dict[str, int](), list[int]()
    with _FlopCounter() as counter:

        def begin(module: nn.Module, _: Any) -> None:
            begun.append(counter.total)

        def end(module: nn.Module, _: Any, __: Any) -> None:
            name = names.get(module, "")
            found[name] = found.get(name, 0) + counter.total - begun.pop()

        hooks = register_module_forward_pre_hook(begin), register_module_forward_hook(end, always_call=True)
        try:
            result = call()
        finally:
            for hook in hooks:
                hook.remove()
    return {**found, "": counter.total}, result


def exercise(report: Report, session: Session, call: Callable[[], Any]) -> None:
    """Run the network's own forward: as it was, then with its replacements until none is new, and compare."""
    device = next(report.network.parameters()).device.type
    with torch.no_grad():
        with session.originals(), full_float32(device):
            try:
                report._flops, expected = flops_by_module(report.network, call)
            except Exception as error:  # of code that is not ours
                raise ValueError(
                    f"the network itself, with nothing replaced, fails at the given inputs: {type(error).__name__}: "
                    f"{error}. Inputs are {INPUTS}"
                ) from error
        # A module that is left to its own forward calls those inside it, which are checked at their next call.
        for _ in range(6):
            session.news = False
            call()
            if not session.news:
                break
        with full_float32(device):
            found = call()
        pairs = {"output": (expected, found)}
        if isinstance(expected, Mapping):
            pairs = {str(name): (each, found.get(name)) for name, each in expected.items()}
        exact = session.dtype == torch.float32
        report.errors = {name: difference(*pair, ids=exact) for name, pair in pairs.items()}
        if exact and any(eliminates(swap.module) for swap in session.swaps):
            # Outputs list the candidates that were kept by their scores, where rounding may decide between two.
            for name, pair in pairs.items():
                report.errors[name] = min(report.errors[name], difference_of_values(*pair))
        for swap in session.swaps:
            swap.step_aside()
        if not any(row.state == "replaced" for row in report.rows):
            return
        report.speed = session.speed(("network",), session.with_originals(call), call)
        if report.speed < 1:
            report.leave("the network as a whole is not faster")
