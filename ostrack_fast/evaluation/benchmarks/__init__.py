"""Benchmarks by name: readers for the layouts they are downloaded in, one class in one file each.

>>> loaded = find_benchmark("got10k").load("GOT-10k", "val")
>>> loaded.sequences[0].truth.boxes
"""

from .avist import Avist
from .base import Benchmark, Loaded, Sequence
from .davis import Davis
from .folder import FolderOfVideos
from .got10k import Got10k
from .lasot import Lasot
from .lasot_ext import LasotExt
from .nfs import Nfs
from .otb import Otb
from .tnl2k import Tnl2k
from .trackingnet import TrackingNet
from .uav123 import Uav123
from .vasttrack import VastTrack
from .vot import Vot

__all__ = ["BENCHMARKS", "Benchmark", "Loaded", "Sequence", "find_benchmark"]

_CLASSES: tuple[type[Benchmark], ...] = (
    Got10k, Lasot, LasotExt, TrackingNet, Nfs, Uav123, Tnl2k, VastTrack, Avist, Otb, Davis, Vot, FolderOfVideos,
)  # fmt: skip

BENCHMARKS: dict[str, Benchmark] = {each.name: each() for each in _CLASSES}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises ValueError, which lists the names, for an unknown one."""
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
