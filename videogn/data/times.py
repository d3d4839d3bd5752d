"""When the frames of a video are shown.

Shapes: F frames in the order they are shown. A tick is the unit in which a stream counts time.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class FrameTimes(NamedTuple):
    """The times of a video's frames.

    Attributes:
        ticks: (F,) int64, never falling; none where the file tells neither times nor a rate.
        tick: seconds of one.
    """

    ticks: np.ndarray
    tick: Fraction

    def seconds(self) -> np.ndarray:
        """(F,) float64, seconds since the first frame."""
        passed: np.ndarray = self.ticks - self.ticks[:1]
        seconds: np.ndarray = passed * self.tick.numerator / self.tick.denominator
        return seconds


def frame_times(
    stamps: Sequence[int | None], tick: Fraction | None, rate: Fraction | None
) -> FrameTimes:
    """The times that frames are stamped with, or a constant rate where those are no use.

    Stamps are of no use where one is missing, they fall, or are all the same: AVI has none, and
    what is made up for packed B-frames falls.

    Args:
        stamps: ticks of each frame, in the order they are shown.
        tick: seconds of one.
        rate: frames per second that the headers claim.
    """
    known = [stamp for stamp in stamps if stamp is not None]
    ticks = np.array(known, dtype=np.int64)
    rises = len(known) == len(stamps) and bool((np.diff(ticks) >= 0).all())
    if tick and rises and (len(ticks) == 1 or ticks[0] < ticks[-1]):
        return FrameTimes(ticks, Fraction(tick))
    if not rate:
        return FrameTimes(np.zeros(0, dtype=np.int64), Fraction(1))
    return FrameTimes(np.arange(len(stamps), dtype=np.int64), 1 / Fraction(rate))
