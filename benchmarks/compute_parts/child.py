"""A command in a process of its own, which is ended with all that it started when time is up."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from compute_parts.page import Page

STOPPING_SECONDS = 5
"""What its workers take to end when they are told to."""


class Ended(NamedTuple):
    """What became of a command.

    Attributes:
        lines: that it printed.
        code: its exit status; None where it was ended.
        seconds: that it ran.
    """

    lines: list[str]
    code: int | None
    seconds: float

    def __str__(self) -> str:
        if self.code is None:
            return f"Ended after {self.seconds:.0f} s: time is up."
        return f"Exit code {self.code} after {self.seconds:.0f} s."


def shown(page: Page, words: Sequence[str], command: Sequence[str], seconds: float) -> Ended | None:
    """Run a command as :func:`run` does, and say so.

    Args:
        words: of the command as a user would call it.
    """
    ended = run(command, seconds)
    if ended is None:
        page.say("Time is up.")
        return None
    page.say(f"`python {' '.join(words)}`")
    for line in ("", "```", *ended.lines, "```", "", str(ended)):
        page.say(line)
    return ended


def run(command: Sequence[str], seconds: float) -> Ended | None:
    """Run a command for so many seconds, with what ending it takes; None where they are too few."""
    seconds -= STOPPING_SECONDS
    if seconds <= 0:
        return None
    # Kernels are interpreted in a dry run of this process; others say so for themselves.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        # It may leave temporary files when it is ended.
        environment |= {"TMPDIR": folder, "PYTHONUNBUFFERED": "1"}
        printed = Path(folder) / "printed.txt"
        with printed.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        began, code = time.monotonic(), None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            taken = time.monotonic() - began
            _end_all(process)
        return Ended(printed.read_text(errors="replace").splitlines(), code, taken)


def _end_all(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started, softly and then for sure."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOPPING_SECONDS)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
