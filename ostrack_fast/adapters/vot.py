"""A TraX server, as the VOT toolkit starts it: `python -m ostrack_fast.adapters.vot [--weights small] ...`.

In the workspace's trackers.ini:

    [OSTrack]
    label = OSTrack
    protocol = trax
    command = python -m ostrack_fast.adapters.vot --weights OSTrack_ep0300.pth.tar

VOT scores masks since 2020; this tracker answers with rectangles, which the toolkit converts.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import trax
import typer

from ..data.images import image_from, read_image
from ..tracker import MultiTracker, TrackResult


def serve(tracker: MultiTracker) -> None:
    """Answer a TraX client on the standard streams until it quits: one target, or many at once."""
    targets: list[int] = []
    with trax.Server(
        [trax.Region.RECTANGLE],
        [trax.Image.PATH, trax.Image.MEMORY, trax.Image.BUFFER],
        tracker_name="OSTrack",
        multiobject=True,
    ) as server:
        while True:
            request = server.wait()
            if request.type not in (trax.TraxStatus.INITIALIZE, trax.TraxStatus.FRAME):
                break
            frame = _pixels(request.image["color"])
            found: dict[int, TrackResult] = {}
            if request.type == trax.TraxStatus.INITIALIZE:
                for target in targets:
                    tracker.drop(target)
                targets = []
            else:
                found = tracker.track(frame)
            answers = [(trax.Rectangle.create(*found[each].box), {"confidence": found[each].score}) for each in targets]
            # Objects may come with any frame; each is reported where the client put it.
            for region, properties in request.objects or ():
                targets.append(tracker.add(frame, region.bounds()))
                answers.append((region, properties))
            server.status(answers)


def _pixels(image: trax.Image) -> np.ndarray:
    """An image of the client as (h,w,3) uint8 RGB."""
    if image.type() == trax.Image.MEMORY:
        return image.array()
    if image.type() == trax.Image.PATH:
        return read_image(image.path())
    return image_from(image.buffer(), "the client's image")


def main(
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
) -> None:
    """Track for a TraX client, such as the VOT toolkit."""
    serve(MultiTracker(weights, device, dtype))


if __name__ == "__main__":
    typer.run(main)
