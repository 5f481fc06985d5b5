"""The network: a one-stream ViT with candidate elimination and a centre head."""

from .frozen import FrozenOSTrack, Template
from .ostrack import OSTrack, build_ostrack, template_mask

__all__ = ["FrozenOSTrack", "OSTrack", "Template", "build_ostrack", "template_mask"]
