"""On one process here; on several in commands/test_test_ranks.py."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from videogn.distributed import World
from videogn.engine.evaluator import VideoScore
from videogn.engine.journal import Journal
from videogn.engine.scoring import Listed, ReadingClock, score_list
from videogn.errors import RunError

WORLD = World(0, 1, torch.device("cpu"))


def scored(places: Sequence[int]) -> Iterator[VideoScore]:
    for place in places:
        yield VideoScore(place, (np.full((1, 1, 2), place, np.float32),), b"", None)


class Told:
    """A list of ten videos, and what is said while it is scored."""

    def __init__(self, folder: Path, stop_after: int = 99) -> None:
        self.counts: list[int] = []
        self.lines: list[str] = []
        self.asked = 0
        self.stop_after = stop_after
        self.listed = Listed(
            num_videos=10,
            journal=Journal(folder / "partial", {"list": "ten"}),
            world=WORLD,
            stop_asked=self.stop_asked,
            tell=self.counts.append,
            report=self.lines.append,
        )

    def stop_asked(self) -> bool:
        self.asked += 1
        return self.asked > self.stop_after


def test_what_is_scored_already_is_not_scored_again(tmp_path: Path) -> None:
    first = Told(tmp_path, stop_after=4)
    assert score_list(first.listed, scored, ReadingClock()) is None
    again = Told(tmp_path)
    asked: list[int] = []

    def noted(places: Sequence[int]) -> Iterator[VideoScore]:
        asked.extend(places)
        return scored(places)

    pace = score_list(again.listed, noted, ReadingClock())
    assert asked == [4, 5, 6, 7, 8, 9]
    assert pace is not None
    assert pace.num_videos == 6
    assert again.lines[0].startswith("goes on     4 of 10 videos")
    assert again.counts[-1] == 6
    assert [score.place for score in again.listed.collected()] == list(range(10))
    # All are there: nothing is left to do, and nothing is started for it.
    last = score_list(Told(tmp_path).listed, lambda places: pytest.fail("started"), ReadingClock())
    assert last is not None
    assert last.num_videos == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda places: places[:-1], [10]),
        (lambda places: [*places, 3], [4]),
        (lambda places: [p for p in places if p not in (0, 6)], [1, 7]),
    ],
)
def test_a_video_that_is_not_scored_once_is_an_error(tmp_path: Path, change, named) -> None:
    told = Told(tmp_path)
    with pytest.raises(RunError, match="not scored exactly once") as error:
        score_list(told.listed, lambda places: scored(change(places)), ReadingClock())
    assert str(named) in str(error.value)


def test_scores_on_another_host_are_missed_by_name(tmp_path: Path) -> None:
    told = Told(tmp_path)
    score_list(told.listed, scored, ReadingClock())
    for path in (tmp_path / "partial").glob("*.scores"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"no scores of 1 videos.*all hosts share"):
        told.listed.collected()


def test_an_error_in_between_keeps_what_was_scored(tmp_path: Path) -> None:
    def broken(places: Sequence[int]) -> Iterator[VideoScore]:
        yield from scored(places[:3])
        raise RunError("not finite")

    told = Told(tmp_path)
    with pytest.raises(RunError, match="not finite"):
        score_list(told.listed, broken, ReadingClock())
    assert told.listed.journal.read().keys() == {0, 1, 2}
