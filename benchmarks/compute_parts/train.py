"""Sections train, sweep and compile: time and memory of training steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from compute_parts.networks import (
    AUTO,
    BASE,
    CONTIGUOUS,
    FUSED,
    FUSED_3D,
    FUSED_BN,
    LAST,
    PYSLOWFAST,
    PYTORCHVIDEO,
    Form,
    training,
)
from compute_parts.scale import Bench
from compute_parts.timing import Failure, Memory, Timer, attempt, free

KINDS = ("allocated", "reserved")
"""Attributes of :class:`Memory`."""
WARM_UP = 3
COMPILE_SECONDS = 20
"""Compiling a network takes more; it is not begun with less left. What it takes beyond the time of
its section the next one lacks: nothing can break off a compiler within a backward pass."""

EAGER = [Form("bn"), BASE, Form("gn"), Form("gn", memory_format=LAST)]
FUSED_FORMS = [
    FUSED_3D,
    FUSED,
    FUSED_BN,
    replace(FUSED_3D, memory_format=CONTIGUOUS),
    replace(FUSED, recompute="act+conv_c"),
]
GRAPHS = [
    AUTO,
    replace(AUTO, norm="bn"),
    replace(AUTO, recompute="act"),
    replace(AUTO, recompute="act+conv_c"),
    replace(AUTO, recompute="block"),
    replace(AUTO, convolutions="2d"),
    replace(AUTO, convolutions="3d", stem="native"),
]
PEERS = [PYTORCHVIDEO, replace(PYTORCHVIDEO, memory_format=LAST), PYSLOWFAST]
TUNED = [replace(BASE, tuned=True), replace(AUTO, tuned=True)]
COMPILED = [replace(BASE, compiled=True), replace(Form("gn"), compiled=True)]
SHORT = [Form("bn"), BASE, Form("gn"), FUSED_3D, FUSED, PYSLOWFAST]
SWEPT = [BASE, AUTO, replace(AUTO, recompute="act+conv_c")]


@dataclass(frozen=True)
class Point:
    """A cell of the tables: layout (pv32 or org32), clips per GPU and frames."""

    layout: str
    clips: int
    frames: int

    def __str__(self) -> str:
        return f"{self.layout}, {self.clips} clips, {self.frames} frames"


@dataclass(frozen=True)
class Cell:
    """Of one form at one point.

    Attributes:
        seconds: median of a step.
        memory: peaks of a step with weights, momenta and clips; None on a CPU.
    """

    seconds: float
    memory: Memory | None


def main_point(bench: Bench) -> Point:
    return Point("pv32", bench.scale.clips, bench.scale.frames[0])


def measure_train(bench: Bench, seconds: float) -> None:
    """The main table (pv32), and the shorter one of org32."""
    timer = bench.within(seconds)
    main = main_point(bench)
    compare(bench, timer, main, [[*EAGER, *PEERS], FUSED_FORMS, [*GRAPHS, *TUNED]])
    if not bench.dry:  # the same lines again
        compare(bench, timer, replace(main, layout="org32"), [SHORT, GRAPHS[:4]])


def runnable(bench: Bench, forms: Sequence[Form]) -> list[Form]:
    """The forms that a device has: there are no graphs on a CPU."""
    return [form for form in forms if bench.device.type == "cuda" or not form.graph]


def measure_sweep(bench: Bench, seconds: float) -> None:
    """Three forms over clips per GPU, layouts and lengths; few forms, for time is short."""
    timer = bench.within(seconds)
    short, long = bench.scale.frames
    points = (("pv32", long), ("org32", short), ("pv32", short), ("org32", long))
    for layout, frames in points[:1] if bench.dry else points:
        bench.page.title(f"Clips per GPU, {layout}, {frames} frames: ms per step, GB reserved")
        forms = runnable(bench, SWEPT)
        heads = [f"{form} {unit}" for form in forms for unit in ("ms", "GB")]
        bench.page.table("clips", *heads, "GN / BN")
        for clips in bench.scale.sweep if frames == short else bench.scale.long_sweep:
            if timer.left() < 0:
                bench.page.row("time is up")
                return
            sweep_row(bench, timer, Point(layout, clips, frames))


def sweep_row(bench: Bench, timer: Timer, point: Point) -> None:
    forms = runnable(bench, SWEPT)
    cells = measure(bench, timer, point, forms, rounds=min(2, bench.scale.rounds))
    shown: list[object] = []
    for form in forms:
        cell = cells[form]
        failed = isinstance(cell, Failure)
        shown += [cell, None] if failed else [1e3 * cell.seconds, gigabytes(cell, "reserved")]
    shown.append(ratio(cells[AUTO], cells[BASE]) if AUTO in cells else None)
    bench.page.row(point.clips, *shown)


def measure_compiled(bench: Bench, seconds: float) -> None:
    """torch.compile of eager BN and GN at the main point, beside the forms they compete with."""
    if bench.dry:
        bench.page.title("Compiled: not in a dry run")
        return
    compare(bench, bench.within(seconds), main_point(bench), [[AUTO, *COMPILED]])
    torch.compiler.reset()


def compare(bench: Bench, timer: Timer, point: Point, groups: Sequence[Sequence[Form]]) -> None:
    """One table: forms at one point, relative to eager BN in channels last.

    The forms of a group are interleaved, with that one beside them; groups follow each other, for
    all forms together would not fit in memory.
    """
    page = bench.page
    page.title(f"Training step, {point}")
    page.say("Allocated are live tensors, without what graphs use inside them; reserved is what")
    page.say("the device has to have, in all rows alike.")
    page.say()
    heads = [f"{head}{kind}" for kind in KINDS for head in ("GB ", "/ BN last, ")]
    page.table("form", "ms", "clips/s", "time / BN last", *heads)
    for number, group in enumerate(groups):
        forms = list(dict.fromkeys([BASE, *runnable(bench, group)]))
        cells = measure(bench, timer, point, forms, bench.scale.rounds)
        for form, cell in cells.items():
            if form != BASE or number == 0 or isinstance(cell, Failure):
                report(bench, point, form, cell, cells[BASE])


def report(
    bench: Bench, point: Point, form: Form, cell: "Cell | Failure", base: "Cell | Failure"
) -> None:
    """A row of the table."""
    page = bench.page
    if isinstance(cell, Failure):
        page.row(form, cell)
        return
    bench.known[f"step {point.layout} {form}"] = cell.seconds
    relative = ratio(cell, base)
    if relative is not None:
        bench.known[f"relative {point.layout} {form}"] = relative
    memory: list[float | None] = []
    for kind in KINDS:
        size = gigabytes(cell, kind)
        other = None if isinstance(base, Failure) else gigabytes(base, kind)
        if size is not None:
            bench.known[f"{kind} {point.layout} {form}"] = size
        memory += [size, size / other if size and other else None]
    page.row(form, 1e3 * cell.seconds, point.clips / cell.seconds, relative, *memory)


def gigabytes(cell: Cell, kind: str) -> float | None:
    """``kind``: one of KINDS."""
    return None if cell.memory is None else getattr(cell.memory, kind) / 1e9


def ratio(cell: "Cell | Failure", base: "Cell | Failure") -> float | None:
    if isinstance(cell, Failure) or isinstance(base, Failure):
        return None
    return cell.seconds / base.seconds


def measure(
    bench: Bench, timer: Timer, point: Point, forms: Sequence[Form], rounds: int
) -> dict[Form, Cell | Failure]:
    """Every form at a point, interleaved. A form that fails, or has no time left, says so."""
    steps: dict[str, Callable[[], None]] = {}
    peaks: dict[str, Memory | None] = {}
    cells: dict[Form, Cell | Failure] = {}
    for form in forms:
        if timer.left() < (COMPILE_SECONDS if form.compiled else 0):
            cells[form] = Failure("time is up")
            continue
        ready = attempt(lambda form=form: warmed_up(bench, timer, point, form))
        if isinstance(ready, Failure):
            cells[form] = ready
            continue
        steps[str(form)], peaks[str(form)] = ready
    taken = timer.interleaved(steps, rounds, in_a_row=1 if bench.dry else 2)
    steps.clear()
    for form in forms:
        if form not in cells:
            seconds = taken[str(form)]
            failed = isinstance(seconds, Failure)
            cells[form] = seconds if failed else Cell(seconds, peaks[str(form)])
    free()
    return {form: cells[form] for form in forms}


def warmed_up(
    bench: Bench, timer: Timer, point: Point, form: Form
) -> tuple[Callable[[], None], Memory | None]:
    """A step that has run a few times, and its peaks of memory."""
    free()
    before = timer.memory()
    made = training(bench, form, point.layout, point.clips, point.frames)
    for _ in range(0 if bench.dry else WARM_UP - 1):
        made.step()
    return made.step, timer.peaks(made.step, before)
