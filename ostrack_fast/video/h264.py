"""H.264 in MP4, which browsers and phones play, by PyAV's FFmpeg (the extra `video`)."""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec
from typing import BinaryIO

import numpy as np

# Quality that is hard to tell from the original, at a speed that costs a live run little.
_OPTIONS = {"preset": "veryfast", "crf": "21"}


def has_h264() -> bool:
    """Whether PyAV is here and its FFmpeg has an encoder for H.264."""
    if find_spec("av") is None:
        return False
    import av

    return "libx264" in av.codecs_available


class H264Encoder:
    """Writes RGB frames as H.264 with 4:2:0 colour, whose last row or column is dropped where a side is odd.

    Args:
        target: name of a file, or a file open for writing that can be sought.
        fps: frames a second.
        size: width and height of the frames, at least 2 each.

    Raises:
        OSError: FFmpeg cannot write there.
    """

    def __init__(self, target: str | BinaryIO, fps: float, size: tuple[int, int]):
        import av

        self._even = (size[0] // 2 * 2, size[1] // 2 * 2)
        self._container = av.open(target, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(65535))
        self._stream.width, self._stream.height = self._even
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = dict(_OPTIONS)

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (h,w,3) uint8 RGB of the size given."""
        import av

        picture = np.ascontiguousarray(frame[: self._even[1], : self._even[0]])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

    def close(self) -> None:
        """Write what the encoder still holds, and the index."""
        self._container.mux(self._stream.encode())
        self._container.close()
