"""The benchmarks' ways to score result files, by name: one set of boxes gives another number under each.

Every protocol takes boxes as the files hold them: (n,4) xywh in pixels, counted as the ground truth counts, NaN and
empty boxes included. Formulas and edge cases are those of the benchmarks' own code, which differ in what they do with
frames without target and with answers that are no box:

| protocol | frames without target | no box answered | first frame | numbers |
|---|---|---|---|---|
| got10k | left out (`cover` 0) | overlap 0 | left out | AO, SR over all frames of all sequences |
| got10k_balanced | left out (`cover` 0) | overlap 0 | left out | AO, SR: means over object classes |
| lasot | flagged: a miss, in the denominator | previous box | truth | AUC, P, P_norm |
| otb | overlap a miss, errors a hit | previous box | truth | AUC, P, P_norm |
| pytracking, stark | see `PyTracking` | previous box where a side is 0 | truth | AUC, P, P_norm |
| pysot | overlap a miss, errors a hit | a miss | as answered | AUC, P, P_norm |
| trackingnet | as any other | a miss | truth | AUC, P, P_norm: areas by trapezoids |
| folder | left out | a miss | as answered | AUC, P, P_norm |

AO and SR are fractions, the others percent. `pytracking_lasot` and `pytracking_uav` treat any sequence as PyTracking
treats those of LaSOT and UAV123; `pytracking` goes by the sequence's data set.
"""

from .base import Curves, Protocol, Truth, centre_distance, iou
from .folder import Folder
from .got10k import BalancedGot10k, Got10k
from .lasot import Lasot, Otb
from .pysot import Pysot
from .pytracking import PyTracking, Stark
from .trackingnet import TrackingNet

__all__ = [
    "PROTOCOLS",
    "BalancedGot10k",
    "Curves",
    "Folder",
    "Got10k",
    "Lasot",
    "Otb",
    "Protocol",
    "PyTracking",
    "Pysot",
    "Stark",
    "TrackingNet",
    "Truth",
    "centre_distance",
    "find_protocol",
    "iou",
]

PROTOCOLS: dict[str, Protocol] = {
    "got10k": Got10k(),
    "got10k_balanced": BalancedGot10k(),
    "lasot": Lasot(),
    "otb": Otb(),
    "pytracking": PyTracking(),
    "pytracking_lasot": PyTracking("lasot"),
    "pytracking_uav": PyTracking("uav"),
    "stark": Stark(),
    "pysot": Pysot(),
    "trackingnet": TrackingNet(),
    "folder": Folder(),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of this name. Raises ValueError, which lists the names, for an unknown one."""
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
