"""Ranks without progress end, and say which rank is behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.distributed import TCPStore

from videogn.distributed import World
from videogn.watchdog import Beat, Watchdog, standstill

RANK = """
import os, signal, time, torch
from videogn.distributed import World
from videogn.watchdog import Watchdog
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
with Watchdog(World(rank, size, torch.device("cpu")), 4.0) as watch:
    # Imports take longer in one rank than in another.
    for iteration in range(60):
        watch.stage("reading", iteration // 20)
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


def run_single(program: str) -> subprocess.CompletedProcess[str]:
    start = "import time, torch\nfrom videogn.distributed import World\n"
    return subprocess.run(
        [sys.executable, "-c", f"{start}from videogn.watchdog import Watchdog\n{program}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_single_process_that_hangs_ends() -> None:
    done = run_single(
        "with Watchdog(World(0, 1, torch.device('cpu')), 1.0) as watch:\n"
        "    for iteration in range(15):\n"
        "        watch.stage('reading', iteration)\n"
        "        time.sleep(0.1)\n"
        "    print('alive', flush=True)\n"
        "    time.sleep(60)\n"
    )
    assert done.returncode == 1
    assert done.stdout == "alive\n"
    assert "no progress for 1 s in iteration 14 while reading; see whether" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_watch_that_is_left_ends_nothing() -> None:
    with Watchdog(World(0, 1, torch.device("cpu")), 0.2) as watch:
        watch.stage("step", 1)
    time.sleep(0.5)


@pytest.mark.dist
def test_a_stopped_rank_ends_the_job_and_is_named() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "VIDEOGN_LAUNCHER": str(os.getpid()),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(3)
    ]
    try:
        said = "".join(ranks[rank].communicate(timeout=90)[1] for rank in (0, 2))
        assert ranks[0].returncode == ranks[2].returncode == 1
        assert ranks[1].poll() is None
    finally:
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)
            rank.communicate(timeout=10)
    assert len(said.splitlines()) == 1
    assert "in iteration 1,233 while in the step; rank 1 on " in said
    assert " (iteration 1,233, in the step) has stopped: last heard of " in said
