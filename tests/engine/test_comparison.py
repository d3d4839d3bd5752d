from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_scores import made_up_scores, plain_ranks

from videogn.engine.comparison import Comparison, compare, few_of
from videogn.engine.scores import Scores
from videogn.engine.test_folder import FinishedTest
from videogn.errors import RunError

CLASS_OF = {name: place % 3 for place, name in enumerate("abcdef")}
"""One label for each name, so that videos of one name agree."""


def finished(scores: Scores, **results: object) -> FinishedTest:
    return FinishedTest(Path("a"), scores, results)


def scores_of(names: list[str], failed: list[int], seed: int, num_classes: int = 3) -> Scores:
    labels = [CLASS_OF[name] for name in names]
    return made_up_scores(labels, num_classes=num_classes, names=names, failed=failed, seed=seed)


def right_of(scores: Scores, k: int) -> list[bool]:
    ranks = plain_ranks(scores.of_videos(), scores)
    return [rank is not None and rank < k for rank in ranks]


def by_name(scores: Scores, values: list[bool]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for name, value in zip(scores.videos, values, strict=True):
        found.setdefault(name, []).append(value)
    return found


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Scores, Scores]:
    """Two tests of short lists with names that come often and failed videos."""
    both = []
    for seed in (1, 2):
        names = draw(st.lists(st.sampled_from("abcdef"), max_size=8))
        names.insert(draw(st.integers(0, len(names))), "a")
        failed = draw(st.lists(st.integers(0, len(names) - 1)))
        both.append(scores_of(names, failed, seed))
    return both[0], both[1]


@given(pairs())
def test_pairs_equal_those_found_by_hand(scores: tuple[Scores, Scores]) -> None:
    comparison = compare(finished(scores[0]), finished(scores[1]))
    counts = [Counter(part.videos) for part in scores]
    assert Counter(name for name, _ in comparison.videos) == counts[0] & counts[1]
    assert Counter(name for name, _ in comparison.only_in_a) == counts[0] - counts[1]
    assert Counter(name for name, _ in comparison.only_in_b) == counts[1] - counts[0]
    for k in (1, 5):
        right = [by_name(part, right_of(part, k)) for part in scores]
        # zip ends with the shorter of the two: those without a partner.
        table = Counter(
            pair
            for name in counts[0] & counts[1]
            for pair in zip(right[0][name], right[1][name], strict=False)
        )
        top = comparison.top(k)
        assert (top.both, top.only_a) == (table[True, True], table[True, False])
        assert (top.only_b, top.neither) == (table[False, True], table[False, False])
        assert top.percent_a == comparison.outcome_a.percent(k)
        assert top.percent_b == comparison.outcome_b.percent(k)
        assert top.difference == pytest.approx(top.percent_a - top.percent_b)


@given(pairs())
def test_classes_equal_a_count_by_hand(scores: tuple[Scores, Scores]) -> None:
    comparison = compare(finished(scores[0]), finished(scores[1]))
    changes = comparison.class_changes()
    labels = comparison.outcome_a.labels.tolist()
    assert sorted(change.label for change in changes) == sorted(set(labels))
    for change in changes:
        a, b = (
            [
                bool(right)
                for label, right in zip(labels, outcome.right(), strict=True)
                if label == change.label
            ]
            for outcome in (comparison.outcome_a, comparison.outcome_b)
        )
        assert change.num_videos == len(a)
        assert change.top1_a == 100 * sum(a) / len(a)
        assert change.top1_b == 100 * sum(b) / len(b)
        assert change.difference == pytest.approx(change.top1_a - change.top1_b)
        assert change.only_a == sum(one and not other for one, other in zip(a, b, strict=True))
        assert change.only_b == sum(other and not one for one, other in zip(a, b, strict=True))
    sizes = [abs(change.difference) for change in changes]
    assert sizes == sorted(sizes, reverse=True)


@given(pairs())
def test_disagreements_are_the_videos_that_one_has_right(scores: tuple[Scores, Scores]) -> None:
    comparison = compare(finished(scores[0]), finished(scores[1]))
    right = zip(comparison.outcome_a.right(), comparison.outcome_b.right(), strict=True)
    assert comparison.disagreements() == [place for place, (a, b) in enumerate(right) if a != b]
    top = comparison.top(1)
    assert len(comparison.disagreements()) == top.only_a + top.only_b


@given(pairs())
def test_the_other_way_round_signs_turn(scores: tuple[Scores, Scores]) -> None:
    one = compare(finished(scores[0]), finished(scores[1])).top(1)
    other = compare(finished(scores[1]), finished(scores[0])).top(1)
    assert other.difference == -one.difference
    assert other.p == one.p
    assert {one.better, other.better} in ({"A", "B"}, {None})


def compared(names: str, other_names: str, **options: int) -> Comparison:
    one, other = scores_of(list(names), [], 1), scores_of(list(other_names), [], 2, **options)
    return compare(finished(one), finished(other))


def test_tests_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(RunError, match=r"a has 3 classes and a 4: compare tests of the same"):
        compared("abc", "abc", num_classes=4)
    with pytest.raises(RunError, match=r"have no video in common: theirs are such as a and d;"):
        compared("abc", "def")
    one, other = (
        made_up_scores([0, 1, label], names=["a", "b\n", "b\n"], num_classes=3) for label in (1, 2)
    )
    message = r"different labels for 1 of 3 videos: b\\n \(no. 2 of that name\) \(1 and 2\); test"
    with pytest.raises(RunError, match=message):
        compare(finished(one), finished(other))


def test_each_is_scored_as_it_was_unless_told_otherwise() -> None:
    scores = scores_of(list("abcdef"), [], 3)
    a, b = finished(scores, average="max"), finished(scores)
    own = compare(a, b)
    assert own.averages == ("max", "prob")
    assert own.differences == {"average": ("max", "prob")}
    same = compare(a, b, "logit")
    assert same.averages == ("logit", "logit")
    assert not same.differences
    assert same.outcome_a.ranks.tolist() == same.outcome_b.ranks.tolist()


def test_what_else_differs_is_told() -> None:
    scores = scores_of(list("abc"), [], 3)
    a = finished(scores, checkpoint_sha256="1", num_clips=10, mean=[1, 2], class_names=list("xyz"))
    b = finished(scores, checkpoint_sha256="2", num_clips=30, mean=[1, 2], class_names=list("xzy"))
    assert compare(a, b).differences == {
        "num_clips": (10, 30),
        "class_names": ("label 1: y", "label 1: z"),
    }
    # Names that one test does not know are no difference.
    assert "class_names" not in compare(a, finished(scores, num_clips=10)).differences
    assert compare(finished(scores), b).class_name(1) == "z"
    assert compare(a, b).class_name(1) == "y"


def test_few_of_many_words() -> None:
    assert few_of(list("abcde")) == "a, b, c, d, e"
    assert few_of(list("abcdefg")) == "a, b, c, d, e and 2 more"
