import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from videogn.engine.lock import run_lock
from videogn.errors import RunError

HOLDER = """
import sys, time
from pathlib import Path
sys.modules["torch"] = None
from videogn.engine.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Starts processes that hold the lock, and ends them."""
    started: list[subprocess.Popen] = []

    def start(**variables: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "run" / "run.lock")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_run_is_told_who_is_at_work(tmp_path: Path, holder, monkeypatch) -> None:
    process = holder(SLURM_JOB_ID="77")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with (
        pytest.raises(RunError, match=rf"process {process.pid} on .*, job 77, since 2"),
        run_lock(tmp_path / "run" / "run.lock"),
    ):
        pass


def test_a_killed_owner_holds_nothing(tmp_path: Path, holder) -> None:
    process = holder()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    path = tmp_path / "run" / "run.lock"
    with run_lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    with run_lock(path):
        pass


def test_a_requeued_job_waits_for_what_is_left_of_itself(
    tmp_path: Path, holder, monkeypatch
) -> None:
    process = holder(SLURM_JOB_ID="77")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    ending = threading.Timer(0.5, process.kill)
    ending.start()
    with run_lock(tmp_path / "run" / "run.lock"):
        assert process.wait(10) == -signal.SIGKILL
    ending.join()


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"file/run: cannot be written"),
        run_lock(tmp_path / "file" / "run" / "run.lock"),
    ):
        pass
