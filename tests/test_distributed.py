"""Which ranks say what went wrong."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from videogn import distributed
from videogn.cli import main
from videogn.distributed import first_rank_said, note_failure


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
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=3", "-m", "videogn", "train", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("videogn: error:") == 1
    assert "did you mean model.norm?" in done.stderr
