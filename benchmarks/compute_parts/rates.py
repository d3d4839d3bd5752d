"""Section rates: what this device copies and multiplies, measured."""

import torch

from compute_parts.scale import Bench
from compute_parts.timing import Failure, attempt


def measure_rates(bench: Bench) -> None:
    """Bandwidth of a large copy (bytes read plus written) and rate of a bf16 matrix product."""
    page = bench.page
    page.title("Ceilings")
    page.table("what", "rate")
    for name, call in (("copy", copy_rate), ("matmul", matmul_rate)):
        rate = attempt(lambda call=call: call(bench))
        if isinstance(rate, Failure):
            page.row(name, rate)
            continue
        bench.known[name] = rate
        unit = "TB/s, read plus written" if name == "copy" else "TFLOP/s, bf16 on random data"
        page.row(name, f"{rate / 1e12:.4g} {unit}")


def copy_rate(bench: Bench) -> float:
    """Bytes per second."""
    source = torch.randn(bench.scale.big // 4, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.timer.kernel(lambda _: target.copy_(source))
    return 2 * source.nbytes / seconds


def matmul_rate(bench: Bench) -> float:
    """FLOP per second."""
    side = bench.scale.matmul
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.timer.kernel(lambda _: a @ b)
    return 2 * side**3 / seconds
