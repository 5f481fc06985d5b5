"""Figures that papers report, as context for measured ones (OSTrack's paper, Tables 1 and 2; test sets)."""

from __future__ import annotations

_LASOT_LIKE = ("AUC", "P_norm", "P")
_GOT10K = ("AO", "SR_0.50", "SR_0.75")
# Trackers that OSTrack's paper compares with, trained with the same data; GOT-10k's were trained on GOT-10k alone.
_ROWS: dict[str, tuple[str, tuple[str, ...], dict[str, tuple[float, ...]]]] = {
    "got10k": ("test", _GOT10K, {
        "TransT": (0.671, 0.768, 0.609), "STARK-ST101": (0.688, 0.781, 0.641),
        "OSTrack-256": (0.710, 0.804, 0.682), "OSTrack-384": (0.737, 0.832, 0.708),
    }),
    "lasot": ("test", _LASOT_LIKE, {
        "TransT": (64.9, 73.8, 69.0), "OSTrack-256": (69.1, 78.7, 75.2), "OSTrack-384": (71.1, 81.1, 77.6),
    }),
    "trackingnet": ("TEST", _LASOT_LIKE, {
        "TransT": (81.4, 86.7, 80.3), "OSTrack-256": (83.1, 87.8, 82.0), "OSTrack-384": (83.9, 88.5, 83.2),
    }),
    "lasot_ext": ("test", _LASOT_LIKE, {"OSTrack-256": (47.4, 57.3, 53.3), "OSTrack-384": (50.5, 61.3, 57.6)}),
    "nfs": ("30", ("AUC",), {"OSTrack-256": (64.7,), "OSTrack-384": (66.5,)}),
    "uav123": ("test", ("AUC",), {"OSTrack-256": (68.3,), "OSTrack-384": (70.7,)}),
    "tnl2k": ("test", ("AUC",), {"OSTrack-256": (54.3,), "OSTrack-384": (55.9,)}),
}  # fmt: skip


def published_rows(benchmark: str, split: str) -> list[tuple[str, dict[str, float]]]:
    """(tracker, {figure: value}) of what papers report on this split; none where there is nothing to compare with."""
    if benchmark not in _ROWS or _ROWS[benchmark][0] != split:
        return []
    _, names, rows = _ROWS[benchmark]
    return [(tracker, dict(zip(names, values, strict=True))) for tracker, values in rows.items()]
