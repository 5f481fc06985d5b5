"""A module's forward with a replacement beside it, which serves the calls that it was checked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import short_waits
from .block import NotServed
from .compare import TOLERANCES, difference, pattern_of
from .kinds import KINDS, Kind

_MOST_PATTERNS = 32  # so that a module whose arguments change with every call is not checked with every call
_TIMINGS = 5
_ROUNDS = 3  # of timings, while none shows a gain: another process may have been in the way
# How many times as fast a replacement must be: less is the noise of a timing, or lost in telling calls apart.
_WORTH = 1.04
_CACHE = 1 << 24  # float32 numbers, more than the caches of a processor hold


class Verdict(NamedTuple):
    """Of the calls of one pattern: the form of the result, or why the original serves them."""

    form: Callable[[Any], Any] | None
    why: str = ""
    error: float | None = None
    speed: float | None = None  # the original's time over the replacement's


class Session:
    """What the replacements in one network share."""

    def __init__(self, dtype: torch.dtype):
        self.dtype, self.swaps, self.news = dtype, list[Swapped](), False
        self.report: Any = None
        self.bypass = False
        self._speeds: dict[tuple, float] = {}

    @contextmanager
    def originals(self) -> Iterator[None]:
        """Inside, every module of the network runs as it did before."""
        before, self.bypass = self.bypass, True
        try:
            yield
        finally:
            self.bypass = before

    def with_originals(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call, with every module of the network as it was before."""

        def run() -> Any:
            with self.originals():
                return call()

        return run

    def speed(self, key: tuple, original: Callable[[], Any], replacement: Callable[[], Any]) -> float:
        """The original's time over the replacement's, timed in turns, once for all modules of the same sizes.

        Weights come from memory, as in a network, where those of other modules have been read in between. PyTorch's
        threads wait for the original as they did before, and as `short_waits` has them for the replacement.
        """
        if key not in self._speeds:
            times: tuple[list[float], list[float]] = [], []
            others = torch.zeros(_CACHE, dtype=torch.float32, device="cpu")
            for turn in range(_ROUNDS * _TIMINGS):
                if turn % _TIMINGS == 0 and turn > 0 and min(times[0]) >= _WORTH * min(times[1]):
                    break
                for short, function, taken in zip((False, True), (original, replacement), times, strict=True):
                    with short_waits.temporarily(short):
                        others.add_(1)
                        start = time.perf_counter()
                        function()
                        if torch.cuda.is_available():
                            torch.cuda.synchronize()
                        taken.append(time.perf_counter() - start)
            self._speeds[key] = min(times[0]) / min(times[1])
        return self._speeds[key]


class Swapped:
    """Stands in a module's `__dict__` for one of its methods: hooks, names, parameters and state dict stay."""

    def __init__(self, session: Session, kind: Kind, name: str, module: nn.Module):
        self.session, self.name, self.module, self._kind = session, name, module, kind.name
        self._before = module.__dict__.get(kind.method)
        self._run: Callable[..., Any] | None = None
        self._stamp: tuple = ()
        self.verdicts: dict[tuple, Verdict] = {}
        module.__dict__[kind.method] = self

    @property
    def kind(self) -> Kind:
        """By its name, so that a network with replacements can be pickled."""
        return next(kind for kind in KINDS if kind.name == self._kind)

    def restore(self) -> None:
        """Take the replacement out of the module."""
        if self.module.__dict__.get(self.kind.method) is not self:
            return
        del self.module.__dict__[self.kind.method]
        if self._before is not None:
            self.module.__dict__[self.kind.method] = self._before

    def __getstate__(self) -> dict[str, Any]:
        """A copy packs its own weights."""
        return {**self.__dict__, "_run": None, "_stamp": (), "verdicts": {}}

    def original(self, *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            return self._before(*args, **kwargs)
        return getattr(type(self.module), self.kind.method)(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._may_serve(args, kwargs):
            return self.original(*args, **kwargs)
        stamp = self._current_stamp()
        if stamp != self._stamp:
            self._stamp, self._run = stamp, None
            self.verdicts.clear()
        pattern = pattern_of(args, kwargs)
        verdict = None if pattern is None else self.verdicts.get(pattern)
        if verdict is None:
            if pattern is None or len(self.verdicts) >= _MOST_PATTERNS:
                return self.original(*args, **kwargs)
            return self._check(pattern, args, kwargs)
        if verdict.form is None or self._run is None:
            return self.original(*args, **kwargs)
        try:
            return verdict.form(self._run(*args, **kwargs))
        except NotServed:
            return self.original(*args, **kwargs)

    def _may_serve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        x = args[0] if args else None
        if self.session.bypass or type(x) not in (Tensor, nn.Parameter) or x is None:
            return False
        if not x.is_floating_point() or x.layout != torch.strided:
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or forward_ad._current_level >= 0:
            return False
        if x.device.type not in ("cpu", "cuda") or torch.is_autocast_enabled(x.device.type) or x.numel() == 0:
            return False
        parameters = list(self.module.parameters())
        if any(each.device != x.device for each in parameters):
            return False
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        if torch.is_grad_enabled() and any(each.requires_grad for each in (*parameters, *tensors)):
            return False
        inside = (each for each in self.module.modules() if each is not self.module)
        return not self.module.training and not any(
            each.training or each._forward_hooks or each._forward_pre_hooks for each in inside
        )

    def _current_stamp(self) -> tuple:
        """Differs after every change of a weight: in place, by another tensor, by a move or a conversion."""
        weights = (*self.module.parameters(), *self.module.buffers())
        return tuple((each.data_ptr(), each.dtype, 0 if each.is_inference() else each._version) for each in weights)

    def _check(self, pattern: tuple, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The original's result; and from now on, the replacement serves calls of this pattern if it gives the same."""
        given = args[0].clone()
        with self.session.originals(), torch.no_grad():
            state = _state(self.module)
            expected = self.original(*args, **kwargs)
            if _state(self.module) != state:
                verdict = Verdict(None, "keeps something between calls")
            elif not torch.equal(given, args[0]):
                verdict = Verdict(None, "changes its input, or it is not finite")
            elif bool((given == given.flatten()[0]).all()):
                return expected  # nothing can be told apart by such an input
            else:
                verdict = self._judged(pattern, (given, *args[1:]), kwargs, expected)
        self.verdicts[pattern], self.session.news = verdict, True
        return expected

    def _judged(self, pattern: tuple, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any) -> Verdict:
        others = (*args[1:], *kwargs.values())
        if not self.kind.tensors and any(isinstance(each, Tensor) for each in others):
            return Verdict(None, "takes a mask or other tensors")
        dtype, form, error = self.session.dtype, None, 0.0
        try:
            # In float32 first: only there is an approximation told from what it approximates.
            for each in dict.fromkeys((torch.float32, dtype)):
                run = self._run if each == dtype and self._run is not None else self.kind.build(self.module, each)
                found = run(*args, **kwargs)
                form, error = self._best_form(found, expected, exact=each == torch.float32)
                allowed = max(TOLERANCES[each], TOLERANCES.get(args[0].dtype, 0.0))
                if form is None or error > allowed:
                    what = f"differs by {error:.2g} of its largest number" if form else "returns something else"
                    return Verdict(None, f"{what} in {str(each).removeprefix('torch.')}", error)
        except (NotServed, ValueError, RuntimeError, TypeError) as reason:
            return Verdict(None, str(reason))
        made, chosen = run, form
        shapes = tuple(each.shape for each in self.module.parameters())
        key = (self.kind.name, shapes, pattern)
        speed = self.session.speed(
            key, lambda: self.original(*args, **kwargs), lambda: chosen(made(*args, **kwargs)) if chosen else None
        )
        if speed < _WORTH:
            return Verdict(None, "not faster than the original here", error, speed)
        self._run = run
        if args[0].device.type == "cpu":
            short_waits.hold(self.session)
        return Verdict(form, "", error, speed)

    def _best_form(self, found: Any, expected: Any, exact: bool) -> tuple[Callable[[Any], Any] | None, float]:
        """The form whose result is nearest, and how near; (None, inf) if none has these tensors."""
        best: tuple[Callable[[Any], Any] | None, float] = (None, float("inf"))
        for form in self.kind.forms:
            try:
                made = form(found)
            except (LookupError, TypeError):
                continue
            error = difference(expected, made) if exact else self.kind.loosely(expected, made)
            if error < best[1]:
                best = form, error
        return best


def _state(module: nn.Module) -> list[tuple[int, str, int]]:
    """What a module and those in it hold, to see whether a call changes it."""
    parts = ("_parameters", "_buffers", "_modules")
    return [
        (id(each), name, id(value))
        for each in module.modules()
        for holder in (each.__dict__, *(each.__dict__[part] for part in parts))
        for name, value in holder.items()
        if name not in parts
    ]
