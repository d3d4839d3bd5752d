"""Jobs of several ranks, and programs, by the forking driver: torch is imported once for all."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Forked:
    """A program that runs in a process of its own, in a session of its own.

    Attributes:
        stdout, stderr: files of what it says.
    """

    pid: int
    stdout: Path
    stderr: Path

    def ended(self, seconds: float) -> int:
        """Its exit code, negative for a signal; the test fails where it goes on for so long."""
        code = self._code(seconds)
        if code is None:
            pytest.fail(f"the program went on for {seconds:g} s; {self.stderr.read_text()}")
        return code

    def goes_on(self) -> bool:
        """Whether it has not ended; one that has cannot be asked again."""
        return self._code(0) is None

    def kill(self) -> None:
        """End it with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _code(self, seconds: float) -> int | None:
        code: int | None = _answer({"awaited": self.pid, "seconds": seconds})["code"]
        return code


@contextmanager
def forked(
    program: str, folder: Path, *words: object, environment: Mapping[str, str] | None = None
) -> Iterator[Forked]:
    """Run what ``python -c`` would, forked from a process that has imported torch and videogn.

    Args:
        folder: for what it says.
        words: sys.argv but for the first.
        environment: more variables.
    """
    number = len(list(folder.glob("*.stdout")))
    stdout, stderr = (folder / f"{number}.{name}" for name in ("stdout", "stderr"))
    stdout.touch()
    stderr.touch()
    order = {"program": program, "words": list(map(str, words)), "environment": environment or {}}
    pid = _answer({**order, "stdout": str(stdout), "stderr": str(stderr)})["pid"]
    running = Forked(pid, stdout, stderr)
    try:
        yield running
    finally:
        running.kill()


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
