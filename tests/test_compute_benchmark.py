"""``benchmarks/compute.py``: what it counts, what it does with failures, and that it runs."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: import_module(f"compute_parts.{name}")


@pytest.mark.parametrize(
    ("layout", "gmacs", "forward_gb", "backward_gb"),
    [("pv32", 113.63, 1.8216, 3.1205), ("org32", 32.83, 0.4847, 0.8286)],
)
def test_counts_are_those_worked_out_by_hand(
    parts: Any, layout: str, gmacs: float, forward_gb: float, backward_gb: float
) -> None:
    work = parts("shapes").work_of(parts("scale").WHOLE, layout, 1, (32, 224, 224))
    assert work.forward_flops == pytest.approx(2e9 * gmacs, rel=1e-3)
    convolutions = sum(shape.flops * times for shape, times in work.convs.items())
    # All but the classifier.
    assert convolutions == pytest.approx(work.forward_flops, rel=1e-4)
    for backward, gigabytes in ((False, forward_gb), (True, backward_gb)):
        moved = sum(s.passes(backward) * s.nbytes * times for s, times in work.norms.items())
        assert moved == pytest.approx(1e9 * gigabytes, rel=1e-3)
    assert sum(work.norms.values()) == sum(work.convs.values()) == 53
    assert sum(shape.residual for shape in work.norms.elements()) == 16


def test_a_failing_cell_ends_neither_its_table_nor_the_run(parts: Any) -> None:
    timer = parts("timing").Timer(torch.device("cpu"), time.monotonic() + 60)

    def broken() -> None:
        raise RuntimeError("no such kernel\nwith details")

    def full() -> None:
        raise torch.OutOfMemoryError

    steps = {"broken": broken, "works": lambda: None, "full": full}
    times = timer.interleaved(steps, 2)
    assert str(times["broken"]) == "failed: RuntimeError: no such kernel"
    assert str(times["full"]) == "out of memory"
    assert times["works"] >= 0


def test_rounds_end_when_time_is_up(parts: Any) -> None:
    timer = parts("timing").Timer(torch.device("cpu"), time.monotonic() - 1)
    calls: list[int] = []
    timer.interleaved({"step": lambda: calls.append(1)}, rounds=9, in_a_row=1)
    assert len(calls) == 1


def test_bars_are_met_missed_or_unmeasured(parts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    networks, bars = parts("networks"), parts("bars")
    known = {
        f"relative pv32 {networks.BASE}": 1.0,
        f"relative pv32 {networks.FUSED_BN}": 0.80,
        f"relative pv32 {networks.AUTO}": 0.86,
        f"relative pv32 {networks.Form('gn')}": 2.0,
        "worst share last act": 0.7,
    }
    device = torch.device("cpu")
    page = parts("page").Page()
    scale = parts("scale")
    timer = parts("timing").Timer(device, 0.0)
    bars.judge(scale.Bench(device, scale.TINY, timer, page, False, known), bars.GPU_BARS)
    rows = {row[1].strip(): row for row in (line.split("|") for line in page.lines) if len(row) > 2}
    assert rows["GN step / eager BN channels last"][3:5] == [" 0.86 ", " met "]
    assert rows["GN step / best BN step"][3:5] == [" 1.07 ", " missed "]
    assert rows["eager GN contiguous step / GN step"][3:5] == [" 2.33 ", " met "]
    assert rows["pytorchvideo's step / GN step"][4] == " unmeasured "
    missed = "act, last: smallest share of copy bandwidth, tensors ≥ 64 MB"
    assert rows[missed][3:5] == [" 0.7 ", " missed "]
    assert capsys.readouterr().out.splitlines() == page.lines


@pytest.mark.slow
@pytest.mark.parametrize("sections", ["rates,norms,roofline,bars", "train", "convs,test,sweep"])
def test_every_section_of_a_gpu_runs_on_a_cpu(sections: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "compute.py"), "--dry-run", "--out", str(tmp_path)]
    command += ["--sections", sections]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed
    assert "failed" not in printed
    (page,) = tmp_path.iterdir()
    assert page.read_text() == printed
    assert all(f"{name}: " in printed for name in sections.split(","))
