"""Section files: end_to_end.py on prepared files, in a process of its own."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from compute_parts import child
from compute_parts.scale import Bench

SCRIPT = Path(__file__).parents[1] / "end_to_end.py"
WHOLE = ("--clips-per-gpu", "32", "--seconds", "4", "--made", "8")


def measure_files(bench: Bench, seconds: float) -> None:
    """Training and testing from prepared files; what there is no time for is unmeasured."""
    bench.page.title("From prepared files: end_to_end.py")
    words = ["--norm", "gn", "--forms", "prepared", "--skip", "reading", "network"]
    words += ["--dry-run"] if bench.dry else list(WHOLE)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, str(SCRIPT), *words, "--out", str(out)]
        told = ["benchmarks/end_to_end.py", *words]
        child.shown(bench.page, told, command, min(seconds, bench.timer.left()))
        if out.exists():
            note(bench.known, json.loads(out.read_text())["prepared"])


def note(known: dict[str, float], found: dict[str, Any]) -> None:
    """Keep for the bars what was found of one form of the files."""
    if "both" in found:
        known["files clips/s"] = found["both"]["clips_per_second"]
        known["files waiting"] = found["both"]["data_wait"]
    if "test" in found:
        known["files test videos/s"] = found["test"]["videos_per_second"]
