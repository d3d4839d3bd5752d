"""Two hosts that share nothing but a cable: network namespaces of this machine."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from driving import Forked, forked

from videogn.engine.runs import read_log

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.dist]

ENTER = """
import ctypes, os
handle = os.open("/var/run/netns/NAME", os.O_RDONLY)
assert ctypes.CDLL(None).setns(handle, 0x40000000) == 0  # CLONE_NEWNET
os.close(handle)
"""
TORCHRUN = "from torch.distributed.run import main; main()"
WAITING_RANKS = """
import time
from videogn.distributed import gather_over_ranks, joined_world
from videogn.watchdog import Watchdog
with joined_world() as world, Watchdog(world, 4.0) as watch:
    for iteration in range(1000):
        watch.stage("step", iteration)
        gather_over_ranks(0)
        if iteration == 20:
            print("in step", flush=True)
        time.sleep(0.05)
"""


@dataclass(frozen=True)
class Hosts:
    """The names of two namespaces, and of the ends of the cable between them."""

    names: tuple[str, str]
    devices: tuple[str, str]
    addresses: tuple[str, str] = ("10.9.0.1", "10.9.0.2")

    def start(
        self, host: int, program: str, folder: Path, *words: str, **variables: str
    ) -> AbstractContextManager[Forked]:
        common = {"GLOO_SOCKET_IFNAME": self.devices[host], "PYTHONPATH": str(REPOSITORY)}
        return forked(
            ENTER.replace("NAME", self.names[host]) + program,
            folder,
            *words,
            environment=common | variables,
        )


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip of iproute2")
    number = os.getpid() % 100_000
    found = Hosts((f"vgn{number}a", f"vgn{number}b"), (f"vg{number}a", f"vg{number}b"))
    try:
        try:
            for name in found.names:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr!r}")
        ip("link", "add", found.devices[0], "type", "veth", "peer", "name", found.devices[1])
        for name, device, address in zip(*vars(found).values(), strict=True):
            ip("link", "set", device, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", device, "up")
        yield found
    finally:
        for name in found.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def said(jobs: list[Forked]) -> list[str]:
    return [job.stderr.read_text() for job in jobs]


def test_torchrun_trains_on_two_hosts(hosts: Hosts, tiny) -> None:
    run = tiny.folder / "run"
    words = ["-m", "videogn", "train", str(tiny.config), f"out={run}", "train.clips_per_gpu=2"]
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(
                hosts.start(
                    host,
                    TORCHRUN,
                    tiny.folder,
                    *("--nnodes=2", f"--node-rank={host}", "--nproc-per-node=1"),
                    *("--rdzv-backend=c10d", f"--rdzv-endpoint={hosts.addresses[0]}:29500"),
                    f"--rdzv-conf=is_host={host == 0}",
                    f"--local-addr={hosts.addresses[host]}",
                    *words,
                )
            )
            for host in (0, 1)
        ]
        assert [job.ended(240) for job in jobs] == [0, 0], said(jobs)
    assert [e["iteration"] for e in read_log(run / "log.jsonl") if e["kind"] == "val"] == [3, 6]


def test_a_cut_cable_ends_both_sides_and_each_names_the_other(hosts: Hosts, tmp_path: Path) -> None:
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    common |= {"MASTER_ADDR": hosts.addresses[0], "MASTER_PORT": "29511"}
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(
                hosts.start(host, WAITING_RANKS, tmp_path, RANK=str(host), **common)
            )
            for host in (0, 1)
        ]
        end = time.monotonic() + 120
        while jobs[0].stdout.read_text() != "in step\n":
            assert time.monotonic() < end, said(jobs)
            time.sleep(0.1)
        ip("-n", hosts.names[0], "link", "set", hosts.devices[0], "down")
        started = time.monotonic()
        assert [job.ended(90) for job in jobs] == [1, 1]
    assert time.monotonic() - started < 60
    first, second = said(jobs)
    assert "[rank 0 on " in first
    assert "rank 1 on " in first
    assert "has stopped: last heard of " in first
    assert "[rank 1 on " in second
    assert "rank 0 has stopped: it does not answer" in second
