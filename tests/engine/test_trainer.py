"""The step and the loop, on made clips and a small network."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from videogn.commands.run_parts import freeze
from videogn.config import TrainConfig
from videogn.data.transforms import normalize
from videogn.distributed import World
from videogn.engine.ahead import Ahead
from videogn.engine.checkpoint import Trained, TrainingState
from videogn.engine.mixing import make_mixing
from videogn.engine.optim import build_optimizer
from videogn.engine.plan import make_plan
from videogn.engine.runs import RunFolder, read_log
from videogn.engine.trainer import Run, network_input, set_training, train, train_step
from videogn.errors import ConfigError, RunError
from videogn.models.build import build_network
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import read_weights

CPU = torch.device("cpu")
SPEC = NetworkSpec("i3d_r50", "gn", 2, None, "nonlocal", 3, 4, (1, 1), 0.0)
POISON = 255


@dataclass
class Batch:
    """As the loader's: made clips (B, C, T, H, W) uint8 that are where they are."""

    clips: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    failures: tuple[tuple[str, str], ...] = ()

    def clips_on(self, device: torch.device) -> torch.Tensor:
        return self.clips.to(device)


def batch(number: int, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(number)
    clips = torch.randint(0, 250, (size, 3, 8, 16, 16), generator=generator).byte()
    return Batch(clips, torch.arange(size) % 3, torch.arange(size) + 10 * number)


def parts_of(whole: Batch, count: int) -> list[Batch]:
    pieces = zip(
        *(tensor.chunk(count) for tensor in (whole.clips, whole.labels, whole.places)), strict=True
    )
    return [Batch(*piece) for piece in pieces]


def poisoned(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor):
    """Makes NaN of a clip that is white all over."""
    white = inputs[0].flatten(1).min(1).values > 2.3
    return output.masked_fill(white[:, None], torch.nan)


def run_of(folder: Path, norm: str = "gn", **recipe: object) -> Run:
    spec = replace(SPEC, norm=norm)
    values = {"clips_per_gpu": 4, "base_batch": 4, "base_lr": 0.1, "iterations": 6}
    train_config = TrainConfig(**{**values, "lr_milestones": (), "log_interval": 2, **recipe})
    torch.manual_seed(1)
    network = build_network(spec)
    network.register_forward_hook(poisoned)
    freeze(network, train_config.freeze)
    plan = make_plan(train_config, num_videos=100, world_size=1, norm=norm)
    optimizer = build_optimizer(
        network, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, norm_weight_decay=0.0
    )
    scaler = torch.amp.GradScaler("cpu", enabled=train_config.precision == "fp16")
    average = None
    if train_config.ema_decay is not None:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train_config.ema_decay))
    return Run(
        trained=Trained(network, optimizer, scaler, average),
        model=network,
        info=WeightInfo(spec, None, (0.45,) * 3, (0.225,) * 3, None, None, None),
        plan=plan,
        recipe=train_config,
        world=World(0, 1, CPU),
        folder=RunFolder(folder),
        seed=0,
        report=lambda line: None,
        name_of=lambda place: f"{place}.mp4",
        frozen=train_config.freeze,
    )


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in run.trained.network.state_dict().items()}


def endless() -> Iterator[Batch]:
    number = 0
    while True:
        yield batch(number)
        number += 1


START = TrainingState(0, 4)


def test_clips_are_written_where_captured_passes_read_them(tmp_path: Path) -> None:
    whole = batch(0)
    run = replace(run_of(tmp_path), static_clips=torch.full(whole.clips.shape, torch.nan))
    found = network_input(run, whole.clips)
    assert found is run.static_clips
    assert torch.equal(found, normalize(whole.clips, (0.45,) * 3, (0.225,) * 3))
    # What mixing reads is not yet what the network is called with.
    mixed = replace(run, mixing=make_mixing(0.8, 0.0, 3))
    for other, clips in ((mixed, whole.clips), (run, whole.clips[:2])):
        assert network_input(other, clips) is not run.static_clips


def test_a_step_is_what_torch_does_by_hand(tmp_path: Path) -> None:
    run, whole = run_of(tmp_path), batch(0)
    by_hand = copy.deepcopy(run.trained.network)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    logits = by_hand(normalize(whole.clips, (0.45,) * 3, (0.225,) * 3))
    loss = F.cross_entropy(logits, whole.labels)
    loss.backward()
    for name, parameter in by_hand.named_parameters():
        # Decay of all but the norm layers, as the released code has it.
        if parameter.ndim > 1 or name.endswith("proj.bias"):
            parameter.grad += 1e-4 * parameter.detach()
    optimizer.step()
    step = train_step(run, [whole], 0)
    assert step.updated
    assert not step.stop
    torch.testing.assert_close(step.loss, loss.detach())
    torch.testing.assert_close(step.logits, logits.detach())
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(weights_of(run)[name], tensor)


def test_accumulated_batches_update_like_one(tmp_path: Path) -> None:
    """GN's statistics are of one clip: where the batch is cut does not matter."""
    one, two = run_of(tmp_path), run_of(tmp_path)
    whole = batch(0)
    first = train_step(one, [whole], 0)
    second = train_step(two, parts_of(whole, 2), 0)
    torch.testing.assert_close(first.loss, second.loss)
    assert torch.equal(first.labels, second.labels)
    for name, tensor in weights_of(one).items():
        torch.testing.assert_close(weights_of(two)[name], tensor, rtol=1e-4, atol=1e-6)


def test_accumulation_does_not_enlarge_bns_batch(tmp_path: Path) -> None:
    one, two = (run_of(tmp_path, "bn") for _ in range(2))
    whole = batch(0)
    first = train_step(one, [whole], 0)
    second = train_step(two, parts_of(whole, 2), 0)
    assert not torch.allclose(first.logits, second.logits, rtol=1e-3)


def test_gradients_are_scaled_down_to_the_norm(tmp_path: Path) -> None:
    free, clipped = run_of(tmp_path), run_of(tmp_path, clip_norm=0.01)
    for run in (free, clipped):
        train_step(run, [batch(0)], 0)
    norms = [
        torch.stack([p.grad.norm() for p in run.trained.network.parameters()]).norm()
        for run in (free, clipped)
    ]
    assert norms[0] > 0.02
    torch.testing.assert_close(norms[1], torch.tensor(0.01), rtol=1e-3, atol=0)


def test_the_average_follows_its_recurrence(tmp_path: Path) -> None:
    run, expected = run_of(tmp_path, ema_decay=0.6), None
    for number in range(4):
        train_step(run, [batch(number)], number)
        now = run.trained.network.blocks[-1].proj.weight.detach().clone()
        expected = now if expected is None else 0.6 * expected + 0.4 * now
    torch.testing.assert_close(run.trained.average.module.blocks[-1].proj.weight, expected)
    assert run.trained.evaluated is run.trained.average.module


def test_smoothed_labels(tmp_path: Path) -> None:
    step = train_step(run_of(tmp_path, label_smoothing=0.3), [batch(0)], 0)
    logs = step.logits.log_softmax(1)
    own = -logs.gather(1, step.labels[:, None]).mean()
    torch.testing.assert_close(step.loss, 0.7 * own + 0.3 * -logs.mean())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_keeps_full_weights(tmp_path: Path, precision: str) -> None:
    run = run_of(tmp_path, precision=precision)
    losses = [float(train_step(run, [batch(0)], number).loss) for number in range(12)]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in run.trained.network.parameters()} == {torch.float32}
    assert (run.trained.scaler.state_dict() != {}) == (precision == "fp16")


def test_frozen_parts_stay_as_they_are(tmp_path: Path) -> None:
    run = run_of(tmp_path, "bn", freeze=("blocks.0",))
    before = weights_of(run)
    set_training(run.model, run.trained.network, run.frozen)
    train_step(run, [batch(0)], 0)
    after = weights_of(run)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("blocks.0.")} <= kept
    assert any(name.startswith("blocks.0.") and "running_mean" in name for name in before)
    assert not [name for name in kept if name.endswith("running_mean") and "blocks.0." not in name]
    assert not [name for name in kept if name.startswith("blocks.4.")]


def test_parts_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no part 'res2'; its parts are blocks, blocks\.0"):
        run_of(tmp_path, freeze=("res2",))
    with pytest.raises(ConfigError, match="nothing to train"):
        run_of(tmp_path, freeze=("blocks",))


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_a_poisoned_clip_stops_before_the_update_with_its_name(tmp_path: Path, norm: str) -> None:
    run, sound = run_of(tmp_path, norm), [batch(number) for number in range(2)]
    twin = run_of(tmp_path / "twin", norm)
    set_training(twin.model, twin.trained.network, ())
    for number, each in enumerate(sound):
        train_step(twin, [each], number)
    bad = batch(2)
    bad.clips[1] = POISON
    with pytest.raises(RunError, match=r"(?s)not finite at iteration 3; .*20\.mp4, 21\.mp4"):
        train(run, START, iter([*sound, bad]), None)
    saved = read_weights(run.folder.last)
    assert saved.training["iteration"] == 2
    for name, tensor in weights_of(twin).items():
        assert torch.equal(saved.state[name], tensor), name


def test_told_to_stop_it_ends_the_step_and_saves(tmp_path: Path) -> None:
    answers = iter([False, False, True])
    run = replace(run_of(tmp_path), stop_asked=lambda: next(answers))
    state = train(run, START, endless(), None)
    assert state.iteration == 3
    assert state.settled < 3
    assert read_weights(run.folder.last).training["iteration"] == 3
    # The line of iterations 3 and 4 is written when the run goes on.
    assert [entry["iteration"] for entry in read_log(run.folder.log)] == [2]


def test_replaced_videos_are_logged_once_with_their_iteration(tmp_path: Path) -> None:
    def with_failures() -> Iterator[Batch]:
        for number, each in enumerate(endless()):
            failures = (("bad.mp4", "is damaged"),) if number in (2, 4) else ()
            yield replace(each, failures=failures)

    run = run_of(tmp_path, log_samples=True)
    state = train(run, START, with_failures(), None)
    assert state.failed_videos == {"bad.mp4": "is damaged"}
    entries = read_log(run.folder.log)
    assert [e["iteration"] for e in entries if e["kind"] == "failed_video"] == [3]
    samples = [e for e in entries if e["kind"] == "samples"]
    assert [e["places"] for e in samples] == [[10 * n + k for k in range(4)] for n in range(6)]


def test_stages_are_told_before_they_begin(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    run = replace(
        run_of(tmp_path, iterations=2),
        stage=lambda stage, iteration: told.append((stage, iteration)),
    )
    train(run, START, endless(), None)
    assert told[:4] == [("reading", 0), ("step", 0), ("reading", 1), ("step", 1)]
    assert ("saving", 2) in told


@pytest.mark.parametrize("accumulation", [1, 3])
def test_asking_early_changes_nothing(tmp_path: Path, monkeypatch, accumulation: int) -> None:
    """As on a GPU, where the next batches come while the gradients are computed."""
    asked: list[int] = []

    def counted() -> Iterator[Batch]:
        for number, one in enumerate(endless()):
            asked.append(number)
            yield one

    runs = []
    for early in (False, True):
        monkeypatch.setattr(Ahead, "overlaps", property(lambda self, early=early: early))
        run = run_of(tmp_path / str(early), "bn", accumulation=accumulation)
        run.folder.path.mkdir()
        asked.clear()
        state = train(run, START, counted(), None)
        assert state.iteration == state.settled == 6
        assert asked == list(range(6 * accumulation))
        runs.append(run)
    ours, theirs = (weights_of(run) for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for run in runs:
        assert [entry["iteration"] for entry in read_log(run.folder.log)] == [2, 4, 6]


@pytest.mark.parametrize("name", ["ask", "take"])
def test_waiting_for_batches_is_counted_where_it_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Asking waits for the loader; taking waits for what still moves to the device."""
    run, method = run_of(tmp_path, iterations=4), getattr(Ahead, name)
    asleep = 0.0

    def slow(source: Ahead) -> object:
        nonlocal asleep
        if name == "take" or not source._coming:
            started = time.monotonic()
            time.sleep(0.05)
            asleep += time.monotonic() - started
        return method(source)

    monkeypatch.setattr(Ahead, name, slow)
    train(run, START, endless(), None)
    lines = [entry for entry in read_log(run.folder.log) if entry["kind"] == "train"]
    # Each line is of two steps of four clips.
    waited = sum(entry["data_wait"] * 8 / entry["clips_per_second"] for entry in lines)
    assert len(lines) == 2
    assert asleep <= waited * 1.01 < asleep + 0.5
