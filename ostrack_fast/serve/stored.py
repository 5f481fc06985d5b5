"""A video that a user sent: any of its frames, by number, from a file that has no name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np

# Containers of video alone. FFmpeg also reads playlists and scripts, which name other files of this machine.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,ogg,flv,gif"
_MAX_SIDE = 4096


class StoredVideo:
    """Random access to the frames of a video file.

    Args:
        file: open for reading; it stays open as long as this object, and is closed with it.
        max_frames: longer videos are refused.

    Attributes:
        length: number of frames. fps: frames a second. size: width and height in pixels, as shown.

    Raises:
        ValueError: no video, none that can be decoded, too long or too large; nothing is closed then.
    """

    def __init__(self, file: BinaryIO, max_frames: int):
        try:
            self._container = av.open(file, "r", options={"format_whitelist": _FORMATS})
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise ValueError("this is no video, or one of a kind that cannot be decoded here") from error
        self._file = file
        self._stream.thread_type = "AUTO"
        self._times = self._list_times(max_frames)
        self._decoded: Iterator[Any] = iter(())
        self._ahead: Any = None  # decoded, and not yet past the frame that was asked for
        self._next = -1
        self.length = len(self._times)
        self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        height, width = self.frame(0).shape[:2]
        self.size = (width, height)

    def _list_times(self, max_frames: int) -> list[int]:
        """The time of every frame in units of the stream, found in the packets without decoding them."""
        codec = self._stream.codec_context
        if not (0 < codec.width <= _MAX_SIDE and 0 < codec.height <= _MAX_SIDE):
            raise ValueError(f"the video has {codec.width} x {codec.height} pixels: sides up to {_MAX_SIDE} are taken")
        times = []
        try:
            for packet in self._container.demux(self._stream):
                time = packet.pts if packet.pts is not None else packet.dts
                if packet.size and time is not None:
                    times.append(time)
                if len(times) > max_frames:
                    raise ValueError(f"the video has more than {max_frames} frames: send a shorter part of it")
        except av.FFmpegError as error:
            raise ValueError("the video is damaged") from error
        if not times:
            raise ValueError("the video has no frames")
        return sorted(times)

    def frame(self, number: int) -> np.ndarray:
        """A frame, (h,w,3) uint8 RGB. One that cannot be decoded is the one after it, or at the end the one before.

        Raises:
            IndexError: there is no such frame. ValueError: nothing can be decoded.
        """
        if not 0 <= number < self.length:
            raise IndexError(f"there is no frame {number}: the video has {self.length}")
        if number != self._next:
            self._container.seek(self._times[number], stream=self._stream)
            self._decoded, self._ahead = self._frames(), None
        self._next = number + 1
        while self._ahead is None or self._ahead.pts < self._times[number]:
            picture = next(self._decoded, None)
            if picture is None:
                break
            self._ahead = picture
        if self._ahead is None:
            raise ValueError("the video cannot be decoded")
        picture = self._ahead.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(picture, round(self._ahead.rotation / 90) % 4))

    def _frames(self) -> Iterator[Any]:
        """Decoded frames with a time from the position of the container on, damaged ones left out."""
        for packet in self._container.demux(self._stream):
            try:
                for frame in packet.decode():
                    if frame.pts is None:
                        frame.pts = frame.dts
                    if frame.pts is not None:
                        yield frame
            except av.FFmpegError:
                continue  # the frames after it may be whole

    def close(self) -> None:
        self._container.close()
        self._file.close()
