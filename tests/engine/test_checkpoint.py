import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from driving import Forked, forked
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from videogn.engine.checkpoint import (
    Checkpoints,
    Trained,
    TrainingState,
    Window,
    load_checkpoint,
    save_checkpoint,
)
from videogn.engine.optim import build_optimizer
from videogn.errors import RunError, WeightError
from videogn.models.build import build_network
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import load_model, read_weights, write_weights


def info_of(**changes: object) -> WeightInfo:
    values = {
        "arch": "i3d_r50",
        "norm": "bn",
        "num_groups": 32,
        "channels_per_group": None,
        "layout": "nonlocal",
        "num_classes": 3,
        "width": 4,
        "depths": (1, 1),
        "dropout": 0.0,
    }
    spec = NetworkSpec(**{**values, **changes})
    return WeightInfo(spec, None, (0.4,) * 3, (0.2,) * 3, None, None, None)


def trained_of(info: WeightInfo, decay: float | None = None) -> Trained:
    network = build_network(info.spec)
    optimizer = build_optimizer(
        network, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, norm_weight_decay=0.0
    )
    average = decay and AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return Trained(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), average)


def step(trained: Trained, seed: int) -> None:
    network, optimizer = trained.network, trained.optimizer
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randn(2, 3, 8, 16, 16, generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(network(clips), torch.tensor([0, 2])).backward()
    optimizer.step()
    if trained.average is not None:
        trained.average.update_parameters(network)


@pytest.mark.parametrize("decay", [None, 0.7])
def test_going_on_equals_never_having_stopped(tmp_path: Path, decay: float | None) -> None:
    info, checkpoints = info_of(), Checkpoints(tmp_path)
    state = TrainingState(
        1, 2, 12.5, {"a.mp4": "no such file"}, 1, Window(0, ((0.1, 1.0, 1.0, 2.0, 0.0),))
    )
    trained = trained_of(info, decay)
    step(trained, 0)
    save_checkpoint(checkpoints, trained, info, state, keep=2)
    resumed = trained_of(info, decay)
    assert load_checkpoint(checkpoints.path_of(1), resumed, info) == state
    for seed in (1, 2):
        step(trained, seed)
        step(resumed, seed)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    for name, tensor in trained.evaluated.state_dict().items():
        assert torch.equal(tensor, resumed.evaluated.state_dict()[name]), name


def test_the_average_is_what_is_tested(tmp_path: Path) -> None:
    info, trained = info_of(), trained_of(info_of(), 0.9)
    for seed in (0, 1):
        step(trained, seed)
    save_checkpoint(Checkpoints(tmp_path), trained, info, TrainingState(2, 2), keep=2)
    clips = torch.randn(1, 3, 8, 16, 16)
    expected = trained.average.module.eval()(clips)
    assert torch.equal(load_model(tmp_path / "last.safetensors")(clips), expected)
    assert not torch.equal(trained.network.eval()(clips), expected)


def test_checkpoint_is_a_weight_file(tmp_path: Path) -> None:
    info, trained = info_of(), trained_of(info_of())
    step(trained, 0)
    save_checkpoint(Checkpoints(tmp_path), trained, info, TrainingState(1, 2), keep=2)
    clips = torch.randn(1, 3, 8, 16, 16)
    loaded = load_model(tmp_path / "last.safetensors")
    assert torch.equal(loaded(clips), trained.network.eval()(clips))


def test_weights_alone_cannot_be_gone_on_from(tmp_path: Path) -> None:
    info, path = info_of(), tmp_path / "inflated.safetensors"
    trained = trained_of(info)
    write_weights(path, trained.network.state_dict(), info)
    with pytest.raises(WeightError, match="no training state"):
        load_checkpoint(path, trained, info)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"norm": "gn", "num_groups": 2}, "norm"), ({"num_classes": 4}, "num_classes")],
)
def test_another_network_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save_checkpoint(checkpoints, trained_of(info_of()), info_of(), TrainingState(1, 2), keep=2)
    other = info_of(**change)
    with pytest.raises(WeightError, match=named):
        load_checkpoint(checkpoints.path_of(1), trained_of(other), other)


def saved(folder: Path, *iterations: int, keep: int = 9) -> Checkpoints:
    checkpoints, trained = Checkpoints(folder), trained_of(info_of())
    for iteration in iterations:
        save_checkpoint(checkpoints, trained, info_of(), TrainingState(iteration, 2), keep)
    return checkpoints


def nothing(line: str) -> None:
    del line


def test_the_newest_are_kept_by_iteration_whatever_the_clock_says(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 9, 10, 11)
    for path in tmp_path.iterdir():
        os.utime(path, (10**9 - int(path.name == "iter_00000011.safetensors"), 10**9))
    assert checkpoints.newest_sound(nothing) == checkpoints.path_of(11)
    saved(tmp_path, 12, keep=2)
    assert [path.name for path in checkpoints.newest_first()] == [
        "iter_00000012.safetensors",
        "iter_00000011.safetensors",
    ]
    assert (tmp_path / "last.safetensors").readlink() == Path("iter_00000012.safetensors")


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, place: float) -> None:
    path.write_bytes(path.read_bytes()[: int(place * path.stat().st_size)])


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("place", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_damaged_one_is_told_and_the_one_before_is_taken(
    tmp_path: Path, harm: Callable[[Path, float], None], place: float
) -> None:
    checkpoints = saved(tmp_path, 4, 5)
    harm(checkpoints.path_of(5), place)
    told: list[str] = []
    assert checkpoints.newest_sound(told.append) == checkpoints.path_of(4)
    assert len(told) == 1
    assert "iter_00000005" in told[0]


def test_all_damaged_is_an_error_that_names_each(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4, 5)
    for iteration in (4, 5):
        flip(checkpoints.path_of(iteration), 0.8)
    with pytest.raises(RunError, match=r"(?s)iter_00000005.*iter_00000004"):
        checkpoints.newest_sound(nothing)


SAVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import info_of, trained_of
from videogn.engine.checkpoint import Checkpoints, TrainingState, save_checkpoint
trained, info = trained_of(info_of()), info_of()
before = Checkpoints(Path(sys.argv[1])).peek()
iteration = before.iteration if before else 0
while True:
    iteration += 1
    save_checkpoint(Checkpoints(Path(sys.argv[1])), trained, info, TrainingState(iteration, 2), 2)
    print(iteration, flush=True)
"""


def number_after(last: int, process: Forked) -> int:
    """The newest number that a program has printed, once it is another than the last."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        newest = [0, *map(int, process.stdout.read_text().rpartition("\n")[0].splitlines())][-1]
        if newest > last:
            return newest
        time.sleep(0.002)
    raise AssertionError(f"nothing after {last}: {process.stderr.read_text()}")


@pytest.mark.slow
@pytest.mark.dist
def test_killed_while_saving_a_sound_one_is_always_left(tmp_path: Path) -> None:
    """Looked at 50 times at random moments of an endless loop of saves, of two processes."""
    rng, halves = random.Random(0), 0
    checkpoints = Checkpoints(tmp_path)
    said = tmp_path / "said"
    said.mkdir()
    for _ in range(2):
        done = 0
        with forked(SAVER, said, tmp_path, Path(__file__).parent) as process:
            for _ in range(25):
                done = number_after(done, process)
                time.sleep(rng.random() * 0.02)
                # A stopped process is as good as a killed one to look at.
                os.kill(process.pid, signal.SIGSTOP)
                halves += len(list(tmp_path.glob(".*.safetensors")))
                newest = checkpoints.newest_sound(nothing)
                assert newest is not None
                assert int(newest.stem.removeprefix("iter_")) >= done
                assert len(checkpoints.newest_first()) <= 3
                assert read_weights(tmp_path / "last.safetensors").training["iteration"] >= done
                os.kill(process.pid, signal.SIGCONT)
            process.kill()
            assert process.ended(30) == -signal.SIGKILL
        checkpoints.drop_halves()
        assert not list(tmp_path.glob(".*.safetensors"))
    assert halves
