"""When a run's passes are captured, what is told, and how it goes on where they are not."""

from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from videogn.cli import main
from videogn.commands import capturing, run_parts
from videogn.commands.capturing import captured
from videogn.config import ComputeConfig, Config, TrainConfig
from videogn.distributed import World
from videogn.engine import memory_plan, rehearsal
from videogn.engine.device_memory import gib
from videogn.engine.graphs import Uncaptured
from videogn.engine.memory import Moments, StepMemory
from videogn.engine.memory_plan import MemoryPlan
from videogn.engine.runs import RunFolder
from videogn.errors import RunError

GIB = 2**30
PEAK = 10 * GIB
CLIPS = torch.zeros(1)


def plan_of(available: float) -> MemoryPlan:
    """Of a step that takes 10 GiB."""
    lines = Moments(((0, PEAK // 8),))
    return MemoryPlan(StepMemory(0, lines, lines, lines), 8, int(available * GIB))


def config_of(graphs: str) -> Config:
    return Config(compute=ComputeConfig(graphs=graphs), train=TrainConfig(clips_per_gpu=8))


def world_of(size: int = 1) -> World:
    return World(0, size, torch.device("cpu"))


def attempt(monkeypatch, found: nn.Module | Uncaptured) -> list[str]:
    """What capturing gives; how often it is tried."""
    tried = []

    def fake(network: nn.Module, clips: Tensor, precision: str) -> nn.Module | Uncaptured:
        tried.append(precision)
        return found

    monkeypatch.setattr(capturing, "try_replayed", fake)
    return tried


@pytest.mark.parametrize(
    ("graphs", "available", "used"),
    [("auto", 16.01, True), ("auto", 15.99, False), ("on", 15.99, True), ("on", 10, True)],
)
def test_graphs_are_taken_where_there_is_room_or_where_asked_for(
    monkeypatch, graphs: str, available: float, used: bool
) -> None:
    lines, model = [], nn.Identity()
    tried = attempt(monkeypatch, model)
    found = captured(
        nn.Identity(), CLIPS, config_of(graphs), plan_of(available), world_of(), lines.append
    )
    assert (found is model) == bool(tried) == used
    if used:
        assert lines == []
    else:
        assert lines == [
            "graphs      not used: CUDA graphs and a validation beside them take about 16.00 GiB, "
            "plain steps 10.00 GiB, and 15.99 GiB are free"
        ]


def test_the_plan_tells_of_graphs_where_they_are_used() -> None:
    plan = plan_of(100)
    assert "graphs" not in plan.line()
    assert plan.line(graphs=True) == plan.line() + "; as CUDA graphs 14.00 GiB"


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_auto_goes_on_without_and_says_so_in_a_line(monkeypatch, out_of_memory: bool) -> None:
    lines: list[str] = []
    attempt(monkeypatch, Uncaptured("no such operation", out_of_memory))
    network, config = nn.Identity(), config_of("auto")
    assert captured(network, CLIPS, config, plan_of(100), world_of(), lines.append) is None
    assert lines == ["graphs      not used: a training pass cannot be captured: no such operation"]


def test_a_device_that_is_unusable_since_ends_the_run(monkeypatch) -> None:
    attempt(monkeypatch, Uncaptured("no; then stuck", out_of_memory=False, sound=False))
    with pytest.raises(RunError, match=r"no; then stuck; set compute\.graphs=off"):
        captured(nn.Identity(), CLIPS, config_of("auto"), plan_of(100), world_of(), print)


@pytest.mark.parametrize("where", ["room", "capture"])
def test_all_ranks_have_graphs_or_none(monkeypatch, where: str) -> None:
    """Another rank has too little memory, or cannot capture what this one could."""
    answers = {"room": ["too little there"], "capture": [None, "broken there"]}[where]
    asked: list[str | None] = []

    def gather(mine: str | None) -> list[str | None]:
        asked.append(mine)
        return [mine, answers[len(asked) - 1]]

    lines: list[str] = []
    monkeypatch.setattr(capturing, "gather_over_ranks", gather)
    tried = attempt(monkeypatch, nn.Identity())
    found = captured(
        nn.Identity(), CLIPS, config_of("auto"), plan_of(100), world_of(2), lines.append
    )
    assert found is None
    assert asked == [None] * len(answers)
    assert bool(tried) == (where == "capture")
    assert len(lines) == 1
    assert lines[0].endswith(answers[-1])


# --- Whole runs, of which the capture alone is made up -------------------------------------------


@pytest.fixture
def wanted(monkeypatch) -> None:
    """As on a GPU with Triton."""
    monkeypatch.setattr(run_parts, "uses_graphs", lambda *_, **__: True)


def capturing_by(monkeypatch, error: Exception | None) -> list[tuple[int, ...]]:
    """Stand in for torch's capture, with passes before it; the shapes it was called with."""
    shapes = []

    def capture(model: nn.Module, inputs: tuple[Tensor, ...], **_: Any) -> None:
        shapes.append(tuple(inputs[0].shape))
        for _ in range(3):
            model(*inputs).sum().backward()
        model.zero_grad(set_to_none=True)
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return shapes


def weights_of(out) -> dict[str, Tensor]:
    with safe_open(RunFolder(out).last, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("not permitted\nmore"), KeyError("a bug"), None])
def test_a_run_is_that_without_graphs_bit_for_bit(tiny, capsys, monkeypatch, wanted, error) -> None:
    words = ["train", str(tiny.config), "model.norm=bn", "train.iterations=3"]
    assert main([*words, f"out={tiny.folder / 'plain'}", "train.precision=fp32"]) == 0
    shapes = capturing_by(monkeypatch, error)
    capsys.readouterr()
    assert main([*words, f"out={tiny.folder / 'tried'}"]) == 0
    out = capsys.readouterr().out
    assert shapes == [(4, 3, 8, 32, 32)]
    told = [line for line in out.splitlines() if line.startswith("graphs ")]
    assert len(told) == (0 if error is None else 1)
    assert (" as CUDA graphs " in out) == (error is None)
    plain, tried = weights_of(tiny.folder / "plain"), weights_of(tiny.folder / "tried")
    assert all(torch.equal(plain[name], tensor) for name, tensor in tried.items())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("operation not permitted\nmore"), ["operation not permitted", "graphs=off"]),
        (ValueError("no kernel"), ["no kernel", "graphs=off"]),
        (torch.OutOfMemoryError("CUDA out of memory"), ["clips_per_gpu=4", "compute.recompute="]),
    ],
)
def test_a_pass_that_shall_be_captured_and_cannot_says_what_to_set(
    tiny, capsys, monkeypatch, wanted, error: Exception, words: list[str]
) -> None:
    capturing_by(monkeypatch, error)
    out = f"out={tiny.folder / 'run'}"
    message = error_of(capsys, "train", tiny.config, out, "compute.graphs=on")
    assert all(word in message for word in words)
    assert message.count("\n") == 1


def test_memory_is_asked_for_before_a_pass_is_captured(tiny, capsys, monkeypatch, wanted) -> None:
    shapes = capturing_by(monkeypatch, None)
    monkeypatch.setattr(memory_plan, "available_bytes", lambda device: 1000)
    message = error_of(capsys, "train", tiny.config, f"out={tiny.folder / 'run'}")
    assert "train.clips_per_gpu=4 needs about" in message
    assert "not one clip fits" in message
    assert shapes == []


def test_a_run_without_room_for_graphs_trains_without(tiny, capsys, monkeypatch, wanted) -> None:
    shapes = capturing_by(monkeypatch, None)
    words = ["train", str(tiny.config), "train.iterations=1", f"out={tiny.folder / 'run'}"]
    assert main([*words, "--dry-run"]) == 0
    peak = capsys.readouterr().out.partition(" in passing = ")[2].partition(" of ")[0]
    assert len(shapes) == 1
    plans: list[MemoryPlan] = []
    check = run_parts.check_memory

    def short(*arguments: Any, **options: Any) -> MemoryPlan:
        plan = check(*arguments, **options)
        plans.append(MemoryPlan(plan.step, 4, int(1.5 * plan.step.peak(4))))
        return plans[-1]

    monkeypatch.setattr(run_parts, "check_memory", short)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert len(shapes) == 1
    assert out.count("graphs      not used: ") == 1
    assert f"plain steps {peak}, and {gib(plans[0].available_bytes)} are free" in out
    assert "as CUDA graphs" not in out


@pytest.mark.parametrize("error", [RuntimeError("a pass cannot"), None])
def test_a_step_out_of_memory_names_graphs_where_they_are_used(
    tiny, capsys, monkeypatch, wanted, error
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    capturing_by(monkeypatch, error)
    monkeypatch.setattr(rehearsal, "_pass", full)
    message = error_of(capsys, "train", tiny.config, f"out={tiny.folder / 'run'}")
    assert "clips_per_gpu=4: a step ran out of memory" in message
    assert ("set compute.graphs=off, which takes about" in message) == (error is None)
    assert message.count("\n") == 1


def test_a_validation_out_of_memory_names_graphs(tiny, capsys, monkeypatch, wanted) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    capturing_by(monkeypatch, None)
    monkeypatch.setattr(run_parts, "validate", full)
    message = error_of(capsys, "train", tiny.config, f"out={tiny.folder / 'run'}")
    assert "clips_per_gpu=4: training or validation ran out of memory" in message
    assert "set compute.graphs=off" in message
