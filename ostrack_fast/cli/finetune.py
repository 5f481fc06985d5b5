"""`ostrack-fast finetune`: a tracker for one's own videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def finetune(
    data: Annotated[Path, typer.Option(help="Folder of videos: NAME/img/*.jpg beside NAME/groundtruth_rect.txt.")],
    weights: Annotated[str, typer.Option(help="What to start from: a name, a file or a model on the Hub.")] = "small",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path("finetuned"),
    held_out: Annotated[
        Path | None, typer.Option(help="Videos that say when to stop; by default every fifth of --data.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Further videos, only to report on.")] = None,
    rounds: Annotated[int, typer.Option(help="Largest number of rounds.")] = 4,
    pairs: Annotated[int, typer.Option(help="Training pairs of a round.")] = 800,
    starts: Annotated[int, typer.Option(help="Frames of each video reported on that tracking starts from.")] = 10,
    lora: Annotated[int, typer.Option(help="Rank of LoRA's matrices, trained beside the backbone's weights.")] = 8,
    freeze: Annotated[
        int | None, typer.Option(help="Train the backbone's weights instead, but for so many first blocks.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the pairs.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Fine-tune on your videos, and report before and after on videos kept out.

    Ctrl-C ends the training early: the best round until then is what you get.
    """
    from ..devices import resolve_device
    from ..files import check_folder
    from ..training.finetune import TUNED, FinetuneConfig
    from ..training.finetune import finetune as run

    chosen = resolve_device(device)
    check_folder(output)
    stop_by, report_on = (None if path is None else str(path) for path in (held_out, test))
    cfg = FinetuneConfig(
        str(data), str(output), weights, stop_by, report_on, rounds=rounds, pairs=pairs, starts=starts,
        lora=lora, freeze_blocks=freeze, seed=seed,
    )  # fmt: skip
    for gain in run(cfg, chosen):
        print("success AUC on the videos the training stopped by:" if gain.chosen_by else "success AUC on test videos:")
        for name, before in gain.before.items():
            print(f"  {name}: {before:.3f} -> {gain.after[name]:.3f}")
        low, high = gain.interval()
        print(f"  mean gain {gain.mean:+.3f} (95 % interval over videos {low:+.3f} to {high:+.3f})")
    print(f"weights in {output / TUNED}")
