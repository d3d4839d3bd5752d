import gc
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.data.crew import worker_context
from videogn.data.list_checks import VideoRecord
from videogn.data.shared import Ring, SharedBytes, SharedRecords

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
# Names of files may hold bytes that are no UTF-8, which Python shows as lone surrogates.
names = st.one_of(texts, st.just(os.fsdecode(b"caf\xe9.mp4")))


@given(st.lists(st.tuples(names, st.integers(-1, 2**40), names), max_size=8))
def test_records_come_back(values) -> None:
    records = [VideoRecord(*value) for value in values]
    shared = SharedRecords(records)
    assert len(shared) == len(records)
    assert list(shared) == records
    assert shared[1:5:2] == records[1:5:2]
    for place in range(-len(records), len(records)):
        assert shared[place] == records[place]
    for outside in (len(records), -len(records) - 1):
        with pytest.raises(IndexError):
            shared[outside]


def _double(shared: SharedBytes, ring: Ring, records: SharedRecords) -> None:
    shared.array[:] *= 2
    ring.slot(4)[:] = len(records)


@pytest.mark.dist
def test_what_a_process_writes_the_other_sees() -> None:
    shared, ring = SharedBytes(1000), Ring(3, 10)
    shared.array[:] = 7
    process = worker_context().Process(
        target=_double, args=(shared, ring, SharedRecords([VideoRecord("a", 0, "a")] * 5))
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (shared.array == 14).all()
    # Slot 4 of 3 is slot 1 again.
    assert [ring.slot(number).tolist() for number in range(3)] == [[0] * 10, [5] * 10, [0] * 10]


def test_slots_do_not_overlap() -> None:
    ring = Ring(3, 4)
    for number in range(3):
        ring.slot(number)[:] = number + 1
    assert [set(ring.slot(number).tolist()) for number in range(6)] == [{1}, {2}, {3}] * 2


@pytest.mark.parametrize("size", [0, 1, 4097])
def test_memory_is_given_back(size: int) -> None:
    def descriptors() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    SharedBytes(size)
    gc.collect()
    before = descriptors()
    for _ in range(5):
        shared = SharedBytes(size)
        assert shared.array.shape == (size,)
        assert not shared.array.any()
    del shared
    gc.collect()
    assert descriptors() == before


def test_array_outlives_its_owner() -> None:
    array = SharedBytes(100).array
    gc.collect()
    array[:] = 3
    assert array.sum() == 300


def test_pages_that_are_never_written_take_no_memory() -> None:
    before = psutil.Process().memory_info().rss
    ring = Ring(10, 10**9)
    ring.slot(3)[:1000] = 1
    assert psutil.Process().memory_info().rss - before < 10**8


def _anonymous_bytes() -> int:
    [kib] = [
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon:")
    ]
    return 1024 * int(kib)


def _gained(records: SharedRecords, pipe) -> None:
    """Send how much memory of its own a process gains over reading a list."""
    before = _anonymous_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(records), size=2000):
        assert records[int(place)].label == place
    pipe.send(_anonymous_bytes() - before)


@pytest.mark.dist
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_long_list_costs_a_worker_no_more_than_a_short_one() -> None:
    gained = []
    for count in (1000, 100_000):
        records = [VideoRecord(f"/data/{i:060}.mp4", i, f"{i:060}.mp4") for i in range(count)]
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = worker_context().Process(target=_gained, args=(SharedRecords(records), theirs))
        process.start()
        gained.append(ours.recv())
        process.join()
    assert gained[1] - gained[0] < 2**20
    # As Python objects the long list takes tens of megabytes.
    assert len(pickle.dumps(records)) > 10 * 2**20
