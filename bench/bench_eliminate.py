"""eliminate: the lower scores' tokens go, at the first elimination of each preset."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from .case import Case, Comparison, Setting, compare


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


def all_cases(at: Setting) -> list[Case]:
    """A case for every block that eliminates."""
    batch, template, channels = at.batch, at.cfg.template_grid**2, at.cfg.embed_dim

    def build(search: int, keep: int) -> Comparison:
        # No ties: PyTorch's top-k promises no order among them.
        tokens, score, ids, _ = arguments = at.example("eliminate", batch, template, search, keep, channels, False)
        rows = torch.arange(tokens.shape[0] * tokens.shape[1], device=at.device).view(batch, -1)[:, :template]
        baselines = {
            "upstream": partial(upstream, tokens, score, ids.float(), keep),
            "torch": partial(torch_best, tokens, score, ids, keep, rows.contiguous()),
        }
        return compare("eliminate", arguments, at.dtype, baselines, select=lambda found: found[:2])

    made = []
    for search, keep in pairwise(at.cfg.search_tokens()):
        if keep < search:
            moved = batch * (2.0 * (template + keep) * channels * at.dtype.itemsize + (4 + 8 + 8) * search)
            shape = f"{template}+{search} to {template}+{keep} tokens, C {channels}"
            made.append(at.case("eliminate", shape, 0.0, moved, build, search, keep))
    return made


def cases(at: Setting) -> list[Case]:
    return all_cases(at)[:1]
