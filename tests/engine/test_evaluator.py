import numpy as np
import pytest
import torch
from torch import Tensor, nn

from videogn.data.dataset import VideoViews
from videogn.data.frames import Frames
from videogn.data.rgb import Box
from videogn.engine.evaluator import VideoScore, accuracy, collect, score_videos
from videogn.errors import RunError

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


def scores_of(views: Tensor, num_clips: int, views_per_pass: int) -> VideoScore:
    [score] = score_videos(
        Located(5),
        [all_views(0, views, num_clips)],
        num_clips=num_clips,
        views_per_pass=views_per_pass,
        mean=MEAN,
        std=STD,
        device=torch.device("cpu"),
        precision="fp32",
    )
    return score


@pytest.mark.parametrize("num_crops", [1, 3])
def test_softmax_then_mean_over_locations_crops_and_clips(num_crops: int) -> None:
    num_clips = 4
    generator = torch.Generator().manual_seed(0)
    shape = (num_clips * num_crops, 3, 2, 8, 12)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    score = scores_of(views, num_clips, views_per_pass=5)

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
    np.testing.assert_allclose(score.clip_probs, clip_probs.mean(1), atol=1e-6)
    np.testing.assert_allclose(score.clip_logits, clip_logits.mean(1), atol=1e-5)


def test_scores_that_are_not_finite_stop_the_test() -> None:
    network = Located(5)
    network.weight[0, 0] = torch.nan
    views = torch.zeros(2, 3, 2, 8, 12, dtype=torch.uint8)
    scores = score_videos(
        network,
        [all_views(6, views, 2)],
        num_clips=2,
        views_per_pass=2,
        mean=MEAN,
        std=STD,
        device=torch.device("cpu"),
        precision="fp32",
    )
    with pytest.raises(RunError, match="video 7 of the list are not finite"):
        list(scores)


def test_failed_video_is_nan_and_wrong() -> None:
    good = VideoScore(1, np.array([[0.0, 9.0]]), np.array([[0.1, 0.9]]), None)
    bad = VideoScore(0, None, None, "no such file")
    table = collect([good, bad], num_videos=2, num_clips=1, num_classes=2)
    assert table.ok.tolist() == [False, True]
    assert np.isnan(table.clip_probs[0]).all()
    assert np.isnan(table.probs[0]).all()
    assert table.reasons == {0: "no such file"}
    result = accuracy(table, np.array([0, 1]))
    assert (result.top1, result.top5, result.num_videos, result.num_failed) == (50, 50, 2, 1)


@pytest.mark.parametrize("indices", [[0], [0, 1, 1], [0, 0]])
def test_missing_and_double_scores_are_refused(indices: list[int]) -> None:
    scores = [VideoScore(i, np.zeros((1, 2)), np.zeros((1, 2)), None) for i in indices]
    with pytest.raises(RunError, match="exactly once"):
        collect(scores, num_videos=2, num_clips=1, num_classes=2)
