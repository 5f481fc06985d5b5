"""The suite `ops`: every op at the shapes that the presets give it, from the published models to the shipped one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..boxes import crop_window
from ..config import ModelConfig, get_config
from ..ops import reference
from ..ops.dispatch import problem
from . import published, torch_best
from .case import TOLERANCE, Case, Contender, Contest, Options
from .layers import conv3x3_cases, linear_cases, restore_conv3x3_cases

_PRESETS = ("small", "ostrack_256_ce", "ostrack_384_ce")
# Frame size and target of the crops; the last one hangs over the frame's edge.
_TARGETS = (((480, 854), (400.0, 220.0, 80.0, 50.0)), ((1080, 1920), (5.0, 5.0, 300.0, 200.0)))
# PyTorch rounds otherwise than OpenCV: one gray level, as a share of the brightest value.
_GRAY_LEVEL = 0.01


def cases(options: Options) -> Iterator[Case]:
    """All cases of the options, ordered by op."""
    presets = [get_config(name) for name in (_PRESETS[:1] if options.quick else _PRESETS)]
    for op in options.names or NAMES:
        for cfg in presets:
            for dtype in options.chosen_dtypes:
                for batch in options.chosen_batches:
                    yield from _CASES[op](cfg, batch, dtype, options.device)


def _contest(
    op: str, arguments: dict[str, Any], others: dict[str, Contender], dtype: torch.dtype, results: int | None = None
) -> Contest:
    """The contenders of an op: `others`, then each backend through the public function, as users call it.

    `results` keeps the first so many of the results, where not every contender gives all.
    """
    exact = {k: v.double() if _is_float(v) else v for k, v in arguments.items() if k != "dtype"}
    expected = getattr(reference, op)(**exact, **({"dtype": torch.float64} if "dtype" in arguments else {}))
    expected = expected if isinstance(expected, tuple) else (expected,)
    contest = Contest(expected[:results], others)
    for backend in ("native", "triton"):
        reason = problem(backend, op, arguments)
        if reason is None:
            contest.contenders[backend] = Contender(partial(_run, op, backend, arguments, results), TOLERANCE[dtype])
        else:
            contest.skipped[backend] = reason
    return contest


def _run(op: str, backend: str, arguments: dict[str, Any], results: int | None) -> Any:
    with ops.use(backend):
        result = getattr(ops, op)(**arguments)
    return result[:results] if isinstance(result, tuple) else result


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _others(dtype: torch.dtype, by_published: Callable[[], Any], by_torch: Callable[[], Any]) -> dict[str, Contender]:
    tolerance = TOLERANCE[dtype]
    return {"published": Contender(by_published, tolerance), "torch": Contender(by_torch, tolerance)}


def _attention(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    template, heads, width = cfg.template_grid**2, cfg.num_heads, cfg.embed_dim // cfg.num_heads
    total = template + cfg.search_grid**2
    row = template // 2 - cfg.template_grid // 2 - 1  # CTR_POINT

    def build() -> Contest:
        qkv = _randn(batch, total, 3, heads, width, device=device).to(dtype)
        mask = torch.zeros(template, dtype=torch.bool, device=device)
        mask[row] = True
        others = _others(
            dtype, partial(published.attention, qkv, mask), partial(torch_best.attention, qkv, row, template)
        )
        return _contest("attention", {"qkv": qkv, "template_mask": mask}, others, dtype)

    flops = 4.0 * batch * heads * total**2 * width
    moved = batch * (4.0 * total * cfg.embed_dim * dtype.itemsize + 4 * (total - template))
    shape = f"{template}+{total - template} tokens, {heads} heads of {width}"
    yield Case("attention", shape, batch, dtype, device, flops, moved, build)


class _Elimination:
    """One block's elimination: inputs in the form each contender keeps them in."""

    def __init__(self, cfg: ModelConfig, search: int, keep: int, batch: int, dtype: torch.dtype, device: torch.device):
        self.template, self.search, self.keep = cfg.template_grid**2, search, keep
        self.batch, self.channels, self.dtype, self.device = batch, cfg.embed_dim, dtype, device

    @property
    def bytes(self) -> float:
        rows = 2.0 * (self.template + self.keep) * self.channels * self.dtype.itemsize
        return self.batch * (rows + (4 + 8 + 8) * self.search)

    def contest(self) -> Contest:
        total = self.template + self.search
        tokens = _randn(self.batch, total, self.channels, device=self.device).to(self.dtype)
        # No ties: PyTorch's top-k promises no order among them.
        score = torch.stack([torch.randperm(self.search) for _ in range(self.batch)]).float().to(self.device)
        ids = torch.arange(self.search, device=self.device).repeat(self.batch, 1)
        rows = torch.arange(self.batch * total, device=self.device).view(self.batch, total)[:, : self.template]
        places = ids.float()

        def by_published() -> Any:
            return published.eliminate(tokens, score, places, self.keep)[:2]

        by_torch = partial(torch_best.eliminate, tokens, score, ids, self.keep, rows.contiguous())
        arguments = {"tokens": tokens, "score": score, "ids": ids, "keep": self.keep}
        return _contest("eliminate", arguments, _others(self.dtype, by_published, by_torch), self.dtype, 2)


def _eliminate(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    for one in _eliminations(cfg, batch, dtype, device)[:1]:
        shape = f"{one.template}+{one.search} to {one.template}+{one.keep} tokens, C {one.channels}"
        yield Case("eliminate", shape, batch, dtype, device, 0.0, one.bytes, one.contest)


def _eliminations(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> list[_Elimination]:
    counts = cfg.search_tokens()
    pairs = [(before, after) for before, after in pairwise(counts) if after < before]
    return [_Elimination(cfg, search, keep, batch, dtype, device) for search, keep in pairs]


def _restore(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    grid, kept, channels = cfg.search_grid, cfg.search_tokens()[-1], cfg.embed_dim

    def build() -> Contest:
        tokens = _randn(batch, kept, channels, device=device).to(dtype)
        order = torch.stack([torch.randperm(grid * grid) for _ in range(batch)]).to(device)
        ids, removed = order[:, :kept].contiguous(), order[:, kept:].float()
        first = torch.arange(0, batch * grid * grid, grid * grid, device=device)[:, None]
        others = _others(
            dtype,
            partial(published.restore, tokens, ids.float(), removed, grid),
            partial(torch_best.restore, tokens, ids, grid, first),
        )
        return _contest("restore", {"tokens": tokens, "ids": ids, "grid": grid}, others, dtype)

    moved = batch * ((kept + grid * grid) * channels * dtype.itemsize + 8.0 * kept)
    yield Case("restore", f"{kept} to {grid} x {grid}, C {channels}", batch, dtype, device, 0.0, moved, build)


def _decode(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    grid = cfg.search_grid

    def build() -> Contest:
        score, size, offset = (torch.rand(batch, n, grid, grid, device=device).to(dtype) for n in (1, 2, 2))
        # One clear peak: without it, rounding to bfloat16 would make several places the highest.
        score *= 0.5
        score[:, 0, grid // 2, grid // 3] = 0.9
        window = published.hann(grid).to(device)
        maps = {"score_map": score, "size_map": size, "offset_map": offset, "window": window}
        others = _others(dtype, partial(published.decode, *maps.values()), partial(torch_best.decode, *maps.values()))
        return _contest("decode", maps, others, dtype)

    moved = grid * grid * (5.0 * batch * dtype.itemsize + 4)
    yield Case("decode", f"{grid} x {grid}", batch, dtype, device, 0.0, moved, build)


def _elimination_path(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """All that candidate elimination and the decoding cost a frame: every elimination, restore and decode."""
    stages = _eliminations(cfg, batch, dtype, device)
    parts = [next(_restore(cfg, batch, dtype, device)), next(_decode(cfg, batch, dtype, device))]

    def build() -> Contest:
        contests = [stage.contest() for stage in stages] + [part.build() for part in parts]
        expected = tuple(tensor for contest in contests for tensor in contest.expected)
        skipped = {name: reason for contest in contests for name, reason in contest.skipped.items()}
        names = [name for name in contests[0].contenders if name not in skipped]

        def in_a_row(name: str) -> tuple[Tensor, ...]:
            results = [contest.contenders[name].run() for contest in contests]
            return tuple(tensor for result in results for tensor in (result if isinstance(result, tuple) else [result]))

        racers = {name: Contender(partial(in_a_row, name), TOLERANCE[dtype]) for name in names}
        return Contest(expected, racers, skipped)

    shape = f"{len(stages)} times from {cfg.search_grid} x {cfg.search_grid}, C {cfg.embed_dim}"
    moved = sum(stage.bytes for stage in stages) + sum(part.bytes for part in parts)
    yield Case("elimination_path", shape, batch, dtype, device, 0.0, moved, build)


def _crop(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    for (height, width), target in _TARGETS:
        # A few pixels from one target to the next: a batch is many targets of one frame.
        boxes = [[target[0] + 7 * i, target[1] + 3 * i, *target[2:]] for i in range(batch)]
        windows = [crop_window(box, cfg.search_factor) for box in boxes]

        def build(
            height: int = height, width: int = width, boxes: list[list[float]] = boxes, windows: Any = windows
        ) -> Contest:
            frame = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
            size, factor, here = cfg.search_size, cfg.search_factor, frame.to(device)
            like = torch.empty(0, dtype=dtype, device=device)
            others = {
                "published": Contender(partial(published.crop, frame, boxes, factor, size, like), TOLERANCE[dtype]),
                "torch": Contender(
                    partial(torch_best.crop, here, windows, size, dtype), max(_GRAY_LEVEL, TOLERANCE[dtype])
                ),
            }
            box = torch.tensor(boxes, dtype=torch.float64, device=device)
            arguments = {"frame": here, "box": box, "factor": factor, "size": size, "dtype": dtype}
            return _contest("crop", arguments, others, dtype)

        # Each pixel of the window that lies in the frame is read once.
        inside = [
            max(0, min(left + side, width) - max(left, 0)) * max(0, min(top + side, height) - max(top, 0))
            for left, top, side in windows
        ]
        moved = 3.0 * sum(inside) + 3.0 * batch * cfg.search_size**2 * dtype.itemsize
        shape = f"{windows[0][2]} of {width} x {height} to {cfg.search_size} pixels"
        yield Case("crop", shape, batch, dtype, device, 0.0, moved, build)


def _randn(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(prod(shape), device=device).view(shape)


_CASES = {
    "attention": _attention,
    "eliminate": _eliminate,
    "restore": _restore,
    "decode": _decode,
    "elimination_path": _elimination_path,
    "crop": _crop,
    "linear": linear_cases,
    "conv3x3": conv3x3_cases,
    "restore_conv3x3": restore_conv3x3_cases,
}
NAMES = tuple(_CASES)
CONTENDERS = ("published", "torch", "native", "native int8", "triton")
