"""Jobs of several ranks by the forking driver, for tests of what ranks do together."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).parent / "survival_driver.py"
SECONDS = 400.0

_driver: subprocess.Popen[str] | None = None
"""The driver of this process's tests; it takes seconds to start, and then none for each job."""


def drive(words: list[str], ranks: int, out: Path, **order: Any) -> dict[str, Any]:
    """What the driver tells of jobs in folders 0, 1, … of ``out``, or in ``order["folder"]``."""
    out.mkdir(exist_ok=True)
    given = {"words": words, "ranks": ranks, "out": str(out), "seed": 0, "times": 0, **order}
    told = _answer(given)
    printed = out / "output.txt"
    assert "error" not in told, told["error"] + "\n" + printed.read_text(errors="replace")
    return told


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    driver = _running()
    assert driver.stdin is not None
    assert driver.stdout is not None
    driver.stdin.write(json.dumps(order) + "\n")
    driver.stdin.flush()
    # One line is asked for and one answered, so nothing waits in the buffer of the file.
    if not select.select([driver.stdout], [], [], SECONDS)[0]:
        _end()
        pytest.fail(f"{order} was never done")
    line = driver.stdout.readline()
    if not line:
        _end()
        pytest.fail(f"the driver ended over {order}")
    told: dict[str, Any] = json.loads(line)
    return told


def _running() -> subprocess.Popen[str]:
    global _driver
    if _driver is None:
        _driver = subprocess.Popen(
            [sys.executable, str(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        atexit.register(_end)
    return _driver


def _end() -> None:
    """End the driver and whatever it has started."""
    global _driver
    if _driver is not None:
        os.killpg(_driver.pid, signal.SIGKILL)
        _driver.wait()
        _driver = None
