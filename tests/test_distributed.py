"""Which ranks say what went wrong."""

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch.distributed as dist
from driving import forked

from videogn import distributed
from videogn.cli import main
from videogn.distributed import first_rank_said, joined_world, note_failure, open_store
from videogn.errors import RunError


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """The store of a launcher, in which this process may play any rank."""
    store = dist.TCPStore("localhost", 0, is_master=True)
    for name, value in {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(distributed, "_store", None)
    before = signal.getsignal(signal.SIGTERM)
    yield store
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("launcher")
def test_only_the_same_message_counts_as_said() -> None:
    assert not first_rank_said("no such list")
    note_failure("no such list")
    assert first_rank_said("no such list")
    assert not first_rank_said("no such checkpoint")


@pytest.mark.usefixtures("launcher")
def test_other_ranks_are_silent_only_where_the_first_fails_alike(monkeypatch, capsys) -> None:
    for rank, words, said in (
        ("1", ["train", "alone.yaml"], "[rank 1] alone.yaml"),
        ("0", ["train", "absent.yaml"], "error: absent.yaml"),
        ("1", ["train", "absent.yaml"], ""),
        ("1", ["train", "other.yaml"], "[rank 1] other.yaml"),
    ):
        monkeypatch.setenv("RANK", rank)
        assert main(words) == 2
        error = capsys.readouterr().err
        assert (said in error) if said else (error == "")


def test_without_a_launchers_store_every_rank_speaks(monkeypatch, capsys) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "absent.yaml"]) == 2
    assert "[rank 1] absent.yaml" in capsys.readouterr().err


@pytest.mark.dist
def test_a_job_of_torchrun_says_it_once(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: {nrom: gn}\n")
    words = ["--standalone", "--nproc-per-node=2", "-m", "videogn", "train", config]
    with forked("from torch.distributed.run import main; main()", tmp_path, *words) as torchrun:
        assert torchrun.ended(120) != 0
    said = torchrun.stderr.read_text()
    assert said.count("videogn: error:") == 1
    assert "did you mean model.norm?" in said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def place_here(monkeypatch: pytest.MonkeyPatch, rank: int, port: int) -> None:
    """Make this process a rank of a job whose first rank holds the store."""
    places = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}
    for name, value in {**places, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "VIDEOGN_LAUNCHER"):
        monkeypatch.delenv(name, raising=False)


def test_a_taken_port_is_named(monkeypatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        place_here(monkeypatch, 0, port)
        monkeypatch.setattr(distributed, "_store", None)
        with (
            pytest.raises(RunError, match=f"rank 0 cannot open port {port} of 127.0.0.1"),
            joined_world(),
        ):
            pass


def test_a_first_rank_that_does_not_come_is_named(monkeypatch) -> None:
    port = free_port()
    place_here(monkeypatch, 1, port)
    with pytest.raises(RunError, match=f"rank 1 found no store at 127.0.0.1:{port} in 1 s"):
        open_store(1.0)


RANK = """
import os
from videogn import cli
from videogn.distributed import gather_over_ranks, joined_world
from videogn.errors import RunError
try:
    with joined_world() as world:
        if world.rank == 1:
            raise RunError("only here")
        gather_over_ranks(0)
except RunError as error:
    os._exit(cli._fail(str(error), 2))
except Exception as error:
    os._exit(cli._fail(repr(error), 1, may_follow=True))
"""


@pytest.mark.dist
def test_a_rank_that_fails_alone_is_the_only_one_to_speak(tmp_path: Path) -> None:
    """As under srun: the first rank holds the store, and fails because the other has gone."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    with ExitStack() as stack:
        ranks = [stack.enter_context(forked(RANK, tmp_path, environment=one)) for one in places]
        assert [rank.ended(90) for rank in ranks] == [1, 2]
    said = "".join(rank.stderr.read_text() for rank in ranks)
    assert [line for line in said.splitlines() if "error" in line] == [
        "videogn: error: [rank 1] only here"
    ]
