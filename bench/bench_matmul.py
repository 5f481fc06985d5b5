"""matmul: what the linear layers of a block multiply in training, forward and back, at the first block's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ostrack_fast.ops.native import pytorch_threads

from .case import Case, Comparison, Setting, compare


def cases(at: Setting) -> Iterator[Case]:
    """The batch is the number of pairs in a step; only where there is a kernel."""
    if at.device.type != "cpu" or at.dtype != torch.float32:
        return
    width, hidden = at.cfg.embed_dim, round(at.cfg.mlp_ratio * at.cfg.embed_dim)
    rows = at.batch * (at.cfg.template_grid**2 + at.cfg.search_grid**2)
    for inputs, outputs in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
        for what, sizes, turned in (
            ("forward", (rows, inputs, outputs), "b"),
            ("gradient of x", (rows, outputs, inputs), ""),
            ("gradient of the weight", (outputs, rows, inputs), "a"),
        ):
            moved = 4.0 * (rows * (inputs + outputs) + inputs * outputs)
            shape = f"{what}: {rows} x {inputs} to {outputs}"
            yield at.case("matmul", shape, 2.0 * rows * inputs * outputs, moved, _compare, at, sizes, turned)


def _compare(at: Setting, sizes: tuple[int, int, int], turned: str) -> Comparison:
    a, b, _ = arguments = at.example("matmul", *sizes, turned, False)
    baselines = {
        "upstream": lambda: a @ b,
        # What oneDNN makes of it, in whose place MKL stands by default.
        "torch": lambda: torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], ""),
    }
    comparison = compare("matmul", arguments, at.dtype, baselines)
    for name, each in comparison.implementations.items():
        # On whose threads a training step runs everything.
        comparison.implementations[name] = replace(each, run=pytorch_threads()(each.run))
    return comparison
