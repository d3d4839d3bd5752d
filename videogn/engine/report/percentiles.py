"""Figure 6 of the paper: percentiles of a layer's output over the epochs of a training."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videogn.engine.report.epochs import by_epoch, is_number
from videogn.files import atomic_path, printable

KIND = "percentiles"
"""Of the log's entries."""
PERCENTILES = (1, 20, 80, 99)
COLOURS = ("#0a58a6", "#c24a00", "#1a7f4b", "#8b3fa8")
STYLES = ("-", "--", "-.", ":")
"""Line of each percentile, so that colours are not needed."""
SIZE = (5.2, 3.7)
"""Inches of one panel."""
DOTS_PER_INCH = 120
LEGEND = {"loc": "upper center", "ncols": len(PERCENTILES), "handlelength": 2.6}
"""In one row, where no line is."""
MAX_NAME = 60


@dataclass(frozen=True)
class Percentiles:
    """What a log tells of one layer, in order of time.

    Attributes:
        layer: its dotted name.
        epochs: how often each training video had been drawn.
        values: for each epoch one number per percentile; NaN where it was not finite.
    """

    layer: str
    epochs: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]


def percentiles_in(log: Iterable[Mapping[str, Any]]) -> Percentiles | None:
    """The percentiles of the layer that was looked at last; None where none was.

    Of entries of the same epoch the later one wins.
    """
    found = [(epoch, e) for epoch, e in by_epoch(log, KIND) if _is_whole(e)]
    if not found:
        return None
    layer = found[-1][1]["layer"]
    points = {epoch: _numbers(e["values"]) for epoch, e in found if e["layer"] == layer}
    epochs = tuple(sorted(points))
    return Percentiles(layer, epochs, tuple(points[epoch] for epoch in epochs))


def _is_whole(entry: Mapping[str, Any]) -> bool:
    values = entry.get("values")
    return (
        isinstance(entry.get("layer"), str)
        and isinstance(values, list)
        and len(values) == len(PERCENTILES)
        and all(value is None or is_number(value) for value in values)
    )


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)


def value_range(runs: Sequence[Percentiles]) -> tuple[float, float]:
    """Ends of the y axis that all runs fit between, with room for a legend above."""
    values = [v for run in runs for row in run.values for v in row if math.isfinite(v)]
    low, high = min(values, default=-1.0), max(values, default=1.0)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + 2.5 * room


def draw_lines(axes: Any, run: Percentiles, colours: Sequence[str]) -> None:
    """One line per percentile, the highest first, as they lie and as the legend names them."""
    for number in reversed(range(len(PERCENTILES))):
        axes.plot(
            run.epochs,
            [row[number] for row in run.values],
            STYLES[number],
            linewidth=1.8,
            # A run of one entry has no line.
            marker="o" if len(run.epochs) == 1 else "",
            color=colours[number],
            label=f"{PERCENTILES[number]} %",
        )


def short_name(layer: str) -> str:
    """A layer's name as it fits above a panel."""
    shown = printable(layer)
    return shown if len(shown) <= MAX_NAME else "…" + shown[1 - MAX_NAME :]


def figure6(runs: Sequence[tuple[str, Percentiles]]) -> Any:
    """A matplotlib figure of runs side by side with one y axis, as in the paper.

    Args:
        runs: title and percentiles of each, one at least.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0] * len(runs), SIZE[1]), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (title, run) in zip(panels, runs, strict=True):
        draw_lines(axes, run, COLOURS)
        axes.set_title(title)
        axes.set_xlabel("epochs")
        axes.grid(color="#d0d5db", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, **LEGEND)
    panels[0].set_ylim(value_range([run for _, run in runs]))
    panels[0].set_ylabel("percentiles of the output")
    return figure


def draw_percentiles(log: Path, picture: Path, report: Callable[[str], None]) -> None:
    """Draw what a run's log has so far; where that fails the run goes on with a warning."""
    try:
        found = percentiles_in(_entries(log))
        if found is not None:
            _write(picture, [(short_name(found.layer), found)])
    # Whatever it is: weeks of training do not end over a picture.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        report(f"warning: {picture.name} is not drawn: {reason}")


def draw_side_by_side(logs: Sequence[tuple[str, Path]], picture: Path) -> bool:
    """Draw the runs whose logs have percentiles, a panel for each, as Figure 6 of the paper.

    Args:
        logs: title and log of each.

    Returns:
        Whether there was one.
    """
    found = [(title, percentiles_in(_entries(log))) for title, log in logs]
    runs = [(title, run) for title, run in found if run is not None]
    if runs:
        _write(picture, runs)
    return bool(runs)


def _write(picture: Path, runs: Sequence[tuple[str, Percentiles]]) -> None:
    import matplotlib

    with matplotlib.rc_context():
        # As in the report: the user's settings are for other figures.
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        figure = figure6(runs)
        with atomic_path(picture) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)


def _entries(log: Path) -> Iterator[Mapping[str, Any]]:
    """The entries of a log that count here; the others may be many, and are not parsed."""
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if f'"{KIND}"' not in line and '"start"' not in line:
                continue
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
