"""Captured passes of a test measure what plain ones do, and are only made where that pays."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from own_process import run_apart
from torch import Tensor, nn

from videogn.data.dataset import VideoViews
from videogn.data.frames import Frames
from videogn.data.rgb import Box
from videogn.engine import replays as replays_module
from videogn.engine.evaluator import Scorer, class_scores
from videogn.engine.pass_size import Measure, PassSize
from videogn.engine.replays import REPEATS, Replay, Replays
from videogn.errors import RunError
from videogn.models.execution import Execution
from videogn.models.i3d import i3d

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")
LAST = torch.channels_last_3d


def video(place: int, height: int, width: int, num_clips: int = 3) -> VideoViews:
    rng = np.random.default_rng(place)
    frames = torch.from_numpy(rng.integers(0, 256, (3, 12, height, width), np.uint8))
    shown = np.stack([np.arange(start, start + 8) for start in range(num_clips)])
    return VideoViews(place, Frames.of(frames), shown, (Box(0, 0, height, width),), None)


class StandIn:
    """Does at each replay what a graph of a measure would."""

    def __init__(self, measure: Measure, views: Tensor) -> None:
        self.measure, self.views = measure, views
        self.outputs = tuple(torch.full_like(part, torch.nan) for part in measure(views))
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for place, part in zip(self.outputs, self.measure(self.views), strict=True):
            place.copy_(part)


def means(views: Tensor) -> tuple[Tensor, Tensor]:
    return views.mean((2, 3, 4)), views.amax((2, 3, 4))[:, :2]


Made = Callable[..., Replays]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Replays on a CPU whose captures are stand-ins."""

    def captured(self: Replays, shape: tuple[int, int, int, int, int]) -> Replay:
        views = self._place(shape)
        graph = StandIn(self._measure, views)
        return Replay(views, graph, graph.outputs)  # type: ignore[arg-type]

    monkeypatch.setattr(Replays, "_captured", captured)

    def make(
        measure: Measure = means,
        memory_format: torch.memory_format = torch.contiguous_format,
        sizes: PassSize | None = None,
        report: Callable[[str], None] = pytest.fail,
    ) -> Replays:
        sizes = sizes or PassSize(None, 2**40, lambda view: 1)
        return Replays(measure, CPU, "fp32", memory_format, sizes, report)

    return make


def scorer(replays: Replays | None, pass_size: PassSize, layout: torch.memory_format) -> Scorer:
    return Scorer(means, CPU, MEAN, STD, "fp32", pass_size, layout, replays)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("views_per_pass", [1, 2, 3])
def test_scores_are_those_of_plain_passes(
    made: Made, layout: torch.memory_format, views_per_pass: int
) -> None:
    sizes = [(8, 12), (16, 8), (8, 12), (8, 12), (16, 8), (16, 8), (8, 12), (16, 8), (8, 12)]
    videos = [video(place, *size) for place, size in enumerate(sizes)]
    pass_size = PassSize(views_per_pass, 2**40, lambda view: 1)
    replays = made(memory_format=layout, sizes=pass_size)
    found = list(scorer(replays, pass_size, layout).scores(videos))
    expected = list(scorer(None, pass_size, layout).scores(videos))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.arrays is not None
        for part, peer in zip(ours.arrays, theirs.arrays or (), strict=True):
            np.testing.assert_array_equal(part, peer)
    replayed = sum(graph.graph.replays for graph in replays._graphs.values())  # type: ignore[attr-defined]
    passes = {1: [27], 2: [9, 9], 3: [9]}[views_per_pass]
    # Each of two image sizes.
    assert replayed == sum(passes) - 2 * REPEATS * len(passes)


def test_results_outlive_the_next_replay(made: Made) -> None:
    replays = made()
    shape = (1, 3, 4, 4, 4)
    for _ in range(REPEATS):
        assert replays.of(shape) is None
    found = []
    for value in (1.0, 2.0):
        replay = replays.of(shape)
        assert replay is not None
        replay.views.fill_(value)
        found.append(replay.run()[0])
    assert [float(part.mean()) for part in found] == [1.0, 2.0]


def test_only_so_many_shapes_are_captured(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays_module, "MAX_SHAPES", 2)
    replays = made()
    for width in (4, 5, 6):
        for _ in range(REPEATS + 1):
            last = replays.of((1, 3, 4, 4, width))
        assert (last is not None) == (width < 6)


def test_nothing_is_captured_where_graphs_would_take_the_room_of_plain_passes(made: Made) -> None:
    sizes = PassSize(None, 100, lambda view: 20)  # of a view of 4 x 4 x 4
    replays = made(sizes=sizes)
    for num_views, expected in ((2, True), (3, False)):  # 2.5 times 40 and 60 bytes
        for _ in range(REPEATS + 1):
            last = replays.of((num_views, 3, 4, 4, 4))
        assert (last is not None) == expected


def test_after_a_failed_capture_it_goes_on_without(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Replays, shape: object) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(Replays, "_captured", failing)
    said: list[str] = []
    replays = made(report=said.append)
    for _ in range(2 * REPEATS + 4):
        assert replays.of((1, 3, 4, 4, 4)) is None
    [line] = said
    assert line.startswith("graphs      not used: a pass cannot be captured: operation not")
    assert "\n" not in line


def test_graphs_are_given_up_before_passes_become_smaller(made: Made) -> None:
    """A device whose memory does not suffice for a pass as long as there are graphs."""
    replays = made()

    def narrow(views: Tensor) -> tuple[Tensor, ...]:
        if views.shape[-1] == 12 and replays._graphs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return means(views)

    videos = [video(place, 8, 16) for place in range(REPEATS + 1)] + [video(9, 8, 12)]
    sizes = PassSize(None, 2**40, lambda view: 1)
    found = list(Scorer(narrow, CPU, MEAN, STD, "fp32", sizes, replays=replays).scores(videos))
    assert all(score.arrays is not None for score in found)
    assert not replays._graphs
    assert sizes._room_bytes == 2**40


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["gn", "bn"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpus_graphs_measure_what_plain_passes_do(norm: str, precision: str) -> None:
    device = torch.device("cuda")
    torch.manual_seed(0)
    network = i3d(norm=norm, num_groups=8, width=16, depths=(1, 1), num_classes=5).eval()
    form = Execution(norms="fused", convolutions="mixed", memory_format=LAST)
    measure = class_scores(form.apply(network, "cuda"))
    sizes = [(64, 80), (48, 96), (64, 80), (64, 80), (48, 96), (64, 80), (48, 96), (48, 96)]
    videos = [video(place, *size) for place, size in enumerate(sizes * 2)]
    pass_size = PassSize(2, 2**33, lambda view: 2**20)
    replays = Replays(measure, device, precision, LAST, pass_size, pytest.fail)
    form_of = (measure, device, MEAN, STD, precision, pass_size, LAST)
    found = list(Scorer(*form_of, replays).scores(videos))
    expected = list(Scorer(*form_of).scores(videos))
    assert len(replays._graphs) == 4  # two sizes, passes of two views and of one
    for ours, theirs in zip(found, expected, strict=True):
        for part, peer in zip(ours.arrays or (), theirs.arrays or (), strict=True):
            np.testing.assert_allclose(part, peer, rtol=1e-3, atol=1e-3)
    assert replays.drop()
    assert replays.of((2, 3, 8, 64, 80)) is None


class Asking(nn.Module):
    """Brings a number to the host, which no capture allows."""

    def forward(self, views: Tensor) -> Tensor:
        return views * float(views.sum())


@pytest.mark.gpu
@pytest.mark.dist
def test_a_gpu_goes_on_where_a_pass_cannot_be_captured() -> None:
    run_apart(fail_and_go_on)


def fail_and_go_on() -> None:
    said: list[str] = []
    asking = Asking()

    def measure(views: Tensor) -> tuple[Tensor]:
        return (asking(views).mean((2, 3, 4)),)

    device = torch.device("cuda")
    pass_size = PassSize(None, 2**33, lambda view: 2**20)
    replays = Replays(measure, device, "fp32", LAST, pass_size, said.append)
    videos = [video(place, 8, 12) for place in range(REPEATS + 3)]
    form_of = (measure, device, MEAN, STD, "fp32", pass_size, LAST)
    try:
        found = list(Scorer(*form_of, replays).scores(videos))
    except RunError as error:
        # Of torch before 2.12, where the run ends.
        if "set compute.graphs=off" not in str(error):
            raise
        pytest.skip(str(error))
    expected = list(Scorer(*form_of).scores(videos))
    assert len(said) == 1
    for ours, theirs in zip(found, expected, strict=True):
        for part, peer in zip(ours.arrays or (), theirs.arrays or (), strict=True):
            np.testing.assert_array_equal(part, peer)
