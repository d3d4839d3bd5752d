import itertools
import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_scores import made_up_scores, plain_ranks

from videogn.engine.statistics import (
    NO_CLASS,
    RESAMPLES,
    Interval,
    Outcome,
    accuracy_interval,
    confident_mistakes,
    confusion_matrix,
    difference_interval,
    label_ranks,
    mcnemar,
    outcome_of,
    per_class,
    summary,
    topk_percent,
)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_ranks_equal_a_sort(num_videos: int, num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(num_videos, num_classes)) / 4  # many ties
    labels = rng.integers(num_classes, size=num_videos)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert label_ranks(scores, labels).tolist() == expected
    assert (label_ranks(scores, labels) == 0).tolist() == (scores.argmax(1) == labels).tolist()


def test_missing_videos_count_as_wrong() -> None:
    assert topk_percent(np.array([0, 0, 3]), 6, 1) == 100 * 2 / 6
    assert topk_percent(np.array([0, 0, 3]), 6, 5) == 50.0


SLACK = 5 * math.sqrt(0.025 * 0.975 / RESAMPLES)
"""What the share of draws beyond an end may be off: five standard errors."""


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    """Outcomes of made-up scores, with failed videos and classes without any."""
    num_classes = draw(st.integers(1, 8))
    labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=12))
    failed = draw(st.lists(st.integers(0, len(labels) - 1)))
    seed = draw(st.integers(0, 2**16))
    return outcome_of(
        made_up_scores(labels, num_classes=num_classes, failed=failed, seed=seed, levels=3)
    )


@given(st.data())
def test_outcomes_equal_a_sort_of_every_video(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(1, 8))
    labels = data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=9))
    failed = data.draw(st.lists(st.integers(0, len(labels) - 1)))
    scores = made_up_scores(labels, num_classes=num_classes, failed=failed)
    average = data.draw(st.sampled_from(["prob", "logit", "max"]))
    outcome = outcome_of(scores, average)
    videos = scores.of_videos(average)
    ranks = plain_ranks(videos, scores)
    for k in (1, 5):
        expected = [rank is not None and rank < k for rank in ranks]
        assert outcome.right(k).tolist() == expected
        assert outcome.percent(k) == 100 * sum(expected) / len(labels)
    assert outcome.num_failed == len(set(failed))
    best = [
        row.index(max(row)) if ok else NO_CLASS
        for row, ok in zip(videos.tolist(), scores.ok, strict=True)
    ]
    assert outcome.predicted.tolist() == best


def test_failed_videos_are_wrong_however_few_classes_there_are() -> None:
    outcome = outcome_of(made_up_scores([0, 1], num_classes=2, failed=[1]))
    assert outcome.right(5).tolist() == [True, False]


@given(outcomes())
def test_classes_equal_a_count_by_hand(outcome: Outcome) -> None:
    videos = list(zip(outcome.labels.tolist(), outcome.ranks.tolist(), strict=True))
    for label, entry in enumerate(per_class(outcome)):
        ranks = [rank for true, rank in videos if true == label]
        assert (entry["class"], entry["name"], entry["num_videos"]) == (label, None, len(ranks))
        for k in (1, 5):
            right = sum(rank < k for rank in ranks)
            assert entry[f"top{k}"] == (100 * right / len(ranks) if ranks else None)


@given(outcomes())
def test_confusion_equals_a_count_by_hand(outcome: Outcome) -> None:
    pairs = Counter(zip(outcome.labels.tolist(), outcome.predicted.tolist(), strict=True))
    matrix = confusion_matrix(outcome)
    assert matrix.shape == (outcome.num_classes, outcome.num_classes)
    for true, predicted in itertools.product(range(outcome.num_classes), repeat=2):
        assert matrix[true, predicted] == pairs[true, predicted]
    assert matrix.trace() == outcome.right().sum()
    assert matrix.sum() == outcome.num_videos - outcome.num_failed


def test_the_summary_has_its_keys_and_counts_failures_both_ways() -> None:
    outcome = Outcome(
        labels=np.array([0, 0, 1, 1]),
        ranks=np.array([0, 2**40, 3, 6]),
        predicted=np.array([0, NO_CLASS, 2, 0]),
        num_classes=7,
    )
    told = summary(outcome, list("abcdefg"))
    assert json.loads(json.dumps(told)) == told
    assert list(told) == [
        "coverage",
        "worst_case",
        "best_case",
        "confidence",
        "per_class",
        "confusion_matrix",
    ]
    assert told["coverage"] == {"tested": 3, "listed": 4, "fraction": 0.75}
    assert told["worst_case"] == {"top1": 25, "top5": 50}
    assert told["best_case"] == {"top1": 50, "top5": 75}
    assert told["confidence"] == {
        "level": 0.95,
        "resamples": 10_000,
        "top1": list(accuracy_interval(1, 4)),
        "top5": list(accuracy_interval(2, 4)),
    }
    assert told["per_class"][1] == {
        "class": 1,
        "name": "b",
        "num_videos": 2,
        "top1": 0,
        "top5": 50,
    }
    assert told["per_class"][2]["top1"] is None
    assert [sum(row) for row in told["confusion_matrix"]] == [1, 2, 0, 0, 0, 0, 0]


def is_middle_95(interval: Interval, sums: Counter[int], num_values: int) -> bool:
    """Whether 2.5 % of the resampled sums lie beyond either end, as near as draws can tell."""
    low, high = (round(end * num_values / 100) for end in interval)
    total = sum(sums.values())

    def share(holds) -> float:
        return sum(count for value, count in sums.items() if holds(value)) / total

    return (
        share(lambda v: v < low) <= 0.025 + SLACK
        and share(lambda v: v <= low) >= 0.025 - SLACK
        and share(lambda v: v > high) <= 0.025 + SLACK
        and share(lambda v: v >= high) >= 0.025 - SLACK
    )


def every_resample(values: list[int]) -> Counter[int]:
    """Sums of all draws of N values with replacement: the bootstrap itself."""
    return Counter(map(sum, itertools.product(values, repeat=len(values))))


def many_resamples(values: list[int], seed: int) -> Counter[int]:
    draws = np.random.default_rng(seed).choice(values, (40_000, len(values)))
    return Counter(draws.sum(1).tolist())


@pytest.mark.parametrize("right", range(7))
def test_accuracy_intervals_are_those_of_every_resample(right: int) -> None:
    values = [1] * right + [0] * (6 - right)
    assert is_middle_95(accuracy_interval(right, 6), every_resample(values), 6)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 1), (1, 4), (6, 0), (2, 2), (0, 5)])
def test_difference_intervals_are_those_of_every_resample(only_a: int, only_b: int) -> None:
    values = [1] * only_a + [-1] * only_b + [0] * (6 - only_a - only_b)
    assert is_middle_95(difference_interval(only_a, only_b, 6), every_resample(values), 6)


def test_intervals_are_those_of_resampling_videos() -> None:
    right = [1] * 83 + [0] * 37
    assert is_middle_95(accuracy_interval(83, 120), many_resamples(right, 1), 120)
    assert not is_middle_95(accuracy_interval(90, 120), many_resamples(right, 1), 120)
    paired = [1] * 30 + [-1] * 12 + [0] * 78
    assert is_middle_95(difference_interval(30, 12, 120), many_resamples(paired, 2), 120)
    assert not is_middle_95(difference_interval(12, 30, 120), many_resamples(paired, 2), 120)


@given(st.integers(1, 500), st.data())
def test_intervals_hold_what_they_are_of(num_videos: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, num_videos))
    low, high = accuracy_interval(right, num_videos)
    assert 0 <= low <= 100 * right / num_videos <= high <= 100
    assert accuracy_interval(right, num_videos) == (low, high)
    other = data.draw(st.integers(0, num_videos - right))
    low, high = difference_interval(right, other, num_videos)
    assert low <= 100 * (right - other) / num_videos <= high
    assert difference_interval(right, other, num_videos) == (low, high)


def exact_mcnemar(only_a: int, only_b: int) -> Fraction:
    """Adds the probabilities of every split that is at least as uneven."""
    total = only_a + only_b
    return sum(
        (
            Fraction(math.comb(total, a), 2**total)
            for a in range(total + 1)
            if abs(2 * a - total) >= abs(only_a - only_b)
        ),
        Fraction(0),
    )


@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemar_equals_the_sum_over_splits(only_a: int, only_b: int) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(float(exact_mcnemar(only_a, only_b)), rel=1e-13)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_mcnemar_of_many_videos() -> None:
    assert mcnemar(1450, 1600) == pytest.approx(float(exact_mcnemar(1450, 1600)), rel=1e-12)
    # Beyond what can be added up here: the normal distribution with its correction.
    normal = math.erfc((600 - 1) / math.sqrt(100_000) / math.sqrt(2))
    assert mcnemar(49_700, 50_300) == pytest.approx(normal, rel=1e-3)
    assert mcnemar(50_000, 50_000) == 1
    assert mcnemar(0, 100_000) == 0


def test_confident_mistakes_are_those_with_the_highest_wrong_scores() -> None:
    rng = np.random.default_rng(4)
    probs = np.round(rng.random((40, 3)), 1)
    labels = rng.integers(0, 3, 40)
    predicted = probs.argmax(1)
    predicted[7] = NO_CLASS
    ranks = np.where(predicted == labels, 0, 1)
    outcome = Outcome(labels, ranks, predicted, 3)
    wrong = [
        (-probs[i, predicted[i]], i) for i in range(40) if i != 7 and predicted[i] != labels[i]
    ]
    found = confident_mistakes(outcome, probs, 9)
    assert found.tolist() == [place for _, place in sorted(wrong)[:9]]
