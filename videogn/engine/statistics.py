"""What a test's scores say, and how sure that is: accuracy, classes, intervals, comparisons.

Needs numpy alone, so that commands on finished tests start at once. N videos, K classes. Videos
that failed are wrong everywhere, unless a function says otherwise.

Intervals are percentile bootstraps over videos: draw N videos with replacement, take the accuracy,
repeat. Nothing needs to be drawn video by video: the number of right videos in a draw of N is
binomial(N, share of right videos), and the numbers of videos that only A or only B has right are
multinomial. Those are drawn instead, from a fixed seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from videogn.engine.scores import Average, Scores

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0
WRONG = np.iinfo(np.int64).max
"""The rank of the true class of a video that failed: after every other, however few there are."""
NO_CLASS = -1
"""What is predicted of a video that failed."""


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
class Outcome:
    """What the scores say of every video.

    Attributes:
        labels: (N,) int.
        ranks: (N,) int64, as :func:`label_ranks`; :data:`WRONG` for videos that failed.
        predicted: (N,) int64, the class of the highest score; :data:`NO_CLASS` for those.
        num_classes: K.
    """

    labels: np.ndarray
    ranks: np.ndarray
    predicted: np.ndarray
    num_classes: int

    @property
    def num_videos(self) -> int:
        """Videos of the list, failed or not."""
        return len(self.labels)

    @property
    def num_failed(self) -> int:
        """Videos without scores."""
        return int((self.predicted == NO_CLASS).sum())

    def right(self, k: int = 1) -> np.ndarray:
        """(N,) bool: whether the true class is among the first ``k``."""
        return self.ranks < k

    def percent(self, k: int) -> float:
        """Top-``k`` accuracy in percent, as :func:`topk_percent`."""
        return topk_percent(self.ranks, self.num_videos, k)

    def of(self, places: np.ndarray) -> "Outcome":
        """The same of some videos, in the order of their ``places``."""
        return Outcome(
            self.labels[places], self.ranks[places], self.predicted[places], self.num_classes
        )


def outcome_of(
    scores: Scores, average: Average = "prob", clips: Sequence[int] | None = None
) -> Outcome:
    """Rank the classes of every video by some of its clips or by all."""
    return ranked(scores.of_videos(average, clips), scores.labels, scores.ok)


def ranked(scores: np.ndarray, labels: np.ndarray, ok: np.ndarray) -> Outcome:
    """Rank the classes of every video.

    Args:
        scores: (N, K) float.
        labels: (N,) int.
        ok: (N,) bool, whether the video could be read.
    """
    labels, read = labels.astype(np.int64), scores[ok]
    ranks = np.full(len(labels), WRONG, dtype=np.int64)
    predicted = np.full(len(labels), NO_CLASS, dtype=np.int64)
    ranks[ok] = label_ranks(read, labels[ok])
    predicted[ok] = read.argmax(1)
    return Outcome(labels, ranks, predicted, scores.shape[1])


class Interval(NamedTuple):
    """Both ends, in percent or percentage points."""

    low: float
    high: float


def _interval(draws: np.ndarray, num_videos: int) -> Interval:
    """The middle :data:`LEVEL` of counts ``draws``, in percent of ``num_videos``."""
    tail = (1 - LEVEL) / 2
    # A count that was drawn, not one between two.
    low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
    return Interval(100 * float(low) / num_videos, 100 * float(high) / num_videos)


def accuracy_interval(num_right: int, num_videos: int) -> Interval:
    """Bootstrap interval of an accuracy, in percent."""
    generator = np.random.default_rng(SEED)
    draws = generator.binomial(num_videos, num_right / num_videos, RESAMPLES)
    return _interval(draws, num_videos)


def difference_interval(only_a: int, only_b: int, num_videos: int) -> Interval:
    """Bootstrap interval of accuracy A - B on the same videos, in percentage points.

    Args:
        only_a: videos that A alone has right.
        only_b: videos that B alone has right.
    """
    both_alike = num_videos - only_a - only_b
    shares = np.array([only_a, only_b, both_alike]) / num_videos
    draws = np.random.default_rng(SEED).multinomial(num_videos, shares, RESAMPLES)
    return _interval(draws[:, 0] - draws[:, 1], num_videos)


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided p.

    The probability that of only_a + only_b videos, each equally likely to be A's or B's, the two
    have shares at least as unequal. With n = only_a + only_b and k the smaller share it is
    2 (C(n, 0) + … + C(n, k)) / 2^n, at most 1; 0 where it is below the smallest float.
    """
    total, fewer = only_a + only_b, min(only_a, only_b)
    # C(n, k) and 2^n are exact and their quotient is rounded once; the other terms, in multiples
    # of C(n, k), are products of C(n, i - 1) / C(n, i) = i / (n - i + 1), each at most 1.
    largest: float = math.comb(total, fewer) / 2**total
    steps = np.arange(fewer, 0, -1)
    multiples = 1 + float(np.cumprod(steps / (total - steps + 1)).sum())
    return min(1.0, 2 * largest * multiples)


def per_class(outcome: Outcome, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Accuracy of each class in percent, in label order; None where it has no videos.

    Args:
        names: of the K classes, for the key ``name``.
    """
    counts = _count(outcome.labels, outcome.num_classes)
    right = {k: _count(outcome.labels[outcome.right(k)], outcome.num_classes) for k in (1, 5)}
    return [
        {
            "class": label,
            "name": None if names is None else names[label],
            "num_videos": count,
            "top1": 100.0 * right[1][label] / count if count else None,
            "top5": 100.0 * right[5][label] / count if count else None,
        }
        for label, count in enumerate(counts)
    ]


def _count(labels: np.ndarray, num_classes: int) -> list[int]:
    counts: list[int] = np.bincount(labels, minlength=num_classes).tolist()
    return counts


def confusion_matrix(outcome: Outcome) -> np.ndarray:
    """Videos by true class (row) and predicted class (column), (K, K) int64.

    Videos that failed are in no cell: a row's sum is its class's videos less those.
    """
    num_classes = outcome.num_classes
    ok = outcome.predicted != NO_CLASS
    cells = outcome.labels[ok] * num_classes + outcome.predicted[ok]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def confident_mistakes(outcome: Outcome, probs: np.ndarray, limit: int) -> np.ndarray:
    """Places of the videos whose wrong class was given most, highest first, then in list order.

    Args:
        probs: (N, K); rows of videos that failed are not looked at.
    """
    wrong = np.flatnonzero((outcome.predicted != NO_CLASS) & ~outcome.right())
    given = probs[wrong, outcome.predicted[wrong]]
    return np.asarray(wrong[np.argsort(-given, kind="stable")[:limit]])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row of (N, K)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def summary(outcome: Outcome, names: Sequence[str] | None = None) -> Mapping[str, Any]:
    """What ``results.json`` tells beside the accuracy, ready for JSON.

    ``worst_case`` and ``best_case`` are the accuracies, in percent, had all videos that failed
    been wrong (which is how they are counted) or right.
    """
    listed, failed = outcome.num_videos, outcome.num_failed
    right = {k: int(outcome.right(k).sum()) for k in (1, 5)}
    return {
        "coverage": {
            "tested": listed - failed,
            "listed": listed,
            "fraction": (listed - failed) / listed,
        },
        "worst_case": {f"top{k}": 100.0 * count / listed for k, count in right.items()},
        "best_case": {f"top{k}": 100.0 * (count + failed) / listed for k, count in right.items()},
        "confidence": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            **{f"top{k}": list(accuracy_interval(count, listed)) for k, count in right.items()},
        },
        "per_class": per_class(outcome, names),
        "confusion_matrix": confusion_matrix(outcome).tolist(),
    }
