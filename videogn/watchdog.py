"""Ends a rank that makes no progress, with one line that says where and because of whom.

A collective operation whose partner is gone waits for many minutes and then blames the network.
Here each rank tells the job's store every few seconds what it is doing, so that the first whose
patience ends can name the ranks that are behind. Nothing here is a collective operation.
"""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Literal

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from videogn.distributed import World, connect, first_rank_holds_store, mark_first_failure
from videogn.errors import RunError

Stage = Literal["reading", "step", "validation", "saving", "scoring"]

WATCH_SECONDS = 600.0
"""Less than ``distributed.COLLECTIVE_SECONDS``, so that this message comes first."""
BEAT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
NAMED_RANKS = 8

DOING = {
    "starting": "starting",
    "reading": "reading",
    "step": "in the step",
    "validation": "in the validation",
    "saving": "saving",
    "scoring": "scoring",
}
"""Stage -> words, in the order of an iteration."""
REMEDIES = {
    "starting": "see whether the machine still answers",
    "reading": "see whether the file system of the videos answers, and the data workers run",
    "step": "see whether the GPU and the network between the machines work",
    "validation": "see whether the videos' file system, the GPU and the network work",
    "saving": "see whether the file system of out= answers",
    "scoring": "see whether the videos' file system, the GPU and the network work",
}


@dataclass(frozen=True)
class Beat:
    """What a rank last told of itself.

    Attributes:
        number: counts up.
        wall_time: seconds since the epoch, by the rank's own clock.
    """

    rank: int
    host: str
    stage: str
    iteration: int
    number: int
    wall_time: float

    @property
    def progress(self) -> tuple[int, int]:
        """Sorts ranks by how far they are."""
        return self.iteration, list(DOING).index(self.stage)

    @property
    def name(self) -> str:
        """Rank and host."""
        return f"rank {self.rank} on {self.host}"


class Watchdog:
    """Ends the process with code 1 when :meth:`stage` has not been called for some time.

    A process that was itself halted, by SIGSTOP or ``scontrol suspend``, is not charged for it
    when it goes on. In a single process there are no other ranks to speak of.

    Args:
        timeout_seconds: without a call of :meth:`stage`; more than the longest step and the
            longest save take. ``math.inf`` watches nothing.
    """

    def __init__(self, world: World, timeout_seconds: float = WATCH_SECONDS) -> None:
        self._rank, self._size = world.rank, world.size
        self._timeout = timeout_seconds
        self._beat_seconds = min(BEAT_SECONDS, timeout_seconds / 4)
        self._stage: tuple[str, int] = ("starting", 0)
        self._left = threading.Event()
        self._giving_up = threading.Event()
        self._guard = threading.Thread(target=self._guard_progress, daemon=True)

    def stage(self, name: Stage, iteration: int) -> None:
        """Tell that the main thread begins a stage, or the next part of one.

        Args:
            iteration: of training; videos scored, in a test.
        """
        # A new tuple each time: the guard looks whether it is the same object.
        self._stage = (name, iteration)

    def __enter__(self) -> "Watchdog":
        if math.isinf(self._timeout):
            return self
        if self._size > 1:
            threading.Thread(target=self._tell, daemon=True).start()
        self._guard.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        if self._giving_up.is_set():
            # What the main thread met meanwhile follows from the standstill; the guard says so
            # and ends the process.
            self._guard.join()

    def _guard_progress(self) -> None:
        poll = min(1.0, self._timeout / 10)
        seen, idle, before = self._stage, 0.0, time.monotonic()
        while not self._left.wait(poll):
            # A halted process finds a long gap; only what it was awake for counts.
            now = time.monotonic()
            gap, before = min(now - before, 5 * poll), now
            stage = self._stage
            idle = idle + gap if stage is seen else 0.0
            seen = stage
            if idle >= self._timeout:
                self._giving_up.set()
                self._give_up(idle)

    def _give_up(self, idle: float) -> None:
        own = self._own_beat(0)
        if self._size == 1:
            message: str | None = standstill(own, [own], [], idle)
        else:
            message = self._message_of_job(own, idle)
        if message:
            with suppress(OSError):
                os.write(2, f"videogn: error: {message}\n".encode())
        # The main thread hangs, perhaps for ever, and no exception would reach it.
        os._exit(1)

    def _message_of_job(self, own: Beat, idle: float) -> str | None:
        """What this rank has to say; None where another rank says it."""
        answers: list[str | None] = []

        def ask() -> None:
            with suppress(RuntimeError, RunError):
                answers.append(self._ask(own, idle))

        # In a thread, for a store in a halted process may keep us waiting for ever.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(2 * self._beat_seconds + 2 * ANSWER_SECONDS)
        if answers:
            return answers[0]
        if not first_rank_holds_store():
            return f"{standstill(own, [own], [], idle)}; the job's launcher does not answer"
        if self._rank > 1:
            return None
        return (
            f"{opening(own, idle)}; rank 0 has stopped: it does not answer; see whether its "
            "machine and process still run, then start the same command again"
        )

    def _ask(self, own: Beat, idle: float) -> str | None:
        store = connect(ANSWER_SECONDS)
        mark_first_failure(store, self._rank)
        if store.compare_set("watch claim", "", str(self._rank)) != str(self._rank).encode():
            # The rank that was first speaks; were this one to end before, it would be stopped.
            with suppress(RuntimeError):
                store.wait(
                    ["watch said"], timedelta(seconds=2 * self._beat_seconds + ANSWER_SECONDS)
                )
            return None
        before = self._beats(store)
        time.sleep(2 * self._beat_seconds)
        after = self._beats(store)
        # Whoever still tells has told another number meanwhile.
        silent = [beat for beat in after if beat in before and beat.rank != self._rank]
        message = standstill(own, after, silent, idle)
        missing = self._size - len(after)
        if missing:
            message += f"; {missing} of {self._size} ranks have not begun"
        store.set("watch said", "")
        return message

    def _beats(self, store: PrefixStore) -> list[Beat]:
        names = [f"watch {rank}" for rank in range(self._size)]
        return [Beat(**json.loads(store.get(name))) for name in names if store.check([name])]

    def _tell(self) -> None:
        number = 0
        # Without a store nobody can be told; whether this rank goes on is not decided here.
        with suppress(RuntimeError, RunError):
            store = connect(ANSWER_SECONDS)
            while not self._left.is_set() or self._giving_up.is_set():
                number += 1
                store.set(f"watch {self._rank}", json.dumps(asdict(self._own_beat(number))))
                time.sleep(self._beat_seconds)

    def _own_beat(self, number: int) -> Beat:
        stage, iteration = self._stage
        return Beat(self._rank, socket.gethostname(), stage, iteration, number, time.time())


def opening(own: Beat, idle: float) -> str:
    """Who speaks, and where it stands."""
    return f"[{own.name}] no progress for {idle:.0f} s {_when(own, 'in ')} while {DOING[own.stage]}"


def standstill(own: Beat, beats: Sequence[Beat], silent: Sequence[Beat], idle: float) -> str:
    """What is to be said of a job that stands still.

    Args:
        own: of the rank that speaks.
        beats: of every rank that has begun.
        silent: those of them whose rank tells nothing any more.
        idle: seconds without progress of the speaker.
    """
    if silent:
        named = _list(silent, lambda beat: f" ({_place(beat)})")
        ago = max(0.0, own.wall_time - min(beat.wall_time for beat in silent))
        have = "has" if len(silent) == 1 else "have"
        return (
            f"{opening(own, idle)}; {named} {have} stopped: last heard of {ago:.0f} s ago; see "
            "whether machine and process still run, then start the same command again"
        )
    behind = min(beat.progress for beat in beats)
    late = [beat for beat in beats if beat.progress == behind]
    remedy = f"{REMEDIES[late[0].stage]}, then start the same command again"
    if len(late) == len(beats) or [beat.rank for beat in late] == [own.rank]:
        return f"{opening(own, idle)}; {remedy}"
    named = _list(late, lambda beat: "")
    return f"{opening(own, idle)}; behind: {named} ({_place(late[0])}); {remedy}"


def _place(beat: Beat) -> str:
    return f"{_when(beat)}, {DOING[beat.stage]}"


def _when(beat: Beat, preposition: str = "") -> str:
    if beat.stage == "scoring":
        return f"after {beat.iteration:,} videos"
    return f"{preposition}iteration {beat.iteration:,}"


def _list(beats: Sequence[Beat], more: Callable[[Beat], str]) -> str:
    named = "; ".join(f"{beat.name}{more(beat)}" for beat in beats[:NAMED_RANKS])
    return f"{named} and {len(beats) - NAMED_RANKS} more" if len(beats) > NAMED_RANKS else named
