"""Sections train, sweep and compile: time and memory of training steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compute_parts.networks import (
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
from compute_parts.timing import Failure, Timer, attempt, free

WARM_UP = 3
COMPILE_SECONDS = 45
"""About what compiling a network takes; it is not begun with less left."""

EAGER = [Form("bn"), BASE, Form("gn"), Form("gn", memory_format=LAST)]
FUSED_FORMS = [
    replace(FUSED_3D, norm="bn"),
    FUSED_BN,
    FUSED,
    replace(FUSED, convolutions="2d"),
    replace(FUSED, stem="time_padded"),
    replace(FUSED, stem="native"),
    FUSED_3D,
    replace(FUSED_3D, memory_format=CONTIGUOUS),
]
RECOMPUTED = [
    replace(FUSED, recompute="act"),
    replace(FUSED, recompute="act+conv_c"),
    replace(FUSED, recompute="block"),
    replace(FUSED_BN, recompute="act+conv_c"),
]
PEERS = [PYTORCHVIDEO, replace(PYTORCHVIDEO, memory_format=LAST), PYSLOWFAST]
TUNED = [replace(BASE, tuned=True), replace(FUSED_3D, tuned=True), replace(FUSED, tuned=True)]
GRAPHS = [replace(FUSED, graph=True), replace(FUSED_BN, graph=True)]
COMPILED = [replace(BASE, compiled=True), replace(Form("gn"), compiled=True)]
SHORT = [Form("bn"), BASE, Form("gn"), FUSED_BN, FUSED_3D, FUSED]
SWEPT = [BASE, FUSED, replace(FUSED, recompute="act+conv_c")]


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
        nbytes: peak of a step with weights, momenta and clips; None on a CPU and of graphs.
    """

    seconds: float
    nbytes: int | None


def main_point(bench: Bench) -> Point:
    return Point("pv32", bench.scale.clips, bench.scale.frames[0])


def measure_train(bench: Bench, seconds: float) -> None:
    """The main table (pv32), and the shorter one of org32."""
    timer = bench.within(seconds)
    main = main_point(bench)
    forms = [*EAGER, *FUSED_FORMS, *RECOMPUTED, *PEERS, *TUNED]
    compare(bench, timer, main, [*forms, *graphs(bench)], bench.scale.rounds)
    other = replace(main, layout="org32")
    forms = [*SHORT, *RECOMPUTED[:2], PYSLOWFAST, *graphs(bench)]
    compare(bench, timer, other, forms, bench.scale.rounds)


def graphs(bench: Bench) -> list[Form]:
    return GRAPHS if bench.device.type == "cuda" else []


def measure_sweep(bench: Bench, seconds: float) -> None:
    """Three forms over clips per GPU, layouts and lengths; few forms, for time is short."""
    timer = bench.within(seconds)
    short, long = bench.scale.frames
    for layout, frames in (("pv32", short), ("pv32", long), ("org32", short), ("org32", long)):
        bench.page.title(f"Clips per GPU, {layout}, {frames} frames: ms per step, GB")
        heads = [f"{form} {unit}" for form in SWEPT for unit in ("ms", "GB")]
        bench.page.table("clips", *heads, "GN / BN")
        for clips in bench.scale.sweep:
            if timer.left() < 0:
                bench.page.row("time is up")
                return
            sweep_row(bench, timer, Point(layout, clips, frames))


def sweep_row(bench: Bench, timer: Timer, point: Point) -> None:
    cells = measure(bench, timer, point, SWEPT, rounds=min(3, bench.scale.rounds))
    shown: list[object] = []
    for form in SWEPT:
        cell = cells[form]
        failed = isinstance(cell, Failure)
        shown += [cell, None] if failed else [1e3 * cell.seconds, gigabytes(cell)]
    shown.append(ratio(cells[FUSED], cells[BASE]))
    bench.page.row(point.clips, *shown)


def measure_compiled(bench: Bench, seconds: float) -> None:
    """torch.compile of eager BN and GN at the main point, beside the forms they compete with."""
    if bench.dry:
        bench.page.title("Compiled: not in a dry run")
        return
    compare(bench, bench.within(seconds), main_point(bench), [BASE, FUSED, *COMPILED], rounds=3)


def compare(bench: Bench, timer: Timer, point: Point, forms: Sequence[Form], rounds: int) -> None:
    """One table: forms interleaved at one point, relative to eager BN in channels last."""
    page = bench.page
    page.title(f"Training step, {point}")
    page.table("form", "ms", "clips/s", "time / BN last", "GB", "memory / BN last")
    cells = measure(bench, timer, point, forms, rounds)
    base = cells[BASE]
    for form, cell in cells.items():
        if isinstance(cell, Failure):
            page.row(form, cell)
            continue
        bench.known[f"step {point.layout} {form}"] = cell.seconds
        memory = None
        if cell.nbytes is not None:
            bench.known[f"bytes {point.layout} {form}"] = cell.nbytes
            if isinstance(base, Cell) and base.nbytes:
                memory = cell.nbytes / base.nbytes
        speed = point.clips / cell.seconds
        page.row(form, 1e3 * cell.seconds, speed, ratio(cell, base), gigabytes(cell), memory)


def gigabytes(cell: Cell) -> float | None:
    return None if cell.nbytes is None else cell.nbytes / 1e9


def ratio(cell: "Cell | Failure", base: "Cell | Failure") -> float | None:
    if isinstance(cell, Failure) or isinstance(base, Failure):
        return None
    return cell.seconds / base.seconds


def measure(
    bench: Bench, timer: Timer, point: Point, forms: Sequence[Form], rounds: int
) -> dict[Form, Cell | Failure]:
    """Every form at a point, interleaved. A form that fails, or has no time left, says so."""
    steps: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int | None] = {}
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
) -> tuple[Callable[[], None], int | None]:
    """A step that has run a few times, and its peak of memory."""
    before = timer.allocated()
    made = training(bench, form, point.layout, point.clips, point.frames)
    for _ in range(0 if bench.dry else WARM_UP - 1):
        made.step()
    peak = timer.peak_bytes(made.step, before)
    # What a graph holds is not counted as allocated.
    return made.step, None if form.graph else peak
