"""Which frames make a clip: index arithmetic only, without a video.

A clip of L frames at a stride spans S = (L - 1) * stride + 1 frames of its video::

    L = 4, stride 2, start 1      . x . x . x . x . .      S = 7, N = 10

A video of N < S frames loops.

Brought to another frame rate, a video is the frames shown at 0, 1/f, 2/f … seconds, of which clips
are made in the same way.
"""

from fractions import Fraction

import numpy as np

SLACK = 1e-3
"""Seconds before its time from which a frame counts as shown: Matroska rounds times to that."""


def num_resampled(seconds: np.ndarray, fps: float) -> int:
    """Frames of a video at another rate: N = max(1, round(D fps)) for a duration D.

    The last frame is shown as long as the others on average: D = t F / (F - 1) for its time t.

    Args:
        seconds: (F,) float64, when each frame is shown, from 0 on and never falling.
        fps: frames per second.
    """
    total = len(seconds)
    duration = float(seconds[-1]) * total / (total - 1) if total > 1 else 0.0
    return max(1, round(duration * fps))


def resampled(seconds: np.ndarray, fps: float, numbers: np.ndarray) -> np.ndarray:
    """The frames that stand for those at another rate: k is the one shown at k / fps seconds.

    Args:
        seconds, fps: as in :func:`num_resampled`.
        numbers: int64 of any shape, in [0, N).

    Returns:
        int64 of the same shape, in [0, F).
    """
    shown = np.searchsorted(seconds, numbers / fps + SLACK, side="right")
    return shown.astype(np.int64) - 1


def clip_span(num_frames: int, frame_stride: int) -> int:
    """Frames of the video from the first to the last of a clip, both included."""
    return (num_frames - 1) * frame_stride + 1


def random_clip(
    total_frames: int, num_frames: int, frame_stride: int, rng: np.random.Generator
) -> np.ndarray:
    """Frames of a training clip, its start uniform over all that fit (non-local paper, 4.1).

    Returns:
        (T,) int64 in [0, total_frames).
    """
    room = max(0, total_frames - clip_span(num_frames, frame_stride))
    start = int(rng.integers(room + 1))
    return _clip_from(start, total_frames, num_frames, frame_stride)


def uniform_clips(
    total_frames: int, num_frames: int, frame_stride: int, num_clips: int
) -> np.ndarray:
    """Frames of evenly spaced test clips: clip j of J starts at round(j (N - S) / (J - 1)).

    The first clip begins with the video and the last ends with it; a single clip lies in the
    middle (paper section 4.3: 10 regularly sampled clips).

    Returns:
        (J, T) int64 in [0, total_frames).
    """
    room = max(0, total_frames - clip_span(num_frames, frame_stride))
    if num_clips == 1:
        starts = [round(Fraction(room, 2))]
    else:
        starts = [round(Fraction(j * room, num_clips - 1)) for j in range(num_clips)]
    return np.stack([_clip_from(start, total_frames, num_frames, frame_stride) for start in starts])


def _clip_from(start: int, total_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    if total_frames < 1:
        raise ValueError(f"a video of {total_frames} frames has no clips")
    indices = start + np.arange(num_frames, dtype=np.int64) * frame_stride
    return np.asarray(indices % total_frames)
