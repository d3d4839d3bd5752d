"""Numbers of one test that the report shows."""

from dataclasses import dataclass

import numpy as np

from videogn.engine.report.reading import TestedRun, VideoScores

Interval = tuple[float, float]


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


def mistakes(scores: VideoScores, limit: int) -> list[Mistake]:
    """The mistakes with the highest scores, the highest first; those before in the list first."""
    wrong = np.flatnonzero(scores.ok & (scores.predicted != scores.labels))
    predicted, labels = scores.predicted[wrong], scores.labels[wrong]
    best = scores.probs[wrong, predicted]
    return [
        Mistake(
            place=int(wrong[row]),
            label=int(labels[row]),
            predicted=int(predicted[row]),
            score=float(best[row]),
            own=float(scores.probs[wrong[row], labels[row]]),
        )
        for row in np.argsort(-best, kind="stable")[:limit]
    ]


def confusions(scores: VideoScores, limit: int) -> list[Confusion]:
    """The pairs of classes that were confused most often."""
    num_classes = scores.probs.shape[1]
    labels, predicted = scores.labels[scores.ok], scores.predicted[scores.ok]
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * num_classes + predicted[wrong], return_counts=True)
    of_class = np.bincount(labels, minlength=num_classes)
    found = []
    for row in np.argsort(-counts, kind="stable")[:limit]:
        label, other = divmod(int(pairs[row]), num_classes)
        count = int(counts[row])
        found.append(Confusion(label, other, count, 100 * count / int(of_class[label])))
    return found


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy over the videos of one class, those that failed wrong.

    Attributes:
        top1: percent.
        top5: percent.
    """

    label: int
    num_videos: int
    top1: float
    top5: float


def class_accuracies(scores: VideoScores) -> list[ClassAccuracy]:
    """One for each class that has videos, in label order."""
    rank = _ranks(scores)
    found = []
    for label in np.unique(scores.labels):
        own = rank[scores.labels == label]
        top1, top5 = (100 * float((own < k).mean()) for k in (1, 5))
        found.append(ClassAccuracy(int(label), len(own), top1, top5))
    return found


def _ranks(scores: VideoScores) -> np.ndarray:
    """(N,) int: classes before the true one, the lower index first on ties; K where failed."""
    own = np.take_along_axis(scores.probs, scores.labels[:, None], axis=1)
    num_classes = scores.probs.shape[1]
    earlier = np.arange(num_classes)[None] < scores.labels[:, None]
    before = (scores.probs > own) | ((scores.probs == own) & earlier)
    return np.where(scores.ok, before.sum(1), num_classes)


def confusion_matrix(scores: VideoScores) -> np.ndarray:
    """(K, K) int: videos by true class (row) and predicted class, those that failed left out."""
    num_classes = scores.probs.shape[1]
    flat = scores.labels[scores.ok] * num_classes + scores.predicted[scores.ok]
    counts = np.bincount(flat, minlength=num_classes**2)
    return np.asarray(counts.reshape(num_classes, num_classes))


def intervals(run: TestedRun) -> tuple[Interval, Interval]:
    """95 % bootstrap intervals of top-1 and top-5, as the test found them or found here."""
    rank, random = _ranks(run.scores), np.random.default_rng(0)
    found = []
    for k in (1, 5):
        # Videos drawn with replacement are right as often as a binomial variable says.
        right = random.binomial(len(rank), float((rank < k).mean()), 2000)
        low, high = np.quantile(100 * right / len(rank), (0.025, 0.975))
        found.append((float(low), float(high)))
    return found[0], found[1]


@dataclass(frozen=True)
class Summary:
    """A test in a few numbers, in percent.

    Attributes:
        key: of the run.
        accuracy: top-1 and top-5; videos that failed are wrong.
        best_case: the same, had every failed video been right.
        intervals: of top-1 and top-5.
        level: of the intervals, as text: ``95 %``.
    """

    key: str
    num_videos: int
    num_tested: int
    accuracy: tuple[float, float]
    best_case: tuple[float, float]
    intervals: tuple[Interval, Interval]
    level: str


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
        intervals=intervals(run),
        level="95 %",
    )
