"""The frames of a video, decoded one after the other by PyAV, which reads what FFmpeg reads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fer_ray import storage
from fer_ray.data import pixels

SUFFIXES = frozenset(".mp4 .m4v .mov .qt .3gp .3g2 .avi .divx .mkv .webm .mpg .mpeg .mpe .vob .ts .mts .m2ts .wmv .asf "
                     ".flv .f4v .ogv .mxf".split())
# Only files that hold frames: FFmpeg also reads playlists, which name further files and addresses to open, and it takes
# plain text for a film.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf"
BUFFER = 2**18  # bytes that are asked for at once
# Packets until a packet's frame is shown, if it has one: codecs reorder at most 16 frames, of at most two packets each.
REORDERED = 32
EPSILON_S = 1e-4  # times are sums of fractions


class VideoError(ValueError):
    """A video that cannot be used; the message is the reason, without the video's name."""


@dataclass(frozen=True)
class Still:
    """A frame of a video, not yet in RGB: that takes longer than decoding it, and most frames are passed over."""

    time: float
    """Seconds after the first frame, when players show it."""
    frame: Any
    """As PyAV decoded it."""
    stretch: float
    """Width of a stored pixel in its heights."""

    @property
    def width(self) -> int:
        """Of the picture with square pixels, before it is turned; px."""
        return max(1, round(self.frame.width * self.stretch))

    def pixels(self) -> np.ndarray:
        """What players show: upright and with square pixels, uint8 [H, W, 3] (RGB)."""
        picture = self.frame.to_ndarray(format="rgb24", width=self.width, height=self.frame.height)
        turns = round(self.frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


class Footage:
    """A video file, local or in a bucket, of which only what is decoded is fetched.

    Attributes:
        width, height: of the picture as players show it, px.
        rotation: degrees, counterclockwise, by which its metadata turn it.
        duration: seconds, as the file's head says; None if it does not.
        rate: frames a second, on average, as the file's head says.
        damaged: frames and packets so far that could not be used.
    """

    def __init__(self, uri: str):
        """Open it and decode its first frame.

        Raises: VideoError if it is no video, has no video stream or no frame; its cause is a FileNotFoundError if
            nothing is there. storage.StorageError.
        """
        self.uri = uri
        self.damaged = 0
        self._origin = self._last = 0.0  # seconds by the file's own clock: of the first frame, and of the latest
        self._open()
        first = next(self._decoded(), None)
        if first is None:
            raise VideoError("no frame of it can be decoded")
        self._origin = self._seconds(first)
        self.rotation = first.rotation
        still = Still(0.0, first, self._stretch)
        if _is_too_large(still):
            raise VideoError(f"too large: {still.width} x {first.height} px, at most {pixels.MAX_PIXELS} are decoded")
        self.height, self.width = still.pixels().shape[:2]
        self._reopen()

    def __enter__(self) -> Footage:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()
        self._file.close()

    def frames(self, start: float = 0.0) -> Iterator[Still]:
        """The frames from `start` (seconds) on. What is damaged is left out, and counted in `damaged`.

        Frames that follow a damaged one refer to it, so the next that is used is one that stands for itself.

        Raises: storage.StorageError if storage does not answer any more.
        """
        frames = self._decoded()
        if start > 0:
            frames = self._from(start)
        for frame in frames:
            still = Still(self._seconds(frame), frame, self._stretch)
            if _is_too_large(still):  # its size has changed
                self.damaged += 1
            elif still.time >= start - EPSILON_S:
                yield still

    def _open(self) -> None:
        import av  # here, so that who predicts photographs does not wait for it
        from av.stream import Disposition

        try:
            self._file = storage.open_file(self.uri)
        except FileNotFoundError as error:
            raise VideoError("file not found") from error
        if not self._file.read(1):
            raise VideoError("empty file")
        self._file.seek(0)
        try:
            self._container: Any = av.open(self._file, buffer_size=BUFFER, metadata_errors="replace", options={
                "format_whitelist": FORMATS, "protocol_whitelist": "none"})
        except av.error.FFmpegError as error:
            raise VideoError(f"no video that FFmpeg can read, or its end is missing ({error.strerror})") from None
        except OSError as error:
            raise self._away(error) from error
        films = [stream for stream in self._container.streams.video
                 if not stream.disposition & Disposition.attached_pic]  # the cover of a piece of music
        if not films:
            raise VideoError("no video in it, but sound alone" if self._container.streams.audio
                             else "no video in it, or its end is missing")
        self._stream: Any = films[0]
        # FFmpeg reports damage reliably only with one thread. Threads for several frames may hand a frame out before
        # its damage has been met, and with threads for the slices of a frame H.264 is not examined at all.
        self._stream.codec_context.thread_count = 1
        self._stretch = float(self._stream.sample_aspect_ratio or 1)
        self.rate = float(self._stream.average_rate or 25)
        length = self._stream.duration
        self.duration = (float(length * self._stream.time_base) if length
                         else self._container.duration / 1e6 if self._container.duration else None)

    def _reopen(self) -> None:
        self.close()
        self._open()
        self.damaged = 0

    def _from(self, start: float) -> Iterator[Any]:
        """Frames from the last one before `start` on that stands for itself; from the first on if that is unknown."""
        import av

        try:
            self._container.seek(int((start + self._origin) / self._stream.time_base), stream=self._stream)
            frames = self._decoded()
            first = next(frames, None)
        except av.error.FFmpegError:
            first = None
        if first is not None and first.key_frame and not self.damaged and self._seconds(first) <= start + EPSILON_S:
            yield first
            yield from frames
        else:
            self._reopen()
            yield from self._decoded()

    def _seconds(self, frame: Any) -> float:
        """Time of a frame. One without a time stamp follows the one before it at the average rate."""
        if frame.pts is not None:
            self._last = float(frame.pts * frame.time_base)
        else:
            self._last = self._last + 1 / self.rate
        return self._last - self._origin

    def _decoded(self) -> Iterator[Any]:
        """Every frame that is whole, and does not refer to one that is not, in the order in which they are shown.

        A frame refers to frames whose packets precede its own, and some of them are shown after it. So it is held until
        the frames of all packets before its own are known.
        """
        held: deque[tuple[int, Any]] = deque()
        known: set[int] = set()
        unknown = 0  # the first packet whose frame is not
        damage = math.inf  # the first damaged packet since a frame that stands for itself
        for number, frame in self._by_packet():
            known.add(number)
            while unknown in known or unknown + REORDERED < number:
                known.discard(unknown)
                unknown += 1
            if frame is not None and (number < damage or frame.key_frame):
                if number > damage:
                    damage = math.inf
                held.append((number, frame))
            else:
                damage = min(damage, number)
                whole = deque((other, before) for other, before in held if other < number)
                self.damaged += 1 + len(held) - len(whole)
                held = whole
            while held and held[0][0] < unknown:
                yield held.popleft()[1]
        yield from (frame for _, frame in held)

    def _by_packet(self) -> Iterator[tuple[int, Any]]:
        """The frames in the order in which they are shown, each with the number of its packet; None if damaged."""
        import av

        self._stream.codec_context.copy_opaque = True  # a frame has what its packet was given
        for number, packet in enumerate(self._packets()):
            if packet is not None:
                packet.opaque = number, packet.is_corrupt
            try:
                frames = packet.decode() if packet is not None else self._stream.decode(None)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                yield number, None
                continue
            for frame in frames:
                own, is_corrupt = frame.opaque or (number, False)
                yield own, None if is_corrupt or frame.is_corrupt else frame

    def _packets(self) -> Iterator[Any]:
        """The packets of the stream, and then None for what the decoder still holds."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:  # the file ends in mid-packet
                self.damaged += 1
                yield None
                return
            except OSError as error:
                raise self._away(error) from error
            yield packet

    def _away(self, error: OSError) -> storage.StorageError:
        return storage.StorageError(f"{self.uri}: {error.strerror or ' '.join(str(error).split())}")


def _is_too_large(still: Still) -> bool:
    """Whether its pixels could fill a machine's memory: a file of a few kB may declare any size."""
    return still.width * still.frame.height > pixels.MAX_PIXELS
