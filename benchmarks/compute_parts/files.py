"""Section files: end_to_end.py on prepared files, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from compute_parts.scale import Bench

SCRIPT = Path(__file__).parents[1] / "end_to_end.py"
WHOLE = ("--clips-per-gpu", "32", "--seconds", "4", "--made", "8")
STOPPING_SECONDS = 5
"""What its workers take to end when they are told to."""


def measure_files(bench: Bench, seconds: float) -> None:
    """Training and testing from prepared files; what there is no time for is unmeasured."""
    bench.page.title("From prepared files: end_to_end.py")
    seconds = min(seconds, bench.timer.left()) - STOPPING_SECONDS
    if seconds <= 0:
        bench.page.say("Time is up.")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["--norm", "gn", "--forms", "prepared", "--skip", "reading", "network", "peers"]
        words += ["--dry-run"] if bench.dry else list(WHOLE)
        command = [sys.executable, str(SCRIPT), *words, "--out", str(out)]
        with (Path(folder) / "printed.txt").open("w+b") as printed:
            ended = run(command, printed, seconds, Path(folder))
            printed.seek(0)
            text = printed.read().decode(errors="replace")
        bench.page.say(f"`python benchmarks/end_to_end.py {' '.join(words)}`")
        for line in ("", "```", *text.splitlines(), "```", "", ended):
            bench.page.say(line)
        if out.exists():
            note(bench.known, json.loads(out.read_text())["prepared"])


def run(command: list[str], printed: IO[bytes], seconds: float, folder: Path) -> str:
    """Run a command for so many seconds at most; how it ended.

    Args:
        folder: where its temporary files go, of which it may leave some when it is ended.
    """
    # Kernels are interpreted in a dry run of this process; that one has none on a CPU.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        stdout=printed,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    began = time.monotonic()
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"Ended after {time.monotonic() - began:.0f} s: time is up."
    finally:
        end_all(process)
    return f"Exit code {code} after {time.monotonic() - began:.0f} s."


def end_all(process: "subprocess.Popen[bytes]") -> None:
    """End a process and the workers that it started, softly and then for sure."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOPPING_SECONDS)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def note(known: dict[str, float], found: dict[str, Any]) -> None:
    """Keep for the bars what was found of one form of the files."""
    if "both" in found:
        known["files clips/s"] = found["both"]["clips_per_second"]
        known["files waiting"] = found["both"]["data_wait"]
    if "test" in found:
        known["files test videos/s"] = found["test"]["videos_per_second"]
