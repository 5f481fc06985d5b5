"""UAV123 (Mueller et al. 2016): `anno/UAV123/NAME.txt`, `data_seq/UAV123/VIDEO/*.jpg`."""

from __future__ import annotations

from pathlib import Path

from ...data.images import find_images
from ...data.truth import read_raw_boxes
from ..protocols import Truth
from .base import Benchmark, Loaded, Sequence, first_folder, lacking, load_all, read_attributes, texts

# Sequences that are a part of a video, by its first and last frame, counted from 1 (the benchmark's own configuration).
_PARTS = """
bird1_1:1-253 bird1_2:775-1477 bird1_3:1573-2437 car1_1:1-751 car1_2:751-1627 car1_3:1627-2629 car16_1:1-415
car16_2:415-1993 car6_1:1-487 car6_2:487-1807 car6_3:1807-2953 car6_4:2953-3925 car6_5:3925-4861 car8_1:1-1357
car8_2:1357-2575 group1_1:1-1333 group1_2:1333-2515 group1_3:2515-3925 group1_4:3925-4873 group2_1:1-907
group2_2:907-1771 group2_3:1771-2683 group3_1:1-1567 group3_2:1567-2827 group3_3:2827-4369 group3_4:4369-5527
person12_1:1-601 person12_2:601-1621 person14_1:1-847 person14_2:847-1813 person14_3:1813-2923 person17_1:1-1501
person17_2:1501-2347 person19_1:1-1243 person19_2:1243-2791 person19_3:2791-4357 person2_1:1-1189 person2_2:1189-2623
person4_1:1-1501 person4_2:1501-2743 person5_1:1-877 person5_2:877-2101 person7_1:1-1249 person7_2:1249-2065
person8_1:1-1075 person8_2:1075-1525 truck4_1:1-577 truck4_2:577-1261 uav1_1:1-1555 uav1_2:1555-2377 uav1_3:2473-3469
"""
_WHOLE = """
bike1 bike2 bike3 boat1 boat2 boat3 boat4 boat5 boat6 boat7 boat8 boat9 building1 building2 building3 building4
building5 car10 car11 car12 car13 car14 car15 car17 car18 car1_s car2 car2_s car3 car3_s car4 car4_s car5 car7 car9
person1 person10 person11 person13 person15 person16 person18 person1_s person20 person21 person22 person23 person2_s
person3 person3_s person6 person9 truck1 truck2 truck3 uav2 uav3 uav4 uav5 uav6 uav7 uav8 wakeboard1 wakeboard10
wakeboard2 wakeboard3 wakeboard4 wakeboard5 wakeboard6 wakeboard7 wakeboard8 wakeboard9
"""
_ATTRIBUTES = (
    "scale variation", "aspect ratio change", "low resolution", "fast motion", "full occlusion", "partial occlusion",
    "out of view", "background clutter", "illumination variation", "viewpoint change", "camera motion",
    "similar object",
)  # fmt: skip


def _parts() -> dict[str, tuple[int, int]]:
    words = (word.split(":") for word in _PARTS.split())
    return {name: (int(bounds.split("-")[0]), int(bounds.split("-")[1])) for name, bounds in words}


class Uav123(Benchmark):
    """UAV123 as downloaded. Its truth has NaN where the target is out of view, and 51 sequences are parts of videos."""

    name = "uav123"
    title = "UAV123"
    protocol = "otb"

    def _load(self, data: Path, split: str | None) -> Loaded:
        roots = (data, *(data / name for name in ("Dataset_UAV123", "UAV123", "Dataset_UAV123/UAV123")))
        root = next((path for path in roots if texts(path / "anno" / "UAV123")), None)
        if root is None:
            raise self.wrong_layout(data, "anno/UAV123/NAME.txt and data_seq/UAV123/VIDEO/*.jpg")
        anno, videos, parts = root / "anno" / "UAV123", root / "data_seq" / "UAV123", _parts()
        truths = texts(anno)

        def load(name: str) -> Sequence:
            attributes = read_attributes(anno / "att" / f"{name}.txt", _ATTRIBUTES)
            truth = Truth(name, read_raw_boxes(truths[name]), dataset="uav")
            return Sequence(truth, lambda: _frames(videos, name, parts), (f"uav_{name}",), 1, attributes)

        notes = lacking(self.title, sorted((*parts, *_WHOLE.split())), truths)
        return Loaded(load_all(truths, load, str(anno)), "test", notes)


def _frames(videos: Path, name: str, parts: dict[str, tuple[int, int]]) -> list[Path]:
    """The images of a sequence, which is a whole video or the frames `parts[name]` of one."""
    if name not in parts:
        folder = first_folder(videos / name)
        return find_images(folder) if folder else []
    folder = first_folder(videos / name.rsplit("_", 1)[0])
    first, last = parts[name]
    found = find_images(folder) if folder else []
    return [path for path in found if path.stem.isdecimal() and first <= int(path.stem) <= last]
