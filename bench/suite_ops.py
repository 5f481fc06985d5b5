"""The suites `ops`, every op at the shapes that the presets give it, and `ragged`, at sizes that do not fill tiles.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no \
        ostrack-fast bench ragged --check --only native

How exact the kernels are, the tests hold; at odd sizes under a sanitizer a stray value must show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import torch

from ostrack_fast import ops
from ostrack_fast.config import get_config
from ostrack_fast.ops.registry import Op

from .case import TOLERANCE, Case, Comparison, Implementation, Options, Setting, as_tuple, compare

# The ops that have a file bench_X.py.
NAMES = tuple(
    module.name.removeprefix("bench_")
    for module in iter_modules([str(Path(__file__).parent)])
    if module.name.startswith("bench_")
)
_PRESETS = ("small", "ostrack_256_ce", "ostrack_384_ce")


def cases(options: Options) -> Iterator[Case]:
    """All cases of the options, ordered by op."""
    presets = [get_config(name) for name in (_PRESETS[:1] if options.quick else _PRESETS)]
    for op in options.names or NAMES:
        module = import_module(f"ostrack_fast.bench.bench_{op}")
        for cfg in presets:
            for dtype in options.dtypes or (torch.float32, torch.bfloat16):
                for batch in options.chosen_batches:
                    yield from module.cases(Setting(cfg, batch, dtype, options.device))


def ragged(options: Options) -> Iterator[Case]:
    """Every op and layer with the examples of odd sizes in its file, in all three dtypes; kernels alone."""
    for name in options.names or (*ops.OPS, *ops.LAYERS):
        declaration = ops.declared(name)
        for dtype in options.dtypes or (torch.float32, torch.float16, torch.bfloat16):
            for numbers in declaration.sizes["edge"]:
                shape = ", ".join(map(str, numbers))
                build = partial(_compare, name, dtype, options.device, numbers)
                yield Case(name, shape, 1, dtype, options.device, 0.0, 0.0, build)


def _compare(name: str, dtype: torch.dtype, device: torch.device, numbers: tuple) -> Comparison:
    arguments = ops.declared(name).example(dtype, device, *numbers)
    inputs = ops.LAYERS[name].inputs(*arguments) if name in ops.LAYERS else ()
    return compare(name, arguments, dtype, {}, inputs)


def overhead(options: Options) -> Iterator[Case]:
    """What checks and the choice of a backend cost: each op's backend alone, the op as an engine binds it, and public.

    Tensors are so small that the kernels take next to nothing.
    """
    for name in options.names or ops.OPS:
        yield Case("overhead", name, 1, torch.float32, options.device, 0.0, 0.0, partial(_ways, ops.OPS[name], options))


def _ways(op: Op, options: Options) -> Comparison:
    arguments = next(op.samples("small", torch.float32, options.device))
    bound = op.bind(*arguments)
    ways: dict[str, Callable] = {"backend": op.backends[bound.backend].run, "bound": bound, "public": op}
    runs = {way: Implementation(partial(run, *arguments), TOLERANCE[torch.float32]) for way, run in ways.items()}
    return Comparison(as_tuple(op.reference(*arguments)), runs)
