import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videogn.engine.pretraining import MEDIAN_OF, outcome_file, outcome_of
from videogn.engine.runs import RunLog, read_log


def log_of(right: list[tuple[int, int]], num_images: int, apart: int = 10) -> list[dict]:
    """Validations with so many images right at first guess and among five."""
    entries: list[dict] = [{"kind": "start", "iteration": 0, "num_videos": 77}]
    for number, (first, five) in enumerate(right, 1):
        entries += [
            {"kind": "train", "iteration": apart * number, "top1": 1.0, "top5": 2.0},
            {
                "kind": "val",
                "iteration": apart * number,
                "top1": 100 * first / num_images,
                "top5": 100 * five / num_images,
                "loss": 1.0,
                "num_videos": num_images,
            },
        ]
    return entries


def test_errors_of_a_run_of_seven_epochs() -> None:
    # Of 1000 images. The last five have 748, 761, 757, 759, 760 right: 759 lies in the middle.
    first = [100, 762, 748, 761, 757, 759, 760]
    five = [300, 930, 921, 929, 931, 925, 928]
    outcome = outcome_of(log_of(list(zip(first, five, strict=True)), 1000))
    assert outcome is not None
    told = outcome.as_dict()
    assert told["num_images"] == 1000
    assert told["last"] == {"iteration": 70, "top1_error": 24.0, "top5_error": 7.2}
    assert told["best"] == {"iteration": 20, "top1_error": 23.8, "top5_error": 7.0}
    assert told["median"] == {
        "top1_error": 24.1,
        "top5_error": 7.2,
        "iterations": [30, 40, 50, 60, 70],
    }
    assert [each["iteration"] for each in told["validations"]] == [10, 20, 30, 40, 50, 60, 70]


def test_the_best_is_the_earliest_of_equals() -> None:
    outcome = outcome_of(log_of([(5, 9), (6, 8), (6, 9), (4, 9)], 10))
    assert outcome is not None
    assert outcome.best.iteration == 20


def test_fewer_than_five_are_all_counted() -> None:
    outcome = outcome_of(log_of([(7, 9), (6, 8)], 10))
    assert outcome is not None
    assert outcome.as_dict()["median"] == {
        "top1_error": 35.0,
        "top5_error": 15.0,
        "iterations": [10, 20],
    }


def test_a_repeated_validation_counts_once_and_order_does_not_matter() -> None:
    entries = log_of([(5, 8), (6, 8), (7, 9)], 10)
    again = log_of([(1, 1), (9, 10)], 10)[-1]
    outcome = outcome_of([*reversed(entries), again])
    assert outcome is not None
    assert [(e.iteration, e.top1_error) for e in outcome.validations] == [
        (10, 50.0),
        (20, 10.0),
        (30, 30.0),
    ]


def test_a_log_without_validations_has_no_outcome() -> None:
    assert outcome_of([]) is None
    assert outcome_of(log_of([], 10)) is None


@given(
    right=st.lists(st.integers(0, 50_000), min_size=1, max_size=12),
    num_images=st.just(50_000),
)
def test_numbers_are_those_of_counts(right: list[int], num_images: int) -> None:
    """Against whole numbers of images, which have no rounding."""
    outcome = outcome_of(log_of([(n, n) for n in right], num_images))
    assert outcome is not None
    wrong = [num_images - n for n in right]
    end = sorted(wrong[-MEDIAN_OF:])
    middle = (end[(len(end) - 1) // 2] + end[len(end) // 2]) / 2
    assert outcome.median_top1_error == pytest.approx(middle / 500, abs=1e-8)
    assert outcome.best.top1_error == pytest.approx(min(wrong) / 500, abs=1e-8)
    assert outcome.best.iteration == 10 * (1 + wrong.index(min(wrong)))
    assert outcome.last.top1_error == pytest.approx(wrong[-1] / 500, abs=1e-8)
    # 500 images are a percent, so no more than five digits behind the point are needed.
    assert len(str(outcome.last.top1_error)) <= 8


def test_it_goes_through_a_log_and_a_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for entry in log_of([(5, 8), (6, 9)], 10):
        log.write(entry.pop("kind"), entry)
    outcome = outcome_of(read_log(tmp_path / "log.jsonl"))
    assert outcome is not None
    assert json.loads(json.dumps(outcome.as_dict())) == outcome.as_dict()
    assert outcome_file(tmp_path) == tmp_path / "pretrain.json"
