"""Section suite: the tests that need a CUDA device, in a process of its own."""

import importlib.util
import re
import sys
from pathlib import Path

from compute_parts import child
from compute_parts.scale import Bench

TESTS = Path(__file__).parents[2] / "tests"
PROCESSES = 8
OPTIONS = (
    *("-m", "gpu", "-q", "-rf", "--tb=line", "--continue-on-collection-errors"),
    *("-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"),
    *("-o", "filterwarnings="),  # another torch warns of other things
)


def measure_suite(bench: Bench, seconds: float) -> None:
    """How many pass and fail, and which fail; nothing of it is known where time was up."""
    bench.page.title("Tests that need a CUDA device")
    # In a dry run all of them are skipped.
    tests = TESTS / "models" / "kernels" if bench.dry else TESTS
    several = not bench.dry and importlib.util.find_spec("xdist") is not None
    words = [*OPTIONS, *(("-n", str(PROCESSES)) if several else ())]
    command = [sys.executable, "-m", "pytest", str(tests), *words]
    told = ["-m", "pytest", str(tests.relative_to(TESTS.parent)), *words]
    ended = child.shown(bench.page, told, command, min(seconds, bench.timer.left()))
    if ended is not None and ended.code is not None:
        note(bench.known, ended.lines)


def note(known: dict[str, float], lines: list[str]) -> None:
    """Keep how many failed for the bars, where any of them ran."""
    found = dict[str, int]()
    for count, what in re.findall(r"(\d+) (passed|failed|error)", lines[-1] if lines else ""):
        found[what] = int(count)
    if found:
        known["tests failed"] = float(found.get("failed", 0) + found.get("error", 0))
