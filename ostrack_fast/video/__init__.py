"""Frames in from a video file, a folder of images, a camera, a stream or a pipe; annotated video out."""

from .source import DEFAULT_FPS, FrameSource, open_source
from .writer import VideoWriter, check_video_path

__all__ = ["DEFAULT_FPS", "FrameSource", "VideoWriter", "check_video_path", "open_source"]
