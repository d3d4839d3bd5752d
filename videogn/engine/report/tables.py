"""An experiment's table as text, Markdown and JSON: the paper's numbers, ours, and differences."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from videogn.engine.experiments import Experiment
from videogn.engine.outcomes import Entry
from videogn.engine.report.run_table import summary_at

Place = tuple[str, str]
MISSING = "-"


def text_table(experiment: Experiment, found: Mapping[Place, Entry]) -> list[str]:
    """Lines of aligned columns, under the experiment's title."""
    rows = list(_grid(experiment, found))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "   ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "   ".join("-" * width for width in widths)
    return [experiment.title, "", lines[0], rule, *lines[1:]]


def markdown_table(experiment: Experiment, found: Mapping[Place, Entry]) -> str:
    """The same as a table of Markdown."""
    head, *rows = (
        "| " + " | ".join(word.replace("|", "\\|") for word in row) + " |"
        for row in _grid(experiment, found)
    )
    rule = "|" + " --- |" * (len(experiment.columns) + 2)
    return "\n".join([f"**{experiment.title}**", "", head, rule, *rows]) + "\n"


def _grid(experiment: Experiment, found: Mapping[Place, Entry]) -> Iterator[list[str]]:
    """Rows of words, the heads first; lines of which no place has anything are left out."""
    yield [experiment.corner, "", *experiment.columns]
    for row in experiment.rows:
        of_row = [found.get((row, column), Entry((), ())) for column in experiment.columns]
        yield from _labelled(
            row,
            {
                "paper": [_numbers(entry.published, 1) for entry in of_row],
                "ours": [_ours(entry) for entry in of_row],
                "ours - paper": [_signed(entry.means, entry.published) for entry in of_row],
            },
        )
    if experiment.difference is not None:
        yield from _difference(experiment, experiment.difference, found)


def _difference(
    experiment: Experiment, rows: tuple[str, str], found: Mapping[Place, Entry]
) -> Iterator[list[str]]:
    empty = Entry((), ())
    pairs = [[found.get((row, column), empty) for row in rows] for column in experiment.columns]
    yield from _labelled(
        " - ".join(rows),
        {
            "paper": [_signed(a.published, b.published, 1) for a, b in pairs],
            "ours": [_signed(a.means, b.means) for a, b in pairs],
        },
    )


def _labelled(label: str, lines: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """The lines that say something, the label before the first; ours always."""
    for name, words in lines.items():
        if name == "ours" or any(words):
            yield [label, name, *(word or MISSING for word in words)]
            label = ""


def _ours(entry: Entry) -> str:
    told = _numbers(entry.means, 2)
    if entry.spreads:
        told += f" ± {_numbers(entry.spreads, 2)} ({len(entry.outcomes)})"
    return told


def _numbers(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def _signed(left: Sequence[float], right: Sequence[float], digits: int = 2) -> str:
    """Left minus right, as far as both go."""
    pairs = zip(left, right, strict=False)
    return " / ".join(f"{a - b:+.{digits}f}" for a, b in pairs)


def json_table(experiment: Experiment, found: Mapping[Place, Entry]) -> str:
    """Every number, under the names ``top1`` and ``top5``."""
    cells = [
        {
            "row": row,
            "column": column,
            "published": _named(entry.published),
            "mean": _named(entry.means),
            "std": _named(entry.spreads),
            "runs": [
                {
                    "run": str(one.run),
                    "cell": one.cell.name,
                    **_named(one.values),
                    "log": asdict(summary_at(one.run)),
                }
                for one in entry.outcomes
            ],
        }
        for (row, column), entry in found.items()
    ]
    whole = {"experiment": experiment.name, "measure": experiment.measure, "cells": cells}
    return json.dumps(whole, indent=2) + "\n"


def _named(values: Sequence[float]) -> dict[str, float]:
    # Of images the paper has one number.
    return {name: round(value, 4) for name, value in zip(("top1", "top5"), values, strict=False)}
