"""Section bars: what is asked for, met, missed or unmeasured."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from compute_parts.networks import AUTO, BASE, FUSED, PYTORCHVIDEO, Form
from compute_parts.page import shown
from compute_parts.scale import Bench
from compute_parts.test import BN_TEST, GN_TEST

Known = dict[str, float]
TEST_VIDEOS = 19_761


@dataclass(frozen=True)
class Bar:
    """One demand.

    Attributes:
        value: of what is known; KeyError where something of it is not.
        limit: the demanded number.
        at_least: whether larger is better.
    """

    text: str
    value: Callable[[Known], float]
    limit: float
    at_least: bool


def best(known: Known, norm: str) -> float:
    """The fastest step of our network with a norm, relative to eager BN in channels last."""
    start = f"relative pv32 {norm}"
    found = [value for name, value in known.items() if name.startswith(start)]
    if not found:
        raise KeyError(start)
    return min(found)


def slower(form: Form) -> Callable[[Known], float]:
    """Time of a form over that of the one that the toolkit takes."""
    return lambda known: known[f"relative pv32 {form}"] / known[f"relative pv32 {AUTO}"]


def memory(form: Form, kind: str) -> Callable[[Known], float]:
    """Memory of a form over eager BN's, both allocated or both reserved."""
    return lambda known: known[f"{kind} pv32 {form}"] / known[f"{kind} pv32 {BASE}"]


SPARING = replace(AUTO, recompute="act+conv_c")
SPARING_PLAIN = replace(FUSED, recompute="act+conv_c")
GPU_BARS = [
    Bar("GN step / eager BN channels last", lambda k: 1 / slower(BASE)(k), 1.0, False),
    Bar(
        "GN step / best BN step",
        lambda k: k[f"relative pv32 {AUTO}"] / best(k, "BN"),
        1.05,
        False,
    ),
    Bar("eager GN contiguous step / GN step", slower(Form("gn")), 2.2, True),
    Bar("pytorchvideo's step / GN step", slower(PYTORCHVIDEO), 1.4, True),
    *(
        Bar(
            f"{kernel}, {layout}: smallest share of {copy} bandwidth, tensors ≥ 64 MB",
            lambda k, name=f"{noted} {layout} {kernel}": k[name],
            0.8,
            True,
        )
        for noted, copy in (
            ("worst share", "a 4 GB copy's"),
            ("worst of its copy", "a copy of its size's"),
        )
        for layout in ("last", "contiguous")
        for kernel in ("stats", "act", "forward", "backward")
    ),
    *(
        Bar(f"{what}, {kind} / eager BN channels last's", memory(form, kind), limit, False)
        for what, form, kind, limit in (
            ("memory of fused GN", FUSED, "allocated", 1.0),
            ("memory of fused GN as graphs", AUTO, "reserved", 1.0),
            ("memory with act+conv_c recomputed", SPARING_PLAIN, "allocated", 0.55),
            ("memory with act+conv_c recomputed, as graphs", SPARING, "reserved", 0.55),
        )
    ),
    Bar(
        "step with act+conv_c recomputed / without",
        slower(SPARING),
        1.08,
        False,
    ),
    *(
        Bar(
            f"minutes of Kinetics-400's ten-clip test, {norm}, the network alone",
            lambda k, name=f"test org32 {way}": TEST_VIDEOS * k[name] / 60,
            4.0,
            False,
        )
        for norm, way in (("GN", GN_TEST), ("BN", BN_TEST))
    ),
    Bar("training from prepared files, clips/s", lambda k: k["files clips/s"], 1000.0, True),
    Bar("the same, share of time the GPU waits", lambda k: k["files waiting"], 0.1, False),
    Bar(
        "minutes of Kinetics-400's ten-clip test, GN, from prepared files",
        lambda k: TEST_VIDEOS / k["files test videos/s"] / 60,
        4.0,
        False,
    ),
    Bar("tests that need a CUDA device and fail", lambda k: k["tests failed"], 0.0, False),
]


def cpu_bars() -> list[Bar]:
    """Speeds against eager fp32 of the same norm, at 224 pixels."""

    def speed(norm: str, precision: str, *, compiled: bool) -> Callable[[Known], float]:
        start = f"cpu speed {norm} {precision} {'compiled' if compiled else 'plain'}"
        return lambda known: known[start]

    def fastest(norm: str, precision: str) -> Callable[[Known], float]:
        def value(known: Known) -> float:
            start = f"cpu speed {norm} {precision}"
            found = [number for name, number in known.items() if name.startswith(start)]
            if not found:
                raise KeyError(start)
            return max(found)

        return value

    bars = [
        Bar(f"CPU, {norm}, best {precision} recipe", fastest(norm, precision), limit, True)
        for norm, precision, limit in (
            ("BN", "fp32", 1.6),
            ("BN", "bf16", 3.0),
            ("GN", "fp32", 1.35),
            ("GN", "bf16", 2.3),
        )
    ]
    return bars + [
        Bar(f"CPU, {norm}, fp32 without compiling", speed(norm, "fp32", compiled=False), 1.25, True)
        for norm in ("BN", "GN")
    ]


def judge(bench: Bench, bars: list[Bar]) -> None:
    """The table of bars."""
    page = bench.page
    page.title("Bars")
    if bench.dry:
        page.say("A dry run: tiny networks on a CPU. These numbers mean nothing.")
        page.say()
    page.table("bar", "wanted", "measured", "")
    for bar in bars:
        wanted = f"{'≥' if bar.at_least else '≤'} {shown(bar.limit)}"
        try:
            value = bar.value(bench.known)
        except (KeyError, ZeroDivisionError):  # no such number, or a pace of nothing
            page.row(bar.text, wanted, None, "unmeasured")
            continue
        met = value >= bar.limit if bar.at_least else value <= bar.limit
        page.row(bar.text, wanted, value, "met" if met else "missed")
