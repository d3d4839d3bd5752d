"""Work on many videos, in processes that a bad file can take down alone."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import islice
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from videogn.data.loader import prepare_worker, worker_context
from videogn.errors import DecodeError

T = TypeVar("T")

AHEAD = 4
"""Videos that wait for each process."""


def each_in_process(
    work: Callable[[str], T],
    paths: Iterable[str],
    *,
    given_up: Callable[[DecodeError], T],
    done: str,
    num_workers: int,
    timeout: float,
) -> Iterator[T]:
    """What ``work`` gives for each path, in no particular order.

    Args:
        given_up: the result for a path whose process was killed, ended or ran out of memory.
        done: what the work is called, for that error: "indexed".
        timeout: seconds after which a video is given up and its process killed.
    """
    with ProcessPool(
        max_workers=num_workers,
        context=worker_context(),
        initializer=prepare_worker,
        initargs=[0],
    ) as pool:
        try:
            yield from _windowed(pool, work, paths, given_up, done, AHEAD * num_workers, timeout)
        except BaseException:
            # Leaving the pool would wait for the whole window otherwise.
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def _windowed(
    pool: ProcessPool,
    work: Callable[[str], T],
    paths: Iterable[str],
    given_up: Callable[[DecodeError], T],
    done: str,
    window: int,
    timeout: float,
) -> Iterator[T]:
    # A window of videos, for a list may have hundreds of thousands.
    remaining = iter(paths)
    waiting: dict[Future[T], str] = {}
    while True:
        for path in islice(remaining, window - len(waiting)):
            waiting[pool.schedule(work, args=[path], timeout=timeout)] = path
        if not waiting:
            return
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            result = _outcome(waiting.pop(future), future, done, timeout)
            yield given_up(result) if isinstance(result, DecodeError) else result


def _outcome(path: str, future: Future[T], done: str, timeout: float) -> T | DecodeError:
    try:
        return future.result()
    except FutureTimeout:
        return DecodeError(path, f"not {done} within {timeout:g} seconds")
    except ProcessExpired as error:
        return DecodeError(path, f"the decoder's process ended with exit code {error.exitcode}")
    except MemoryError:
        return DecodeError(path, "needs more memory than a worker may use", "huge")
