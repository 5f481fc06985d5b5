"""The network: a one-stream ViT with candidate elimination and a centre head."""

from .frozen import FrozenOSTrack, Template, stage
from .ostrack import OSTrack, build_ostrack, template_mask
from .plain import PlainNetwork

__all__ = ["FrozenOSTrack", "OSTrack", "PlainNetwork", "Template", "build_ostrack", "stage", "template_mask"]
