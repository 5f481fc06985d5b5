"""Networks that the paper compares OSTrack with, trained by the same loop and run by the same tracker."""

from __future__ import annotations

from ..model import OSTrack
from .embeddings import IdentityOSTrack, RelativeOSTrack
from .stark import StarkAligned
from .swintrack import SwinTrackAligned
from .two_stream import TwoStream

NETWORKS: dict[str, type[OSTrack]] = {
    "ostrack": OSTrack,
    "stark-aligned": StarkAligned,
    "swintrack-aligned": SwinTrackAligned,
    "identity": IdentityOSTrack,
    "relative": RelativeOSTrack,
}
"""Networks by the name that a training file gives them."""

__all__ = ["NETWORKS", "IdentityOSTrack", "RelativeOSTrack", "StarkAligned", "SwinTrackAligned", "TwoStream"]
