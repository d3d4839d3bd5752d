"""What the network costs: norm kernels, convolutions, training steps, tests, files, roofline, bars.

    python benchmarks/compute.py [--out benchmarks] [--minutes 8.7] [--sections rates,norms,train]
    python benchmarks/compute.py --device cpu [--frames 8] [--size 112] [--threads 1] [--no-compile]
    python benchmarks/compute.py --dry-run

One process measures everything side by side on random data and prints tables as they are ready;
``--out`` keeps them as ``compute_<hardware>_<date>.md``. On a GPU each section has its share of
``--minutes`` for itself, and what the ones before it did not use; what there is no time for says
so. ``files`` is end_to_end.py on prepared files, ``suite`` the tests that need a GPU, where pytest
is installed. A cell that fails or finds no memory is a line of its table. ``--dry-run`` goes
through every section of a GPU with tiny networks on the CPU, kernels in Triton's interpreter: its
numbers mean nothing.

Layouts: pv32 is the ``zoo`` layout fed 32 frames, org32 the ``nonlocal`` layout at 32 frames.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compute_parts.scale import Bench

SHARES = {
    "rates": 0.01,
    "train": 0.21,
    "norms": 0.11,
    "test": 0.06,
    "convs": 0.05,
    "compile": 0.19,
    "sweep": 0.16,
    "files": 0.2,
    "suite": 0.01,
}
"""Of ``--minutes``, in their order; those that are not chosen leave theirs to the others. The
suite takes a minute or two and has what all of them leave; ``--sections suite`` runs it alone."""
GPU_SECTIONS = (*SHARES, "roofline", "bars")
MINUTES = 8.7
CPU_SECTIONS = ("recipes", "cputrain", "bars")


def main() -> None:
    words = arguments()
    if words.dry_run:
        # Before Triton is imported: that is when it is read.
        os.environ["TRITON_INTERPRET"] = "1"
    # As the toolkit's commands do; for all forms alike.
    from videogn.allocator import let_pages_be_large, let_segments_grow

    let_segments_grow()
    let_pages_be_large()
    bench = make_bench(words)
    from compute_parts.page import versions

    bench.page.say(f"# Compute, {time.strftime('%Y-%m-%d')}")
    bench.page.say()
    bench.page.say(f"`python benchmarks/compute.py {' '.join(sys.argv[1:])}`")
    for line in versions(bench.device):
        bench.page.say()
        bench.page.say(line)
    started = time.monotonic()
    for name, section in chosen(words, bench).items():
        began = time.monotonic()
        run_section(bench, name, section)
        bench.page.say()
        taken, before = time.monotonic() - began, began - started
        bench.page.say(f"({name}: {taken:.0f} s, begun after {before:.0f} s)")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="a GPU where there is one")
    parser.add_argument("--sections", help=f"of {','.join((*GPU_SECTIONS, *CPU_SECTIONS[:2]))}")
    parser.add_argument("--minutes", type=float, help=f"{MINUTES} on a GPU, 60 on a CPU")
    parser.add_argument("--out", type=Path, help="folder of the page")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--rounds", type=int)
    cpu = parser.add_argument_group("on a CPU")
    cpu.add_argument("--frames", type=int, default=8)
    cpu.add_argument("--size", type=int, default=112)
    cpu.add_argument("--clips", type=int, default=1, help="of a training step")
    cpu.add_argument("--threads", type=int, default=1)
    cpu.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def make_bench(words: argparse.Namespace) -> "Bench":
    import torch
    from compute_parts.page import page_for
    from compute_parts.scale import TINY, WHOLE, Bench
    from compute_parts.timing import Timer

    found = "cuda" if torch.cuda.is_available() and not words.dry_run else "cpu"
    device = torch.device(words.device or found)
    if device.type == "cpu":
        torch.set_num_threads(words.threads)
    scale = TINY if words.dry_run else WHOLE
    if words.rounds:
        scale = replace(scale, rounds=words.rounds)
    minutes = words.minutes or (MINUTES if device.type == "cuda" else 60)
    timer = Timer(device, time.monotonic() + 60 * minutes)
    page = page_for(words.out, device, words.dry_run)
    return Bench(device, scale, timer, page, words.dry_run)


def chosen(words: argparse.Namespace, bench: "Bench") -> dict[str, Callable[[], None]]:
    """The sections to run, by name, in order."""
    names: tuple[str, ...] = GPU_SECTIONS
    if bench.device.type == "cpu" and not words.dry_run:
        names = CPU_SECTIONS
    if words.dry_run:
        names = (*GPU_SECTIONS[:-1], *CPU_SECTIONS)
    if words.sections:
        names = tuple(words.sections.split(","))
    sections = gpu_sections(bench, names) | cpu_sections(words, bench)
    unknown = set(names) - set(sections)
    if unknown:
        sys.exit(f"--sections: there is no {', '.join(unknown)}; choose from {list(sections)}")
    return {name: sections[name] for name in names}


def gpu_sections(bench: "Bench", names: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Those of a GPU by name, each ending in time for the ones of ``names`` that come after it."""
    from compute_parts import bars, convolutions, files, norms, rates, roofline, suite, test, train

    measures: dict[str, Callable[[Bench, float], None]] = {
        "rates": lambda bench, _: rates.measure_rates(bench),
        "train": train.measure_train,
        "compile": train.measure_compiled,
        "norms": norms.measure_norms,
        "test": test.measure_test,
        "convs": convolutions.measure_convs,
        "sweep": train.measure_sweep,
        "files": files.measure_files,
        "suite": suite.measure_suite,
    }
    ends = ends_of([name for name in names if name in SHARES], bench.timer.left())
    started = time.monotonic()

    def section(name: str) -> Callable[[], None]:
        return lambda: measures[name](bench, started + ends.get(name, 0.0) - time.monotonic())

    return {
        **{name: section(name) for name in measures},
        "roofline": lambda: roofline.measure_roofline(bench),
        "bars": lambda: bars.judge(bench, bars.GPU_BARS),
    }


def ends_of(names: Sequence[str], seconds: float) -> dict[str, float]:
    """When each section ends: seconds from the start of a run that takes so many of them."""
    whole = sum(SHARES[name] for name in names)
    shares = accumulate(SHARES[name] / whole for name in names)
    return {name: seconds * end for name, end in zip(names, shares, strict=True)}


def cpu_sections(words: argparse.Namespace, bench: "Bench") -> dict[str, Callable[[], None]]:
    from compute_parts import bars, cpu

    view = (words.frames, words.size, words.size)
    if words.dry_run:
        view = (bench.scale.frames[0], bench.scale.size, bench.scale.size)
    compiled = not (words.no_compile or words.dry_run)
    sections: dict[str, Callable[[], None]] = {
        "recipes": lambda: cpu.measure_recipes(bench, view, compiled),
        "cputrain": lambda: cpu.measure_cpu_training(bench, view, words.clips, compiled),
    }
    if bench.device.type == "cpu" and not words.dry_run:
        sections["bars"] = lambda: bars.judge(bench, bars.cpu_bars())
    return sections


def run_section(bench: "Bench", name: str, section: Callable[[], None]) -> None:
    """One section; what fails in it ends it and not the run."""
    from compute_parts.timing import Failure, attempt, free

    failed = attempt(section)
    if isinstance(failed, Failure):
        bench.page.say()
        bench.page.say(f"**Section {name}: {failed}**")
    free()


if __name__ == "__main__":
    main()
