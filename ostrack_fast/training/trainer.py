"""The training loop: exact resume, atomic checkpoints, one process a device."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from math import isfinite, log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..interrupts import Interrupts
from ..model import OSTrack, template_mask
from ..model.checkpoint import load_pretrained, save_weights
from ..ops.reference import IMAGE_MEAN, IMAGE_STD
from ..progress import progress_bar
from .ambient import as_configured
from .checkpoint import find_checkpoint, write_checkpoint
from .config import TrainConfig
from .dataset import DataConfig, PairDataset, PairLoader, make_loader
from .log import LOG, trim_log
from .losses import ostrack_loss
from .pretrained import load_backbone, mark_template, resize_positions
from .schedule import keep_rate, rate_factor
from .sources import bind_sources, build_sources

WEIGHTS = "weights.safetensors"
_STEPS_A_LINE = 50


class Trainer:
    """Trains an OSTrack as a `TrainConfig` says, in its `output` folder.

    `run()` continues from the folder's checkpoint if there is one: a run that was stopped and resumed gives the same
    weights as one that was not. The folder holds `last.pt` (everything a resume needs) and `previous.pt` (the one
    before it, should it be damaged), `weights.safetensors` (what `OSTrack.from_pretrained` reads; the running average
    where there is one) and `log.jsonl`.

    Raises:
        ValueError: the output is no folder, or the weights do not fit. FileNotFoundError: there are no such weights.
    """

    @as_configured()
    def __init__(self, cfg: TrainConfig, device: str | torch.device = "cpu"):
        self.cfg, self.device = cfg, torch.device(device)
        self.output = Path(cfg.output)
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"{self.output} is a file: output must name the folder of the run")
        self.seen = 0
        self._saved = -1  # pairs in the checkpoint, if there is one
        torch.manual_seed(cfg.seed)
        self.model = build_model(cfg).to(self.device).train()
        freeze_blocks(self.model, cfg.optim.freeze_blocks)
        self.optimizer = build_optimizer(self.model, cfg)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()} if cfg.optim.ema else None
        mean_std = torch.tensor([IMAGE_MEAN, IMAGE_STD], dtype=torch.float32, device=self.device)
        self.mean, self.std = mean_std[:, None, :, None, None].unbind(0)
        self.template_mask = template_mask(cfg.model, device=self.device) if cfg.model.ce_layers else None

    @as_configured()
    def run(self, progress: bool = True) -> None:
        """Train to the end, or until SIGINT, SIGTERM or SIGHUP: either way the last step is in the checkpoint.

        However often these signals come, the step in hand and the checkpoint are finished.

        Raises:
            FileNotFoundError, ValueError: data that is missing or cannot be used, or another run's checkpoint.
            OSError: a file cannot be written; the checkpoints before it are still good.
            FloatingPointError: see `step`.
        """
        cfg = self.cfg
        self.output.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self.finished:
            self._export()
            return
        loader = make_loader(build_dataset(cfg), cfg.batch_size, cfg.workers, self.seen)
        saved = time.monotonic()
        recent: deque[tuple[float, dict[str, float]]] = deque(maxlen=100)
        with (
            progress_bar(progress) as bar,
            Interrupts() as interrupts,
            open(self.output / LOG, "a", encoding="utf-8") as log,
            closing(self._batches(loader)) as batches,
        ):
            task = bar.add_task("pairs", total=cfg.trained_pairs, completed=self.seen, status="")
            for batch in batches:
                terms = self.step(batch)
                recent.append((time.monotonic(), terms))
                bar.update(task, completed=self.seen, status=_status(recent, cfg.batch_size))
                if (self.seen // cfg.batch_size) % _STEPS_A_LINE == 0:
                    numbers = {"pairs": self.seen, "keep": self.keep, "rate": self.rate}
                    numbers |= _summary(recent, cfg.batch_size)
                    log.write(json.dumps({k: round(v, 5) for k, v in numbers.items()}) + "\n")
                    log.flush()
                if interrupts.requested:
                    break
                if time.monotonic() - saved > 60 * cfg.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
            self.save()

    def _batches(self, loader: PairLoader) -> Generator[dict[str, Tensor], None, None]:
        """The loader's batches; where the data fails, what was trained until then is saved first."""
        try:
            yield from loader
        except (OSError, ValueError):
            if self.seen:
                self.save()
            raise

    @property
    def finished(self) -> bool:
        """Whether every whole batch of the run was trained on."""
        return self.seen >= self.cfg.trained_pairs

    @property
    def epoch(self) -> float:
        """How far the run is, fractional."""
        return self.seen / self.cfg.pairs_per_epoch

    @property
    def keep(self) -> float:
        """The candidates' keep rate of the next step; the smallest configured ratio is where it ends."""
        final = min(self.cfg.model.ce_keep_ratio, default=1.0)
        return keep_rate(self.epoch, self.cfg.ce_start_epoch, self.cfg.ce_warmup_epochs, final)

    @property
    def rate(self) -> float:
        """Learning rate of the next step over its base value."""
        optim = self.cfg.optim
        return rate_factor(self.epoch, self.cfg.epochs, optim.warmup_epochs, optim.drop_epoch, optim.decay_epochs)

    @as_configured()
    def step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One optimizer step on a batch of `PairDataset`; returns the terms of the loss.

        Raises:
            FloatingPointError: the loss is not finite. The weights are then those before the step.
        """
        cfg = self.cfg
        template, search = (self._normalized(batch[name]) for name in ("template", "search"))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
            out = self.model(template, search, self.template_mask, ce_keep_rate=self.keep)
        # Leaving autocast does so only where no other is around it: the next step would see this one's weights.
        torch.clear_autocast_cache()
        loss, terms = ostrack_loss(out, batch["search_box"].to(self.device, non_blocking=True), cfg.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if cfg.optim.grad_clip:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, cfg.optim.grad_clip)
        # The fused optimizer skips its update where this is 1, so that a GPU need not wait here for the host to look.
        self.optimizer.found_inf = (~loss.detach().isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        if not isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss became {values['loss']} after {self.seen} pairs: lower the learning rate"
            )
        self.seen += len(template)
        self._update_average()
        return values

    def save(self) -> None:
        """Write checkpoint and weights; each file is replaced whole. Nothing new is nothing to write."""
        if self._saved == self.seen:
            return
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "seen": self.seen,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "config": json.dumps(asdict(self.cfg)),
        }
        write_checkpoint(self.output, state)
        self._saved = self.seen
        self._export()

    def _export(self) -> None:
        weights = self.average or self.model.state_dict()
        save_weights(weights, self.cfg.model, self.output / WEIGHTS, pairs=str(self.seen))

    def resume(self) -> None:
        """Continue from the newest whole checkpoint of the output folder, if there is one.

        Raises:
            ValueError: all checkpoints there are damaged, or belong to another model, batch size or seed.
        """
        found = find_checkpoint(self.output, self.device)
        if found is not None:
            path, state = found
            try:
                self._load(path, state)
            except torch.OutOfMemoryError:
                raise
            except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
                problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                raise ValueError(
                    f"{path} does not fit this run ({problem:.200}): choose another output folder"
                ) from None
            self._saved = self.seen
        trim_log(self.output / LOG, self.seen)

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        before = json.loads(state["config"])
        now = json.loads(json.dumps(asdict(self.cfg)))
        changed = [key for key in ("model", "batch_size", "seed") if before[key] != now[key]]
        if changed:
            raise ValueError(f"{path} was written with another {', '.join(changed)}: choose another output folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, base in zip(self.optimizer.param_groups, _base_rates(self.cfg), strict=True):
            group["base_lr"] = base
        self.seen = state["seen"]
        if self.average is not None and state["average"] is not None:
            self.average = state["average"]
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.device)

    def _normalized(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        return images.sub_(self.mean).div_(self.std)

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # A young average follows closely: its first value is the untrained model.
        decay = min(self.cfg.optim.ema, (1 + self.seen / self.cfg.batch_size) / (10 + self.seen / self.cfg.batch_size))
        state = self.model.state_dict()
        floating = [name for name in state if state[name].is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floating], [state[n] for n in floating], 1 - decay)
        for name in state.keys() - set(floating):
            self.average[name].copy_(state[name])


def build_dataset(cfg: TrainConfig) -> PairDataset:
    """The pairs of a run, numbered from 0 to `cfg.total_pairs`.

    Raises:
        ValueError: a data section that cannot be, or files that cannot be used. FileNotFoundError: files are missing.
    """
    sources = build_sources(bind_sources(cfg.data, "data"), Path(cfg.data_root))
    return PairDataset(sources, DataConfig(cfg.crops, cfg.augment, cfg.seed, cfg.total_pairs))


def build_model(cfg: TrainConfig) -> OSTrack:
    """The model a run starts from."""
    model = OSTrack(cfg.model)
    if cfg.weights:
        _, state = load_pretrained(cfg.weights)
        for name, grid in (("pos_embed_z", cfg.model.template_grid), ("pos_embed_x", cfg.model.search_grid)):
            table = state[f"backbone.{name}"]
            if table.shape[1] != grid**2:
                state[f"backbone.{name}"] = resize_positions(table, grid)
        model.load_state_dict(state)
        return model
    if cfg.backbone:
        load_backbone(model.backbone, cfg.backbone)
        if cfg.mark_template:
            mark_template(model.backbone, cfg.mark_template, cfg.seed)
    nn.init.constant_(model.box_head.get_parameter("conv5_ctr.bias"), log(cfg.score_prior / (1 - cfg.score_prior)))
    return model


def freeze_blocks(model: OSTrack, count: int) -> None:
    """Exclude the patch embedding, the position tables and the first `count` blocks from training."""
    if not count:
        return
    backbone = model.backbone
    backbone.patch_embed.requires_grad_(False)
    for table in (backbone.pos_embed_z, backbone.pos_embed_x):
        table.requires_grad_(False)
    for block in backbone.blocks[:count]:
        block.requires_grad_(False)


def build_optimizer(model: OSTrack, cfg: TrainConfig) -> torch.optim.AdamW:
    """AdamW with the published two rates: the head's, and the backbone's lower one."""
    # Part of every published checkpoint, but no gradient ever reaches them.
    for unused in (model.backbone.cls_token, model.backbone.pos_embed):
        unused.requires_grad_(False)
    modules = (model.box_head, model.backbone)
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad], "base_lr": rate, "lr": rate}
        for module, rate in zip(modules, _base_rates(cfg), strict=True)
    ]
    return torch.optim.AdamW(groups, weight_decay=cfg.optim.weight_decay, fused=True)


def _base_rates(cfg: TrainConfig) -> tuple[float, float]:
    return cfg.optim.lr, cfg.optim.lr * cfg.optim.backbone_lr


def _summary(recent: deque[tuple[float, dict[str, float]]], batch: int) -> dict[str, float]:
    mean = {key: sum(terms[key] for _, terms in recent) / len(recent) for key in recent[0][1]}
    seconds = recent[-1][0] - recent[0][0]
    return mean | {"pairs_per_second": (len(recent) - 1) * batch / seconds if seconds else 0.0}


def _status(recent: deque[tuple[float, dict[str, float]]], batch: int) -> str:
    mean = _summary(recent, batch)
    return f"{mean['pairs_per_second']:.0f}/s  loss {mean['loss']:.3f}  IoU {mean['iou']:.3f}"
