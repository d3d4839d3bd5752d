"""Jobs of several ranks by the forking driver, for tests of what ranks do together."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).parent / "survival_driver.py"


def bounded(command: list[str], seconds: float, **variables: str) -> subprocess.CompletedProcess:
    """Run a command in a session of its own, of which nothing is left after some time."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    try:
        output, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, error = process.communicate()
        pytest.fail(f"{command} never ended:\n{output}\n{error}")
    return subprocess.CompletedProcess(command, process.returncode, output, error)


def drive(words: list[str], ranks: int, out: Path, **order: Any) -> dict[str, Any]:
    """What the driver tells of jobs in folders 0, 1, … of ``out``, or in ``order["folder"]``."""
    out.mkdir(exist_ok=True)
    given = {"words": words, "ranks": ranks, "out": str(out), "seed": 0, "times": 0, **order}
    done = bounded([sys.executable, str(DRIVER), json.dumps(given)], 400)
    printed = out / "output.txt"
    assert done.returncode == 0, done.stderr + (printed.read_text() if printed.exists() else "")
    told: dict[str, Any] = json.loads(done.stdout)
    return told
