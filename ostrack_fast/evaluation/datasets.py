"""Videos with ground truth, as `ostrack_fast.data` reads them, under the names they have in evaluation."""

from ..data.truth import format_boxes, read_boxes
from ..data.videos import Video, load_video, load_videos

__all__ = ["Video", "format_boxes", "load_video", "load_videos", "read_boxes"]
