"""What OSTrack's options are worth: template tokens, keep ratio, eliminating layers, and added embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ..config import TEMPLATE_RANGES, ModelConfig
from ..devices import resolve_device, resolve_dtype
from ..engine import Engine
from ..model import OSTrack, PlainNetwork, template_mask
from .report import Report, Tell, machine, timed_in_turns
from .small_scale import Accuracy, Scale, Videos, judged, track_videos, train_network


@dataclass(frozen=True)
class Option:
    """One line of the table.

    Args:
        model: the network with the option.
        paper: what the paper says of it.
        accuracy: on the videos.
    """

    group: str
    title: str
    model: OSTrack
    paper: str
    accuracy: Accuracy


def variants(cfg: ModelConfig) -> list[tuple[str, str, ModelConfig, str]]:
    """(group, title, configuration, the paper's words) of what a trained network can change without training."""
    first, *_ = cfg.ce_keep_ratio
    made = [("as trained", f"blocks {_words(cfg.ce_layers)}, keep {first}, {cfg.ce_template_range}", cfg, "its choice")]
    names = {"CTR_POINT": "centre point", "CTR_REC": "centre 2x2", "GT_BOX": "box", "ALL": "all"}
    for tokens in TEMPLATE_RANGES:
        if tokens != cfg.ce_template_range:
            made.append(("template tokens", names[tokens], replace(cfg, ce_template_range=tokens), "centre point"))
    for ratio in (1.0, 0.9, 0.5):
        kept = replace(cfg, ce_keep_ratio=(ratio,) * len(cfg.ce_layers))
        made.append(("keep ratio", f"{ratio}", kept, "0.7"))
    depth = cfg.depth
    for layers in ((1, 3), (depth // 2,), (depth - 3, depth - 1)):
        if layers[0] >= 0 and layers[-1] < depth and layers != cfg.ce_layers:
            changed = replace(cfg, ce_layers=layers, ce_keep_ratio=(first,) * len(layers))
            made.append(("eliminating blocks", _words(layers), changed, "3, 6, 9 of 12"))
    return made


def _words(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))


def _digest(model: OSTrack) -> str:
    """Tells weights of the same name apart."""
    found = sha256()
    for value in model.state_dict().values():
        found.update(value.numpy().tobytes())
    return found.hexdigest()[:8]


def ablations(
    weights: str, videos: Videos, output: Path, device: str, rounds: int, tell: Tell, scale: Scale | None = None
) -> Report:
    """Track the videos with every option, and time all of them in turns.

    Args:
        weights: a trained OSTrack that eliminates candidates; its options are changed without training.
        output: folder of the results so far: a command that was stopped goes on from there.
        scale: what to train for the options that need it, the embeddings; None leaves them out.

    Raises:
        ValueError: weights that eliminate nothing. Others as `OSTrack.from_pretrained` and `train_network`.
    """
    model = OSTrack.from_pretrained(weights)
    if not model.cfg.ce_layers:
        raise ValueError(f"{weights} eliminates no candidates: give weights that do, such as small")
    options = []
    limit = "all" if videos.frames is None else videos.frames
    known = f"{Path(weights).stem}_{_digest(model)}_{videos.folder.resolve().name}"
    for group, title, cfg, paper in variants(model.cfg):
        changed = OSTrack(cfg).eval()
        changed.load_state_dict(model.state_dict())
        store = output / f"{known}_{group}_{title}_{limit}.json".replace(" ", "_").replace(",", "")
        options.append(Option(group, title, changed, paper, track_videos(changed, videos, device, store, tell, title)))
    for title, network in (("none", "ostrack"), ("identity", "identity"), ("relative position", "relative")):
        if scale is not None:
            trained = train_network(scale, network, network, scale.backbone, tell)
            found = judged(trained, videos, device, tell)
            group = f"embeddings, {trained.pairs} pairs"
            options.append(Option(group, title, trained.load(), "no significant gain", found))
    seconds = _timed(options, device, rounds, tell)
    rows = [
        [
            each.group, each.title, f"{each.accuracy.auc:.1f}", f"{each.accuracy.precision:.1f}",
            f"{1e3 * spent:.1f}", each.paper,
        ]
        for each, spent in zip(options, seconds, strict=True)
    ]  # fmt: skip
    one = options[0].accuracy
    notes = [
        f"{weights} with options changed but not trained again; {one.videos} videos, {one.frames} frames, float32; "
        f"network time at batch 1, in turns, {rounds} rounds, {machine()}"
    ]
    if scale is not None:
        notes.append(
            f"embeddings: recipe {scale.recipe}, a smaller network than {weights}, by its modules without the engine"
        )
    figures = [
        {"group": each.group, "title": each.title, "seconds": spent, "model": each.model.cfg.to_dict(),
         **asdict(each.accuracy)}
        for each, spent in zip(options, seconds, strict=True)
    ]  # fmt: skip
    columns = ["option", "value", "AUC", "precision", "ms a frame", "the paper"]
    return Report("Ablations", columns, rows, notes, {"rows": figures})


def _timed(options: list[Option], device: str, rounds: int, tell: Tell) -> list[float]:
    on = resolve_device(device)
    runs = {str(number): _frame(each, on) for number, each in enumerate(options)}
    return [*timed_in_turns(runs, rounds, tell).values()]


def _frame(option: Option, device: torch.device) -> Callable[[], Any]:
    """A frame of the network alone; those that are compared run the same way."""
    cfg, dtype = option.model.cfg, resolve_dtype("float32", device)
    template, search = (
        torch.randn(1, 3, side, side, dtype=torch.float32, device=device)
        for side in (cfg.template_size, cfg.search_size)
    )
    if option.group.startswith("embeddings"):
        network = PlainNetwork(option.model, device, dtype)
        kept = network.embed_template(template)

        def run() -> float:
            with torch.no_grad():
                return float(network(kept, search, None)[0].sum())

        return run
    engine = Engine(option.model, device, dtype)
    side = torch.tensor([[0.25, 0.25, 0.5, 0.5]], dtype=torch.float32, device="cpu")
    engine.set_template(template, template_mask(cfg, side) if cfg.ce_layers else None)
    return lambda: float(engine(search)["pred_boxes"].sum())
