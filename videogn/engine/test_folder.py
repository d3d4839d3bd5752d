"""A test's folder, read without a network or a video: its scores and its results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videogn.engine.scores import AVERAGES, SCORES, Average, Scores, read_scores
from videogn.engine.statistics import Outcome, outcome_of
from videogn.errors import RunError
from videogn.files import printable

RESULTS = "results.json"
IDENTITY = (
    "checkpoint_sha256",
    "list_sha256",
    "protocol",
    "num_clips",
    "num_crops",
    "num_frames",
    "frame_stride",
    "fps",
    "short_side",
    "crop_size",
    "reader",
    "stream",
    "pixels",
    "mean",
    "std",
    "precision",
    "recipe",
    "average",
)
"""Keys of the results that tell which test a folder holds."""
COMPARED = tuple(key for key in IDENTITY if key not in ("checkpoint_sha256", "recipe"))
"""Those that two tests share whose weights are compared; recipes differ in rounding alone."""

INSIDE = ("test", "test_best")
"""Where a training run's folder has the tests of its last and of its best checkpoint."""
ROWS = frozenset({"per_class", "confusion_matrix"})
"""Lists of the results that are written one row a line."""


def test_folder(path: str | Path) -> Path:
    """The test that a path means: a test's folder, one in a run's folder, or that of scores.npz.

    Raises:
        RunError: there is no test; the message has what was looked for and what makes it.
    """
    path = Path(path)
    if path.is_file() and path.name == SCORES:
        return path.parent
    shown = printable(path)
    if path.is_file():
        raise RunError(f"{shown}: is a file; name a test's folder, or the {SCORES} in one")
    if not path.is_dir():
        raise RunError(f"{shown}: no such folder; `videogn test` writes a test's folder")
    for folder in (path, *(path / name for name in INSIDE)):
        if (folder / RESULTS).is_file() or (folder / SCORES).is_file():
            return folder
    places = " and ".join(f"{shown}/{name}" for name in INSIDE)
    raise RunError(
        f"{shown}: holds no test: there is no {SCORES} and no {RESULTS} in it, nor in {places}; "
        f"`videogn test CONFIG --checkpoint {shown}` tests a run"
    )


def read_results(folder: Path) -> dict[str, Any]:
    """The ``results.json`` of a test's folder.

    Raises:
        RunError: there is none, or it holds something else.
    """
    path = folder / RESULTS
    shown = printable(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{shown}: no such file; `videogn test` writes it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{shown}: cannot be read: {printable(error)}; test again") from error
    if not isinstance(results, dict):
        raise RunError(f"{shown}: is no file of results; test again")
    names = results.get("class_names")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise RunError(f"{shown}: class_names is no list of names; test again")
    if results.get("average", AVERAGES[0]) not in AVERAGES:
        raise RunError(f"{shown}: average is none of {', '.join(AVERAGES)}; test again")
    return results


def results_text(results: Mapping[str, Any]) -> str:
    """Results as JSON of two spaces, but each class and row of the matrix on one line."""
    members = (f"{json.dumps(key)}: {_value(key, value)}" for key, value in results.items())
    return "{\n  " + ",\n  ".join(members) + "\n}\n"


def _value(key: str, value: Any) -> str:
    if key in ROWS and value and isinstance(value, list):
        rows = ",\n    ".join(map(json.dumps, value))
        return f"[\n    {rows}\n  ]"
    # Texts have no line ends of their own: JSON writes those as \n.
    return json.dumps(value, indent=2).replace("\n", "\n  ")


@dataclass(frozen=True)
class FinishedTest:
    """A finished test.

    Attributes:
        folder: it lies in.
        scores: of every view.
        results: ``results.json``; empty where there is none.
    """

    folder: Path
    scores: Scores
    results: Mapping[str, Any]

    @property
    def average(self) -> Average:
        """The average that the test was scored by."""
        average: Average = self.results.get("average", AVERAGES[0])
        return average

    @property
    def class_names(self) -> list[str] | None:
        """In label order; None where they are not known."""
        names: list[str] | None = self.results.get("class_names")
        return names

    def class_name(self, label: int) -> str:
        """A class as it may be printed, by its name or number."""
        return str(label) if self.class_names is None else printable(self.class_names[label])


def read_test(path: str | Path, *, need_results: bool = True) -> FinishedTest:
    """Read the test that :func:`test_folder` finds.

    Args:
        need_results: whether scores alone are not enough.

    Raises:
        RunError: a file is missing or damaged, or the two are not of one test.
    """
    folder = test_folder(path)
    scores = read_scores(folder / SCORES)
    _check_finite(folder, scores)
    there = need_results or (folder / RESULTS).exists()
    tested = FinishedTest(folder, scores, read_results(folder) if there else {})
    _check_agreement(tested)
    if there:
        check_together(folder, tested.results, outcome_of(scores, tested.average))
    return tested


def check_together(folder: Path, results: Mapping[str, Any], outcome: Outcome) -> None:
    """Refuse two files that are not of one test: one may be left of a test that was killed.

    Args:
        results: ``results.json``; what it does not tell is not compared.
        outcome: of ``scores.npz``, by the average that was tested.

    Raises:
        RunError: naming what differs.
    """
    counts = {"num_videos": outcome.num_videos, "num_failed": outcome.num_failed}
    found: dict[str, float] = {key: value for key, value in counts.items() if key in results}
    if all(results[key] == value for key, value in found.items()):
        found = {"top1": outcome.percent(1)}
        told = results.get("top1", found["top1"])
        # Sums in another order may decide a tie otherwise: up to two videos are forgiven.
        if type(told) in (int, float) and abs(told - found["top1"]) <= 250 / outcome.num_videos:
            return
    first = ", ".join(f"{key} {printable(results[key])}" for key in found)
    second = ", ".join(f"{key} {value}" for key, value in found.items())
    raise RunError(
        f"{printable(folder)}: {RESULTS} and {SCORES} are not of one test: {first} in the first, "
        f"{second} by the second; test again"
    )


def _check_finite(folder: Path, scores: Scores) -> None:
    for views in (scores.view_probs, scores.view_logits):
        if not np.isfinite(views).all((1, 2, 3))[scores.ok].all():
            path = printable(folder / SCORES)
            raise RunError(f"{path}: has scores that are no numbers; test again")


def _check_agreement(tested: FinishedTest) -> None:
    scores, names = tested.scores, tested.class_names
    facts = {
        "videos": (tested.results.get("num_videos"), len(scores.videos)),
        "class names": (None if names is None else len(names), scores.num_classes),
    }
    for what, (told, found) in facts.items():
        if told is not None and told != found:
            raise RunError(
                f"{printable(tested.folder)}: {RESULTS} has {printable(told)} {what} and {SCORES} "
                f"is of {found}: they are not of one test; test again"
            )
