"""Processes that read batches; one that dies or hangs is replaced, and the video it read is named.

Every worker has a pipe of its own and shares no lock with anybody: whatever a process holds when it
is killed, nobody waits for it.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import cv2
import torch

from videogn.data.limits import limit_memory
from videogn.data.watched import DIED, LATE, Loss, Notes, Reading, WatchedRecords
from videogn.errors import RunError

logger = logging.getLogger("videogn")

MAX_LOSSES, SPAN = 5, 1000
"""Reading ends when so many workers were lost within so many batches: that is no single file."""
IDLE_SECONDS = 300.0
"""A worker that has a batch to read and neither reads nor answers for so long is lost: one that
does not come up, for example."""
POLL_SECONDS = 1.0
"""How often hanging workers are looked for while nothing arrives."""
STOPPED_SECONDS = 10.0
"""If a look is late by so much, this process was stopped, and its workers perhaps with it."""
SENT_TO_ALL = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
EXIT_SECONDS = 5.0
"""How long the end of a killed process is waited for; one that waits for a disk may not end."""


class Losses:
    """The workers lost of late."""

    def __init__(self) -> None:
        self.num_batches = 0
        self._recent: deque[tuple[int, str]] = deque(maxlen=MAX_LOSSES)

    def add(self, line: str) -> None:
        """Count one more.

        Raises:
            RunError: that makes too many.
        """
        self._recent.append((self.num_batches, line))
        if len(self._recent) < MAX_LOSSES or self.num_batches - self._recent[0][0] > SPAN:
            return
        lines = "".join(f"\n  - {line}" for _, line in self._recent)
        raise RunError(
            f"{MAX_LOSSES} data workers were lost within {SPAN:,} batches; take the videos off the "
            "list if they are to blame; if memory is short, set data.num_workers or data.prefetch "
            f"lower; if storage is slow, set data.read_timeout higher:{lines}"
        )


class Fault(NamedTuple):
    """What a worker sends in place of a result when its function fails."""

    traceback: str


class _Worker:
    """A process and the pipe to it.

    Attributes:
        tasks: given to it and not answered yet, by their number.
        heard: when it was last heard of, in seconds of the monotonic clock.
    """

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe
        self.tasks: dict[int, Any] = {}
        self.heard = time.monotonic()

    def give(self, number: int, task: Any) -> None:
        if not self.tasks:
            self.heard = time.monotonic()
        self.tasks[number] = task
        # A dead one is noticed when its answer is waited for.
        with contextlib.suppress(OSError):
            self.pipe.send((number, task))

    def end(self) -> None:
        self.process.kill()
        self.pipe.close()


class Crew:
    """Processes that answer numbered tasks.

    Args:
        function: called with a task and its number in a worker.
        videos: what it reads; a video that ends a worker is not read again.
        processes: how many workers.
        timeout: seconds after which the reading of a video is given up.
        losses: where lost workers are counted.
    """

    def __init__(
        self,
        function: Callable[[int, Any], Any],
        videos: WatchedRecords,
        processes: int,
        timeout: float,
        losses: Losses,
    ) -> None:
        self._function = function
        self._videos = videos
        self._timeout = timeout
        self._losses = losses
        self._notes = Notes(processes)
        self._workers: list[_Worker] = []
        self.end = weakref.finalize(self, _end_all, self._workers, os.getpid())
        """Kills the workers; whoever drops a crew kills them too."""
        for row in range(processes):
            self._workers.append(self._started(row))

    def in_order(self, tasks: Iterable[Any], ahead: int) -> Iterator[Any]:
        """Answers in the order of their tasks, of which ``ahead`` are given before they are due.

        Raises:
            RunError: too many workers were lost.
            RuntimeError: the function failed; the message has its traceback.
        """
        numbered = enumerate(tasks)
        answers: dict[int, Any] = {}
        given = self._give(numbered, ahead)
        due = 0
        while due < given:
            while due not in answers:
                number, answer = self._next_answer()
                answers[number] = answer
            given += self._give(numbered, 1)
            answer = answers.pop(due)
            if isinstance(answer, Fault):
                raise RuntimeError(f"a data worker failed:\n{answer.traceback}")
            self._losses.num_batches += 1
            due += 1
            yield answer

    def _give(self, numbered: Iterator[tuple[int, Any]], count: int) -> int:
        """Hand out up to ``count`` tasks; how many there were."""
        for done in range(count):
            task = next(numbered, None)
            if task is None:
                return done
            min(self._workers, key=lambda worker: len(worker.tasks)).give(*task)
        return count

    def _next_answer(self) -> tuple[int, Any]:
        poll = min(POLL_SECONDS, self._timeout / 2)
        while True:
            started = time.monotonic()
            ready = connection.wait([worker.pipe for worker in self._workers], poll)
            for row, worker in enumerate(self._workers):
                if worker.pipe not in ready:
                    continue
                try:
                    number, answer = worker.pipe.recv()
                except (EOFError, OSError):
                    self._replace(row, self._notes.reading(row), self._death(worker))
                    continue
                worker.heard = time.monotonic()
                del worker.tasks[number]
                return number, answer
            # What has arrived is taken before anybody is judged.
            if not ready and time.monotonic() - started < poll + STOPPED_SECONDS:
                self._replace_hanging()

    def _death(self, worker: _Worker) -> Loss:
        worker.process.join(EXIT_SECONDS)
        code = worker.process.exitcode
        # One that let its pipe go and stays is killed.
        return Loss(DIED, -signal.SIGKILL if code is None else code)

    def _replace_hanging(self) -> None:
        now = time.monotonic()
        for row, worker in enumerate(self._workers):
            reading = self._notes.reading(row)
            if reading is not None:
                limit, since = self._timeout, reading.since
            else:
                limit = max(self._timeout, IDLE_SECONDS)
                since = max(worker.heard, self._notes.changed(row))
            if worker.tasks and now - since > limit:
                self._replace(row, reading, Loss(LATE, limit))

    def _replace(self, row: int, reading: Reading | None, loss: Loss) -> None:
        """Put a new worker in the place of a lost one and give it the same tasks.

        Raises:
            RunError: too many were lost.
        """
        worker = self._workers[row]
        worker.end()
        worker.process.join(EXIT_SECONDS)
        if reading is None:
            line = f"a data worker ended while it read no video ({loss.end})"
            logger.warning("%s; another takes its place", line)
        else:
            self._videos.quarantine(reading.place, loss)
            line = f"{self._videos[reading.place].path}: {loss.reason}"
        self._losses.add(line)
        self._notes.end(row)
        self._workers[row] = self._started(row)
        for number, task in worker.tasks.items():
            self._workers[row].give(number, task)

    def _started(self, row: int) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        arguments = (self._function, self._videos, self._notes, row, theirs)
        process = worker_context().Process(target=_work, args=arguments, daemon=True)
        process.start()
        # Ours alone: when the worker dies, its end is closed.
        theirs.close()
        return _Worker(process, ours)


def _end_all(workers: list[_Worker], owner: int) -> None:
    # A forked child has the list too.
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.end()
    deadline = time.monotonic() + EXIT_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))


def _work(
    function: Callable[[int, Any], Any],
    videos: WatchedRecords,
    notes: Notes,
    row: int,
    pipe: Connection,
) -> None:
    """Answer tasks until the other end of the pipe is closed."""
    prepare_worker(row)
    torch.set_num_threads(1)
    # The function's list of videos is this one: both came in one message.
    videos.note_in(notes, row)
    try:
        while True:
            number, task = pipe.recv()
            pipe.send((number, _answer(function, number, task)))
    except (EOFError, OSError):
        return


def _answer(function: Callable[[int, Any], Any], number: int, task: Any) -> Any:
    try:
        return function(number, task)
    except Exception:
        return Fault(traceback.format_exc())


def worker_context() -> ForkServerContext:
    """How workers are started.

    A forked child of a process with CUDA, NCCL or gloo threads may hang; a spawned one imports
    torch for seconds. The fork server imports it once and has no such threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["videogn.data.dataset"])
    # Schedulers and terminals send their signals to all processes of a job. Whether it stops is
    # decided by the process that trains; the others must not end before it.
    # The tracker, which the server would start, lets SIGTERM through again once it runs.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_ALL)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def prepare_worker(worker_id: int) -> None:
    """Set up a decoding process: it ends with its parent, and its memory is limited.

    Ctrl-C is left to the parent.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # As torch's: the processes are the parallelism.
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_memory()


def _end_with_parent() -> None:
    # The fork server lives as long as its workers: if the training process were killed, both would
    # wait for each other for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
