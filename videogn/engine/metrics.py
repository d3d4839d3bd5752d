"""Accuracy while training: sums over clips, on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from videogn.engine.statistics import label_ranks as label_ranks
from videogn.engine.statistics import topk_percent as topk_percent


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
