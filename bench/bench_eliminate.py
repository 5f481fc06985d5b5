"""eliminate: the lower scores' tokens go, at the first elimination of each preset."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ostrack_fast.config import ModelConfig

from .case import Case, Comparison, compare_op


def upstream(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort, gather, concatenate; `ids` are floats."""
    template = tokens.shape[1] - score.shape[1]
    _, order = torch.sort(score, dim=1, descending=True)
    kept, removed = order[:, :keep], order[:, keep:]
    search = tokens[:, template:].gather(1, kept.unsqueeze(-1).expand(tokens.shape[0], -1, tokens.shape[2]))
    return torch.cat([tokens[:, :template], search], dim=1), ids.gather(1, kept), ids.gather(1, removed)


def torch_best(tokens: Tensor, score: Tensor, ids: Tensor, keep: int, template_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Top-k and one copy of rows; who was removed is not computed. template_rows: (B,T) into tokens.flatten(0,1)."""
    batch, _, channels = tokens.shape
    kept = score.topk(keep).indices
    rows = torch.cat((template_rows, kept + (template_rows[:, :1] + template_rows.shape[1])), dim=1)
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).view(batch, -1, channels), ids.gather(1, kept)


def all_cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> list[Case]:
    """A case for every block that eliminates."""
    template, channels = cfg.template_grid**2, cfg.embed_dim

    def build(search: int, keep: int) -> Comparison:
        total = template + search
        tokens = torch.randn(batch, total, channels, device=device).to(dtype)
        # No ties: PyTorch's top-k promises no order among them.
        score = torch.stack([torch.randperm(search) for _ in range(batch)]).float().to(device)
        ids = torch.arange(search, device=device).repeat(batch, 1)
        cells, rows = ids.float(), torch.arange(batch * total, device=device).view(batch, total)[:, :template]
        return compare_op(
            "eliminate",
            {"tokens": tokens, "score": score, "ids": ids, "keep": keep},
            dtype,
            lambda: upstream(tokens, score, cells, keep)[:2],
            partial(torch_best, tokens, score, ids, keep, rows.contiguous()),
            results=2,
        )

    made = []
    for search, keep in pairwise(cfg.search_tokens()):
        if keep < search:
            moved = batch * (2.0 * (template + keep) * channels * dtype.itemsize + (4 + 8 + 8) * search)
            shape = f"{template}+{search} to {template}+{keep} tokens, C {channels}"
            made.append(Case("eliminate", shape, batch, dtype, device, 0.0, moved, partial(build, search, keep)))
    return made


def cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    yield from all_cases(cfg, batch, dtype, device)[:1]


def test_eliminate(check_then_time, case, implementation):
    check_then_time(case, implementation)
