"""Table 5 of the paper: one stream against two, with the same backbone, head and loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ..baselines import NETWORKS
from ..config import get_config
from ..devices import resolve_device, resolve_dtype
from ..engine import Engine
from ..model import OSTrack, PlainNetwork
from ..visualization.sheet import save_figure
from .costs import Macs, measured_macs
from .report import Report, Tell, beside, machine, timed_in_turns
from .small_scale import Accuracy, Scale, Trained, Videos, judged, train_network


@dataclass(frozen=True)
class Published:
    """A row of the table: frames a second on an RTX 2080 Ti, training pairs in millions, AUC on LaSOT."""

    fps: float
    pairs: float
    auc: float


PUBLISHED = {
    "stark-aligned": Published(52.9, 30, 67.6),
    "swintrack-aligned": Published(67.5, 39.3, 68.0),
    "ostrack": Published(93.1, 18, 68.7),
}


@dataclass(frozen=True)
class Cost:
    """Of one network.

    Args:
        both: MACs with both images through it, as the paper counts. frame: those of a frame in tracking, where what
            depends on the template alone is kept.
        fps: frames a second of the network's own modules; engine_fps: of our engine, which computes OSTrack alone.
    """

    network: str
    parameters: int
    both: Macs
    frame: Macs
    fps: float
    engine_fps: float | None


def costs(preset: str, device: str, dtype: str, rounds: int, tell: Tell) -> list[Cost]:
    """Count and time the three networks in turns, with random weights.

    Raises:
        ValueError: a preset that eliminates candidates, or a device or dtype that cannot be.
    """
    on = resolve_device(device)
    how = on, resolve_dtype("float32" if dtype == "auto" and on.type == "cpu" else dtype, on)
    runs: dict[str, Callable[[], Any]] = {}
    counted: dict[str, tuple[int, Macs, Macs]] = {}
    for name in PUBLISHED:
        tell(f"building {name}")
        torch.manual_seed(0)
        model = NETWORKS[name](get_config(preset)).eval()
        runs[name], counted[name] = _plain(model, *how)
        if name == "ostrack":
            runs["engine"] = _engine(model, *how)
    seconds = timed_in_turns(runs, rounds, tell)
    return [
        Cost(name, *counted[name], 1 / seconds[name], 1 / seconds["engine"] if name == "ostrack" else None)
        for name in PUBLISHED
    ]


def _images(cfg: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = cfg.template_size, cfg.search_size
    template, search = (torch.randn(1, 3, side, side, dtype=torch.float32, device=device) for side in sizes)
    return template, search


def _plain(
    model: OSTrack, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], Any], tuple[int, Macs, Macs]]:
    """A frame by the network's own modules; parameters, MACs of both images, and of a frame."""
    template, search = _images(model.cfg, torch.device("cpu"))
    z = model.embed_template(template).detach()
    both, frame = (
        measured_macs(model, run) for run in (lambda: model(template, search), lambda: model.forward_tokens(z, search))
    )
    network = PlainNetwork(model, device, dtype)
    kept, moved = network.embed_template(template.to(device)), search.to(device)

    def run() -> float:
        with torch.no_grad():
            return float(network(kept, moved, None)[0].sum())  # reading the result waits for a GPU

    return run, (network.parameters, both, frame)


def _engine(model: OSTrack, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    engine = Engine(model, device, dtype)
    template, search = _images(model.cfg, device)
    engine.set_template(template)
    return lambda: float(engine(search)["pred_boxes"].sum())


def table5(
    preset: str, device: str, dtype: str, rounds: int, tell: Tell,
    scale: Scale | None = None, videos: Videos | None = None, plot: Path | None = None,
) -> Report:  # fmt: skip
    """Parameters, MACs and speed of the three networks; with a scale, their training too.

    Args:
        preset: the configuration of ViT, head and crops, without elimination.
        scale, videos: what to train and what to track with it; None for costs alone.
        plot: a picture of the convergence curves.
    """
    trained: dict[str, Trained] = {}
    if scale is not None:
        for name in reversed(PUBLISHED):
            trained[name] = train_network(scale, name, name, scale.backbone, tell)
    accuracy = {name: judged(each, videos, device, tell) for name, each in trained.items() if videos is not None}
    found = costs(preset, device, dtype, rounds, tell)
    columns = [_column(cost, trained.get(cost.network), accuracy.get(cost.network)) for cost in found]
    rows = [[title, *cells] for title, *cells in zip(_TITLES, *columns, strict=True)]
    notes = [f"{preset}: network time at batch 1, in turns, {rounds} rounds, {machine()}", explanation(found)]
    if scale is not None and accuracy:
        one = next(iter(accuracy.values()))
        notes.append(
            f"trained from the same start on the same pairs with recipe {scale.recipe}, a smaller network than the one "
            f"timed; AUC of {one.videos} videos, {one.frames} frames (the paper's: LaSOT)"
        )
    if plot is not None:
        plot_curves([*trained.values()], plot)
    return Report(
        "Table 5: one stream against two (in brackets: the paper, RTX 2080 Ti)",
        ["figure", *(cost.network for cost in found)],
        rows,
        notes,
        {
            "costs": [asdict(cost) for cost in found],
            "trained": [
                {"network": name, "pairs": each.pairs, "seconds": each.seconds, "curve": each.curve}
                for name, each in trained.items()
            ],
            "accuracy": {name: asdict(each) for name, each in accuracy.items()},
        },
    )  # fmt: skip


_TITLES = (
    "parameters",
    "MACs of layers, both images",
    "MACs of a frame, all",
    "frames/s, modules",
    "frames/s, engine",
    "training pairs",
    "IoU of held-out pairs",
    "AUC",
)


def _column(cost: Cost, run: Trained | None, judgement: Accuracy | None) -> list[str]:
    """A network's figures, in the order of `_TITLES`."""
    paper = PUBLISHED[cost.network]
    return [
        f"{cost.parameters / 1e6:.1f} M",
        f"{cost.both.layers / 1e9:.1f} G",
        f"{cost.frame.total / 1e9:.1f} G",
        beside(f"{cost.fps:.2f}", paper.fps),
        "" if cost.engine_fps is None else f"{cost.engine_fps:.2f}",
        beside("" if run is None else str(run.pairs), f"{paper.pairs} M"),
        f"{run.curve[-1][1]:.3f}" if run and run.curve else "",
        beside("" if judgement is None else f"{judgement.auc:.1f}", paper.auc),
    ]


def explanation(found: list[Cost]) -> str:
    """Why the one-stream network is ahead, or is not."""
    ours = next(cost for cost in found if cost.network == "ostrack")
    ahead = [cost.network for cost in found if cost.fps > ours.fps]
    frames = ", ".join(f"{cost.network} {cost.frame.total / 1e9:.1f} G" for cost in found)
    if not ahead:
        return f"OSTrack is ahead of both. MACs of a frame: {frames}."
    return (
        f"OSTrack's modules are behind {' and '.join(ahead)}: two streams compute the template's features once a "
        f"target, one stream computes them again with every frame ({frames}), and a processor's time follows the MACs. "
        "The paper's order is that of a GPU, on which the many small layers behind two streams should take longer than "
        "their MACs; it was not measured here. Elimination (Table 3) and the engine put OSTrack ahead."
    )


def plot_curves(trained: list[Trained], path: Path) -> None:
    """Write the IoU of held-out pairs over training pairs, a line for each network. Raises as `save_figure`."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for run in trained:
        axes.plot(*zip(*run.curve, strict=True), marker=".", label=run.name)
    axes.set(xlabel="training pairs", ylabel="IoU of held-out pairs", title="Convergence from the same start and data")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path, dpi=110)
