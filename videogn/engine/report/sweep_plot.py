"""Error against the columns, such as the batch in the paper's Figure 1: a line for each row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videogn.engine.experiments import Experiment
from videogn.engine.outcomes import Entry
from videogn.files import atomic_path

Place = tuple[str, str]
COLOURS = {"BN": "#c24a00", "GN": "#0a58a6"}
MARKS = ("s", "o", "^", "D", "v", "P")


def has_plot(experiment: Experiment) -> bool:
    """Whether an experiment's columns are numbers that a line may go over."""
    return len(experiment.columns) > 1 and all(column.isdigit() for column in experiment.columns)


def draw_sweep(experiment: Experiment, found: Mapping[Place, Entry], path: Path) -> None:
    """Write the picture as PNG: means, standard deviations of single runs, and every run."""
    figure = sweep_figure(experiment, found)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


def sweep_figure(experiment: Experiment, found: Mapping[Place, Entry]) -> Any:
    """The matplotlib figure of :func:`draw_sweep`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    columns = sorted(experiment.columns, key=int, reverse=True)
    places = {column: place for place, column in enumerate(columns)}
    for number, row in enumerate(experiment.rows):
        of_row = {column: found[row, column] for column in columns if (row, column) in found}
        _draw_row(axes, row, of_row, places, number, errors=experiment.measure == "error")
    axes.set_xticks(range(len(columns)), columns)
    axes.set(xlabel=experiment.corner, ylabel="top-1 error (%)")
    if any(entry.spreads for entry in found.values()):
        axes.set_title("means, standard deviations and single runs", fontsize=10)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def _draw_row(
    axes: Any,
    row: str,
    of_row: Mapping[str, Entry],
    places: Mapping[str, int],
    number: int,
    *,
    errors: bool,
) -> None:
    drawn = {column: entry for column, entry in of_row.items() if entry.outcomes}
    if not drawn:
        return
    colour, mark = COLOURS.get(row, f"C{number + 2}"), MARKS[number % len(MARKS)]
    x = [places[column] for column in drawn]
    middle = [_error(entry.means, errors=errors) for entry in drawn.values()]
    spread = [entry.spreads[0] if entry.spreads else 0.0 for entry in drawn.values()]
    axes.plot(x, middle, color=colour, marker=mark, linewidth=2, label=row)
    if any(spread):
        low, high = (
            [m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1)
        )
        low, high = ([min(max(value, 0.0), 100.0) for value in edge] for edge in (low, high))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for column, entry in drawn.items():
        values = [_error(one.values, errors=errors) for one in entry.outcomes]
        axes.plot(
            [places[column]] * len(values), values, mark, color=colour, markersize=3, alpha=0.5
        )


def _error(values: Sequence[float], *, errors: bool) -> float:
    return values[0] if errors else 100 - values[0]
