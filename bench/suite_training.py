"""The suite `training`: one optimizer step on a batch of pairs, from uint8 crops to new weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.model import OSTrack
from ostrack_fast.model.cost import parameter_count, stage_flops
from ostrack_fast.ops.reference import IMAGE_MEAN, IMAGE_STD
from ostrack_fast.training.config import OptimConfig, TrainConfig
from ostrack_fast.training.losses import LossConfig, ostrack_loss
from ostrack_fast.training.trainer import Trainer

from . import bench_decode
from .case import Case, Comparison, Implementation, Options, WrongResult
from .upstream import UpstreamNetwork

NAMES = ("small", "ostrack_256_ce", "ostrack_384_ce")

# Error of the loss.
_LOSS_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
# Mean error of gradients. Rounding keeps other candidates and closes other ReLUs: bfloat16 changes the gradients of a
# network that is not trained yet by up to a half. A wrong gradient is wrong by 1 and more.
_TOLERANCE = {torch.float32: 2e-2, torch.bfloat16: 0.7}
# Bytes of a float32 parameter that a step must move: AdamW reads it, its gradient and two moments, and writes three.
_BYTES_A_PARAMETER = 28.0
# At the arg-max of the predicted map, as upstream, the box terms of an untrained network would depend on rounding.
_LOSS = LossConfig(box_cells="target")
# The upstream optimizer, but for its rate: at 0 it does the same work, and every step is the same step.
_OPTIM = OptimConfig(lr=0.0)

Batch = dict[str, Tensor]
Step = Callable[[], tuple[Tensor, ...]]  # returns the loss and some gradients


def cases(options: Options) -> Iterator[Case]:
    """A case for every network: batch 32, as published; on a CPU the small network with 8 pairs."""
    cpu = options.device.type == "cpu"
    for name in options.names or (NAMES[:1] if cpu or options.quick else NAMES[1:2]):
        cfg = replace(get_config(name), template_box=False)  # upstream is told none
        for batch in options.batches or ((8,) if cpu else (32,)):
            # The backward pass multiplies twice for each multiplication of the forward pass.
            flops = 3.0 * batch * sum(stage_flops(cfg).values())
            shape = f"{name}: {cfg.template_size} and {cfg.search_size} px"
            moved = _BYTES_A_PARAMETER * parameter_count(cfg)
            build = partial(compare, cfg, batch, options)
            yield Case("training", shape, batch, torch.float32, options.device, flops, moved, build)


def upstream_step(model: OSTrack, batch: Batch, half: bool = False) -> Step:
    """The upstream step: dense network, AdamW as PyTorch makes it, under autocast or not."""
    head = list(model.box_head.parameters())
    backbone = [p for name, p in model.backbone.named_parameters() if name not in ("cls_token", "pos_embed")]
    groups = [{"params": head}, {"params": backbone}]
    optimizer = torch.optim.AdamW(groups, lr=_OPTIM.lr, weight_decay=_OPTIM.weight_decay)
    network, like = UpstreamNetwork(model), head[0]
    mean, std = (like.new_tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    flat = like.new_ones(model.cfg.search_grid, model.cfg.search_grid)

    def step() -> tuple[Tensor, ...]:
        images = [batch[name].permute(0, 3, 1, 2).to(like.dtype) / 255 for name in ("template", "search")]
        template, search = ((image - mean) / std for image in images)
        with ops.use("reference"), torch.autocast(search.device.type, torch.bfloat16, enabled=half):
            score, size, offset = network(template, search)
            boxes, _ = bench_decode.upstream(score, size, offset, flat)
        out = {"score_map": score, "size_map": size, "offset_map": offset, "pred_boxes": boxes[:, None]}
        loss, _ = ostrack_loss(out, batch["search_box"].to(like.dtype), _LOSS)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head + backbone, _OPTIM.grad_clip)
        value = torch.tensor(loss.item())  # for the log
        optimizer.step()
        return value, *gradients(model)

    return step


def trainer_step(model: OSTrack, batch: Batch, precision: str, compiled: bool = False, **settings: Any) -> Step:
    """`Trainer.step`, with the blocks compiled or not and more settings of `TrainConfig`."""
    cfg = TrainConfig(
        model=model.cfg, data={}, output=".", optim=_OPTIM, loss=_LOSS, batch_size=len(batch["template"]),
        precision=precision, ce_start_epoch=0.0, ce_warmup_epochs=0.0, **settings,
    )  # fmt: skip
    trainer = Trainer(cfg, batch["template"].device)
    trainer.model.load_state_dict(model.state_dict())
    for block in trainer.model.backbone.blocks if compiled else ():
        block.compile()
    return lambda: (torch.tensor(trainer.step(batch)["loss"]), *gradients(trainer.model))


def gradients(model: OSTrack) -> tuple[Tensor, ...]:
    """Gradients of the first layer, which backward reaches last, and of the score tower's first and last layer."""
    names = ("backbone.patch_embed.proj.weight", "box_head.conv1_ctr.0.weight", "box_head.conv5_ctr.weight")
    found = [model.get_parameter(name).grad for name in names]
    return tuple(grad.detach() for grad in found if grad is not None)


def _model(cfg: ModelConfig, device: torch.device) -> OSTrack:
    """Fresh weights with which rounding changes little: tokens that differ, open ReLUs, scores off their ends."""
    model = OSTrack(cfg)
    for table in (model.backbone.pos_embed_z, model.backbone.pos_embed_x):
        nn.init.normal_(table)
    for module in model.box_head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 3.0)
    for name in ("ctr", "offset", "size"):
        nn.init.normal_(model.get_parameter(f"box_head.conv5_{name}.weight"), std=0.02)
    nn.init.constant_(model.get_parameter("box_head.conv5_ctr.bias"), -3.0)
    return model.to(device).train()


# The suites run without gradients.
@torch.inference_mode(False)
@torch.enable_grad()
def compare(cfg: ModelConfig, count: int, options: Options) -> Comparison:
    """The wanted implementations of a step on `count` pairs."""
    device = options.device
    model, batch = _model(cfg, device), random_pairs(cfg, count, device)
    expected = _seeded(upstream_step(deepcopy(model).double(), batch))()
    comparison = Comparison(tuple(each.to(device) for each in expected), {}, mean_error=True)
    single, half = torch.float32, torch.bfloat16
    makers: dict[str, tuple[Callable[[], Step], torch.dtype]] = {
        "upstream": (lambda: upstream_step(deepcopy(model), batch), single),
        "upstream bfloat16": (lambda: upstream_step(deepcopy(model), batch, half=True), half),
        "trainer float32": (lambda: trainer_step(model, batch, "float32"), single),
        "trainer bfloat16": (lambda: trainer_step(model, batch, "bfloat16"), half),
    }
    on_gpu: dict[str, tuple[Callable[[], Step], torch.dtype]] = {
        "trainer bfloat16, no CUDA graph": (lambda: trainer_step(model, batch, "bfloat16", cuda_graph=False), half),
        "trainer bfloat16, MLPs computed again": (
            lambda: trainer_step(model, batch, "bfloat16", activation_checkpointing="mlp"), half,
        ),
        "trainer bfloat16, torch.compile": (lambda: trainer_step(model, batch, "bfloat16", compiled=True), half),
    }  # fmt: skip
    if device.type == "cpu":
        comparison.skipped |= dict.fromkeys(
            on_gpu, "for GPUs: on a CPU there are no graphs, and compiling takes minutes"
        )
    else:
        makers |= on_gpu
    for label, (make, dtype) in makers.items():
        if not options.wants(label):
            continue
        step, loss, peak = _measured(make, device)
        if not abs(loss - expected[0]) <= _LOSS_TOLERANCE[dtype] * abs(expected[0]):
            raise WrongResult(f"{label}: the loss is {loss:.5g}, expected is {expected[0]:.5g}")
        run = torch.inference_mode(False)(torch.enable_grad()(step))
        comparison.implementations[label] = Implementation(run, _TOLERANCE[dtype], dtype, peak)
    return comparison


def _seeded(step: Step) -> Step:
    """The step that leaves out the same branches by stochastic depth each time."""

    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        return step()

    return run


def _measured(make: Callable[[], Step], device: torch.device) -> tuple[Step, float, int | None]:
    """The step, its loss, and on a GPU the most memory that it holds, weights and moments included."""
    if device.type != "cuda":
        step = _seeded(make())
        return step, step()[0].item(), None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    step = _seeded(make())
    step()  # makes the moments, and compiles
    torch.cuda.reset_peak_memory_stats(device)
    loss = step()[0].item()
    return step, loss, torch.cuda.max_memory_allocated(device) - before


def random_pairs(cfg: ModelConfig, count: int, device: torch.device) -> Batch:
    """Random crops with boxes well inside, as the loader gives them, on the device already: loading is not timed."""
    images = {
        name: torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
        for name, size in (("template", cfg.template_size), ("search", cfg.search_size))
    }
    corner, extent = 0.2 + 0.3 * torch.rand(count, 2), 0.2 + 0.2 * torch.rand(count, 2)
    return {name: value.to(device) for name, value in (images | {"search_box": torch.cat((corner, extent), 1)}).items()}
