"""OTB-100 (Wu et al. 2015): `NAME/{groundtruth_rect.txt, img/*.jpg}`, several targets in some folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from ...data.images import find_images
from ...data.truth import read_lines, read_raw_boxes
from ...data.videos import annotated_frames
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, first_folder, folders, load_all

_TRUTH = re.compile(r"groundtruth_rect(?:\.(\d+))?\.txt")


class Otb(Benchmark):
    """OTB as it is downloaded and unpacked.

    Jogging, Skating2 and Human4 have a truth for each target: `Jogging.1`, whose results may also be named `Jogging-1`
    or `Jogging_1`. Human4's first is empty and left out. Where there are fewer boxes than images (David, Football1 and
    others) the images are cut as the benchmark's configuration says.
    """

    name = "otb"
    title = "OTB"
    protocol = "otb"
    counts: ClassVar[dict[str, int]] = {"test": 100}

    def _load(self, data: Path, split: str | None) -> Loaded:
        truths: dict[str, tuple[Path, tuple[str, ...]]] = {}
        without = []
        for folder in folders(data):
            found = {match[1]: path for path in sorted(folder.iterdir()) if (match := _TRUTH.fullmatch(path.name))}
            if not found and (folder / "img").is_dir():
                without.append(folder / "groundtruth_rect.txt")
            for number, path in found.items():
                if number is None:
                    truths[folder.name] = (path, ())
                elif any(line.strip() for line in read_lines(path)):
                    only = (folder.name,) if number == str(len(found)) and folder.name == "Human4" else ()
                    aliases = (f"{folder.name}-{number}", f"{folder.name}_{number}", *only)
                    truths[f"{folder.name}.{number}"] = (path, aliases)
        if without:
            raise FileNotFoundError(
                f"the truth of {len(without)} videos is missing: {', '.join(map(str, without[:10]))}"
            )
        if not truths:
            raise self.wrong_layout(data, "NAME/groundtruth_rect.txt and NAME/img/*.jpg")

        def load(name: str) -> Sequence:
            path, aliases = truths[name]
            boxes = read_raw_boxes(path)
            truth = Truth(name, boxes, dataset="otb")
            return Sequence(truth, lambda: _frames(path, len(boxes)), aliases, 1)

        return Loaded(load_all(truths, load, str(data)), "test")


def _frames(truth: Path, boxes: int) -> list[Path]:
    folder = first_folder(truth.parent / "img")
    return annotated_frames(truth.parent.name, truth, find_images(folder), boxes) if folder else []
