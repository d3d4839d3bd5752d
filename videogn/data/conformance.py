"""How a reader's frames differ from those of a plain full decode.

Shapes: F frames, H x W pixels, 3 colours (RGB).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import av
import numpy as np

from videogn.data.decode import VideoReader
from videogn.errors import DecodeError

TOLERANCE = 2.0
"""Mean difference in levels of 255 that rounding and the scaling of chroma make."""
REACH = 2
"""A frame is taken for another one if it is nearer to a frame at most so far off."""
STILL = 0.02
"""Levels by which a neighbour may be nearer, for pictures that hardly differ."""
NUM_JUMPS = 12
PIXELS = 128
"""Frames are compared at about so many pixels of their shorter side."""


class Verdict(NamedTuple):
    """What a reader made of a file.

    Attributes:
        true: frames of a plain full decode; None where that fails.
        claimed: frames the reader says there are; None where it refuses the file.
        wrong: how many frames are missing, too many, or not the frame of their number.
        error: why the reader refused the file, or failed to read it to its end.
    """

    true: int | None
    claimed: int | None
    wrong: int
    error: str | None

    @property
    def is_right(self) -> bool:
        """Whether the reader gives what a full decode gives, or refuses what that refuses."""
        if self.true is None:
            return self.claimed is None
        return self.wrong == 0 and self.error is None

    def __str__(self) -> str:
        if self.claimed is None:
            return "refused" if self.true is None else "refused, though sound"
        if self.true is None:
            return "not refused"
        says = "" if self.claimed == self.true else f", says {self.claimed}"
        return f"{self.wrong}{says}{'' if self.error is None else ', errors'}"


def plain_decode(path: str) -> np.ndarray | None:
    """All frames of the stream ffmpeg calls best, by the shortest PyAV program there is.

    Returns:
        (F, H, W, 3) uint8, upright and thinned out to about :data:`PIXELS`; None where it fails.
    """
    images: list[np.ndarray] = []
    size: dict[str, int] = {}
    frame: Any
    try:
        with av.open(path) as container:
            stream: Any = container.streams.best("video")
            for frame in container.decode(stream):
                size = size or {"width": frame.width, "height": frame.height}
                image = frame.to_ndarray(format="rgb24", **size)
                images.append(thinned(np.rot90(image, round(frame.rotation / 90))))
    except (av.error.FFmpegError, LookupError, ValueError, TypeError, AttributeError):
        return None
    return np.stack(images) if images else None


def judge(
    open_video: Callable[[str], VideoReader],
    path: str,
    truth: np.ndarray | None,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Read a file whole, then by jumps, and compare with :func:`plain_decode`.

    Args:
        truth: what :func:`plain_decode` gives.
        tolerance: mean difference, in levels of 255, up to which a frame is right.
    """
    true = None if truth is None else len(truth)
    try:
        video = open_video(path)
    except DecodeError as error:
        return Verdict(true, None, true or 0, error.reason)
    total = max(video.num_frames, true or 0)
    seen: set[int] = set()
    wrong: set[int] = set()
    reason = None
    for wanted in (range(video.num_frames), *jumps(video.num_frames)):
        # A fresh iterator each: what one reading leaves behind must not change the next.
        try:
            for place, image in zip(wanted, video.images(wanted), strict=True):
                seen.add(place)
                if truth is None or not is_frame(image, truth, place, tolerance):
                    wrong.add(place)
        except DecodeError as error:
            reason = reason or error.reason
    return Verdict(true, video.num_frames, len(wrong | (set(range(total)) - seen)), reason)


def jumps(num_frames: int) -> list[list[int]]:
    """Readings that seek to and fro: single frames, and clips of stride 2; the same each time."""
    rng = np.random.default_rng(num_frames)
    singles = [[int(place)] for place in rng.permutation(num_frames)[:NUM_JUMPS]]
    starts = rng.integers(num_frames, size=NUM_JUMPS // 3)
    return [*singles, *(list(range(start, min(start + 16, num_frames), 2)) for start in starts)]


def is_frame(image: np.ndarray, truth: np.ndarray, place: int, tolerance: float) -> bool:
    """Whether an image shows frame ``place``, and not rather one near it."""
    image = thinned(image)
    if place >= len(truth) or image.shape != truth.shape[1:]:
        return False
    if np.array_equal(image, truth[place]):
        return True  # none can be nearer
    near = truth[max(0, place - REACH) : place + REACH + 1].astype(np.int16)
    distances = np.abs(near - image).mean(axis=(1, 2, 3))
    own = distances[min(place, REACH)]
    # Where nothing moves, neighbours are as near as two scalers' chroma lets them be.
    return bool(own <= tolerance and own <= distances.min() + STILL)


def thinned(image: np.ndarray) -> np.ndarray:
    """Every n-th row and column, (H, W, 3)."""
    step = max(1, min(image.shape[:2]) // PIXELS)
    return image[::step, ::step]
