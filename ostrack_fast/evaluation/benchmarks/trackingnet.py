"""TrackingNet (Mueller et al. 2018): `TEST/anno/NAME.txt`, `TEST/frames/NAME/N.jpg`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ...data.layouts import LAYOUTS
from ...data.truth import read_raw_boxes
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, folders, images_in, load_all, need, texts

_LAYOUT = LAYOUTS["trackingnet"]


class TrackingNet(Benchmark):
    """TrackingNet; `data` is the folder of the chunks or that of one. The truth of `TEST` is on the server alone."""

    name = "trackingnet"
    title = "TrackingNet"
    protocol = "trackingnet"
    splits = ("TEST", *(f"TRAIN_{number}" for number in range(12)))
    counts: ClassVar[dict[str, int]] = {"TEST": 511}

    def _load(self, data: Path, split: str | None) -> Loaded:
        chunks = {path.name.upper(): path for path in folders(data) if texts(path / "anno")}
        if texts(data / "anno"):
            chunks[data.name.upper() if data.name.upper() in self.splits else "TEST"] = data
        held = split or next((name for name in self.splits if name in chunks), None)
        if held is None or held not in chunks:
            raise self.wrong_layout(data, f"{split or 'TEST'}/anno/NAME.txt and {split or 'TEST'}/frames/NAME/0.jpg")
        chunk = chunks[held]
        names = {*texts(chunk / "anno"), *(path.name for path in folders(chunk / "frames"))}
        places = {name: _LAYOUT.place(f"frames/{name}") for name in sorted(names)}

        def load(name: str) -> Sequence:
            boxes = read_raw_boxes(need(chunk / places[name].truth))
            return Sequence(Truth(name, boxes), images_in(chunk / places[name].images))

        return Loaded(load_all(places, load, str(chunk / "anno")), held)
