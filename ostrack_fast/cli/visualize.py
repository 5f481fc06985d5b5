"""`ostrack-fast visualize`: what the network attends to, what it eliminates, where its features are strong."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._boxes import parse_box
from ._lists import counts
from ._outputs import check_outputs
from ._weights import Config

if TYPE_CHECKING:
    from ..data.images import Image
    from ..model import OSTrack


def visualize(
    kind: Annotated[str, typer.Argument(help="attention, elimination or features.")],
    source: Annotated[str, typer.Argument(help="A video file, or a folder of images.")],
    box: Annotated[str, typer.Option(help="The target in the first frame, x,y,w,h in pixels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A picture (.png), or of every frame a video (.mp4).")],
    frame: Annotated[int, typer.Option(min=1, help="For a picture: which frame, the first being 0.")] = 1,
    blocks: Annotated[str | None, typer.Option(help="Numbers of blocks between commas, counted from 0.")] = None,
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    config: Config = None,
) -> None:
    """Draw the search region as the network sees it (Figures 4, 5 and 6 of the OSTrack paper).

    attention: what the centre of the template attends to, block by block. elimination: the cells that are left.
    features: how strong the features of each cell are at the end. The target is tracked up to the frames shown.
    """
    from ..files import write_atomically
    from ..visualization.inside import KINDS

    if kind not in KINDS:
        raise ValueError(f"there is no picture of {kind!r}: choose {', '.join(KINDS)}")
    if output.suffix.lower() not in (".png", ".mp4"):
        raise ValueError(f"{output}: the name must end in .png (one frame) or .mp4 (all of them)")
    check_outputs((output,), sources=(source, weights))

    from ..model import OSTrack
    from ..video import VideoWriter, open_source

    opened = open_source(source)
    model = OSTrack.from_pretrained(weights, config)
    chosen = counts("--blocks", blocks, least=0)
    pictures = _pictures(model, iter(opened), parse_box(box), kind, chosen)
    if output.suffix.lower() == ".mp4":
        with VideoWriter(output, opened.fps) as writer:
            for picture in pictures:
                writer.write(picture)
        if not writer.count:
            raise ValueError(f"{source} has no frame after the first, and only those are shown")
        print(f"{output}: {writer.count} frames")
        return
    found = next(islice(pictures, frame - 1, None), None)
    if found is None:
        raise ValueError(f"{source} has no frame {frame}")
    import cv2

    data = cv2.imencode(".png", found[..., ::-1])[1].tobytes()
    write_atomically(output, lambda temporary: Path(temporary).write_bytes(data))
    print(f"{output}: frame {frame}")


def _pictures(
    model: OSTrack, frames: Iterator[Image], box: tuple[float, ...], kind: str, blocks: list[int] | None
) -> Iterator[Image]:
    """A picture of every frame after the first."""
    from ..tracker import Tracker
    from ..visualization.inside import Inside, default_blocks, draw

    first = next(frames)
    tracker = Tracker(model, "cpu", "float32")
    tracker.initialize(first, box)
    inside = Inside(model, first, box)
    shown = default_blocks(model, kind) if blocks is None else blocks
    for frame in frames:
        yield draw(inside.look(frame, box), kind, shown)
        box = tracker.track(frame).box
