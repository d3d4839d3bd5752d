import dataclasses
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from videogn.data.dataset import VideoViews
from videogn.data.frames import Frames
from videogn.data.rgb import Box
from videogn.engine import evaluator
from videogn.engine.evaluator import (
    Scorer,
    VideoScore,
    class_scores,
    fastest_format,
    pooled_features,
)
from videogn.engine.pass_size import PassSize
from videogn.errors import RunError
from videogn.models.folding import fold_batch_norms
from videogn.models.i3d import i3d

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Located(nn.Module):
    """Logits at 2 x 3 locations from fixed projections of the clip's pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = torch.randn(num_classes, 3, generator=torch.Generator().manual_seed(1))

    def forward_locations(self, clips: Tensor) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool3d(clips, (1, 2, 3))[:, :, 0]
        return torch.einsum("kc,bchw->bkhw", 20 * self.weight, pooled)


def all_views(place: int, views: Tensor, num_clips: int) -> VideoViews:
    """A video of given views (num_clips * num_crops, C, T, H, W), crops side by side."""
    crops = views.unflatten(0, (num_clips, -1))  # (J, K, C, T, H, W)
    num_crops, height, width = crops.shape[1], views.shape[3], views.shape[4]
    frames = crops.permute(2, 0, 3, 4, 1, 5).flatten(4).flatten(1, 2)
    shown = np.arange(num_clips * views.shape[2]).reshape(num_clips, -1)
    boxes = tuple(Box(0, width * crop, height, width) for crop in range(num_crops))
    video = VideoViews(place, Frames.of(frames), shown, boxes, None)
    assert torch.equal(video.on(torch.device("cpu")).stack(), views)
    return video


def scorer(network: nn.Module, views_per_pass: int) -> Scorer:
    return Scorer(
        measure=class_scores(network),
        device=torch.device("cpu"),
        mean=MEAN,
        std=STD,
        precision="fp32",
        pass_size=PassSize(views_per_pass, 0, lambda view: 0),
    )


@pytest.mark.parametrize("num_crops", [1, 3])
def test_softmax_then_mean_over_locations_crops_and_clips(num_crops: int) -> None:
    num_clips = 4
    generator = torch.Generator().manual_seed(0)
    shape = (num_clips * num_crops, 3, 2, 8, 12)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    video = all_views(0, views, num_clips)
    [score] = scorer(Located(5), views_per_pass=5).scores([video])

    # The same from the definition, in float64 numpy, one view after the other.
    weight = 20 * Located(5).weight.double().numpy()
    clip_probs = np.zeros((num_clips, num_crops, 5))
    clip_logits = np.zeros_like(clip_probs)
    for view in range(num_clips * num_crops):
        pixels = views[view].double().numpy() / 255
        pixels = (pixels - np.reshape(MEAN, (3, 1, 1, 1))) / np.reshape(STD, (3, 1, 1, 1))
        located = []
        for row in range(2):
            for column in range(3):
                part = pixels[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                located.append(weight @ part.mean((1, 2, 3)))
        logits = np.array(located)
        exp = np.exp(logits - logits.max(1, keepdims=True))
        clip, crop = divmod(view, num_crops)
        clip_logits[clip, crop] = logits.mean(0)
        clip_probs[clip, crop] = (exp / exp.sum(1, keepdims=True)).mean(0)
    logits, probs = score.arrays
    np.testing.assert_allclose(probs, clip_probs, atol=1e-6)
    np.testing.assert_allclose(logits, clip_logits, atol=1e-5)


def test_scores_that_are_not_finite_stop_the_test() -> None:
    network = Located(5)
    network.weight[0, 0] = torch.nan
    views = torch.zeros(2, 3, 2, 8, 12, dtype=torch.uint8)
    with pytest.raises(RunError, match="video 7 of the list are not finite"):
        list(scorer(network, 2).scores([all_views(6, views, 2)]))


def test_the_thumbnail_is_the_middle_frame() -> None:
    views = torch.zeros(1, 3, 5, 192, 256, dtype=torch.uint8)
    views[0, 0, 2] = 250
    [score] = scorer(Located(5), 1).scores([all_views(0, views, 1)])
    image = cv2.imdecode(np.frombuffer(score.thumbnail, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (96, 128, 3)
    np.testing.assert_allclose(image[..., ::-1].mean((0, 1)), [250, 0, 0], atol=3)


def test_a_video_that_failed_has_a_reason_and_nothing_else() -> None:
    [score] = scorer(Located(5), 1).scores([VideoViews.failed(4, "no such file")])
    assert score == VideoScore(4, None, b"", "no such file")


@pytest.mark.parametrize(
    ("norm", "layout"), [("gn", torch.contiguous_format), ("bn", torch.channels_last_3d)]
)
def test_the_order_in_memory_changes_no_score(norm: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = i3d(norm=norm, width=8, channels_per_group=4, depths=(1, 1), num_classes=5).eval()
    assert fold_batch_norms(network, (8, 32, 32)) == (0 if norm == "gn" else 9)
    views = torch.randint(0, 256, (2, 3, 8, 48, 40), dtype=torch.uint8)
    plain = scorer(network, 2)
    [expected] = plain.scores([all_views(0, views, 2)])
    assert fastest_format(network) == layout
    fast = dataclasses.replace(
        plain, memory_format=layout, measure=class_scores(network.to(memory_format=layout))
    )
    [found] = fast.scores([all_views(0, views, 2)])
    for ours, theirs in zip(found.arrays, expected.arrays, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_images_have_no_third_axis_to_put_last() -> None:
    assert fastest_format(nn.Sequential(nn.Conv2d(3, 4, 1))) == torch.contiguous_format


class Featured(nn.Module):
    def features(self, clips: Tensor) -> Tensor:
        return clips.repeat(1, 2, 1, 1, 1)


def test_features_are_means_over_time_and_space() -> None:
    views = torch.rand(2, 3, 4, 5, 6)
    (found,) = pooled_features(Featured())(views)
    expected = views.numpy().astype(np.float64).mean((2, 3, 4))
    np.testing.assert_allclose(found, np.concatenate([expected, expected], 1), rtol=1e-5)


def test_memory_that_ran_out_halves_the_passes() -> None:
    """A measure that holds two views at most is given four, then two."""
    seen: list[int] = []

    def measure(views: Tensor) -> tuple[Tensor]:
        seen.append(len(views))
        if len(views) > 2:
            raise torch.OutOfMemoryError("made up")
        return (views.flatten(1).mean(1, keepdim=True),)

    views = torch.randint(0, 256, (4, 3, 2, 8, 8), dtype=torch.uint8)
    sizes = PassSize(None, 4 * 128, lambda view: 128)
    whole = Scorer(measure, torch.device("cpu"), MEAN, STD, "fp32", sizes)
    [score] = whole.scores([all_views(0, views, 4)])
    assert seen == [4, 2, 2]
    assert score.arrays[0].shape == (4, 1, 1)
    fixed = Scorer(measure, torch.device("cpu"), MEAN, STD, "fp32", PassSize(3, 0, lambda v: 0))
    with pytest.raises(RunError, match=r"pass of 3 views of 2 frames of 8 x 8; set test.views_per"):
        list(fixed.scores([all_views(0, views, 4)]))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("made up"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")]
)
def test_a_view_that_does_not_fit_is_one_message(error: RuntimeError) -> None:
    seen: list[int] = []

    def measure(views: Tensor) -> tuple[Tensor]:
        seen.append(len(views))
        raise error

    views = torch.zeros(4, 3, 2, 8, 8, dtype=torch.uint8)
    sizes = PassSize(None, 4 * 128, lambda view: 128)
    whole = Scorer(measure, torch.device("cpu"), MEAN, STD, "fp32", sizes)
    with pytest.raises(RunError, match=r"1 view of 2 frames of 8 x 8; use a device with more"):
        list(whole.scores([all_views(0, views, 4)]))
    assert seen == [4, 2, 1]


def test_a_probe_without_room_and_other_errors_end_the_test() -> None:
    def no_room(view: tuple[int, int, int]) -> int:
        raise torch.OutOfMemoryError("made up")

    def broken(views: Tensor) -> tuple[Tensor]:
        raise RuntimeError("shapes")

    views = all_views(0, torch.zeros(4, 3, 2, 8, 8, dtype=torch.uint8), 4)
    device = torch.device("cpu")
    for measure, probe, expected in (
        (broken, no_room, "too little memory for a pass of 1 view"),
        (broken, lambda view: 1, "^shapes$"),
    ):
        whole = Scorer(measure, device, MEAN, STD, "fp32", PassSize(None, 512, probe))
        with pytest.raises((RunError, RuntimeError), match=expected):
            list(whole.scores([views]))


def test_scores_are_not_looked_at_before_they_have_arrived() -> None:
    """As on a GPU, whose copies are on their way while the next video is begun."""
    views = torch.zeros(2, 3, 2, 8, 8, dtype=torch.uint8)
    logits, middle = torch.full((2, 5), torch.nan), torch.zeros(3, 8, 8, dtype=torch.uint8)

    class Arrived:
        def synchronize(self) -> None:
            logits[:] = 1.5

    begun = evaluator._Begun(all_views(0, views, 2), (logits,), middle, Arrived())
    np.testing.assert_array_equal(begun.fetch().arrays[0], np.full((2, 1, 5), 1.5))


def test_on_a_gpu_a_video_is_fetched_once_the_next_is_queued(monkeypatch) -> None:
    """With a stand-in for the GPU: its copies home are queued before the next video's passes."""
    calls: list[str] = []

    class Event:
        def record(self) -> None:
            calls.append("sent home")

        def synchronize(self) -> None:
            calls.append("fetched")

    class Stream:
        def __init__(self, device: torch.device | None = None) -> None:
            del device

        def wait_stream(self, other: "Stream") -> None:
            assert other is not self
            calls.append("there")

    mine, cpu, on = Stream(), torch.device("cpu"), VideoViews.on
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: mine)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(VideoViews, "on", lambda video, device: on(video, cpu))
    monkeypatch.setattr(evaluator, "autocast", lambda device, precision: nullcontext())
    monkeypatch.setattr(evaluator, "_streams", {})
    views = torch.zeros(2, 3, 2, 8, 12, dtype=torch.uint8)
    there = scorer(Located(5), 2)
    on_gpu = dataclasses.replace(there, device=torch.device("cuda", 0))
    videos = [all_views(place, views, 2) for place in range(3)]
    found = list(on_gpu.scores([*videos, VideoViews.failed(3, "cut")]))
    begun = ["there", "sent home"]
    assert calls == [*begun, *begun, "fetched", *begun, "fetched", "fetched"]
    for score, expected in zip(found, there.scores(videos), strict=False):
        assert score.place == expected.place
        np.testing.assert_array_equal(score.arrays[0], expected.arrays[0])
    assert found[3].reason == "cut"
