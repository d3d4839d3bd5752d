"""Tell the accuracy of a finished test with fewer clips or another average, without a GPU.

Of J clips, n evenly spaced ones are taken: clip round(i (J - 1) / (n - 1)) for i = 0 … n - 1,
halves to the even one; for n = 1 the middle one, round((J - 1) / 2).
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from videogn.engine.scores import AVERAGES, Average, Scores
from videogn.engine.statistics import LEVEL, RESAMPLES, Interval, accuracy_interval, outcome_of
from videogn.engine.test_folder import FinishedTest, read_test
from videogn.errors import RunError
from videogn.files import atomic_path, check_writable, printable, write_text

INTERVAL = f"{LEVEL:.0%} interval"
ROOM_FOR_TICKS = 15
"""Numbers of clips that have room under a panel."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn rescore``."""
    parser.add_argument(
        "scores", metavar="SCORES", help="a scores.npz, a test's folder, or a run's folder"
    )
    parser.add_argument(
        "--clips", metavar="N,N,…", help="numbers of clips, such as 1,3,5,10; default: 1 to all"
    )
    parser.add_argument(
        "--average",
        choices=AVERAGES,
        help="of softmax scores, of scores before softmax, or the highest softmax score; default: "
        "that of the test",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="for table and plot; beside the scores unless given"
    )


@dataclass(frozen=True)
class Row:
    """Accuracy by some of the clips, in percent; videos that failed are wrong.

    Attributes:
        clips: how many.
        chosen: which, from 0.
    """

    clips: int
    chosen: tuple[int, ...]
    top1: float
    top5: float
    top1_interval: Interval
    top5_interval: Interval


def run(arguments: argparse.Namespace) -> int:
    """Print the table, and write it and its plot."""
    tested = read_test(arguments.scores, need_results=False)
    numbers = numbers_of_clips(arguments.clips, tested.scores.num_clips)
    average: Average = arguments.average or tested.average
    out = (arguments.out or tested.folder) / f"rescore_{average}.json"
    check_writable(out)
    rows = [rescore(tested.scores, number, average) for number in numbers]
    print("\n".join(describe(tested, average, rows)))
    write_text(out, f"{json.dumps(as_json(tested, average, rows), indent=1)}\n")
    plot(tested, average, rows, out.with_suffix(".png"))
    print(f"wrote {printable(out)} and {out.with_suffix('.png').name}")
    return 0


def numbers_of_clips(text: str | None, most: int) -> list[int]:
    """The numbers in ``--clips``, smallest first; 1 … ``most`` where there are none.

    Raises:
        RunError: one is no number, given twice, or not in [1, ``most``].
    """
    if text is None:
        return list(range(1, most + 1))
    words = [word.strip() for word in text.split(",")]
    strange = [word for word in words if not (word.isascii() and word.isdigit())]
    if strange:
        raise RunError(f"--clips {text!r}: {strange[0]!r} is no number; give some as 1,3,5,10")
    # Longer ones are no numbers of clips, and Python refuses to read the longest.
    beyond = [word for word in words if len(word) > 9 or not 1 <= int(word) <= most]
    if beyond:
        raise RunError(
            f"--clips {text!r}: {beyond[0]} is not in 1 to {most}, the clips of each video in this "
            "test"
        )
    numbers = sorted(map(int, words))
    twice = [number for number, following in pairwise(numbers) if number == following]
    if twice:
        raise RunError(f"--clips {text!r}: {twice[0]} is given twice; give each number once")
    return numbers


def spaced_clips(number: int, total: int) -> tuple[int, ...]:
    """Which ``number`` of ``total`` clips are taken, from 0; both ends, or the middle one."""
    if number == 1:
        return (round(Fraction(total - 1, 2)),)
    return tuple(round(Fraction(i * (total - 1), number - 1)) for i in range(number))


def rescore(scores: Scores, number: int, average: Average) -> Row:
    """Accuracy by ``number`` clips of each video."""
    chosen = spaced_clips(number, scores.num_clips)
    # All clips without a copy: no second set of scores in memory, and just the test's own sums.
    outcome = outcome_of(scores, average, None if number == scores.num_clips else chosen)
    right = {k: int(outcome.right(k).sum()) for k in (1, 5)}
    return Row(
        clips=number,
        chosen=chosen,
        top1=outcome.percent(1),
        top5=outcome.percent(5),
        top1_interval=accuracy_interval(right[1], outcome.num_videos),
        top5_interval=accuracy_interval(right[5], outcome.num_videos),
    )


def describe(tested: FinishedTest, average: Average, rows: Sequence[Row]) -> Iterator[str]:
    """The table."""
    yield f"{printable(tested.folder)}: {_what(tested, average)}"
    yield f"{'clips':>5}  {'top-1 %':>8}  {INTERVAL:<16}  {'top-5 %':>8}  {INTERVAL:<16}".rstrip()
    for row in rows:
        top1, top5 = map(_ends, (row.top1_interval, row.top5_interval))
        yield f"{row.clips:>5}  {row.top1:>8.2f}  {top1:<16}  {row.top5:>8.2f}  {top5}"


def _ends(interval: Interval) -> str:
    return f"{interval.low:.2f} to {interval.high:.2f}"


def _what(tested: FinishedTest, average: Average) -> str:
    scores = tested.scores
    num_failed = int((~scores.ok).sum())
    failed = f" ({num_failed:,} failed, counted as wrong)" if num_failed else ""
    crops = scores.view_probs.shape[2]
    return (
        f"{len(scores.videos):,} videos{failed}, "
        f"{_clips(scores.num_clips)} x {crops} crop{'s' * (crops > 1)}, average {average}"
    )


def _clips(number: int) -> str:
    return f"{number} clip{'s' * (number > 1)}"


def as_json(tested: FinishedTest, average: Average, rows: Sequence[Row]) -> dict[str, Any]:
    """The same numbers by name; ``chosen`` counts clips from 0."""
    scores = tested.scores
    return {
        "test": str(tested.folder),
        "average": average,
        "num_videos": len(scores.videos),
        "num_failed": int((~scores.ok).sum()),
        "num_clips": scores.num_clips,
        "num_crops": int(scores.view_probs.shape[2]),
        "confidence": {"level": LEVEL, "resamples": RESAMPLES},
        "rows": [asdict(row) for row in rows],
    }


def plot(tested: FinishedTest, average: Average, rows: Sequence[Row], path: Path) -> None:
    """Two panels, top-1 and top-5 against the number of clips, intervals as bands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    numbers = [row.clips for row in rows]
    panels = (
        ("top-1", [row.top1 for row in rows], [row.top1_interval for row in rows], "tab:blue"),
        ("top-5", [row.top5 for row in rows], [row.top5_interval for row in rows], "tab:orange"),
    )
    for axes, (name, values, intervals, colour) in zip(figure.subplots(1, 2), panels, strict=True):
        _plot_accuracy(axes, numbers, values, intervals, colour)
        axes.set(xlabel="clips per video", ylabel=f"{name} accuracy (%)")
        axes.set_title(f"{name} {values[-1]:.2f} % with {_clips(numbers[-1])}", fontsize="medium")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -1), min(high, 101))
    figure.suptitle(_what(tested, average), parse_math=False, fontsize="medium")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200)


def _plot_accuracy(
    axes: Any,
    numbers: Sequence[int],
    values: Sequence[float],
    intervals: Sequence[Interval],
    colour: str,
) -> None:
    lows, highs = zip(*intervals, strict=True)
    if len(numbers) == 1:  # a band of no width cannot be seen
        errors = [[values[0] - lows[0]], [highs[0] - values[0]]]
        axes.errorbar(numbers, values, errors, fmt="o", color=colour, capsize=4, label=INTERVAL)
    else:
        axes.fill_between(
            numbers,
            lows,
            highs,
            color=colour,
            alpha=0.2,
            linewidth=0,
            label=INTERVAL,
        )
        axes.plot(numbers, values, "o-", color=colour, markersize=4)
    if len(numbers) <= ROOM_FOR_TICKS:
        axes.set_xticks(numbers)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False, fontsize="small")
