"""The whole network: who takes part, from the upstream formulation step by step to the engine, and other baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ostrack_fast import ops
from ostrack_fast.config import PRESETS, ModelConfig, get_config
from ostrack_fast.engine import Engine
from ostrack_fast.graphs import GraphedFunction
from ostrack_fast.model import OSTrack, template_mask
from ostrack_fast.model.checkpoint import shipped_weights
from ostrack_fast.model.cost import stage_flops
from ostrack_fast.ops.layers import fast_bfloat16, why_no_int8

from . import bench_attention, bench_eliminate, bench_restore
from .case import Case, Comparison, Makers, Options, short_name
from .upstream import UpstreamNetwork

NAMES = ("small", "ostrack_256_ce", "ostrack_384_ce", "ostrack_256", "ostrack_384")

Maps = tuple[Tensor, Tensor, Tensor]
Run = Callable[[], Maps]


def network_cases(
    op: str,
    options: Options,
    describe: Callable[[ModelConfig], tuple[str, float]],
    compare: Callable[[str, int, Options], Comparison],
) -> Iterator[Case]:
    """A case for every network and batch; the implementations have compute dtypes of their own, the case is float32.

    Args:
        describe: the shape in words, and the bytes that one run must move.
    """
    for name in options.names or NAMES[: 1 if options.quick else 3]:
        shape, moved = describe(get_config(name))
        for batch in options.chosen_batches:
            flops, build = batch * sum(stage_flops(get_config(name)).values()), partial(compare, name, batch, options)
            yield Case(op, f"{name}: {shape}", batch, torch.float32, options.device, flops, moved, build)


def make_model(name: str, device: torch.device | str = "cpu", config: str | None = None) -> OSTrack:
    """Weights that ship, or a file's, then with its `config`.

    A preset without weights gets random ones, with positions, so that no two tokens are alike.
    """
    if name in PRESETS and name not in shipped_weights():
        model = OSTrack.from_preset(name)
        for table in (model.backbone.pos_embed_z, model.backbone.pos_embed_x):
            nn.init.normal_(table)
    else:
        model = OSTrack.from_pretrained(name, config)
    return model.to(device).requires_grad_(False)


def images(cfg: ModelConfig, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random template and search images."""
    z, x = (torch.randn(batch, 3, side, side, device=device) for side in (cfg.template_size, cfg.search_size))
    return z, x


def half_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def pause() -> float:
    """What `timing.interleave` waits, so that the threads of one implementation do not slow the next."""
    return 0.05 if torch.get_num_threads() > 1 else 0.0


def engine_dtypes(device: torch.device) -> list[torch.dtype]:
    """The compute dtypes in which an engine on this device is worth timing."""
    half = [half_dtype(device)] if device.type == "cuda" or fast_bfloat16() else []
    return [torch.float32, *half, *([torch.int8] if why_no_int8(device) is None else [])]


def _upstream(
    model: OSTrack, z: Tensor, x: Tensor, dtype: torch.dtype = torch.float32, compiled: bool = False, **better: Any
) -> Run:
    network = UpstreamNetwork(model if dtype == torch.float32 else deepcopy(model).to(dtype), **better)
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
    locate = torch.compile(network.locate, options={"freezing": True}) if frozen else network.locate
    run = partial(locate, model.backbone.embed_template(z.to(dtype)))
    if not x.is_cuda:
        return partial(run, x)
    graph = GraphedFunction(run, x, x.device)
    graph(x)

    def replay(held: Any = run) -> Maps:  # what the graph reads must live
        return graph.replay()

    return replay


def _engine(model: OSTrack, z: Tensor, x: Tensor, dtype: torch.dtype, candidate_elimination: bool = True) -> Run:
    engine = Engine(model, x.device, dtype, candidate_elimination)
    engine.set_template(z)

    def run() -> Maps:
        found = engine.forward(x)
        return found["score_map"], found["size_map"], found["offset_map"]

    return run


def implementations(model: OSTrack, z: Tensor, x: Tensor) -> Makers:
    """For images (B,3,Z,Z) and (B,3,X,X): the waterfall, each of whose steps keeps what those before it gained, then
    upstream in half precision, PyTorch's best, upstream compiled, and the engine without elimination.
    """
    single, half = torch.float32, half_dtype(x.device)
    name, graph = short_name(half), ", CUDA graph" if x.is_cuda else ""
    better: dict[str, Any] = {"attention": ops.attention, "eliminate": ops.eliminate, "restore": ops.restore}
    makers: dict[str, tuple[Callable[..., Run], torch.dtype]] = {
        "upstream": (_upstream, single),
        "+ fused attention": (partial(_upstream, attention=ops.attention), single),
        "+ fused elimination": (partial(_upstream, **better), single),
        "+ template once": (_template_once, single),
        "+ engine": (partial(_engine, dtype=single), single),
        **{f"+ {short_name(dtype)}": (partial(_engine, dtype=dtype), dtype) for dtype in engine_dtypes(x.device)[1:]},
        f"upstream {name}": (partial(_upstream, dtype=half), half),
        f"torch {name}{graph}": (partial(torch_best, dtype=half), half),
        "torch.compile": (partial(_upstream, compiled=True), single),
        f"torch.compile {name}": (partial(_upstream, dtype=half, compiled=True), half),
        f"engine {name}, all candidates": (partial(_engine, dtype=half, candidate_elimination=False), half),
    }
    return {label: (partial(make, model, z, x), dtype) for label, (make, dtype) in makers.items()}
