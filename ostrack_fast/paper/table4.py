"""Table 4 of the paper: what the backbone's pretraining gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from .report import Report, Tell, beside
from .small_scale import Scale, Videos, judged, train_network

# (its source, LaSOT AUC in the paper, of OSTrack-256 without elimination), by the name of the pretraining.
PUBLISHED: dict[str, tuple[str | None, float]] = {
    "none": (None, 60.4),
    "ImageNet-1k": ("deit", 66.1),
    "ImageNet-21k": ("augreg", 66.9),
    "MAE": ("mae", 68.7),
}


def sources_of(pairs: list[str] | None) -> dict[str, str | None]:
    """{name: source} of `NAME=SOURCE` and `none`; by default the paper's four, which timm downloads for a ViT-B.

    Raises:
        ValueError: neither `NAME=SOURCE` nor a name of the paper's.
    """
    if not pairs:
        return {name: source for name, (source, _) in PUBLISHED.items()}
    found: dict[str, str | None] = {}
    for pair in pairs:
        name, mark, source = pair.partition("=")
        if mark and source:
            # Training files count paths from their own folder, a command line from where it is typed.
            found[name] = str(Path(source).resolve()) if Path(source).exists() else source
        elif pair in PUBLISHED:
            found[pair] = PUBLISHED[pair][0]
        else:
            raise ValueError(f"--start {pair!r} is neither NAME=SOURCE nor one of {', '.join(PUBLISHED)}")
    return found


def table4(scale: Scale, videos: Videos, sources: Mapping[str, str | None], tell: Tell) -> Report:
    """Train the same network from each start, and track the videos with it.

    Raises:
        as `train_network` and `read_videos`.
    """
    rows, figures = [], []
    for name, source in sources.items():
        trained = train_network(scale, f"start-{name}", "ostrack", source, tell)
        found = judged(trained, videos, scale.device, tell)
        paper = PUBLISHED.get(name, (None, None))[1]
        iou = f"{trained.curve[-1][1]:.3f}" if trained.curve else ""
        rows.append([
            name, str(trained.pairs), iou, beside(f"{found.auc:.1f}", paper), f"{found.precision:.1f}",
            f"{trained.seconds:.0f}",
        ])  # fmt: skip
        figures.append({"start": name, "pairs": trained.pairs, "curve": trained.curve, **asdict(found)})
    return Report(
        "Table 4: pretraining (in brackets: the paper's AUC on LaSOT after 18 million pairs)",
        ["start", "pairs", "IoU of held-out pairs", "AUC", "precision", "training, s"],
        rows,
        [
            f"recipe {scale.recipe}; AUC and precision of {found.videos} videos, {found.frames} frames, float32",
        ],
        {"rows": figures},
    )
