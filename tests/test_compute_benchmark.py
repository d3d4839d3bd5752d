"""``benchmarks/compute.py``: what it counts, what it does with failures, and that it runs."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
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


def test_sections_have_their_share_and_what_is_left_of_those_before(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    compute = import_module("compute")
    assert sum(compute.SHARES.values()) == pytest.approx(1)
    ends = compute.ends_of(list(compute.SHARES), 500)
    assert list(ends.values()) == sorted(ends.values())
    assert ends["suite"] == pytest.approx(500)
    assert ends["train"] - ends["rates"] == pytest.approx(500 * compute.SHARES["train"])
    assert compute.ends_of(["sweep"], 60) == {"sweep": pytest.approx(60)}
    assert compute.ends_of([], 60) == {}

    scale, timing = parts("scale"), parts("timing")
    timer = timing.Timer(torch.device("cpu"), time.monotonic() + 100)
    bench = scale.Bench(torch.device("cpu"), scale.TINY, timer, parts("page").Page(), True)
    given: dict[str, float] = {}
    for name, module, function in (
        ("norms", "norms", "measure_norms"),
        ("sweep", "train", "measure_sweep"),
    ):
        monkeypatch.setattr(
            parts(module), function, lambda _, seconds, name=name: given.update({name: seconds})
        )
    for section in ("norms", "sweep"):
        compute.gpu_sections(bench, ["norms", "sweep", "roofline"])[section]()
    shares = compute.SHARES
    assert given["norms"] == pytest.approx(
        100 * shares["norms"] / (shares["norms"] + shares["sweep"]), abs=2
    )
    assert given["sweep"] == pytest.approx(100, abs=2)  # norms took no time


def test_files_are_measured_as_far_as_time_allows(
    parts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was found before the end counts, and nothing of it goes on."""
    files, scale, timing, bars = (parts(name) for name in ("files", "scale", "timing", "bars"))
    alive, begun = tmp_path / "alive", tmp_path / "begun"
    script = tmp_path / "slow.py"
    script.write_text(
        f"""
import json, subprocess, sys, tempfile, time
from pathlib import Path
Path({str(begun)!r}).write_text(tempfile.mkdtemp())
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9); open({str(alive)!r}, 'w')"])
out = sys.argv[sys.argv.index("--out") + 1]
both = {{"clips_per_second": 1234.0, "data_wait": 0.05}}
Path(out).write_text(json.dumps({{"prepared": {{"reading": 2000.0, "both": both}}}}))
print("so far", flush=True)
time.sleep(600)
"""
    )
    monkeypatch.setattr(files, "SCRIPT", script)
    monkeypatch.setattr(files.child, "STOPPING_SECONDS", 1)
    device = torch.device("cpu")
    timer = timing.Timer(device, time.monotonic() + 600)
    bench = scale.Bench(device, scale.TINY, timer, parts("page").Page(), True)
    files.measure_files(bench, 0.9)
    assert bench.page.lines[-1] == "Time is up."
    assert not begun.exists()
    began = time.monotonic()
    files.measure_files(bench, 6)
    assert time.monotonic() - began < 40
    assert not Path(begun.read_text()).exists()
    assert "so far" in bench.page.lines
    assert any("s: time is up" in line for line in bench.page.lines)
    bars.judge(bench, bars.GPU_BARS)
    rows = {
        row[1].strip(): row for row in (line.split("|") for line in bench.page.lines) if row[1:]
    }
    assert rows["training from prepared files, clips/s"][4] == " met "
    assert rows["the same, share of time the GPU waits"][4] == " met "
    tested = "minutes of Kinetics-400's ten-clip test, GN, from prepared files"
    assert rows[tested][4] == " unmeasured "
    time.sleep(max(0.0, began + 11 - time.monotonic()))
    assert not alive.exists()


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
        "files test videos/s": 0.0,
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
    test = "minutes of Kinetics-400's ten-clip test, GN, from prepared files"
    assert rows[test][4] == " unmeasured "
    missed = "act, last: smallest share of a 4 GB copy's bandwidth, tensors ≥ 64 MB"
    assert rows[missed][3:5] == [" 0.7 ", " missed "]
    assert capsys.readouterr().out.splitlines() == page.lines


def test_memory_is_shown_and_judged_like_with_like(parts: Any) -> None:
    """Both kinds in every row; bars divide one kind by the same of eager BN."""
    networks, bars, train, timing = (
        parts(name) for name in ("networks", "bars", "train", "timing")
    )
    device, page, scale = torch.device("cpu"), parts("page").Page(), parts("scale")
    bench = scale.Bench(device, scale.TINY, timing.Timer(device, 0.0), page, False)
    sizes = {
        networks.BASE: (10, 12),
        networks.FUSED: (8, 9),
        networks.AUTO: (1, 11),
        bars.SPARING: (1, 7),
        bars.SPARING_PLAIN: (5, 6),
    }
    cells = {
        form: train.Cell(1.0, timing.Memory(allocated * 10**9, reserved * 10**9))
        for form, (allocated, reserved) in sizes.items()
    }
    for form, cell in cells.items():
        train.report(bench, train.Point("pv32", 8, 32), form, cell, cells[networks.BASE])
    auto = [cell.strip() for cell in page.lines[2].split("|")]
    assert auto[5:9] == ["1", "0.1", "11", "0.917"]
    bars.judge(bench, bars.GPU_BARS)
    found = [line.split("|") for line in page.lines if line.startswith("| memory ")]
    assert [(row[3].strip(), row[4].strip()) for row in found] == [
        ("0.8", "met"),  # 8 of 10 allocated
        ("0.917", "met"),  # 11 of 12 reserved
        ("0.5", "met"),  # 5 of 10
        ("0.583", "missed"),  # 7 of 12
    ]


def test_peers_train_on_a_cpu_at_sizes_that_their_heads_are_not_made_for(parts: Any) -> None:
    cpu, scale, timing = (parts(name) for name in ("cpu", "scale", "timing"))
    device = torch.device("cpu")
    timer = timing.Timer(device, time.monotonic() + 60)
    bench = scale.Bench(device, scale.WHOLE, timer, parts("page").Page(), False)
    assert cpu.PYTORCHVIDEO in cpu.TRAINED
    cpu.cpu_step(bench, cpu.PYTORCHVIDEO, (8, 48, 48), 1)()


def test_where_the_peer_fails_steps_have_no_ratio(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, scale, timing = (parts(name) for name in ("cpu", "scale", "timing"))
    device, page = torch.device("cpu"), parts("page").Page()
    bench = scale.Bench(device, scale.TINY, timing.Timer(device, time.monotonic()), page, True)

    def step(_bench: Any, form: Any, *_: Any) -> Any:
        if form.source != "ours":
            raise RuntimeError("too small")
        return lambda: None

    monkeypatch.setattr(cpu, "cpu_step", step)
    cpu.measure_cpu_training(bench, (8, 16, 16), 1, True)
    rows = [line for line in page.lines if line.startswith(("| BN", "| GN", "| pytorchvideo"))]
    assert len(rows) == 9
    assert all(row.count("|") == 4 for row in rows)
    assert rows[-1].split("|")[2:4] == [" failed: RuntimeError: too small ", " - "]
    assert rows[0].split("|")[3] == " - "


@pytest.mark.parametrize(
    ("last", "failed"),
    [
        ("240 passed, 3 skipped in 80.1s", 0),
        ("2 failed, 238 passed, 1 error in 80s", 3),
        ("248 skipped in 9.0s", None),
        ("no tests ran in 0.1s", None),
    ],
)
def test_failing_tests_are_counted_where_any_ran(
    parts: Any, monkeypatch: pytest.MonkeyPatch, last: str, failed: int | None
) -> None:
    suite, scale, timing, bars = (parts(name) for name in ("suite", "scale", "timing", "bars"))
    device, page = torch.device("cpu"), parts("page").Page()
    timer = timing.Timer(device, time.monotonic() + 60)
    bench = scale.Bench(device, scale.TINY, timer, page, False)
    ended = suite.child.Ended(["....", last], 0, 80.0)
    monkeypatch.setattr(suite.child, "run", lambda command, seconds: ended)
    suite.measure_suite(bench, 60)
    assert last in page.lines
    assert bench.known.get("tests failed") == failed
    bars.judge(bench, bars.GPU_BARS)
    (row,) = (line for line in page.lines if line.startswith("| tests that need a CUDA device"))
    verdict = "unmeasured" if failed is None else "met" if failed == 0 else "missed"
    assert row.endswith(f"| {verdict} |")


def test_the_suite_that_was_cut_off_counts_as_unmeasured(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, scale, timing = (parts(name) for name in ("suite", "scale", "timing"))
    device, page = torch.device("cpu"), parts("page").Page()
    timer = timing.Timer(device, time.monotonic() + 60)
    bench = scale.Bench(device, scale.TINY, timer, page, False)
    ended = suite.child.Ended(["3 passed so far"], None, 80.0)
    monkeypatch.setattr(suite.child, "run", lambda command, seconds: ended)
    suite.measure_suite(bench, 60)
    assert bench.known == {}
    assert page.lines[-1] == "Ended after 80 s: time is up."


class ApexGroupNorm(torch.nn.Module):
    """What apex's does and asks for, by torch."""

    SUPPORTED_GROUPS = frozenset([32])
    SUPPORTED_CHANNELS = frozenset([128])

    def __init__(self, num_groups: int, num_channels: int, eps: float, device: Any = None) -> None:
        super().__init__()
        self.num_groups, self.eps = num_groups, eps
        self.weight = torch.nn.Parameter(torch.ones(num_channels, device=device))
        self.bias = torch.nn.Parameter(torch.zeros(num_channels, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.ndim == 4
        assert x.is_contiguous(memory_format=torch.channels_last)
        weight, bias = (p.to(x.dtype) for p in (self.weight, self.bias))
        return torch.nn.functional.group_norm(x, self.num_groups, weight, bias, self.eps)


@pytest.mark.parametrize("residual", [False, True])
def test_apex_computes_the_layer_with_its_weights(
    parts: Any, monkeypatch: pytest.MonkeyPatch, residual: bool
) -> None:
    apex = ModuleType("apex.contrib.group_norm")
    apex.GroupNorm = ApexGroupNorm  # type: ignore[attr-defined]
    for name in ("apex", "apex.contrib"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, apex.__name__, apex)
    norms, scale, timing = (parts(name) for name in ("norms", "scale", "timing"))
    device = torch.device("cpu")
    page = parts("page").Page()
    timer = timing.Timer(device, time.monotonic() + 60)
    bench = scale.Bench(device, replace(scale.TINY, network={}), timer, page, True)
    shape = parts("shapes").NormShape((2, 128, 3, 4, 4), residual, True)
    layer = norms.layer_of(bench, shape, "last")
    call = norms.apex_call(layer)
    assert all(seconds > 0 for seconds in norms.passes_seconds(bench, layer, call))
    x, added = layer.x[0], layer.residual[0] if residual else None
    weight, bias = (p.to(x.dtype) for p in (layer.weight, layer.bias))
    expected = torch.nn.functional.group_norm(x, 32, weight, bias, norms.EPS)
    expected = (expected if added is None else expected + added).relu()
    torch.testing.assert_close(call(x, added), expected, rtol=2e-2, atol=2e-2)
    other = parts("shapes").NormShape((2, 64, 3, 4, 4), residual, True)
    with pytest.raises(RuntimeError, match="no kernel for 64 channels in 32 groups"):
        norms.apex_call(norms.layer_of(bench, other, "last"))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_form_is_updated_by_the_same_optimiser(
    parts: Any, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    networks, scale = parts("networks"), parts("scale")
    asked = []

    class StopError(Exception):
        pass

    def sgd(network: torch.nn.Module, *, fused: bool) -> None:
        asked.append(fused)
        raise StopError

    monkeypatch.setattr(networks, "sgd", sgd)
    monkeypatch.setattr(networks, "built", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(networks, "pixels", lambda *_: None)
    monkeypatch.setattr(torch, "arange", lambda *_, **__: 0)
    bench = scale.Bench(torch.device(device), scale.TINY, None, None, False)
    for form in (networks.BASE, networks.FUSED, networks.PYSLOWFAST):
        with pytest.raises(StopError):
            networks.training(bench, form, "pv32", 1, 8)
    assert asked == [device == "cuda"] * 3


@pytest.mark.slow
def test_every_section_of_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    """In one process, which starts once for all of them, and one that reads files."""
    sections = (
        "rates,train,norms,test,convs,compile,sweep,files,suite,roofline,recipes,cputrain,bars"
    )
    command = [sys.executable, str(BENCHMARKS / "compute.py"), "--dry-run", "--out", str(tmp_path)]
    command += ["--sections", sections]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed
    cells = [line for line in printed.splitlines() if line.startswith(("|", "**"))]
    assert "failed" not in "".join(cells)
    (page,) = tmp_path.iterdir()
    assert page.read_text() == printed
    assert all(f"({name}: " in printed for name in sections.split(","))
    bars = [cell for cell in cells if "prepared files" in cell]
    assert len(bars) == 2
    assert "unmeasured" not in "".join(bars)
