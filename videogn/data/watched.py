"""What data workers are reading, and which videos they must not read: in memory that outlives them.

A worker that a video kills cannot say which one it was. So it notes what it reads before it does.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from videogn.data.list_checks import VideoRecord
from videogn.data.shared import SharedBytes, SharedRecords
from videogn.errors import DecodeError

DIED, LATE = 1, 2
"""Why a video is not read again: a worker died over it, or was killed because it took too long."""


class Loss(NamedTuple):
    """How the worker that read a video was lost.

    Attributes:
        how: :data:`DIED` or :data:`LATE`.
        number: the exit code of its process, which is minus the number of a signal that ended it;
            or the seconds it was given.
    """

    how: int
    number: float

    @property
    def reason(self) -> str:
        """What is said of the video."""
        if self.how == LATE:
            return f"was not read within {self.number:g} s"
        return f"killed the data worker that read it ({self.end})"

    @property
    def end(self) -> str:
        """What is said of the worker."""
        if self.how == LATE:
            return f"no sign of life for {self.number:g} s"
        code = int(self.number)
        if code >= 0:
            return f"exit code {code}"
        known = {int(one): one.name for one in signal.Signals}
        return known.get(-code, f"signal {-code}")


class Reading(NamedTuple):
    """A video that a worker is reading.

    Attributes:
        place: where it stands in the list.
        since: when that began, in seconds of the monotonic clock, which all processes share.
    """

    place: int
    since: float


class Notes:
    """What each of so many workers is reading."""

    def __init__(self, workers: int) -> None:
        self._bytes = SharedBytes(16 * workers)

    def begin(self, worker: int, place: int) -> None:
        """Note that a worker reads a video from now on."""
        self._note(worker, place + 1)

    def end(self, worker: int) -> None:
        """Note that it reads none."""
        self._note(worker, 0)

    def reading(self, worker: int) -> Reading | None:
        """What it reads; None between two videos."""
        number, since = self._row(worker).tolist()
        return Reading(number - 1, since / 1e9) if number else None

    def changed(self, worker: int) -> float:
        """When it last noted anything, in seconds of the monotonic clock; 0 for never."""
        return int(self._row(worker)[1]) / 1e9

    def _note(self, worker: int, number: int) -> None:
        row = self._row(worker)
        # The time first: whoever sees a video must not see the time of the one before.
        row[1] = time.monotonic_ns()
        row[0] = number

    def _row(self, worker: int) -> np.ndarray:
        # Not kept: an array does not stay shared when it is sent to a worker.
        return self._bytes.array.view(np.int64)[2 * worker : 2 * worker + 2]


class WatchedRecords(Sequence[VideoRecord]):
    """A list of videos that all processes share, and what is known of them while they are read."""

    def __init__(self, records: Sequence[VideoRecord]) -> None:
        self._records = SharedRecords(records)
        self._losses = SharedBytes(16 * len(self._records))
        self._desk: tuple[Notes, int] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> VideoRecord:  # type: ignore[override]
        return self._records[index]  # type: ignore[no-any-return]

    def note_in(self, notes: Notes, worker: int) -> None:
        """From now on this process notes what it reads, as that worker."""
        self._desk = notes, worker

    def quarantine(self, index: int, loss: Loss) -> None:
        """Let no process read a video again."""
        self._loss(index)[:] = loss

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """For as long as a video is read.

        Raises:
            DecodeError: a worker was lost over it before.
        """
        how, number = self._loss(index).tolist()
        if how:
            raise DecodeError(self._records[index].path, Loss(int(how), number).reason)
        if self._desk is None:
            yield
            return
        notes, worker = self._desk
        notes.begin(worker, index)
        try:
            yield
        finally:
            notes.end(worker)

    def _loss(self, index: int) -> np.ndarray:
        place = range(len(self))[index]
        return self._losses.array.view(np.float64)[2 * place : 2 * place + 2]
