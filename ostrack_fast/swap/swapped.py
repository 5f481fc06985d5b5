"""A module's forward with a replacement beside it, which serves the calls that it was checked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..devices import full_float32
from ..ops.native import pytorch_threads
from .block import NotServed
from .compare import TOLERANCES, pattern_of
from .kinds import BY_NAME, Kind
from .state import State

_MOST_PATTERNS = 32  # so that a module whose arguments change with every call is not checked with every call
_TIMINGS = 5
_ROUNDS = 3  # of timings, while none shows a gain: another process may have been in the way
# How many times as fast a replacement must be: less is the noise of a timing, or lost in telling calls apart.
_WORTH = 1.04
_CACHE = 1 << 24  # float32 numbers, more than the caches of a processor hold
_bypassed = ContextVar[tuple["Session", ...]]("bypassed", default=())  # those whose modules run as they did before


class Verdict(NamedTuple):
    """Of the calls of one pattern: the form of the result, or why the original serves them."""

    kind: str
    form: Callable[[Any], Any] | None
    why: str = ""
    error: float | None = None
    speed: float | None = None  # the original's time over the replacement's


class Session:
    """What the replacements in one network share."""

    def __init__(self, dtype: torch.dtype):
        self.dtype, self.swaps, self.news = dtype, list[Swapped](), False
        self.report: Any = None
        self._speeds: dict[tuple, float] = {}

    @contextmanager
    def originals(self) -> Iterator[None]:
        """Inside, every module of the network runs as it did before."""
        token = _bypassed.set((*_bypassed.get(), self))
        try:
            yield
        finally:
            _bypassed.reset(token)

    def with_originals(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call, with every module of the network as it was before."""

        def run() -> Any:
            with self.originals():
                return call()

        return run

    def speed(self, key: tuple, original: Callable[[], Any], replacement: Callable[[], Any]) -> float:
        """The original's time over the replacement's, timed in turns, once for all modules of the same sizes.

        Weights come from memory, as in a network, where those of other modules have been read in between.
        """
        if key not in self._speeds:
            times: tuple[list[float], list[float]] = [], []
            others = torch.zeros(_CACHE, dtype=torch.float32, device="cpu")
            for turn in range(_ROUNDS * _TIMINGS):
                if turn % _TIMINGS == 0 and turn > 0 and min(times[0]) >= _WORTH * min(times[1]):
                    break
                for function, taken in zip((original, replacement), times, strict=True):
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

    def __init__(self, session: Session, kinds: tuple[Kind, ...], method: str, name: str, module: nn.Module):
        """The kinds are tried in this order."""
        self.session, self.name, self.module, self.method = session, name, module, method
        # By name, so that a network with replacements can be pickled.
        self.kinds = tuple(kind.name for kind in kinds)
        self._before = module.__dict__.get(method)
        self._runs: dict[str, Callable[..., Any]] = {}
        self._stamp: tuple = ()
        self.verdicts: dict[tuple, Verdict] = {}
        module.__dict__[method] = self

    def restore(self) -> None:
        """Take the replacement out of the module."""
        if self.module.__dict__.get(self.method) is not self:
            return
        del self.module.__dict__[self.method]
        if self._before is not None:
            self.module.__dict__[self.method] = self._before

    def step_aside(self) -> None:
        """Leave the module as it was if none of its calls so far is served: telling calls apart takes time too."""
        if self.verdicts and all(each.form is None for each in self.verdicts.values()):
            self.restore()

    def __getstate__(self) -> dict[str, Any]:
        """A copy packs its own weights."""
        return {**self.__dict__, "_runs": {}, "_stamp": (), "verdicts": {}}

    def original(self, *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            return self._before(*args, **kwargs)
        return getattr(type(self.module), self.method)(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._may_serve(args, kwargs):
            return self.original(*args, **kwargs)
        stamp = self._current_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            self._runs.clear()
            self.verdicts.clear()
        pattern = pattern_of(args, kwargs)
        verdict = None if pattern is None else self.verdicts.get(pattern)
        if verdict is None:
            if pattern is None or len(self.verdicts) >= _MOST_PATTERNS:
                return self.original(*args, **kwargs)
            return self._check(pattern, args, kwargs)
        if verdict.form is None:
            return self.original(*args, **kwargs)
        run = self._runs[verdict.kind]
        if BY_NAME[verdict.kind].own_code:
            with self.session.originals():
                return run(*args, **kwargs)
        try:
            return verdict.form(run(*args, **kwargs))
        except NotServed:
            return self.original(*args, **kwargs)

    def _may_serve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        x = args[0] if args else None
        if self.session in _bypassed.get() or type(x) not in (Tensor, nn.Parameter) or x is None:
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
            before = State(self.module)
            with full_float32(given.device.type):
                expected = self.original(*args, **kwargs)
            after = State(self.module)
            if after.changed_in_place(before):
                verdict = Verdict(self.kinds[0], None, "changes in place what it keeps")
            elif not torch.equal(given, args[0]):
                verdict = Verdict(self.kinds[0], None, "changes its input, or it is not finite")
            elif bool((given == given.flatten()[0]).all()):
                return expected  # nothing can be told apart by such an input
            else:
                states, tried = (before, after), list[Verdict]()
                for name in self.kinds:
                    tried.append(self._judged(BY_NAME[name], pattern, (given, *args[1:]), kwargs, expected, states))
                    if tried[-1].form is not None:
                        break
                verdict = tried[-1] if tried[-1].form is not None else tried[0]
        self.verdicts[pattern], self.session.news = verdict, True
        return expected

    def _judged(
        self,
        kind: Kind,
        pattern: tuple,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        expected: Any,
        states: tuple[State, State],
    ) -> Verdict:
        """Of this kind's replacement. The states are the module's before and after the original's call."""
        others, (before, after) = (*args[1:], *kwargs.values()), states
        if not kind.tensors and any(isinstance(each, Tensor) for each in others):
            return Verdict(kind.name, None, "takes a mask or other tensors")
        if not kind.own_code and not after.has_same_objects(before):
            return Verdict(kind.name, None, "keeps something between calls")
        dtype, form, error = self.session.dtype, None, 0.0
        try:
            # In float32 first: only there is an approximation told from what it approximates.
            for each in dict.fromkeys((torch.float32, dtype)):
                run = self._built(kind, each)
                before.restore()
                with full_float32(args[0].device.type):
                    found = run(*args, **kwargs)
                kept = after.difference(State(self.module)) if kind.own_code else 0.0
                form, error = self._best_form(kind, found, expected, exact=each == torch.float32)
                error = max(error, kept)
                allowed = max(TOLERANCES[each], TOLERANCES.get(args[0].dtype, 0.0))
                if form is None or error > allowed:
                    what = f"differs by {error:.2g} of its largest number" if form else "returns something else"
                    return Verdict(kind.name, None, f"{what} in {str(each).removeprefix('torch.')}", error)
            made, chosen = run, form
            shapes = tuple(each.shape for each in self.module.parameters())
            speed = self.session.speed(
                (kind.name, self.method, shapes, pattern),
                lambda: self.original(*args, **kwargs),
                lambda: chosen(made(*args, **kwargs)) if chosen else None,
            )
        except (NotServed, ValueError, RuntimeError, TypeError) as reason:
            return Verdict(kind.name, None, str(reason))
        finally:
            after.restore()
        if speed < _WORTH:
            return Verdict(kind.name, None, "not faster than the original here", error, speed)
        self._runs[kind.name] = run
        return Verdict(kind.name, form, "", error, speed)

    def _built(self, kind: Kind, dtype: torch.dtype) -> Callable[..., Any]:
        if dtype == self.session.dtype and kind.name in self._runs:
            return self._runs[kind.name]
        build = kind.build
        run = build(self.module, dtype, self.original) if kind.own_code else build(self.module, dtype)
        return pytorch_threads()(run)  # as the network's other modules do

    def _best_form(
        self, kind: Kind, found: Any, expected: Any, exact: bool
    ) -> tuple[Callable[[Any], Any] | None, float]:
        """The form whose result is nearest, and how near; (None, inf) if none has these tensors."""
        best: tuple[Callable[[Any], Any] | None, float] = (None, float("inf"))
        for form in kind.forms:
            try:
                made = form(found)
            except (LookupError, TypeError):
                continue
            error = (kind.exactly if exact else kind.loosely)(expected, made)
            if error < best[1]:
                best = form, error
        return best
