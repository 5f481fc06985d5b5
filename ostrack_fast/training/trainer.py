"""The training loop: exact resume, atomic checkpoints, one process or several, one a device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.images import Image
from ..files import write_atomically
from ..interrupts import Interrupts
from ..model import OSTrack, template_mask
from ..model.checkpoint import save_weights
from ..model.vit import DropPath
from ..ops.native import pytorch_threads
from ..progress import progress_bar
from .ambient import as_configured
from .augment import Normalizer
from .average import RunningAverage
from .building import base_rates, build_dataset, build_model, build_optimizer, freeze_blocks, recompute
from .checkpoint import find_checkpoint, write_checkpoint
from .config import PRECISIONS, TrainConfig, settings_of
from .dataset import PairLoader, make_loader
from .distributed import ALONE, Processes, share_batch_norm, wrap
from .log import LOG, trim_log
from .lora import adapt, merged
from .losses import ostrack_loss
from .memory import keep_freed_memory
from .pictures import draw_pairs
from .record import record_start
from .schedule import keep_rate, rate_factor
from .speed import Speed, status
from .step_graph import StepGraph, set_rate
from .validation import Validation
from .writers import Writers, open_writers

CPU = torch.device("cpu")
WEIGHTS = "weights.safetensors"
BAD_BATCH = "bad_batch.safetensors"
_STEPS_A_LINE = 50


class Trainer:
    """Trains an OSTrack as a `TrainConfig` says, in its `output` folder.

    `run()` continues from the folder's checkpoint if there is one: a run that was stopped and resumed gives the same
    weights as one that was not. The folder holds `last.pt` (everything a resume needs) and `previous.pt` (the one
    before it, should it be damaged), `weights.safetensors` (what `OSTrack.from_pretrained` reads; the running average
    where there is one), `config.yaml` and `run.json` (see `record`), `log.jsonl` and `pictures` (see `writers`).

    Pair i of a run and its augmentation depend on the seed and i alone. So several processes train on the same pairs as
    one with as many times the batch, and a run may be resumed by another number of processes, if a step of all of them
    has as many pairs. The first process alone writes.

    Args:
        processes: those that train together, see `distributed.joined`; by default this one alone.

    Raises:
        ValueError: the output is no folder, or the weights do not fit. FileNotFoundError: there are no such weights.
    """

    @as_configured()
    def __init__(self, cfg: TrainConfig, device: str | torch.device = "cpu", processes: Processes = ALONE) -> None:
        self.cfg, self.device, self.processes = cfg, torch.device(device), processes
        self.batch = cfg.batch_size * cfg.accumulate * processes.count  # pairs in a step
        self.total = cfg.trained_pairs(self.batch)
        self.output = Path(cfg.output)
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"{self.output} is a file: output must name the folder of the run")
        self.seen = 0
        self._saved = -1  # pairs in the checkpoint, if there is one
        self._judged = 0  # pairs at the last validation
        if self.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(cfg.seed)
        self.model = build_model(cfg).to(self.device).train()
        freeze_blocks(self.model, cfg.optim.freeze_blocks)
        if cfg.optim.lora:
            adapt(self.model, cfg.optim.lora)
        if cfg.activation_checkpointing != "none":
            recompute(self.model, cfg.activation_checkpointing)
        self._share(processes)
        self.optimizer = build_optimizer(self.model, cfg, self.batch)
        self.network = wrap(self.model, processes, cfg.batch_norm)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=cfg.precision == "float16")
        self.average = RunningAverage(self.model, cfg.optim.ema) if cfg.optim.ema else None
        self._normalize = Normalizer(self.device)
        self.template_mask = template_mask(cfg.model, device=self.device) if cfg.model.ce_layers else None
        self._names: tuple[str, ...] = ()  # of what `_compute` returns
        alone_on_gpu = self.device.type == "cuda" and processes.count == 1
        if cfg.cuda_graph and not alone_on_gpu:
            raise ValueError(f"cuda_graph needs one process on a GPU, not {processes.count} on {self.device}")
        self._graph = StepGraph(self._compute, self.device) if alone_on_gpu and cfg.captures else None

    def _share(self, processes: Processes) -> None:
        """Let what depends on a whole batch see that of all processes."""
        if processes.count > 1 and self.cfg.batch_norm == "all":
            share_batch_norm(self.model, processes)
        for module in self.model.modules():
            if isinstance(module, DropPath):
                module.part = (processes.rank, processes.count)

    @as_configured()
    def run(self, progress: bool = True, each_epoch: Callable[[Trainer], bool] | None = None) -> None:
        """Train to the end, or until SIGINT, SIGTERM or SIGHUP: either way the last step is in the checkpoint.

        However often these signals come, the step in hand and the checkpoint are finished.

        Args:
            progress: show a progress bar on stderr.
            each_epoch: called after each epoch with this trainer, in the first process; true ends the run there.

        Raises:
            FileNotFoundError, ValueError: data that is missing or cannot be used, or another run's checkpoint.
            OSError: a file cannot be written; the checkpoints before it are still good.
            ConnectionError: another process ended or does not answer. FloatingPointError: see `step`.
        """
        with self.processes.watched():
            self._run(progress, each_epoch)

    def _run(self, progress: bool, each_epoch: Callable[[Trainer], bool] | None) -> None:
        cfg, ranks = self.cfg, self.processes
        if ranks.first:
            self.output.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self.finished:
            self._export()
            return
        shares = (ranks.rank, ranks.count, cfg.accumulate)
        loader = make_loader(
            build_dataset(cfg), cfg.batch_size, cfg.workers, self.seen, *shares, self.device.type == "cuda"
        )
        speed = Speed(self.batch, ranks.count * max(cfg.workers, 1))
        validation = Validation(cfg, self.device, ranks) if cfg.validation else None
        saved = time.monotonic()
        with (
            progress_bar(progress and ranks.first) as bar,
            Interrupts() as interrupts,
            closing(self._open_writers()) as writers,
            closing(self._batches(loader)) as batches,
        ):
            self._validate(validation, writers, interrupts)
            task = bar.add_task("pairs", total=self.total, completed=self.seen, status="")
            speed.wait()
            for batch in batches:
                speed.loaded()
                speed.stepped(self.step(batch), loader.seconds)
                summary = speed.summary()
                bar.update(task, completed=self.seen, status=status(summary))
                if (self.seen // self.batch) % _STEPS_A_LINE == 0:
                    writers.scalars("train", self.seen, {"keep": self.keep, "rate": self.rate} | summary)
                if self._ended_epoch() and ranks.first and cfg.pictures:
                    writers.picture(self.seen, self._draw(batch))
                self._validate(validation, writers, interrupts)
                over = each_epoch is not None and ranks.first and self._ended_epoch() and each_epoch(self)
                if self._any(interrupts.requested or over):
                    break
                if time.monotonic() - saved > 60 * cfg.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
                speed.wait()
            self.save()

    def _open_writers(self) -> Writers:
        cfg, ranks = self.cfg, self.processes
        if not ranks.first:
            return Writers([])
        run = record_start(cfg, self.output, self.seen, self.device, ranks.count)
        return open_writers(self.output, cfg.log_to, self.seen, {"id": run["id"], "config": settings_of(cfg)})

    def _draw(self, batch: dict[str, Tensor]) -> Image:
        """The first pairs of a batch and what the model makes of them."""
        some = {name: value[: self.cfg.pictures] for name, value in batch.items()}
        boxes = some["template_box"], some["search_box"]
        return draw_pairs(self.model, *self._images(some), boxes, self.template_mask, self.keep)

    def _validate(self, validation: Validation | None, writers: Writers, interrupts: Interrupts) -> None:
        """Judge the weights that a tracker would take, if that is due; an interrupted validation is due again."""
        if validation is None or self.cfg.validation is None:
            return
        interval = self.cfg.validation.every * self.cfg.pairs_per_epoch
        due = self.seen // interval > self._judged // interval or self.finished
        if not due or self._judged == self.seen:
            return
        numbers = validation(self.exported(), lambda: interrupts.requested)
        if numbers is not None:
            self._judged = self.seen
            writers.scalars("validation", self.seen, numbers)

    def _ended_epoch(self) -> bool:
        """Whether the last step was an epoch's last."""
        return self.seen // self.cfg.pairs_per_epoch > (self.seen - self.batch) // self.cfg.pairs_per_epoch

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: all of them stop after the same step."""
        if self.processes.count == 1:
            return flag
        raised = torch.tensor(float(flag), dtype=torch.float32, device=self.device)
        return self.processes.mean(raised).item() > 0

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
        return self.seen >= self.total

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
        """One optimizer step on this process's part of a batch of `PairDataset`; returns the terms of the whole's loss.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; with float16 the loss alone, as its scale is
                lowered where gradients overflow. The weights are those before the step, and the batch is in the output
                folder.
        """
        for group in self.optimizer.param_groups:
            if self._graph is None:
                group["lr"] = group["base_lr"] * self.rate
            else:
                set_rate(group, group["base_lr"] * self.rate, self.device)
        if self._graph is None:
            with pytorch_threads():
                found = self._compute(batch)
        else:
            found = self._graph(batch, tuple(self.cfg.model.search_tokens(self.keep)))
        numbers = dict(zip(self._names, found.tolist(), strict=True))
        if not isfinite(numbers["loss"]) or not (self.scaler.is_enabled() or isfinite(numbers["norm"])):
            raise FloatingPointError(self._refuse(batch, numbers))
        self.seen += self.batch
        if self.average is not None:
            self.average.update(self.model, self.seen / self.batch)
        return numbers

    def _compute(self, batch: dict[str, Tensor]) -> Tensor:
        """What the device does in a step: the loss's terms and the gradient's norm, not waited for."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = [
            dict(zip(batch, values, strict=True))
            for values in zip(*(value.split(self.cfg.batch_size) for value in batch.values()), strict=True)
        ]
        found = []
        for part in parts:
            # Gradients are averaged over the processes once a step.
            last = part is parts[-1] or self.processes.count == 1
            with nullcontext() if last else self.network.no_sync():  # type: ignore[operator]
                loss, terms = self._loss(part)
                self.scaler.scale(loss / len(parts)).backward()
            found.append(torch.stack(list(terms.values())))
        values = self.processes.mean(torch.stack(found).mean(0))
        norm = self._update(values[0])
        self._names = (*terms, "norm")
        return torch.cat((values, norm[None]))

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        cfg, precision = self.cfg, PRECISIONS[self.cfg.precision]
        # In the dtype in which the patch embedding keeps its input for the backward pass: one tensor instead of two.
        template, search = (image.to(precision) for image in self._images(batch))
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            how = {"ce_keep_rate": self.keep, "template_box": self._boxes(batch), "search_only": True}
            out = self.network(template, search, self.template_mask, **how)
        # Leaving autocast does so only where no other is around it: the next step would see this one's weights.
        torch.clear_autocast_cache()
        box = batch["search_box"].to(self.device, non_blocking=True)
        present = batch["present"].to(self.device, non_blocking=True) if "present" in batch else None
        return ostrack_loss(out, box, cfg.loss, self.processes.mean, present)

    def _boxes(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The targets' boxes in the template crops, for a network that reads them."""
        return batch["template_box"].to(self.device, non_blocking=True) if self.cfg.model.template_box else None

    def _images(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Template and search images of a batch as the network takes them."""
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        template, search = (
            self._normalize(moved[name], moved.get(f"{name}_colours")) for name in ("template", "search")
        )
        return template, search

    def _update(self, loss: Tensor) -> Tensor:
        """Clip and apply the gradients, unless they or the loss are not finite; returns their norm."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(gradients)
        if self.cfg.optim.grad_clip:
            torch._foreach_mul_(gradients, (self.cfg.optim.grad_clip / (norm + 1e-6)).clamp(max=1))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return norm
        # The fused optimizer skips its update where this is 1, so that a GPU need not wait here for the host to look.
        self.optimizer.found_inf = (~(loss.isfinite() & norm.isfinite())).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return norm

    def _refuse(self, batch: dict[str, Tensor], numbers: dict[str, float]) -> str:
        """Save the whole batch that gave numbers which are not finite, and say where it is."""
        whole = {name: self.processes.rows(value.to(self.device)).cpu() for name, value in batch.items()}
        path = self.output / BAD_BATCH
        if self.processes.first:
            facts = {"first_pair": str(self.seen), "seed": str(self.cfg.seed)}
            write_atomically(path, lambda temporary: save_file(whole, temporary, facts))
        what = ("loss", numbers["loss"]) if not isfinite(numbers["loss"]) else ("gradient's norm", numbers["norm"])
        return (
            f"the {what[0]} became {what[1]} after {self.seen} pairs: lower the learning rate, or look at the "
            f"{self.batch} pairs from number {self.seen} on, which are in {path}"
        )

    def save(self) -> None:
        """Write checkpoint and weights; each file is replaced whole. Nothing new is nothing to write."""
        if self._saved == self.seen or not self.processes.first:
            return
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "seen": self.seen,
            "judged": self._judged,
            "batch": self.batch,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "config": json.dumps(asdict(self.cfg)),
        }
        write_checkpoint(self.output, state)
        self._saved = self.seen
        self._export()

    def _export(self) -> None:
        if not self.processes.first:
            return
        save_weights(self.weights(), self.cfg.model, self.output / WEIGHTS, pairs=str(self.seen))

    def weights(self) -> dict[str, Tensor]:
        """The weights a tracker takes: the running average where there is one, and what LoRA added merged in."""
        return merged(self.average.state if self.average else self.model.state_dict())

    def exported(self) -> OSTrack:
        """The network that a tracker takes, in evaluation mode; training goes on without changing it."""
        with torch.device("meta"):  # draws no random numbers, which the training goes on with
            model = type(self.model)(self.cfg.model).eval()
        weights = {name: value.detach().clone() for name, value in self.weights().items()}
        model.load_state_dict(weights, assign=True)
        return model

    def resume(self) -> None:
        """Continue from the newest whole checkpoint of the output folder, if there is one.

        Raises:
            ValueError: all checkpoints there are damaged, or belong to another model, batch size or seed.
        """
        # The first process alone reads it: the others may be on machines that do not see its folder.
        found = self.processes.from_first(find_checkpoint(self.output, CPU) if self.processes.first else None)
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
        if self.processes.first:
            trim_log(self.output / LOG, self.seen)

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        before = json.loads(state["config"])
        now = json.loads(json.dumps(asdict(self.cfg)))
        before.setdefault("network", "ostrack")
        before["batch_size"], now["batch_size"] = state.get("batch", before["batch_size"]), self.batch
        changed = [key for key in ("model", "network", "batch_size", "seed") if before[key] != now[key]]
        if changed:
            raise ValueError(f"{path} was written with another {', '.join(changed)}: choose another output folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._graph is not None:
            self._graph.forget()
        self.scaler.load_state_dict(state.get("scaler", {}))
        for group, base in zip(self.optimizer.param_groups, base_rates(self.cfg, self.batch), strict=True):
            group["base_lr"] = base
        self.seen = state["seen"]
        self._judged = state.get("judged", self.seen)
        if self.average is not None and state["average"] is not None:
            self.average.state = {name: value.to(self.device) for name, value in state["average"].items()}
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.device)
