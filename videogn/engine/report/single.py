"""The report's section on one run: coverage, confusion, worst classes, mistakes."""

from collections.abc import Sequence

import numpy as np

from videogn.engine.report.comparison import LEVEL_TEXT, coverage_text, describe, percents
from videogn.engine.report.drawing import confusion_png
from videogn.engine.report.markup import DASH, counted, items, picture, scrolling, table, tag, text
from videogn.engine.report.measures import (
    Mistake,
    Summary,
    confusions,
    mistakes,
)
from videogn.engine.report.reading import TestedRun
from videogn.engine.statistics import confusion_matrix, per_class

MAX_NUMBERS = 25
"""Classes whose confusions fit into a table of numbers."""
MAX_MAP = 1000
"""Classes whose confusions fit into a picture."""
MAX_LEVEL = 8
"""Classes whose names fit side by side above that table."""
NUM_PAIRS, NUM_CLASSES, NUM_MISTAKES, NUM_FAILED = 10, 10, 12, 20


def run_section(run: TestedRun, summary: Summary) -> str:
    """All that is told of one run."""
    content = (
        tag("h2", f"{text(run.key)}: {text(describe(run))}")
        + tag("p", tag("code", text(run.name)), class_="path soft")
        + _tiles(summary)
        + _failed(run)
        + _confusion(run)
        + _mistakes(run)
    )
    return tag("section", content, id=run.key)


def _tiles(summary: Summary) -> str:
    accuracy = summary.accuracy
    lows, highs = zip(*summary.intervals, strict=True)
    tested, _, share = coverage_text(summary).rstrip(")").partition(" (")
    rows = [
        ("top-1", f"{accuracy[0]:.2f} %", f"{LEVEL_TEXT} {lows[0]:.2f}{DASH}{highs[0]:.2f}"),
        ("top-5", f"{accuracy[1]:.2f} %", f"{LEVEL_TEXT} {lows[1]:.2f}{DASH}{highs[1]:.2f}"),
        ("coverage", share, f"{tested} videos tested"),
        ("worst case", percents(accuracy), "every failed video wrong; the accuracy above"),
        ("best case", percents(summary.best_case), "had every failed video been right"),
    ]
    tiles = "".join(
        tag(
            "div",
            tag("span", text(name), class_="small")
            + tag("b", text(value))
            + tag("span", text(note), class_="small"),
            class_="tile",
        )
        for name, value, note in rows
    )
    return tag("div", tiles, class_="tiles")


def _failed(run: TestedRun) -> str:
    failed = run.results.get("failed", [])
    if not failed:
        return ""
    rows = [
        (text(entry.get("path", "?")), text(entry.get("reason", "unknown")))
        for entry in failed[:NUM_FAILED]
    ]
    rest = len(failed) - len(rows)
    more = tag("p", f"and {rest:,} more in results.json", class_="soft") if rest else ""
    caption = f"{counted(len(failed), 'video')} that could not be read and count as wrong"
    return (
        tag("h3", "Failed videos")
        + table(caption, ("video", "reason"), rows, class_="middle")
        + more
    )


def _confusion(run: TestedRun) -> str:
    num_classes = run.scores.probs.shape[1]
    if not run.scores.ok.any():
        return tag("p", "No video could be read, so there is no confusion to show.")
    heading = tag("h3", "Confusion and worst classes")
    if num_classes <= MAX_NUMBERS:
        return heading + _number_table(run) + _worst(run)
    shown = tag("div", _map(run)) if num_classes <= MAX_MAP else ""
    side = tag("div", _pairs(run) + _worst(run))
    return heading + tag("div", shown + side, class_="columns")


def _number_table(run: TestedRun) -> str:
    matrix = confusion_matrix(run.scores.outcome)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [run.class_name(label) for label in range(len(matrix))]
    upright = None if len(names) <= MAX_LEVEL else "upright"
    head = tag("th", "true class ↓ predicted →", scope="col") + "".join(
        tag("th", tag("span", text(name), class_=upright), scope="col") for name in names
    )
    rows = "".join(
        tag(
            "tr",
            tag("th", text(name), scope="row")
            + "".join(
                _number(int(matrix[label, other]), float(share[label, other]), label == other)
                for other in range(len(names))
            ),
        )
        for label, name in enumerate(names)
    )
    caption = "Videos by true and predicted class; outlined: right"
    whole = tag("caption", caption) + tag("thead", tag("tr", head)) + tag("tbody", rows)
    return scrolling(tag("table", whole, class_="confusion"), "confusion matrix")


def _number(count: int, share: float, right: bool) -> str:
    colour = "--heat-right" if right else "--heat-wrong"
    style = f"background: rgb(var({colour}) / {0.6 * share:.2f})" if count else None
    content = tag("span", f"{count:,}", class_="count")
    return tag("td", content, class_="diagonal" if right else None, style=style)


def _map(run: TestedRun) -> str:
    matrix = confusion_matrix(run.scores.outcome)
    right, total = int(np.trace(matrix)), int(matrix.sum())
    alt = (
        f"Confusion matrix of {len(matrix)} classes as a map: {right:,} of {total:,} videos lie on "
        "the diagonal, where the predicted class is the true one; the table below names the pairs "
        "that are confused most"
    )
    ends = f"class 0 ({run.class_name(0)}) to class {len(matrix) - 1} ({run.class_name(-1)})"
    return tag(
        "figure",
        picture("png", confusion_png(matrix), alt)
        + tag(
            "figcaption",
            text(
                f"True class from top to bottom, predicted class from left to right, each from "
                f"{ends}. A dot is the denser, the larger its share of the videos of its class; "
                "right ones lie on the diagonal."
            ),
            class_="soft",
        ),
        class_="map",
    )


def _pairs(run: TestedRun) -> str:
    rows = [
        (
            text(run.class_name(pair.label)),
            text(run.class_name(pair.predicted)),
            _number_of(f"{pair.count:,} ({pair.share:.0f} %)"),
        )
        for pair in confusions(run.scores, NUM_PAIRS)
    ]
    if not rows:
        return tag("p", "No video was taken for another class's.")
    return table("Pairs confused most", ("true class", "predicted as", "videos"), rows)


def _worst(run: TestedRun) -> str:
    classes = per_class(run.scores.outcome)
    there = [row for row in classes if row["num_videos"]]
    worst = sorted(there, key=lambda row: (row["top1"], row["top5"], row["class"]))
    rows = [
        (
            text(run.class_name(row["class"])),
            _number_of(f"{row['num_videos']:,}"),
            _number_of(f"{row['top1']:.1f}"),
            _number_of(f"{row['top5']:.1f}"),
        )
        for row in worst[:NUM_CLASSES]
    ]
    without = len(classes) - len(there)
    note = tag("p", f"Classes without a video in the list: {without:,}.", class_="soft")
    caption = "Worst classes, accuracy in percent"
    shown = table(caption, ("class", "videos", "top-1", "top-5"), rows)
    return shown + (note if without else "")


def _number_of(shown: str) -> str:
    """A number that stays on one line, however narrow its column is."""
    return tag("span", text(shown), class_="nowrap")


def _mistakes(run: TestedRun) -> str:
    logits = run.results.get("average") == "logit"
    found = mistakes(run.scores, NUM_MISTAKES, logits=logits)
    if not found:
        return ""
    heading = tag("h3", "Most confident mistakes")
    if not any(mistake.place in run.thumbnails for mistake in found):
        return heading + _mistake_table(run, found)
    cards = [_card(run, mistake) for mistake in found]
    return heading + items(cards, class_="gallery")


def _card(run: TestedRun, mistake: Mistake) -> str:
    name = run.scores.videos[mistake.place]
    jpeg = run.thumbnails.get(mistake.place)
    shown = tag("div", "no picture", class_="nothing")
    if jpeg is not None:
        shown = picture("jpeg", jpeg, f"Frame of {name}")
    predicted = tag("strong", text(run.class_name(mistake.predicted)))
    lines = (
        f"true: {text(run.class_name(mistake.label))} ({mistake.own:.2f})",
        f"predicted: {predicted} ({mistake.score:.2f})",
        tag("span", text(name), class_="soft path"),
    )
    return tag("figure", shown + tag("figcaption", "".join(tag("span", line) for line in lines)))


def _mistake_table(run: TestedRun, found: Sequence[Mistake]) -> str:
    rows = [
        (
            text(run.scores.videos[m.place]),
            f"{text(run.class_name(m.label))} ({m.own:.2f})",
            f"{text(run.class_name(m.predicted))} ({m.score:.2f})",
        )
        for m in found
    ]
    head = ("video", "true class (score)", "predicted (score)")
    note = tag("p", "The test's folder has no thumbnails of them.", class_="soft")
    return table("Videos taken for another class's", head, rows, class_="middle") + note
