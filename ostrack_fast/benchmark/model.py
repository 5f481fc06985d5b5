"""The suite `model`: the whole network, from the published formulation step by step to the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..config import ModelConfig, get_config
from ..engine import Engine
from ..model import OSTrack, template_mask
from ..model.checkpoint import shipped_weights
from ..ops.layers import fast_bfloat16, why_no_int8
from .case import Case, Contender, Contest, Options
from .memory import peak_bytes
from .profile import stage_flops
from .published_network import PublishedNetwork

NAMES = ("small", "ostrack_256_ce", "ostrack_384_ce", "ostrack_256", "ostrack_384")
_QUICK = ("small",)

# Mean error over a whole network. Half precision and int8 also change which candidates a network with random weights
# keeps, whose candidates are nearly alike: this finds what is broken, bench/accuracy.py measures what is lost.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 0.25, torch.int8: 0.4}

Maps = tuple[Tensor, Tensor, Tensor]
Run = Callable[[], Maps]
Build = Callable[[OSTrack, Tensor, Tensor], Run]


def _published(model: OSTrack, z: Tensor, x: Tensor, **better: Any) -> Run:
    return partial(PublishedNetwork(model, **better), z, x)


def _converted(model: OSTrack, z: Tensor, x: Tensor, dtype: torch.dtype, compiled: bool = False) -> Run:
    network = PublishedNetwork(deepcopy(model).to(dtype))
    if not compiled:
        return partial(network, z, x)
    return partial(torch.compile(network.__call__, mode="max-autotune" if z.is_cuda else None), z, x)


def _template_once(model: OSTrack, z: Tensor, x: Tensor) -> Run:
    tokens = model.backbone.embed_template(z)
    mask = template_mask(model.cfg, device=x.device) if model.cfg.ce_layers else None
    return lambda: model.forward_tokens(tokens, x, mask)[2]


def _engine(model: OSTrack, z: Tensor, x: Tensor, dtype: torch.dtype, candidate_elimination: bool = True) -> Run:
    engine = Engine(model, x.device, dtype, candidate_elimination)
    engine.set_template(z)

    def run() -> Maps:
        found = engine.forward(x)
        return found["score_map"], found["size_map"], found["offset_map"]

    return run


def steps(device: torch.device) -> dict[str, tuple[Build, torch.dtype]]:
    """The waterfall: each step keeps what those before it gained. The dtype is that of the matrix products."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    single = torch.float32
    better: dict[str, Any] = {"attention": ops.attention, "eliminate": ops.eliminate, "restore": ops.restore}
    made: dict[str, tuple[Build, torch.dtype]] = {
        "published": (_published, single),
        "+ fused attention": (partial(_published, attention=ops.attention), single),
        "+ fused elimination": (partial(_published, **better), single),
        "+ template once": (_template_once, single),
        "+ engine": (partial(_engine, dtype=single), single),
    }
    if device.type == "cuda" or fast_bfloat16():
        name = str(half).removeprefix("torch.")
        made[f"+ {name}"] = partial(_engine, dtype=half), half
    if why_no_int8(device) is None:
        made["+ int8"] = partial(_engine, dtype=torch.int8), torch.int8
    return made


def rivals(device: torch.device) -> dict[str, tuple[Build, torch.dtype]]:
    """The published formulation in half precision, and compiled; the engine without elimination."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    name = str(half).removeprefix("torch.")
    return {
        f"published {name}": (partial(_converted, dtype=half), half),
        "torch.compile": (partial(_converted, dtype=torch.float32, compiled=True), torch.float32),
        f"torch.compile {name}": (partial(_converted, dtype=half, compiled=True), half),
        f"engine {name}, all candidates": (partial(_engine, dtype=half, candidate_elimination=False), half),
    }


def cases(options: Options) -> Iterator[Case]:
    """A case for every network and batch; the contenders have dtypes of their own, the case's is float32."""
    for name in options.names or (_QUICK if options.quick else NAMES[:3]):
        cfg = get_config(name)
        for batch in options.chosen_batches:
            flops = batch * sum(stage_flops(cfg).values())
            build = partial(_contest, name, cfg, batch, options)
            shape = f"{name}: {cfg.template_size} and {cfg.search_size} px"
            memory = None if options.quick else partial(peak_bytes, name, batch, device=options.device)
            moved = 4.0 * _parameters(cfg)
            yield Case("model", shape, batch, torch.float32, options.device, flops, moved, build, memory)


def _parameters(cfg: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(each.numel() for each in OSTrack(cfg).parameters())


def make_model(name: str, device: torch.device | str = "cpu") -> OSTrack:
    """The shipped weights where there are some; else random ones, with positions, so that no two tokens are alike."""
    if name in shipped_weights():
        model = OSTrack.from_pretrained(name)
    else:
        model = OSTrack.from_preset(name)
        for table in (model.backbone.pos_embed_z, model.backbone.pos_embed_x):
            torch.nn.init.normal_(table)
    return model.to(device).requires_grad_(False)


def _contest(name: str, cfg: ModelConfig, batch: int, options: Options) -> Contest:
    model = make_model(name, options.device)
    z = torch.randn(batch, 3, cfg.template_size, cfg.template_size, device=options.device)
    x = torch.randn(batch, 3, cfg.search_size, cfg.search_size, device=options.device)
    entries = steps(options.device)
    if not options.quick:
        entries |= rivals(options.device)
    if options.dtypes is not None:
        chosen = {"published": entries["published"]}
        entries = chosen | {label: entry for label, entry in entries.items() if entry[1] in options.dtypes}
    expected = PublishedNetwork(deepcopy(model).double())(z, x)
    contest = Contest(expected, {}, typical=True)
    for label, (build, dtype) in entries.items():
        tolerance = _TOLERANCE[dtype]
        if "all candidates" in label:
            tolerance = float("inf")  # another function, for comparison
        contest.contenders[label] = Contender(build(model, z, x), tolerance, dtype)
    return contest
