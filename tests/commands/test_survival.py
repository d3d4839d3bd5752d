"""Jobs that are killed or told to stop at any moment end as if nothing had happened."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import drive
from safetensors import safe_open
from tiny_run import tiny_setup

from videogn.engine.runs import RunFolder, read_log
from videogn.models.weights import read_weights
from videogn.stopping import EXIT_CODE

KILLS = int(os.environ.get("VIDEOGN_TEST_KILLS", "5"))
"""Random moments at which a run is killed; each costs a second or two."""

pytestmark = [pytest.mark.dist, pytest.mark.slow]

TIMINGS = ("clips_per_second", "data_wait", "eta_seconds", "seconds")
# BN, dropout, momentum, warm-up and a curved schedule: all that could be lost.
RECIPE = (
    "model.norm=bn",
    "train.iterations=20",
    "train.schedule=cosine",
    "train.warmup_iterations=3",
    "train.log_interval=4",
    "train.val_interval=10",
    "train.checkpoint_interval=3",
    "train.log_samples=true",
    "train.precise_bn_batches=2",
    "train.ema_decay=0.9",
)


def harmed(tiny: Any, out: Path, ranks: int, **order: Any) -> dict[str, Any]:
    """What the driver tells of runs in folders 0, 1, … of ``out``."""
    words = ["train", str(tiny.config), *RECIPE]
    words += [f"train.clips_per_gpu={max(2, 4 // ranks)}", *order.pop("words", [])]
    return drive(words, ranks, out, **order)


def content(path: Path) -> dict[str, Any]:
    """All tensors of a checkpoint, and what the trainer kept."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return tensors | {"training": read_weights(path).training}


def assert_twins(one: Path, two: Path) -> None:
    """Weights, momentum, buffers, state and log of two runs are the same, bit by bit."""
    for name in ("last", "best"):
        ours, theirs = (content(getattr(RunFolder(out), name)) for out in (one, two))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[key]), key
            else:
                assert value == theirs[key]
    logs = [
        [
            {key: value for key, value in entry.items() if key not in TIMINGS}
            for entry in read_log(RunFolder(out).log)
            if entry["kind"] != "start"
        ]
        for out in (one, two)
    ]
    assert logs[0] == logs[1]
    assert [entry["iteration"] for entry in logs[0] if entry["kind"] == "samples"] == [
        *range(1, 21)
    ]


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Runs on so many ranks that nothing happens to, each made once."""
    folder = tmp_path_factory.mktemp("whole")
    setup = tiny_setup(folder, tiny_data)

    @cache
    def run(ranks: int) -> Path:
        harmed(setup, folder, ranks, folder=f"of {ranks}")
        return folder / f"of {ranks}"

    return run


@pytest.mark.parametrize(("ranks", "kills"), [(1, KILLS), (2, KILLS), (3, 2)])
def test_a_run_that_is_killed_is_the_twin_of_one_that_was_not(
    tiny, whole: Callable[[int], Path], ranks: int, kills: int
) -> None:
    """Three ranks, for the order in which more than two numbers are added up changes their sum."""
    out = tiny.folder / "killed"
    told = harmed(tiny, out, ranks, times=kills, signals=["SIGKILL"], seconds=1.0)
    print(told)
    assert len(told["kills"]) >= kills
    for number in range(told["rounds"]):
        assert_twins(whole(ranks), out / str(number))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_told_to_stop_saves_ends_with_75_and_goes_on_as_its_twin(
    tiny, whole: Callable[[int], Path], ranks: int
) -> None:
    signals, out = ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"], tiny.folder / "stopped"
    told = harmed(tiny, out, ranks, times=4, signals=signals, seconds=1.0)
    print(told)
    codes = [codes for codes, _, _ in told["kills"]]
    assert [EXIT_CODE] * ranks in codes
    # A signal that came before the handler was there ends a process by itself.
    assert all(set(each) <= {EXIT_CODE, 1, -15, -10, -2, -1} for each in codes)
    for number in range(told["rounds"]):
        assert_twins(whole(ranks), out / str(number))
        assert not RunFolder(out / str(number)).preempted.exists()


def samples_of(out: Path) -> list[list[int]]:
    entries = read_log(RunFolder(out).log)
    return [entry["places"] for entry in entries if entry["kind"] == "samples"]


def test_on_other_numbers_of_gpus_no_sample_is_lost_or_repeated(tiny) -> None:
    """One process, then two, then four, each told the clips per GPU of the first."""
    short = ["model.norm=gn", "data.val=''", "train.ema_decay=null", "train.warmup_iterations=0"]
    asked = "train.clips_per_gpu=4"
    harmed(tiny, tiny.folder, 1, words=[*short, "train.iterations=12"], folder="whole")
    for ranks, iterations in ((1, 3), (2, 8), (4, 12)):
        words = [*short, asked, f"train.iterations={iterations}"]
        harmed(tiny, tiny.folder, ranks, words=words, folder="moved")
    assert samples_of(tiny.folder / "moved") == samples_of(tiny.folder / "whole")
    assert len(samples_of(tiny.folder / "whole")) == 12
    starts = [e for e in read_log(RunFolder(tiny.folder / "moved").log) if e["kind"] == "start"]
    shared = [(e["clips_per_gpu"], e["world_size"], e["global_batch"]) for e in starts]
    assert shared == [(4, 1, 4), (2, 2, 4), (1, 4, 4)]
    assert len({entry["learning_rate"] for entry in starts}) == 1
