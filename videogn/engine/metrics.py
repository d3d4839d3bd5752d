"""Accuracy: ranks of the true class and averages of scores."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Classes that come before the true one when scores are sorted, the lower index first on ties.

    Args:
        scores: (N, K) float.
        labels: (N,) int.

    Returns:
        (N,) int: 0 where the true class is the arg-max. A score that is not a number comes
        before every other, so that a broken network is never right.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return np.asarray((~(scores < own) & ~((scores == own) & ~earlier)).sum(axis=1))


def topk_percent(ranks: np.ndarray, num_videos: int, k: int) -> float:
    """Share of ``num_videos`` whose true class is among the first ``k``, in percent.

    Videos without a rank count as wrong.
    """
    return 100.0 * int((ranks < k).sum()) / num_videos


@dataclass(frozen=True)
class Tally:
    """Sums over clips, added up over steps and ranks.

    Attributes:
        sums: (5,) float64: loss, top-1 right, top-5 right, clips read, clips that could not be.
    """

    sums: Tensor

    @staticmethod
    def empty(device: torch.device) -> "Tally":
        """Nothing counted yet."""
        return Tally(torch.zeros(5, dtype=torch.float64, device=device))

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> "Tally":
        """Count a batch: ``loss`` its mean loss, ``logits: (B, K)``, ``labels: (B,) int64``."""
        own = logits.gather(1, labels[:, None])
        earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
        # The rule of label_ranks, on the device; NaN compares as false, so it never wins either.
        ranks = (~(logits < own) & ~((logits == own) & ~earlier)).sum(1)
        right = [(ranks < k).sum().double() for k in (1, 5)]
        count = torch.full_like(right[0], len(labels))
        return Tally(
            self.sums + torch.stack([loss.double() * len(labels), *right, count, 0 * count])
        )

    def add_failed(self, count: int) -> "Tally":
        """Count clips that could not be read: wrong, and without a loss."""
        sums = self.sums.clone()
        sums[4] += count
        return Tally(sums)

    @property
    def num_clips(self) -> int:
        """Clips counted, read or not."""
        return int(self.sums[3] + self.sums[4])

    @property
    def loss(self) -> float:
        """Mean loss of the clips that were read; 0 where none was."""
        return float(self.sums[0] / self.sums[3].clamp(min=1))

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent; a clip that could not be read is wrong."""
        return float(100 * self.sums[1] / self.num_clips)

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent; a clip that could not be read is wrong."""
        return float(100 * self.sums[2] / self.num_clips)
