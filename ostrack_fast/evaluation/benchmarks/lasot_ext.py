"""LaSOT_ext (Fan et al. 2021), the extension of LaSOT by 15 classes that its training set lacks, in LaSOT's layout."""

from __future__ import annotations

from typing import ClassVar

from .lasot import Lasot

_CLASSES = (
    "atv", "badminton", "cosplay", "dancingshoe", "footbag", "frisbee", "jianzi", "lantern", "misc", "opossum",
    "paddle", "raccoon", "rhino", "skatingshoe", "wingsuit",
)  # fmt: skip


class LasotExt(Lasot):
    """LaSOT_ext: 150 sequences, all for testing; see `Lasot` for the layouts.

    PyTracking and STARK know it by another name than "lasot" and treat its frames without target otherwise: see
    `PyTracking`.
    """

    name = "lasot_ext"
    title = "LaSOT_ext"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    official: ClassVar[list[str]] = [f"{kind}-{number}" for kind in _CLASSES for number in range(1, 11)]
    dataset = "lasot_extension_subset"
