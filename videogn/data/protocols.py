"""Named test protocols: frames of a video's clips, scaled sizes of frames, and crops.

``paper`` and ``center`` are this package's own. The others do what the test code of the project
they are named after does, its roundings included, so that its published numbers can be measured
again; docs/testing.md has the formulas and what stays different.

Letters: a video of N frames; J clips of L frames at a stride; S = L * stride, the frames a clip
stands for. Everything here is arithmetic: no video is opened and nothing is drawn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch

from videogn.data.rgb import Box
from videogn.data.sampling import clip_span, uniform_clips
from videogn.data.transforms import center_box, scaled_size, square_boxes

RATE = 30
"""Frames per second that PySlowFast and pytorchvideo count a clip's span in."""
ROUNDED = 1e-3
"""Seconds that a duration may be wrong by: Matroska rounds both of its ends to half of that."""
FINEST = 10**6
"""Largest denominator of a time in seconds; no common container counts in finer ticks."""


@dataclass(frozen=True)
class Timeline:
    """What a protocol asks of a video.

    Attributes:
        num_frames: N.
        times: when each frame is shown, (N,) float64 seconds since the first, never falling. Only
            the protocols that have a rate of their own call it: some files tell no times.
    """

    num_frames: int
    times: Callable[[], np.ndarray]


Clips = Callable[[Timeline, int, int, int], np.ndarray]
"""Of a video, L, the stride and J: the frames of every clip, (J, L) int64 in [0, N)."""
Places = Callable[[int, int], tuple[int, ...]]
"""Of the pixels a frame's longer side is longer, and the number of crops: where each begins."""


@dataclass(frozen=True)
class Protocol:
    """How a project tests.

    Attributes:
        clips: which frames the clips take.
        size: (height, width, short side) -> height and width of the scaled frame.
        places: where square crops begin along the longer side, in the order they are scored.
        one_crop: what a single crop is: the whole frame, the square of ``clip.crop_size`` in its
            middle, or the square of the shorter side.
        num_clips, num_crops: of the project's published numbers.
        fps: the rate that the clips' span is counted in; None where frames are counted.
    """

    clips: Clips
    size: Callable[[int, int, int], tuple[int, int]]
    places: Places
    one_crop: Literal["frame", "crop_size", "square"] = "square"
    num_clips: int = 10
    num_crops: int = 3
    fps: float | None = None

    def boxes(self, height: int, width: int, *, num_crops: int, crop_size: int) -> tuple[Box, ...]:
        """The crops of a scaled frame, in the order they are scored."""
        if self.one_crop == "crop_size":
            return (center_box(height, width, crop_size),)
        if self.one_crop == "frame" and num_crops == 1:
            return (Box(0, 0, height, width),)
        return square_boxes(height, width, self.places(abs(height - width), num_crops))


def _uniform(video: Timeline, num_frames: int, frame_stride: int, num_clips: int) -> np.ndarray:
    """Evenly from the first frame to the last; see :func:`uniform_clips`."""
    return uniform_clips(video.num_frames, num_frames, frame_stride, num_clips)


def _nonlocal(video: Timeline, num_frames: int, frame_stride: int, num_clips: int) -> np.ndarray:
    """Clip j starts at floor(j N / J), and every clip wraps round to the beginning.

    The product is one of 32-bit floats there. It is the exact one for ten clips of up to 10,000
    frames, but of twenty clips of 84 frames, say, one starts a frame earlier.
    """
    step = np.float32(video.num_frames) / np.float32(num_clips)
    starts = (step * np.arange(num_clips, dtype=np.float32)).astype(np.int64)
    return _wrapped(starts % video.num_frames, video.num_frames, num_frames, frame_stride)


def _mmaction2(video: Timeline, num_frames: int, frame_stride: int, num_clips: int) -> np.ndarray:
    """``SampleFrames(test_mode=True)``: evenly from the first frame to the last, looping.

    Positions are 64-bit floats that numpy rounds, half to even; a single clip rounds down.
    """
    room = max(0, video.num_frames - clip_span(num_frames, frame_stride))
    if num_clips == 1:
        starts = np.array([room // 2], dtype=np.int64)
    else:
        starts = np.round(np.arange(num_clips) * (room / (num_clips - 1))).astype(np.int64)
    return _wrapped(starts, video.num_frames, num_frames, frame_stride)


def _slowfast(video: Timeline, num_frames: int, frame_stride: int, num_clips: int) -> np.ndarray:
    """Clip j starts at (N - s) j / J for a span of s = S fps / 30 frames, and ends s - 1 later.

    The L positions between lie evenly, and are rounded down; those behind the last frame show it.
    """
    last = video.num_frames - 1
    span = num_frames * frame_stride * _average_rate(video.times()) / RATE
    room = max(0.0, video.num_frames - span)
    starts = [room * clip / num_clips for clip in range(num_clips)]
    return np.stack(
        [_evenly(start, start + span - 1, num_frames).clip(0, last) for start in starts]
    )


def _released_pytorchvideo(
    video: Timeline, num_frames: int, frame_stride: int, num_clips: int
) -> np.ndarray:
    """pytorchvideo 0.1.5: clip j starts at j (D - c) / J seconds, so none ends with the video."""
    return _by_seconds(video, num_frames, frame_stride, num_clips, num_clips)


def _main_pytorchvideo(
    video: Timeline, num_frames: int, frame_stride: int, num_clips: int
) -> np.ndarray:
    """pytorchvideo's main branch: clip j starts at j (D - c) / (J - 1) seconds."""
    return _by_seconds(video, num_frames, frame_stride, num_clips, max(1, num_clips - 1))


def _by_seconds(
    video: Timeline, num_frames: int, frame_stride: int, num_clips: int, parts: int
) -> np.ndarray:
    """L frames evenly among those shown in [start, start + c), c = S / 30 s, rounded down.

    Starts are exact fractions there, but c is that of a 64-bit float, which decides whether a
    frame on a clip's very edge belongs to it. At 30 frames a second c = 64 / 30 is a trifle short:
    a clip of [0, c) has frames 0 to 63, but one of [118 / 30 + a trifle, …) begins with frame 119.
    """
    seconds = video.times()
    length = Fraction(num_frames * frame_stride / RATE)
    room = max(Fraction(0), _duration(seconds) - length)
    starts = [room * clip / parts for clip in range(num_clips)]
    firsts = _frames_before(seconds, starts)
    ends = _frames_before(seconds, [start + length for start in starts])
    return np.stack(
        [_spread(first, end, num_frames) for first, end in zip(firsts, ends, strict=True)]
    )


def _spread(first: int, end: int, num_frames: int) -> np.ndarray:
    """L of the frames first … end - 1, (L,) int64.

    Where there is none, as in a video of a frame every few seconds, it is the one still to be seen.
    """
    if first == end:
        return np.full(num_frames, max(0, first - 1), dtype=np.int64)
    return first + _evenly(0, end - first - 1, num_frames)


def _frames_before(seconds: np.ndarray, bounds: list[Fraction]) -> list[int]:
    """How many frames are shown before each of some times."""
    nearly = np.array([float(bound) for bound in bounds])
    surely = np.searchsorted(seconds, nearly - 1 / FINEST).tolist()
    perhaps = np.searchsorted(seconds, nearly + 1 / FINEST).tolist()
    # Only of times that floats cannot tell from the bound it has to be worked out.
    return [
        low + sum(_exact(time) < bound for time in seconds[low:high])
        for low, high, bound in zip(surely, perhaps, bounds, strict=True)
    ]


def _exact(seconds: float) -> Fraction:
    """The time that a 64-bit float of it was rounded from."""
    return Fraction(float(seconds)).limit_denominator(FINEST)


def _duration(seconds: np.ndarray) -> Fraction:
    """Seconds until the last frame ends, which is shown as long as the others on average."""
    total = len(seconds)
    return _exact(seconds[-1]) * total / (total - 1) if total > 1 else Fraction(0)


def _average_rate(seconds: np.ndarray) -> float:
    """Frames per second on average, as headers have it, though times are rounded.

    Of a single frame it means nothing; ``RATE`` then.
    """
    passed = float(seconds[-1])
    if passed <= 0:
        return float(RATE)
    steps = len(seconds) - 1
    found = steps / passed
    usual = (float(round(found)), round(found * 1.001) / 1.001)
    nearest = min(usual, key=lambda rate: abs(steps / max(rate, 1e-9) - passed))
    return nearest if abs(steps / max(nearest, 1e-9) - passed) <= ROUNDED else found


def _evenly(start: float, end: float, num_frames: int) -> np.ndarray:
    """L positions from start to end, both included, in torch's 32-bit floats, rounded down."""
    return np.asarray(torch.linspace(start, end, num_frames).long().numpy())


def _wrapped(
    starts: np.ndarray, total_frames: int, num_frames: int, frame_stride: int
) -> np.ndarray:
    """Clips from their starts (J,), going on at the beginning behind the last frame."""
    steps = np.arange(num_frames, dtype=np.int64) * frame_stride
    return np.asarray((starts[:, None] + steps) % total_frames)


def _nonlocal_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The longer side is a product of 32-bit floats, cut off to an integer.

    The shorter would be as well, and in rare sizes a pixel short of the crop; it is exact here.
    """
    ratio = np.float32(short_side) / np.float32(min(height, width))
    longer = max(short_side, int(np.float32(max(height, width)) * ratio))
    return _upright(height, width, short_side, longer)


def _slowfast_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """As pytorchvideo's, but a frame of the right size stays as it is."""
    if min(height, width) == short_side:
        return height, width
    return _pytorchvideo_size(height, width, short_side)


def _pytorchvideo_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The longer side is the aspect times the shorter, in 64-bit floats, rounded down."""
    longer = math.floor(max(height, width) / min(height, width) * short_side)
    return _upright(height, width, short_side, longer)


def _mmaction2_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The longer side is rounded to the nearest integer, in 64-bit floats."""
    longer = int(max(height, width) * (short_side / min(height, width)) + 0.5)
    return _upright(height, width, short_side, longer)


def _upright(height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
    return (longer, shorter) if height > width else (shorter, longer)


def _paper_places(room: int, num_crops: int) -> tuple[int, ...]:
    del num_crops  # one crop is the whole frame
    return 0, room // 2, room


def _nonlocal_places(room: int, num_crops: int) -> tuple[int, ...]:
    """Whole multiples of half the room: an odd one leaves the last pixels out."""
    half = room // 2
    return (half,) if num_crops == 1 else (0, half, 2 * half)


def _mmaction2_places(room: int, num_crops: int) -> tuple[int, ...]:
    """As in the non-local code, but the middle comes last."""
    half = room // 2
    return (half,) if num_crops == 1 else (0, 2 * half, half)


def _slowfast_places(room: int, num_crops: int) -> tuple[int, ...]:
    half = math.ceil(room / 2)
    return (half,) if num_crops == 1 else (0, half, room)


def _pytorchvideo_places(room: int, num_crops: int) -> tuple[int, ...]:
    """Three as in PySlowFast; one is torchvision's centre crop, half rounded to even."""
    return (round(room / 2),) if num_crops == 1 else _slowfast_places(room, num_crops)


PROTOCOLS = {
    "paper": Protocol(_uniform, scaled_size, _paper_places, one_crop="frame", num_crops=1),
    "center": Protocol(_uniform, scaled_size, _paper_places, one_crop="crop_size", num_crops=1),
    "nonlocal": Protocol(_nonlocal, _nonlocal_size, _nonlocal_places),
    "slowfast": Protocol(_slowfast, _slowfast_size, _slowfast_places, fps=RATE),
    "mmaction2": Protocol(_mmaction2, _mmaction2_size, _mmaction2_places),
    "pytorchvideo": Protocol(
        _released_pytorchvideo, _pytorchvideo_size, _pytorchvideo_places, fps=RATE
    ),
    "pytorchvideo_main": Protocol(
        _main_pytorchvideo, _pytorchvideo_size, _pytorchvideo_places, fps=RATE
    ),
}
"""The values of ``test.protocol``."""
