"""Two finished tests on the videos that both tested. Needs numpy alone.

Videos are paired by name, the n-th of a name with the n-th of that name. A video that failed is
wrong.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videogn.engine.scores import Average
from videogn.engine.statistics import Interval, Outcome, difference_interval, mcnemar, outcome_of
from videogn.engine.test_folder import COMPARED, FinishedTest
from videogn.errors import RunError
from videogn.files import printable

MAX_NAMED = 5
Key = tuple[str, int]
"""A video: its name, and the how manieth of that name it is, from 0."""


@dataclass(frozen=True)
class TopK:
    """Both tests' right videos by the first k classes.

    Attributes:
        num_videos: that both tested.
        both: videos that both have right.
        only_a: that A alone has right.
        only_b: that B alone has right.
    """

    num_videos: int
    both: int
    only_a: int
    only_b: int

    @property
    def neither(self) -> int:
        """Videos that neither has right."""
        return self.num_videos - self.both - self.only_a - self.only_b

    @property
    def percent_a(self) -> float:
        """A's accuracy."""
        return 100.0 * (self.both + self.only_a) / self.num_videos

    @property
    def percent_b(self) -> float:
        """B's accuracy."""
        return 100.0 * (self.both + self.only_b) / self.num_videos

    @property
    def difference(self) -> float:
        """A - B in percentage points."""
        return 100.0 * (self.only_a - self.only_b) / self.num_videos

    @property
    def interval(self) -> Interval:
        """Of the difference."""
        return difference_interval(self.only_a, self.only_b, self.num_videos)

    @property
    def p(self) -> float:
        """McNemar's exact two-sided p."""
        return mcnemar(self.only_a, self.only_b)

    @property
    def better(self) -> str | None:
        """ "A" or "B"; None where the interval contains 0."""
        low, high = self.interval
        return "A" if low > 0 else "B" if high < 0 else None


@dataclass(frozen=True)
class ClassChange:
    """A class of the videos that both tested, accuracies in percent."""

    label: int
    num_videos: int
    only_a: int
    only_b: int
    top1_a: float
    top1_b: float

    @property
    def difference(self) -> float:
        """A - B in percentage points."""
        return 100.0 * (self.only_a - self.only_b) / self.num_videos


@dataclass(frozen=True)
class Comparison:
    """Everything that is told.

    Attributes:
        videos: that both tested, in A's order; ``outcome_a`` and ``outcome_b`` are of these.
        only_in_a: videos that A alone tested.
        only_in_b: videos that B alone tested.
        differences: what else than the weights differs: name -> A's and B's value.
        averages: A's and B's.
    """

    a: FinishedTest
    b: FinishedTest
    averages: tuple[Average, Average]
    videos: tuple[Key, ...]
    only_in_a: tuple[Key, ...]
    only_in_b: tuple[Key, ...]
    outcome_a: Outcome
    outcome_b: Outcome
    differences: Mapping[str, tuple[Any, Any]]

    def top(self, k: int) -> TopK:
        """Compare by the first ``k`` classes."""
        a, b = self.outcome_a.right(k), self.outcome_b.right(k)
        both, only_a, only_b = (int(part.sum()) for part in (a & b, a & ~b, b & ~a))
        return TopK(len(self.videos), both, only_a, only_b)

    def disagreements(self) -> list[int]:
        """Places of the videos that exactly one has right by top-1."""
        return np.flatnonzero(self.outcome_a.right() != self.outcome_b.right()).tolist()

    def class_changes(self) -> list[ClassChange]:
        """Classes that have videos, the largest difference first, then the most videos."""
        a, b, labels = self.outcome_a.right(), self.outcome_b.right(), self.outcome_a.labels
        counts, right_a, right_b, only_a, only_b = (
            np.bincount(labels[part], minlength=self.outcome_a.num_classes)
            for part in (np.full(len(labels), True), a, b, a & ~b, b & ~a)
        )
        changes = [
            ClassChange(
                label=label,
                num_videos=int(counts[label]),
                only_a=int(only_a[label]),
                only_b=int(only_b[label]),
                top1_a=100.0 * int(right_a[label]) / int(counts[label]),
                top1_b=100.0 * int(right_b[label]) / int(counts[label]),
            )
            for label in np.flatnonzero(counts).tolist()
        ]
        return sorted(changes, key=lambda c: (-abs(c.difference), -c.num_videos, c.label))

    def class_name(self, label: int) -> str:
        """By whichever test knows the names."""
        return (self.b if self.a.class_names is None else self.a).class_name(label)


def compare(a: FinishedTest, b: FinishedTest, average: Average | None = None) -> Comparison:
    """Pair the videos of two tests.

    Args:
        average: None scores each test as it was scored.

    Raises:
        RunError: the tests differ in their number of classes or in a video's label, or have no
            video in common.
    """
    classes = a.scores.num_classes, b.scores.num_classes
    if classes[0] != classes[1]:
        raise RunError(
            f"{printable(a.folder)} has {classes[0]} classes and {printable(b.folder)} "
            f"{classes[1]}: compare tests of the same classes"
        )
    places_a, places_b = (places(tested.scores.videos) for tested in (a, b))
    common = [key for key in places_a if key in places_b]
    if not common:
        raise RunError(
            f"{printable(a.folder)} and {printable(b.folder)} have no video in common: theirs are "
            f"such as {printable(a.scores.videos[0])} and {printable(b.scores.videos[0])}; names "
            "are compared as they stand in the lists"
        )
    _check_labels(a, b, [(key, places_a[key], places_b[key]) for key in common])
    averages = average or a.average, average or b.average
    outcome_a, outcome_b = (
        outcome_of(tested.scores, by).of(np.array([where[key] for key in common]))
        for tested, by, where in ((a, averages[0], places_a), (b, averages[1], places_b))
    )
    return Comparison(
        a=a,
        b=b,
        averages=averages,
        videos=tuple(common),
        only_in_a=tuple(key for key in places_a if key not in places_b),
        only_in_b=tuple(key for key in places_b if key not in places_a),
        outcome_a=outcome_a,
        outcome_b=outcome_b,
        differences=differences(a, b, averages),
    )


def places(names: Sequence[str]) -> dict[Key, int]:
    """Where each video stands, in list order."""
    seen: Counter[str] = Counter()
    found = {}
    for place, name in enumerate(names):
        found[name, seen[name]] = place
        seen[name] += 1
    return found


def _check_labels(a: FinishedTest, b: FinishedTest, pairs: Sequence[tuple[Key, int, int]]) -> None:
    wrong = [
        f"{video_name(key)} ({a.scores.labels[at]} and {b.scores.labels[bt]})"
        for key, at, bt in pairs
        if a.scores.labels[at] != b.scores.labels[bt]
    ]
    if wrong:
        raise RunError(
            f"{printable(a.folder)} and {printable(b.folder)} have different labels for "
            f"{len(wrong):,} of {len(pairs):,} videos: {few_of(wrong)}; test both with one list"
        )


def differences(
    a: FinishedTest, b: FinishedTest, averages: tuple[Average, Average]
) -> dict[str, tuple[Any, Any]]:
    """What else than the weights differs between two tests: name -> A's and B's value."""
    pairs = {key: (a.results.get(key), b.results.get(key)) for key in COMPARED}
    pairs["average"] = averages
    if a.class_names is not None and b.class_names is not None:
        unequal = [
            (f"label {label}: {one}", f"label {label}: {other}")
            for label, (one, other) in enumerate(zip(a.class_names, b.class_names, strict=True))
            if one != other
        ]
        pairs["class_names"] = unequal[0] if unequal else (None, None)
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def video_name(key: Key) -> str:
    """A video as it may be printed."""
    name, number = key
    return printable(name) + (f" (no. {number + 1} of that name)" if number else "")


def few_of(words: Sequence[str]) -> str:
    """The first of some words, and how many more there are."""
    rest = len(words) - MAX_NAMED
    return ", ".join(words[:MAX_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")
