"""What can be told of a video from its headers, and what it costs to read clips of it."""

import statistics
import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from videogn.data.clips import RandomClips
from videogn.data.images import is_image, read_header
from videogn.data.video_files import best_stream, errors_named, nominal_rate, opened

MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Probe:
    """Headers of one video, which are often wrong about small things.

    Attributes:
        codec: FFmpeg's name of the decoder; of an image, its format.
        width, height: pixels of a frame as it is stored.
        rate: frames per second; None where the file does not say.
        seconds: how long the video lasts; None where the file does not say.
    """

    codec: str
    width: int
    height: int
    rate: Fraction | None
    seconds: float | None


def probe(path: str) -> Probe:
    """Read the headers of a video's best stream; nothing is decoded on purpose.

    Raises:
        DecodeError: the file cannot be opened, or holds no video.
    """
    if is_image(path):
        header = read_header(path)
        return Probe(header.format, header.width, header.height, None, None)
    with errors_named(path, lambda: "in the headers"), opened(path) as container:
        stream = best_stream(path, container)
        context = stream.codec_context
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / MICROSECONDS
        else:
            seconds = None
        rate = nominal_rate(stream)
        return Probe(context.codec.name, context.width, context.height, rate, seconds)


def clip_seconds(clips: RandomClips, path: str, num_clips: int) -> float:
    """Median CPU seconds that reading one training clip of a video takes.

    Raises:
        DecodeError: the video cannot be read.
    """
    seconds = []
    for number in range(num_clips):
        started = time.process_time()
        clips.read(path, np.random.default_rng(number))
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)
