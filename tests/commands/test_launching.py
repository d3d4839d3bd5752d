"""The process starter of --gpus, with small programs instead of ranks that train."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from videogn.commands import launching
from videogn.commands.launching import launch
from videogn.stopping import stop_request

SAVE = """
    import os, signal, sys, time
    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda number, frame: stopped.append(number))
    open(f"ready{os.environ['RANK']}", "w").close()
    while not stopped: time.sleep(0.02)
    time.sleep(LATER)
    open(f"saved{os.environ['RANK']}", "w").write(str(stopped))
    sys.exit(75)
"""


@pytest.fixture
def ranks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes every rank run a program, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def use(program: str) -> None:
        code = tmp_path / "rank.py"
        code.write_text(textwrap.dedent(program))
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{code}" "$@"\n')
        script.chmod(0o755)
        monkeypatch.setattr(launching.sys, "executable", str(script))

    return use


def launch_and_signal(number: int, processes: int) -> int:
    """The exit code of a job whose launcher gets a signal once every rank is ready."""
    # Shells start what runs in the background with SIGINT ignored, which launchers respect.
    before = signal.signal(number, signal.SIG_DFL)
    sender = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            f"for i in $(seq 100); do [ -e ready{processes - 1} -a -e ready0 ] && break; "
            f"sleep 0.1; done; kill -{number} {os.getpid()}",
        ]
    )
    try:
        return launch(processes, [])
    finally:
        sender.wait(timeout=20)
        signal.signal(number, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_ranks_hear_a_signal_once_and_their_75_is_the_jobs(ranks_run, name: str) -> None:
    ranks_run(SAVE.replace("LATER", "0.3 * (os.environ['RANK'] == '0')"))
    before = signal.getsignal(signal.Signals[name])
    assert launch_and_signal(signal.Signals[name], 2) == 75
    for rank in (0, 1):
        assert Path(f"saved{rank}").read_text() == f"[{int(signal.Signals[name])}]"
    assert signal.getsignal(signal.Signals[name]) == before


def test_who_starts_jobs_knows_of_a_signal_that_a_job_was_done_before(ranks_run) -> None:
    ranks_run(SAVE.replace("LATER", "0").replace("sys.exit(75)", "sys.exit(0)"))
    assert launch_and_signal(signal.SIGTERM, 1) == 0
    assert stop_request.signal == signal.SIGTERM


def test_ranks_that_outstay_a_signal_are_killed(ranks_run, monkeypatch, capsys) -> None:
    ranks_run(SAVE.replace("LATER", "60"))
    monkeypatch.setattr(launching, "STOP_SECONDS", 0.5)
    assert launch_and_signal(signal.SIGTERM, 2) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; rank 0 had not ended after" in capsys.readouterr().err


def test_a_late_rank_costs_no_saved_job_its_code(ranks_run, monkeypatch) -> None:
    ranks_run(SAVE.replace("LATER", "60 * (os.environ['RANK'] == '1')"))
    monkeypatch.setattr(launching, "STOP_SECONDS", 1.0)
    assert launch_and_signal(signal.SIGTERM, 2) == 75


def test_a_failing_rank_ends_the_others_and_gives_its_code(ranks_run, monkeypatch) -> None:
    ranks_run(
        """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.environ["RANK"] == "1":
            sys.exit(2)
        time.sleep(60)
        """
    )
    monkeypatch.setattr(launching, "FAILURE_SECONDS", 0.5)
    started = time.monotonic()
    assert launch(3, []) == 2
    assert time.monotonic() - started < 10


def test_a_killed_rank_is_named(ranks_run, capfd) -> None:
    ranks_run(
        """
        import os, time
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), 9)
        time.sleep(60)
        """
    )
    assert launch(2, []) == 128 + signal.SIGKILL
    assert "rank 1 was ended by SIGKILL; is the machine out of memory?" in capfd.readouterr().err


def test_every_rank_gets_its_place_and_its_words(ranks_run) -> None:
    ranks_run(
        """
        import os, sys
        names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR VIDEOGN_LAUNCHER".split()
        with open("place" + os.environ["RANK"], "w") as file:
            file.write("|".join([*(os.environ[name] for name in names), *sys.argv[1:]]))
        """
    )
    assert launch(2, ["train", "a b.yaml", "out=x y"]) == 0
    tail = f"127.0.0.1|{os.getpid()}|-m|videogn|train|a b.yaml|out=x y"
    assert Path("place0").read_text() == f"0|0|2|2|{tail}"
    assert Path("place1").read_text() == f"1|1|2|2|{tail}"


def test_ranks_of_a_killed_launcher_end() -> None:
    rank = (
        "import time; from videogn.parents import end_with_launcher; end_with_launcher();"
        "print('ready', flush=True); time.sleep(60)"
    )
    starter = (
        "import os, subprocess, sys; os.environ['VIDEOGN_LAUNCHER'] = str(os.getpid());"
        f"p = subprocess.Popen([sys.executable, '-c', {rank!r}], start_new_session=True);"
        "print(p.pid, flush=True); p.wait()"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        process = psutil.Process(int(launcher.stdout.readline()))
        assert launcher.stdout.readline() == "ready\n"
        launcher.kill()
        launcher.wait(timeout=10)
    try:
        process.wait(timeout=10)
    finally:
        if process.is_running():
            process.kill()
