"""Ranks without progress end, and say which rank is behind."""

import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from driving import forked
from torch.distributed import TCPStore

from videogn.distributed import World
from videogn.watchdog import Beat, Watchdog, standstill

RANK = """
import os, signal, time, torch
from videogn.distributed import World
from videogn.watchdog import Watchdog
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
with Watchdog(World(rank, size, torch.device("cpu")), 4.0) as watch:
    # One rank starts later than another.
    for iteration in range(30):
        watch.stage("reading", iteration // 10)
        time.sleep(0.1)
    watch.stage("step", 1233)
    if rank == 1:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
"""


def beat(rank: int, stage: str, iteration: int, wall_time: float = 1000.0) -> Beat:
    return Beat(rank, f"node{rank}", stage, iteration, 7, wall_time)


STARTED = "[rank 0 on node0] no progress for 600 s in iteration 1,234 while in the step; "


@pytest.mark.parametrize(
    ("beats", "silent", "said"),
    [
        (
            [("step", 1234), ("reading", 1234), ("step", 1234), ("reading", 1234)],
            [],
            "behind: rank 1 on node1; rank 3 on node3 (iteration 1,234, reading); see whether "
            "the file system of the videos answers",
        ),
        (
            [("step", 1234), ("saving", 1233), ("step", 1234)],
            [],
            "behind: rank 1 on node1 (iteration 1,233, saving); see whether the file system of "
            "out= answers",
        ),
        ([("step", 1234), ("step", 1234)], [], "see whether the GPU and the network"),
        ([("step", 1234), ("saving", 1234)], [], "see whether the GPU and the network"),
        (
            [("step", 1234), ("step", 1234), ("reading", 1234)],
            [1],
            "rank 1 on node1 (iteration 1,234, in the step) has stopped: last heard of 612 s ago",
        ),
    ],
)
def test_who_is_behind_is_named(beats, silent: list[int], said: str) -> None:
    every = [beat(rank, *place) for rank, place in enumerate(beats)]
    gone = [beat(rank, *beats[rank], wall_time=1000.0 - 612) for rank in silent]
    message = standstill(every[0], every, gone, 600.0)
    assert message.startswith(STARTED + said)
    assert message.endswith("then start the same command again")


def test_many_ranks_are_counted() -> None:
    every = [beat(0, "step", 5), *(beat(rank, "reading", 5) for rank in range(1, 65))]
    message = standstill(every[0], every, [], 1)
    assert "rank 8 on node8 and 56 more (iteration 5, reading)" in message


ALONE = """
import time, torch
from videogn.distributed import World
from videogn.watchdog import Watchdog
with Watchdog(World(0, 1, torch.device('cpu')), 1.0) as watch:
    for iteration in range(15):
        watch.stage('reading', iteration)
        time.sleep(0.1)
    print('alive', flush=True)
    time.sleep(60)
"""


@pytest.mark.dist
def test_a_single_process_that_hangs_ends(tmp_path: Path) -> None:
    with forked(ALONE, tmp_path) as process:
        assert process.ended(50) == 1
    said = process.stderr.read_text()
    assert process.stdout.read_text() == "alive\n"
    assert "no progress for 1 s in iteration 14 while reading; see whether" in said
    assert len(said.splitlines()) == 1


def test_a_watch_that_is_left_ends_nothing() -> None:
    with Watchdog(World(0, 1, torch.device("cpu")), 0.2) as watch:
        watch.stage("step", 1)
    time.sleep(0.5)


@pytest.mark.dist
def test_a_stopped_rank_ends_the_job_and_is_named(tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "VIDEOGN_LAUNCHER": str(os.getpid()),
    }
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                forked(
                    RANK,
                    tmp_path,
                    environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            )
            for rank in range(3)
        ]
        assert [ranks[rank].ended(90) for rank in (0, 2)] == [1, 1]
        assert ranks[1].goes_on()
        said = "".join(rank.stderr.read_text() for rank in ranks)
    assert len(said.splitlines()) == 1
    assert "in iteration 1,233 while in the step; rank 1 on " in said
    assert " (iteration 1,233, in the step) has stopped: last heard of " in said
