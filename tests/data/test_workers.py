import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.data import workers
from videogn.data.workers import MAX_PREFETCH, MIN_PREFETCH, Workers, choose_workers


def choose(processes="auto", prefetch="auto", times=(1.0,), **changes) -> Workers:
    options = {
        "sharing": 1,
        "computes_here": False,
        "batch_size": 8,
        "batch_bytes": 10**6,
        "seconds": lambda: list(times),
    }
    return choose_workers(processes, prefetch, **{**options, **changes})


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 16)


@pytest.mark.parametrize(
    ("sharing", "computes_here", "expected"),
    [(1, False, 15), (8, False, 1), (2, False, 7), (1, True, 8), (4, True, 2), (64, True, 1)],
)
def test_cores_are_shared_out(sharing: int, computes_here: bool, expected: int) -> None:
    assert choose(sharing=sharing, computes_here=computes_here).processes == expected


def test_what_is_set_is_taken_and_nothing_is_probed() -> None:
    def never() -> list[float]:
        raise AssertionError("probed")

    assert choose(3, 5, seconds=never) == Workers(3, 5)
    assert choose(0, seconds=never).processes == 0
    assert choose("auto", 4, seconds=never) == Workers(15, 4)


def test_uneven_times_are_read_further_ahead() -> None:
    assert choose(4, times=[1.0] * 8).prefetch == MIN_PREFETCH
    assert choose(4, times=[]).prefetch == MIN_PREFETCH
    assert choose(4, times=[1.0] * 7 + [9.0]).prefetch == 3
    assert choose(4, times=[0.1] * 7 + [99.0], batch_size=1).prefetch == MAX_PREFETCH


@given(st.lists(st.floats(1e-4, 1e3), max_size=9), st.integers(1, 64), st.integers(1, 10**9))
def test_choice_is_within_bounds(times, batch_size, batch_bytes) -> None:
    chosen = choose(5, times=times, batch_size=batch_size, batch_bytes=batch_bytes)
    assert 1 <= chosen.prefetch <= MAX_PREFETCH
    assert chosen.processes == 5


def test_batches_ahead_fit_in_memory(monkeypatch) -> None:
    free = psutil.virtual_memory()._replace(available=8 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    times = [0.1] * 7 + [99.0]
    # A quarter of 8 GB holds five batches for each of four processes, or one.
    assert choose(4, times=times, batch_size=1, batch_bytes=10**8).prefetch == 5
    assert choose(4, times=times, batch_size=1, batch_bytes=10**10).prefetch == 1


def test_no_more_processes_than_there_is_to_read() -> None:
    assert Workers(8, 3).at_most(2) == Workers(2, 3)
    assert Workers(1, 3).at_most(2) == Workers(1, 3)
