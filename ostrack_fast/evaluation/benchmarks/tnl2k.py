"""TNL2K (Wang et al. 2021): `NAME/{groundtruth.txt, imgs/*, language.txt}`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ...data.truth import read_raw_boxes
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, folders, images_in, load_all, need, no_target, read_flags, texts


class Tnl2k(Benchmark):
    """TNL2K's test set as downloaded (also in one folder more, `TNL2K_test_subset`), or `annos` of its toolkit.

    The toolkit's absent flags are set where the true box is 0,0,0,0 (of 515,109 frames all but 12), so they are taken
    from the boxes where there are no flags.
    """

    name = "tnl2k"
    title = "TNL2K"
    protocol = "lasot"
    counts: ClassVar[dict[str, int]] = {"test": 700}

    def _load(self, data: Path, split: str | None) -> Loaded:
        for annos in (data, data / "annos"):
            if truths := texts(annos / "gt_rect"):
                load = lambda name: _from_toolkit(annos, truths[name])  # noqa: B023, E731
                return Loaded(load_all(truths, load, str(annos)), "test")
        for root in (data, *folders(data)):
            found = {path.name: path for path in folders(root) if (path / "imgs").is_dir() or _has_truth(path)}
            if found:
                load_one = lambda name: _from_download(found[name])  # noqa: B023, E731
                return Loaded(load_all(found, load_one, str(root)), "test")
        raise self.wrong_layout(data, "NAME/groundtruth.txt and NAME/imgs/*")


def _has_truth(folder: Path) -> bool:
    return (folder / "groundtruth.txt").is_file()


def _from_download(folder: Path) -> Sequence:
    boxes = read_raw_boxes(need(folder / "groundtruth.txt"))
    truth = Truth(folder.name, boxes, no_target(boxes), dataset="tnl2k")
    return Sequence(truth, images_in(folder / "imgs"))


def _from_toolkit(annos: Path, path: Path) -> Sequence:
    boxes = read_raw_boxes(path)
    flags = annos / "absent" / path.name
    absent = read_flags(flags, len(boxes)) if flags.is_file() else no_target(boxes)
    return Sequence(Truth(path.stem, boxes, absent, dataset="tnl2k"), list)
