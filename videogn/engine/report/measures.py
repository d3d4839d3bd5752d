"""Numbers of one test that the report shows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from videogn.engine.report.reading import TestedRun, VideoScores
from videogn.engine.statistics import (
    LEVEL,
    Interval,
    accuracy_interval,
    confident_mistakes,
    softmax,
)


@dataclass(frozen=True)
class Mistake:
    """A video whose highest score is another class's.

    Attributes:
        place: in the list.
        score: of the class that was predicted, in [0, 1].
        own: score of the true class.
    """

    place: int
    label: int
    predicted: int
    score: float
    own: float


@dataclass(frozen=True)
class Confusion:
    """How often one class was taken for another.

    Attributes:
        share: of the videos of class ``label`` that could be read, in percent.
    """

    label: int
    predicted: int
    count: int
    share: float


def mistakes(scores: VideoScores, limit: int, *, logits: bool = False) -> list[Mistake]:
    """The mistakes with the highest scores, the highest first; those before in the list first.

    Args:
        logits: whether the scores are means before softmax, which is then taken here.
    """
    probs = softmax(scores.probs) if logits else scores.probs
    predicted = scores.outcome.predicted
    return [
        Mistake(
            place=int(place),
            label=int(scores.labels[place]),
            predicted=int(predicted[place]),
            score=float(probs[place, predicted[place]]),
            own=float(probs[place, scores.labels[place]]),
        )
        for place in confident_mistakes(scores.outcome, probs, limit)
    ]


def confusions(scores: VideoScores, limit: int) -> list[Confusion]:
    """The pairs of classes that were confused most often."""
    num_classes = scores.probs.shape[1]
    labels, predicted = scores.labels[scores.ok], scores.outcome.predicted[scores.ok]
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * num_classes + predicted[wrong], return_counts=True)
    of_class = np.bincount(labels, minlength=num_classes)
    found = []
    for row in np.argsort(-counts, kind="stable")[:limit]:
        label, other = divmod(int(pairs[row]), num_classes)
        count = int(counts[row])
        found.append(Confusion(label, other, count, 100 * count / int(of_class[label])))
    return found


def _intervals(run: TestedRun) -> tuple[Interval, Interval]:
    """Intervals of top-1 and top-5, as the test has found them or, of earlier tests, found here."""
    told = run.results.get("confidence")
    if isinstance(told, Mapping) and told.get("level") == LEVEL:
        top1, top5 = (_interval(told.get(key)) for key in ("top1", "top5"))
        if top1 is not None and top5 is not None:
            return top1, top5
    return _found_here(run, 1), _found_here(run, 5)


def _interval(told: object) -> Interval | None:
    """Both ends as JSON has them; None where they cannot be."""
    if not isinstance(told, list) or len(told) != 2:
        return None
    if not all(type(end) in (int, float) and 0 <= end <= 100 for end in told):
        return None
    return Interval(*told)


def _found_here(run: TestedRun, k: int) -> Interval:
    outcome = run.scores.outcome
    return accuracy_interval(int(outcome.right(k).sum()), outcome.num_videos)


@dataclass(frozen=True)
class Summary:
    """A test in a few numbers, in percent.

    Attributes:
        key: of the run.
        accuracy: top-1 and top-5; videos that failed are wrong.
        best_case: the same, had every failed video been right.
        intervals: of top-1 and top-5.
    """

    key: str
    num_videos: int
    num_tested: int
    accuracy: tuple[float, float]
    best_case: tuple[float, float]
    intervals: tuple[Interval, Interval]


def summary(run: TestedRun) -> Summary:
    """Sum a test up."""
    results = run.results
    failed = 100 * results["num_failed"] / results["num_videos"]
    accuracy = (float(results["top1"]), float(results["top5"]))
    return Summary(
        key=run.key,
        num_videos=results["num_videos"],
        num_tested=results["num_videos"] - results["num_failed"],
        accuracy=accuracy,
        best_case=(min(100.0, accuracy[0] + failed), min(100.0, accuracy[1] + failed)),
        intervals=_intervals(run),
    )
