"""Tell whether one finished test is better than another, on the videos that both tested.

Works on the tests' scores, without a GPU. A video that failed is wrong. Videos are paired by name,
the n-th of a name with the n-th of that name.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videogn.engine.comparison import (
    ClassChange,
    Comparison,
    TopK,
    compare,
    few_of,
    video_name,
)
from videogn.engine.scores import AVERAGES, Average
from videogn.engine.statistics import LEVEL, NO_CLASS, RESAMPLES, Outcome, accuracy_interval
from videogn.engine.test_folder import FinishedTest, read_test
from videogn.errors import RunError
from videogn.files import check_writable, printable, write_text

MAX_CLASSES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn compare``."""
    for name in ("run_a", "run_b"):
        parser.add_argument(
            name, metavar=name.upper(), help="a test's folder, its scores.npz, or a run's folder"
        )
    parser.add_argument(
        "--average",
        choices=AVERAGES,
        help="score both by it; default: each as its own test was scored",
    )
    parser.add_argument(
        "--show",
        metavar="N",
        type=int,
        default=10,
        help="videos to print that only one has right; default: %(default)s",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.json",
        type=Path,
        help="for all numbers, and FILE.tsv for the videos that only one has right",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, and write what was asked for."""
    out: Path | None = arguments.out
    if arguments.show < 0:
        raise RunError(f"--show {arguments.show}: must be 0 or more")
    if out is not None:
        if out.suffix != ".json":
            raise RunError(f"--out {printable(out)}: must end in .json")
        check_writable(out)
    comparison = compare(read_test(arguments.run_a), read_test(arguments.run_b), arguments.average)
    print("\n".join(describe(comparison, arguments.show)))
    if out is not None:
        write_text(out, f"{json.dumps(as_json(comparison), indent=1)}\n")
        write_text(out.with_suffix(".tsv"), "".join(tsv_lines(comparison)))
        print(f"wrote {printable(out)} and {printable(out.with_suffix('.tsv').name)}")
    return 0


def describe(comparison: Comparison, show: int) -> Iterator[str]:
    """What is printed."""
    c = comparison
    top1, top5 = c.top(1), c.top(5)
    yield from _tests(c, top1, top5)
    if c.differences:
        yield "warning: the tests differ in more than their weights:"
        for key, (one, other) in c.differences.items():
            yield f"  - {key}: {_value(one)} in A, {_value(other)} in B"
    yield ""
    yield from _difference("top-1", top1)
    yield from _difference("top-5", top5)
    yield ""
    yield "top-1     B right  B wrong"
    yield f"A right  {top1.both:>8,} {top1.only_a:>8,}"
    yield f"A wrong  {top1.only_b:>8,} {top1.neither:>8,}"
    yield from _meaning(top1)
    yield from _classes(c)
    yield from _videos(c, show)


def _tests(c: Comparison, top1: TopK, top5: TopK) -> Iterator[str]:
    for name, tested, outcome, percents in (
        ("A", c.a, c.outcome_a, (top1.percent_a, top5.percent_a)),
        ("B", c.b, c.outcome_b, (top1.percent_b, top5.percent_b)),
    ):
        failed = f", {outcome.num_failed:,} failed, counted as wrong" * (outcome.num_failed > 0)
        yield (
            f"{name}  top-1 {percents[0]:6.2f} %  top-5 {percents[1]:6.2f} %  "
            f"{printable(tested.folder)}{failed}"
        )
    yield f"on the {len(c.videos):,} videos that both tested"
    for name, missing in (("A", c.only_in_a), ("B", c.only_in_b)):
        if missing:
            yield (
                f"warning: only {name} tested {len(missing):,} more, which are left out: "
                f"{few_of([video_name(key) for key in missing])}"
            )


def _difference(name: str, top: TopK) -> Iterator[str]:
    low, high = top.interval
    verdict = "no difference shown" if top.better is None else f"{top.better} is better"
    yield (
        f"{name} A - B  {top.difference:+.2f} points, {LEVEL:.0%} interval {low:+.2f} to "
        f"{high:+.2f}: {verdict}"
    )


def _meaning(top: TopK) -> Iterator[str]:
    if top.only_a + top.only_b == 0:
        yield "p = 1 (McNemar): there is no video that only one has right"
        return
    told = f"p = {top.p:.2g}" if top.p > 0 else "p < 1e-300"
    yield (
        f"{told} (McNemar, exact): how probable a split at least as uneven as {top.only_a:,} to "
        f"{top.only_b:,} would be, were both equally good"
    )


def _classes(c: Comparison) -> Iterator[str]:
    changes = [change for change in c.class_changes() if change.difference]
    if not changes:
        return
    shown = changes[:MAX_CLASSES]
    names = [c.class_name(change.label) for change in shown]
    width = max(len("class"), *map(len, names))
    yield ""
    yield "classes with the largest differences (with few videos much of it is chance):"
    yield f"  {'class':<{width}}  videos  A top-1 %  B top-1 %    A - B"
    for name, change in zip(names, shown, strict=True):
        yield (
            f"  {name:<{width}}  {change.num_videos:>6,}  {change.top1_a:>9.2f}  "
            f"{change.top1_b:>9.2f}  {change.difference:>+7.2f}"
        )
    if len(changes) > len(shown):
        yield f"  and {len(changes) - len(shown):,} more that differ; --out FILE.json has all"


def _videos(c: Comparison, show: int) -> Iterator[str]:
    found = c.disagreements()
    if not found or not show:
        return
    yield ""
    yield f"videos that only one has right ({len(found):,}):"
    for place in found[:show]:
        a, b = (_predicted(c, outcome, place) for outcome in (c.outcome_a, c.outcome_b))
        label = c.class_name(int(c.outcome_a.labels[place]))
        yield f"  {video_name(c.videos[place])}: is {label}, A says {a}, B says {b}"
    if len(found) > show:
        yield f"  and {len(found) - show:,} more; --show N prints more, --out FILE.json has all"


def _predicted(c: Comparison, outcome: Outcome, place: int) -> str:
    predicted = int(outcome.predicted[place])
    return "nothing: it failed" if predicted == NO_CLASS else c.class_name(predicted)


def _value(value: Any) -> str:
    text = printable(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers by name, and every video that only one has right."""
    c = comparison
    return {
        "a": _test_json(c.a, c.averages[0], c.outcome_a),
        "b": _test_json(c.b, c.averages[1], c.outcome_b),
        "num_videos": len(c.videos),
        "only_in_a": [name for name, _ in c.only_in_a],
        "only_in_b": [name for name, _ in c.only_in_b],
        "differences": {key: {"a": a, "b": b} for key, (a, b) in c.differences.items()},
        "confidence": {"level": LEVEL, "resamples": RESAMPLES},
        "top1": _top_json(c.top(1)),
        "top5": _top_json(c.top(5)),
        "per_class": [_class_json(c, change) for change in c.class_changes()],
        "disagreements": [_disagreement(c, place) for place in c.disagreements()],
    }


def _test_json(tested: FinishedTest, average: Average, outcome: Outcome) -> dict[str, Any]:
    """A test's accuracy on the videos that both tested."""
    return {
        "test": str(tested.folder),
        "average": average,
        "num_failed": outcome.num_failed,
        **{f"top{k}": outcome.percent(k) for k in (1, 5)},
        **{
            f"top{k}_interval": list(
                accuracy_interval(int(outcome.right(k).sum()), outcome.num_videos)
            )
            for k in (1, 5)
        },
    }


def _top_json(top: TopK) -> dict[str, Any]:
    return {
        "difference": top.difference,
        "interval": list(top.interval),
        "better": top.better,
        "mcnemar_p": top.p,
        "both_right": top.both,
        "only_a_right": top.only_a,
        "only_b_right": top.only_b,
        "neither_right": top.neither,
    }


def _class_json(c: Comparison, change: ClassChange) -> dict[str, Any]:
    names = c.a.class_names or c.b.class_names
    return {
        "class": change.label,
        "name": None if names is None else names[change.label],
        "num_videos": change.num_videos,
        "top1_a": change.top1_a,
        "top1_b": change.top1_b,
        "difference": change.difference,
        "only_a_right": change.only_a,
        "only_b_right": change.only_b,
    }


def _disagreement(c: Comparison, place: int) -> dict[str, Any]:
    """A video that only one has right; a prediction is None where the video failed."""
    name, number = c.videos[place]
    a, b = (int(outcome.predicted[place]) for outcome in (c.outcome_a, c.outcome_b))
    return {
        "video": name,
        "occurrence": number,
        "label": int(c.outcome_a.labels[place]),
        "predicted_a": None if a == NO_CLASS else a,
        "predicted_b": None if b == NO_CLASS else b,
        "right": "A" if c.outcome_a.right()[place] else "B",
    }


def tsv_lines(comparison: Comparison) -> Iterator[str]:
    """The videos that only one has right, with a heading; names without control characters."""
    yield "video\toccurrence\tlabel\tpredicted_a\tpredicted_b\tright\n"
    for place in comparison.disagreements():
        values = _disagreement(comparison, place).values()
        yield "\t".join("" if value is None else printable(value) for value in values) + "\n"
