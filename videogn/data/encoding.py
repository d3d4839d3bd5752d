"""Encoding one video so that training clips cost little to read: small frames, many key frames.

An encoded video has the frames of a full decode of its source, at exactly the same times;
:func:`check_times` proves it by decoding it again. Shapes: H x W pixels, upright.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from videogn.data.decode import decode_whole
from videogn.data.probing import probe
from videogn.data.rgb import quarter_turns, without_light
from videogn.data.video_files import BAD_FILE_ERRORS, exact
from videogn.errors import DecodeError

USUAL_RATE = Fraction(25)
MAX_RATE = 1000
RGB_MATRIX = 0
"""Colour space tag of frames that are not in luma and chroma."""


@dataclass(frozen=True)
class Settings:
    """How videos are encoded.

    Attributes:
        short_side: pixels of the shorter side; smaller videos keep theirs.
        gop: frames from one key frame to the next.
        crf: constant quality of x264, 0 to 51, smaller is better.
        preset: x264's trade of time for bytes.
        tune: what x264 is tuned for; ``none`` for nothing.
    """

    short_side: int
    gop: int
    crf: int
    preset: str
    tune: str

    def options(self) -> dict[str, str]:
        """What libx264 is given."""
        fixed = (
            f"keyint={self.gop}:min-keyint={self.gop}:scenecut=0:open-gop=0"
            # No other frame refers to three of four: a clip leaves out those it does not want.
            ":bframes=3:b-adapt=0:b-pyramid=none"
        )
        options = {"crf": str(self.crf), "preset": self.preset, "x264-params": fixed}
        return options if self.tune == "none" else options | {"tune": self.tune}


def encode(source: str, target: Path, settings: Settings) -> list[Fraction]:
    """Write the prepared file and give the times of the source's frames in seconds.

    Raises:
        DecodeError: the source cannot be decoded whole or encoded, or its times do not rise.
    """
    rate = probe(source).rate or USUAL_RATE
    times: list[Fraction] = []
    writer: _Writer | None = None
    # Errors of the source are named by decode_whole; what is left is the encoder's.
    try:
        with av.open(str(target), "w", options={"movflags": "faststart"}) as container:
            for frame in decode_whole(source):
                time = _time(source, frame)
                if times and time <= times[-1]:
                    raise DecodeError(
                        source,
                        f"the times of its frames do not rise: frame {len(times)} is at {time} s, "
                        f"the one before at {times[-1]} s",
                    )
                writer = writer or _Writer(container, frame, rate, settings)
                times.append(time)
                writer.write(frame)
            if writer is not None:
                writer.finish()
    except DecodeError:
        raise
    except BAD_FILE_ERRORS as error:
        raise DecodeError(source, f"cannot be encoded: {error}") from error
    return times


def check_times(path: str, times: Sequence[Fraction]) -> None:
    """Refuse a prepared file whose frames are not as many as the source's, at the same times.

    Raises:
        DecodeError: with the first difference.
    """
    found = [_time(path, frame) for frame in decode_whole(path)]
    if len(found) != len(times):
        raise DecodeError(path, f"came out with {len(found)} of {len(times)} frames")
    for number, (ours, theirs) in enumerate(zip(found, times, strict=True)):
        if ours - found[0] != theirs - times[0]:
            raise DecodeError(
                path, f"frame {number} came out at {ours - found[0]} s, not {theirs - times[0]} s"
            )


def _time(path: str, frame: av.VideoFrame) -> Fraction:
    """When a frame is shown, in seconds."""
    tick = exact(frame.time_base)
    if frame.pts is None or tick is None:
        raise DecodeError(path, "holds a frame without a time")
    return frame.pts * tick


class _Writer:
    """Scales, turns and encodes frames into a container."""

    def __init__(
        self, container: Any, first: av.VideoFrame, rate: Fraction, settings: Settings
    ) -> None:
        self._container = container
        self._quarters = quarter_turns(first)
        self._height, self._width = prepared_size(first.height, first.width, settings.short_side)
        self._reformatter = VideoReformatter()
        # mp4 has no times before 0, nor has anyone a use for them.
        self._shift = min(0, first.pts or 0)
        stream = container.add_stream("libx264", rate=min(rate, Fraction(MAX_RATE)))
        turned = self._quarters % 2 == 1
        stream.width = self._height if turned else self._width
        stream.height = self._width if turned else self._height
        stream.pix_fmt = "yuv420p"
        stream.options = settings.options()
        stream.time_base = first.time_base
        context = stream.codec_context
        context.time_base = first.time_base
        context.gop_size = settings.gop
        context.thread_count = 1
        context.color_range = ColorRange.MPEG
        context.colorspace = _matrix(first)
        context.color_primaries = first.color_primaries
        context.color_trc = first.color_trc
        self._stream = stream

    def write(self, frame: av.VideoFrame) -> None:
        """Encode one more frame at its own time."""
        scaled = self._reformatter.reformat(
            without_light(frame),
            width=self._width,
            height=self._height,
            format="yuv420p",
            src_color_range=_range(frame),
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU601 if frame.colorspace == RGB_MATRIX else None,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        picture = av.VideoFrame.from_ndarray(
            _turned(scaled.to_ndarray(), self._quarters), format="yuv420p"
        )
        picture.pts, picture.time_base = (frame.pts or 0) - self._shift, frame.time_base
        picture.color_range, picture.colorspace = ColorRange.MPEG, _matrix(frame)
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode(None))


def prepared_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of a prepared frame: even, never larger, the ratio kept to a pixel."""
    shorter = min(height, width)
    scale = min(Fraction(1), Fraction(short_side, shorter))
    sides = (min(2 * round(side * scale / 2), side - side % 2) for side in (height, width))
    scaled_height, scaled_width = (max(2, side) for side in sides)
    return scaled_height, scaled_width


def _matrix(frame: av.VideoFrame) -> int:
    """Tag of the prepared frame's luma and chroma, which are the source's unless it has none."""
    return int(Colorspace.ITU601) if frame.colorspace == RGB_MATRIX else int(frame.colorspace)


def _range(frame: av.VideoFrame) -> int:
    full = frame.format.name.startswith("yuvj") or frame.format.is_rgb
    if full or frame.color_range == ColorRange.JPEG:
        return int(ColorRange.JPEG)
    return int(ColorRange.MPEG)


def _turned(planes: np.ndarray, quarters: int) -> np.ndarray:
    """A yuv420p picture, (3 H / 2, W) uint8, turned counter-clockwise."""
    if quarters == 0:
        return planes
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    luma = np.rot90(planes[:height], quarters)
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    turned = np.rot90(chroma, quarters, axes=(1, 2))
    return np.concatenate([luma.ravel(), turned.ravel()]).reshape(-1, luma.shape[1])
