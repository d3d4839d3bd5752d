"""Work on many files, in processes that a bad file can take down alone."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from pebble import ProcessExpired, ProcessPool

from videogn.data.crew import prepare_worker, worker_context
from videogn.errors import DecodeError

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 4
"""Tasks that wait for each process."""
SAVE_SECONDS = 5.0
"""Results are saved at least this often."""


class Pool(NamedTuple):
    """How tasks are run.

    Attributes:
        num_workers: processes.
        timeout: seconds after which a task is given up and its process killed.
    """

    num_workers: int
    timeout: float


class Lost(NamedTuple):
    """What stands for the result of a task that has none: its file cannot be decoded, or its
    process ended first. Then another machine, or a quieter one, may do better.

    Attributes:
        reason: why.
        code: the kind of fault, as :class:`videogn.errors.DecodeError` has it.
    """

    reason: str
    code: str = "unreadable"


def run_all(
    function: Callable[[Task], Result], tasks: Iterable[Task], pool: Pool, *, done: str = "done"
) -> Iterator[tuple[Task, Result | Lost]]:
    """Call ``function`` with every task, in processes.

    Args:
        done: what a timeout's error says was not done in time: "indexed".

    Yields:
        Tasks with their results, in no particular order.
    """
    num_workers, timeout = pool
    with ProcessPool(
        max_workers=num_workers, context=worker_context(), initializer=_prepare
    ) as workers:
        try:
            # A window of tasks, for a list may have hundreds of thousands.
            remaining = iter(tasks)
            waiting: dict[Future[Result], Task] = {}
            while True:
                for task in islice(remaining, AHEAD * num_workers - len(waiting)):
                    waiting[workers.schedule(function, args=[task], timeout=timeout)] = task
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    task = waiting.pop(future)
                    result = _result(future, done, timeout)
                    yield task, result
        except BaseException:
            # Leaving the pool would wait for the whole window otherwise.
            workers.stop()  # type: ignore[no-untyped-call]
            raise


def known_or_run(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    pool: Pool,
    find: Callable[[Task], Result | None],
    save: Callable[[list[Result]], None],
    stand_in: Callable[[Task, Lost], Result],
    *,
    done: str = "done",
) -> Iterator[Result]:
    """Give the results that are known, then those of :func:`run_all` for the other tasks.

    Args:
        find: the known result of a task.
        save: called with new results every few seconds and at the end.
        stand_in: the result of a lost task.
    """
    missing = []
    for task in tasks:
        known = find(task)
        if known is None:
            missing.append(task)
        else:
            yield known
    fresh: list[Result] = []
    saved = time.monotonic()
    try:
        for task, outcome in run_all(function, missing, pool, done=done):
            fresh.append(stand_in(task, outcome) if isinstance(outcome, Lost) else outcome)
            yield fresh[-1]
            if time.monotonic() - saved > SAVE_SECONDS:
                save(fresh)
                fresh, saved = [], time.monotonic()
    finally:
        save(fresh)


def _prepare() -> None:
    prepare_worker(0)
    # As in the loader's workers, so that times measured here are theirs.
    torch.set_num_threads(1)


def _result(future: Future[Result], done: str, timeout: float) -> Result | Lost:
    try:
        return future.result()
    except DecodeError as error:
        return Lost(error.reason, error.code)
    except FutureTimeout:
        return Lost(f"not {done} within {timeout:g} seconds")
    except ProcessExpired as error:
        return Lost(f"the decoder's process ended with exit code {error.exitcode}")
    except MemoryError:
        return Lost("needs more memory than a worker may use", "huge")
