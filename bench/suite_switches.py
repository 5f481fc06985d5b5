"""The suite `switches`: a whole frame as it is, with each of `ostrack_fast.switches` turned, and on every backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from unittest.mock import patch

import torch

from ostrack_fast import ops, switches

from . import suite_track
from .case import Case, Options
from .networks import NAMES, half_dtype
from .suite_track import Run, Variants

__all__ = ["NAMES", "cases"]


def cases(options: Options) -> Iterator[Case]:
    yield from suite_track.cases(options, "switches", _variants)


def _variants(options: Options) -> Variants:
    """Whatever is set while an engine is built and runs first is what it keeps."""
    on_gpu = options.device.type == "cuda"
    turned = [f"{name}={'off' if default else 'on'}" for name, default in switches.DEFAULTS.items()]
    # All on together too, because one may bring what another needs: a chain of early launches without gaps.
    texts = {"default": "", **{text: text for text in turned}, "all on": ",".join(f"{n}=on" for n in switches.DEFAULTS)}
    settings: dict[str, AbstractContextManager] = {
        label: patch.dict(os.environ, {switches.VARIABLE: text}) for label, text in texts.items()
    }
    for backend in ("auto", "triton", "reference") if on_gpu else ("auto", "reference"):
        settings[f"backend {backend}"] = ops.use(backend)
    for label, setting in settings.items():
        yield label, half_dtype(options.device) if on_gpu else torch.float32, partial(_within, setting)


def _within(setting: AbstractContextManager, make: Callable[[], Run]) -> Run:
    with setting:
        return make()
