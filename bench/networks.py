"""Implementations of the whole network: the steps from the upstream formulation to the engine, and other baselines."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig
from ostrack_fast.engine import Engine
from ostrack_fast.model import OSTrack, template_mask
from ostrack_fast.model.checkpoint import shipped_weights
from ostrack_fast.ops.layers import fast_bfloat16, why_no_int8

from . import bench_attention, bench_eliminate, bench_restore
from .case import short_name
from .timing import graphed
from .upstream import UpstreamNetwork

NAMES = ("small", "ostrack_256_ce", "ostrack_384_ce", "ostrack_256", "ostrack_384")

Maps = tuple[Tensor, Tensor, Tensor]
Run = Callable[[], Maps]
Build = Callable[[OSTrack, Tensor, Tensor], Run]


def make_model(name: str, device: torch.device | str = "cpu") -> OSTrack:
    """The shipped weights where there are some; else random ones, with positions, so that no two tokens are alike."""
    if name in shipped_weights():
        model = OSTrack.from_pretrained(name)
    else:
        model = OSTrack.from_preset(name)
        for table in (model.backbone.pos_embed_z, model.backbone.pos_embed_x):
            nn.init.normal_(table)
    return model.to(device).requires_grad_(False)


def images(cfg: ModelConfig, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random template and search images."""
    z, x = (torch.randn(batch, 3, side, side, device=device) for side in (cfg.template_size, cfg.search_size))
    return z, x


def half_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def engine_dtypes(device: torch.device) -> list[torch.dtype]:
    """The compute dtypes in which an engine on this device is worth timing."""
    half = [half_dtype(device)] if device.type == "cuda" or fast_bfloat16() else []
    return [torch.float32, *half, *([torch.int8] if why_no_int8(device) is None else [])]


def _upstream(model: OSTrack, z: Tensor, x: Tensor, **better: Any) -> Run:
    return partial(UpstreamNetwork(model, **better), z, x)


def _converted(model: OSTrack, z: Tensor, x: Tensor, dtype: torch.dtype, compiled: bool = False) -> Run:
    network = UpstreamNetwork(deepcopy(model).to(dtype))
    if not compiled:
        return partial(network, z, x)
    return partial(torch.compile(network.__call__, mode="max-autotune" if z.is_cuda else None), z, x)


def _template_once(model: OSTrack, z: Tensor, x: Tensor) -> Run:
    tokens = model.backbone.embed_template(z)
    mask = template_mask(model.cfg, device=x.device) if model.cfg.ce_layers else None
    return lambda: model.forward_tokens(tokens, x, mask)[2]


def torch_best(model: OSTrack, z: Tensor, x: Tensor, dtype: torch.dtype, frozen: bool = False) -> Run:
    """PyTorch's libraries alone (cuBLAS, cuDNN, SDPA): BatchNorm folded, template once, on a GPU one CUDA graph.

    `frozen`: compiled by Inductor too, its weights constants that are folded and prepacked.
    """
    model = deepcopy(model).to(dtype)
    for tower in (each for each in model.box_head.modules() if isinstance(each, nn.Sequential)):
        convolution, norm = cast(nn.Conv2d, tower[0]), cast(nn.BatchNorm2d, tower[1])
        tower[0], tower[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    model.box_head.to(memory_format=torch.channels_last)
    cfg, batch = model.cfg, len(x)
    template, cells, row = cfg.template_grid**2, cfg.search_grid**2, bench_attention.center_row(cfg)
    first = torch.arange(0, batch * cells, cells, device=x.device)[:, None]

    @cache
    def template_rows(total: int) -> Tensor:
        rows = torch.arange(batch * total, device=x.device).view(batch, total)
        return rows[:, :template].contiguous()

    def attention(qkv: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return bench_attention.torch_best(qkv, None if mask is None else row, template)

    def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, None]:
        return *bench_eliminate.torch_best(tokens, score, ids, keep, template_rows(tokens.shape[1])), None

    restore = partial(bench_restore.torch_best, first=first)
    network = UpstreamNetwork(model, attention, eliminate, restore)
    run = partial(network.locate, model.backbone.embed_template(z.to(dtype)), x)
    if frozen:
        run = partial(torch.compile(network.locate, options={"freezing": True}), *run.args)
    return graphed(run) if z.is_cuda else run


def _engine(model: OSTrack, z: Tensor, x: Tensor, dtype: torch.dtype, candidate_elimination: bool = True) -> Run:
    engine = Engine(model, x.device, dtype, candidate_elimination)
    engine.set_template(z)

    def run() -> Maps:
        found = engine.forward(x)
        return found["score_map"], found["size_map"], found["offset_map"]

    return run


def steps(device: torch.device) -> dict[str, tuple[Build, torch.dtype]]:
    """The waterfall: each step keeps what those before it gained. With the compute dtype of each."""
    single = torch.float32
    better: dict[str, Any] = {"attention": ops.attention, "eliminate": ops.eliminate, "restore": ops.restore}
    made: dict[str, tuple[Build, torch.dtype]] = {
        "upstream": (_upstream, single),
        "+ fused attention": (partial(_upstream, attention=ops.attention), single),
        "+ fused elimination": (partial(_upstream, **better), single),
        "+ template once": (_template_once, single),
        "+ engine": (partial(_engine, dtype=single), single),
    }
    for dtype in engine_dtypes(device)[1:]:
        made[f"+ {short_name(dtype)}"] = partial(_engine, dtype=dtype), dtype
    return made


def baselines(device: torch.device) -> dict[str, tuple[Build, torch.dtype]]:
    """Upstream in half precision, PyTorch's best, upstream compiled; and the engine without elimination."""
    half, single = half_dtype(device), torch.float32
    name, graph = short_name(half), ", CUDA graph" if device.type == "cuda" else ""
    return {
        f"upstream {name}": (partial(_converted, dtype=half), half),
        f"torch {name}{graph}": (partial(torch_best, dtype=half), half),
        "torch.compile": (partial(_converted, dtype=single, compiled=True), single),
        f"torch.compile {name}": (partial(_converted, dtype=half, compiled=True), half),
        f"engine {name}, all candidates": (partial(_engine, dtype=half, candidate_elimination=False), half),
    }
