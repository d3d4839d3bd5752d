"""Known results first, and what is new saved even where the caller stops early."""

import pytest

from videogn.data.processes import Lost, Pool, known_or_run


def squared(number: int) -> int:
    return number * number


@pytest.mark.dist
def test_known_results_come_first_and_new_ones_are_saved(monkeypatch) -> None:
    known, saved = {3: 9, 5: 25}, []

    def results(tasks):
        return known_or_run(squared, tasks, Pool(1, 60), known.get, saved.extend, lost_as_zero)

    outcomes = results([1, 3, 4, 5])
    assert [next(outcomes), next(outcomes)] == [9, 25]
    assert saved == []
    first = next(outcomes)
    outcomes.close()
    assert saved == [first]
    monkeypatch.setattr(
        "videogn.data.processes.run_all", lambda *_, **__: iter([(7, Lost("given up")), (8, 64)])
    )
    monkeypatch.setattr("videogn.data.processes.SAVE_SECONDS", -1.0)
    outcomes = results([7, 8])
    assert [next(outcomes), next(outcomes)] == [0, 64]
    assert saved == [first, 0]


def lost_as_zero(task: int, lost: Lost) -> int:
    return 0
