"""The network: a one-stream ViT with candidate elimination and a centre head."""

from .ostrack import OSTrack, build_ostrack, template_mask

__all__ = ["OSTrack", "build_ostrack", "template_mask"]
