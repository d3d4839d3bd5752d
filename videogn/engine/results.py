"""What a test leaves behind: ``results.json``, ``scores.npz`` and ``thumbnails.npz``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videogn.data.list_checks import VideoRecord
from videogn.engine.evaluator import VideoScore
from videogn.engine.runs import RunFolder
from videogn.engine.scores import SCORES, Average, Scores, write_scores
from videogn.engine.statistics import (
    Outcome,
    confident_mistakes,
    outcome_of,
    softmax,
    summary,
)
from videogn.engine.test_folder import IDENTITY, RESULTS, results_text
from videogn.errors import RunError
from videogn.files import atomic_path, check_writable, printable, write_text

THUMBNAILS = "thumbnails.npz"
NUM_MISTAKES = 48
"""Thumbnails are kept of so many videos, those that the network was most wrong about."""


@dataclass(frozen=True)
class EvalResult:
    """Accuracy over a whole list in percent; videos that failed count as wrong."""

    top1: float
    top5: float
    num_videos: int
    num_failed: int


def check_test_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a training run or another test, or cannot be written.

    Raises:
        RunError: naming the folder and what it holds.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: the test folder is a file; choose another --out")
    if RunFolder(folder).holds_run or RunFolder(folder).config.exists():
        raise RunError(
            f"{folder}: holds a training run; choose another --out, such as {folder}/test"
        )
    check_writable(folder / RESULTS)
    if not (folder / RESULTS).exists():
        return
    try:
        old = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        changed = [key for key in IDENTITY if old.get(key) != identity[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(
            f"{folder / RESULTS}: cannot be read: {error}; choose another --out"
        ) from error
    if changed:
        lines = "".join(
            f"\n  - {key}: {printable(old.get(key))} there, {identity[key]} now" for key in changed
        )
        raise RunError(f"{folder}: holds another test; choose another --out or remove it:{lines}")


def write_results(
    folder: Path,
    scored: Sequence[VideoScore],
    records: Sequence[VideoRecord],
    about: Mapping[str, Any],
    average: Average,
    shape: tuple[int, int, int],
    class_names: Sequence[str] | None,
) -> EvalResult:
    """Write what a test leaves, each file whole or not at all and ``results.json`` last.

    Args:
        scored: of all videos, in list order.
        about: what was tested and how.
        shape: J, P, K.
    """
    scores = score_table(scored, records, shape)
    outcome = outcome_of(scores, average)
    result = EvalResult(
        outcome.percent(1), outcome.percent(5), outcome.num_videos, outcome.num_failed
    )
    write_scores(folder / SCORES, scores, average)
    write_thumbnails(folder / THUMBNAILS, scored, _mistakes(scores, outcome, average))
    failed = [
        {"path": records[score.place].name, "reason": score.reason}
        for score in scored
        if score.arrays is None
    ]
    results = {**asdict(result), "failed": failed, **about, **summary(outcome, class_names)}
    write_text(folder / RESULTS, results_text(results))
    return result


def score_table(
    scored: Sequence[VideoScore], records: Sequence[VideoRecord], shape: tuple[int, int, int]
) -> Scores:
    """The scores of a list, in its order; ``shape`` is J, P, K."""
    logits, probs = (np.full((len(records), *shape), np.nan, np.float32) for _ in range(2))
    for score in scored:
        if score.arrays is not None:
            logits[score.place], probs[score.place] = score.arrays
    return Scores(
        videos=tuple(record.name for record in records),
        labels=np.array([record.label for record in records], dtype=np.int64),
        ok=np.array([score.arrays is not None for score in scored]),
        view_logits=logits,
        view_probs=probs,
    )


def _mistakes(scores: Scores, outcome: Outcome, average: Average) -> list[int]:
    found = scores.of_videos(average)
    places = confident_mistakes(
        outcome, softmax(found) if average == "logit" else found, NUM_MISTAKES
    )
    return [int(place) for place in places]


def write_thumbnails(path: Path, scored: Sequence[VideoScore], places: Sequence[int]) -> None:
    """Write the thumbnails of some videos.

    ``place`` (M,) int64 says which, ``data`` uint8 has their JPEG files one after the other, and
    ``end`` (M,) int64 where each ends.
    """
    files = [scored[place].thumbnail for place in places]
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            place=np.array(places, dtype=np.int64),
            data=np.frombuffer(b"".join(files), np.uint8),
            end=np.cumsum([len(file) for file in files], dtype=np.int64),
        )
