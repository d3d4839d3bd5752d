"""Section roofline: the least time that counted FLOPs and bytes allow, beside what was measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from compute_parts.networks import AUTO, BASE, FUSED
from compute_parts.norms import view
from compute_parts.scale import Bench
from compute_parts.shapes import Work, work_of


@dataclass(frozen=True)
class Floor:
    """Seconds of a training step at the measured rates.

    Attributes:
        arithmetic: all FLOPs at the matmul rate.
        conv_bytes: inputs and outputs of convolutions, three times each, at the copy rate.
        norm_bytes: likewise what fused norm kernels move.
        pool_bytes: likewise of pools with one-byte codes.
        layers: sum over layers of the larger of its two times.
    """

    arithmetic: float
    conv_bytes: float
    norm_bytes: float
    pool_bytes: float
    layers: float


def measure_roofline(bench: Bench) -> None:
    """Floors of both layouts at the main table's clips, and measured steps as multiples."""
    page = bench.page
    page.title(f"Roofline of a training step, {bench.scale.clips} clips, ms")
    if not {"copy", "matmul"} <= bench.known.keys():
        page.say("Unmeasured: it needs the section rates in the same run.")
        return
    page.table(
        "layout", "TFLOP", "arithmetic", "conv bytes", "norm bytes", "pool bytes",
        "floor by layers", "form", "measured", "measured / floor", "of matmul rate",
    )  # fmt: skip
    for layout in ("pv32", "org32"):
        work = work_of(bench.scale, layout, bench.scale.clips, view(bench))
        floor = floor_of(work, bench.known["copy"], bench.known["matmul"])
        parts = (floor.arithmetic, floor.conv_bytes, floor.norm_bytes, floor.pool_bytes)
        for form in (BASE, FUSED, AUTO):
            taken = bench.known.get(f"step {layout} {form}")
            cells: list[object] = ["unmeasured"]
            if taken is not None:
                cells = [1e3 * taken, taken / floor.layers, floor.arithmetic / taken]
            shown = [1e3 * part for part in (*parts, floor.layers)]
            page.row(layout, work.flops / 1e12, *shown, form, *cells)
            bench.known[f"floor {layout}"] = floor.layers


def floor_of(work: Work, copy: float, matmul: float) -> Floor:
    """Floor of a step from counted work, bytes per second and FLOP per second."""
    # The stem's input needs no gradient.
    conv_flops = [(2 if s.is_stem else 3) * s.flops * n for s, n in work.convs.items()]
    conv_bytes = [(2 if s.is_stem else 3) * s.nbytes * n for s, n in work.convs.items()]
    norm_bytes = sum(
        (s.passes(backward=False) + s.passes(backward=True)) * s.nbytes * n
        for s, n in work.norms.items()
    )
    # There and back: 2 bytes an input, 3 an output.
    pool_bytes = sum(
        2 * (2 * prod(s.in_size) + 3 * prod(s.out_size)) * n for s, n in work.pools.items()
    )
    convs = sum(longest(conv_flops, conv_bytes, copy, matmul))
    return Floor(
        work.flops / matmul,
        sum(conv_bytes) / copy,
        norm_bytes / copy,
        pool_bytes / copy,
        convs + (norm_bytes + pool_bytes) / copy,
    )


def longest(
    flops: Iterable[float], nbytes: Iterable[float], copy: float, matmul: float
) -> Iterable[float]:
    return (max(f / matmul, b / copy) for f, b in zip(flops, nbytes, strict=True))
