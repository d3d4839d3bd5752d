"""The multi-clip test: every video decoded once, scored once, counted once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from videogn.data.dataset import VideoViews
from videogn.data.transforms import normalize
from videogn.engine.metrics import label_ranks, topk_percent
from videogn.engine.validation import autocast
from videogn.errors import RunError


@dataclass(frozen=True)
class VideoScore:
    """Scores of one video; ``reason`` says why there are none.

    Attributes:
        place: where the video stands in the list.
        clip_logits: (num_clips, K) float32, mean over locations and crops.
        clip_probs: (num_clips, K) float32, softmax at each location, mean over locations and
            crops.
    """

    place: int
    clip_logits: np.ndarray | None
    clip_probs: np.ndarray | None
    reason: str | None


@dataclass(frozen=True)
class EvalResult:
    """Accuracy over a whole list; videos that failed count as wrong."""

    top1: float
    top5: float
    num_videos: int
    num_failed: int


@dataclass(frozen=True)
class ScoreTable:
    """All scores in list order; rows of failed videos are NaN.

    Attributes:
        ok: (N,) bool.
        clip_logits: (N, num_clips, K) float32.
        clip_probs: (N, num_clips, K) float32.
        reasons: why each failed video failed, by its place in the list.
    """

    ok: np.ndarray
    clip_logits: np.ndarray
    clip_probs: np.ndarray
    reasons: dict[int, str]

    @property
    def probs(self) -> np.ndarray:
        """(N, K) float32: the mean of the clips' softmax scores (paper section 4.3)."""
        return np.asarray(self.clip_probs.mean(1))


def score_videos(
    network: nn.Module,
    videos: Iterable[VideoViews],
    *,
    num_clips: int,
    views_per_pass: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    precision: str,
) -> Iterator[VideoScore]:
    """Score videos as they come, each with all its views.

    The network is taken as fully convolutional: softmax at each location, mean over locations
    and crops gives the clip's score (non-local paper, section 4.1).

    Raises:
        RunError: a score is not finite.
    """
    network.eval()
    for video in videos:
        if video.frames is None:
            yield VideoScore(video.place, None, None, video.reason)
            continue
        with torch.inference_mode():
            there = video.on(device)
            logits, probs = zip(
                *(
                    _score_views(
                        network, there.stack(first, first + views_per_pass), mean, std, precision
                    )
                    for first in range(0, len(there), views_per_pass)
                ),
                strict=True,
            )
        if not all(torch.isfinite(part).all() for part in logits):
            raise RunError(
                f"the network's scores of video {video.place + 1} of the list are not finite; "
                "its weights are broken: test another checkpoint"
            )
        yield VideoScore(
            video.place,
            _mean_over_crops(torch.cat(logits), num_clips),
            _mean_over_crops(torch.cat(probs), num_clips),
            None,
        )


def _score_views(
    network: nn.Module,
    views: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Logits and softmax scores (views, K), each averaged over locations."""
    clips = normalize(views, mean, std)
    with autocast(views.device, precision):
        located = network.forward_locations(clips)  # type: ignore[operator]
    located = located.float().flatten(2)
    return located.mean(2).cpu(), located.softmax(1).mean(2).cpu()


def _mean_over_crops(scores: Tensor, num_clips: int) -> np.ndarray:
    """(num_clips * num_crops, K), clip by clip, to (num_clips, K)."""
    return np.asarray(scores.view(num_clips, -1, scores.shape[1]).mean(1).numpy())


def collect(
    scores: Iterable[VideoScore], *, num_videos: int, num_clips: int, num_classes: int
) -> ScoreTable:
    """Put scores into list order.

    Raises:
        RunError: a video has no score or more than one.
    """
    shape = (num_videos, num_clips, num_classes)
    table = ScoreTable(
        ok=np.zeros(num_videos, dtype=bool),
        clip_logits=np.full(shape, np.nan, dtype=np.float32),
        clip_probs=np.full(shape, np.nan, dtype=np.float32),
        reasons={},
    )
    seen = np.zeros(num_videos, dtype=np.int64)
    for score in scores:
        seen[score.place] += 1
        if score.clip_logits is None or score.clip_probs is None:
            table.reasons[score.place] = score.reason or "unknown"
            continue
        table.ok[score.place] = True
        table.clip_logits[score.place] = score.clip_logits
        table.clip_probs[score.place] = score.clip_probs
    if (seen != 1).any():
        wrong = np.flatnonzero(seen != 1)[:10].tolist()
        raise RunError(f"videos {wrong} of the list were not scored exactly once; nothing written")
    return table


def accuracy(table: ScoreTable, labels: np.ndarray) -> EvalResult:
    """Top-1 and top-5 in percent over all videos, the failed ones wrong.

    Args:
        labels: (N,) int.
    """
    ranks = label_ranks(table.probs[table.ok], labels[table.ok])
    num_videos = len(labels)
    return EvalResult(
        top1=topk_percent(ranks, num_videos, 1),
        top5=topk_percent(ranks, num_videos, 5),
        num_videos=num_videos,
        num_failed=num_videos - int(table.ok.sum()),
    )
