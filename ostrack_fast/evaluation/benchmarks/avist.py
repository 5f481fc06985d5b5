"""AVisT (Noman et al. 2022): `anno/NAME.txt`, `full_occlusion/`, `out_of_view/`, `sequences/NAME/img_*.jpg`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ...data.truth import read_raw_boxes
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, images_in, load_all, read_flags, texts


class Avist(Benchmark):
    """AVisT as downloaded; its official evaluation is PyTracking's."""

    name = "avist"
    title = "AVisT"
    protocol = "pytracking"
    counts: ClassVar[dict[str, int]] = {"test": 120}

    def _load(self, data: Path, split: str | None) -> Loaded:
        root = next((path for path in (data, data / "avist") if texts(path / "anno")), None)
        if root is None:
            raise self.wrong_layout(data, "anno/NAME.txt beside full_occlusion/, out_of_view/ and sequences/")
        truths = texts(root / "anno")

        def load(name: str) -> Sequence:
            boxes = read_raw_boxes(truths[name])
            flags = (
                read_flags(root / kind / f"{name}_{kind}.txt", len(boxes)) for kind in ("full_occlusion", "out_of_view")
            )
            truth = Truth(name, boxes, next(flags) | next(flags), dataset="avist")
            return Sequence(truth, images_in(root / "sequences" / name))

        return Loaded(load_all(truths, load, str(root)), "test")
