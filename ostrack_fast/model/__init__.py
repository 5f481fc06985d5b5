"""The network: a one-stream ViT with candidate elimination and a centre head."""

from .frozen import FrozenOSTrack
from .ostrack import OSTrack, build_ostrack, template_mask

__all__ = ["FrozenOSTrack", "OSTrack", "build_ostrack", "template_mask"]
