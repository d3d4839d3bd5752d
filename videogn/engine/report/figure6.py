"""The report's section on Figure 6: percentiles of a layer's output, a panel for each run."""

import math
from collections.abc import Sequence
from typing import Any

from videogn.engine.report.comparison import describe, link, norm_name
from videogn.engine.report.drawing import LINES, framed, inline_svg
from videogn.engine.report.markup import DASH, MINUS, table, tag, text
from videogn.engine.report.percentiles import (
    LEGEND,
    PERCENTILES,
    Percentiles,
    draw_lines,
    percentiles_in,
    short_name,
    value_range,
)
from videogn.engine.report.reading import TestedRun

Found = Sequence[tuple[TestedRun, Percentiles]]


def figure6_section(runs: Sequence[TestedRun]) -> str:
    """Panels with one y axis; nothing where no run has logged percentiles."""
    found = [
        (run, percentiles)
        for run in runs
        if run.training is not None
        if (percentiles := percentiles_in(run.training.log)) is not None
    ]
    if not found:
        return ""
    content = (
        tag("h2", "Figure 6: a layer's output during training")
        + tag(
            "p",
            "Percentiles 1, 20, 80 and 99 of all values that one layer gave for a batch of "
            "training clips, against epochs. The paper shows VGG-16's conv5_3 before norm and "
            "ReLU, on ImageNet: with BN and GN alike, without a norm otherwise. Its numbers are "
            "not published.",
        )
        + tag("div", _panels(found), class_="panels")
        + _last_values(found)
    )
    return tag("section", content, id="figure6")


def _panels(found: Found) -> str:
    y_range = value_range([percentiles for _, percentiles in found])
    return "".join(_panel(run, percentiles, y_range) for run, percentiles in found)


def _panel(run: TestedRun, percentiles: Percentiles, y_range: tuple[float, float]) -> str:
    title = f"{run.key}: {norm_name(run.setting('model.norm'))}"

    def draw(axes: Any) -> None:
        draw_lines(axes, percentiles, LINES)
        axes.set(ylim=y_range)
        heading = f"{title}\n{short_name(percentiles.layer)}"
        framed(axes, heading, "epochs", "percentiles of the output", title_size=11, legend=LEGEND)

    ends = ", ".join(
        f"{p} % at {_shown(value)}"
        for p, value in zip(PERCENTILES, percentiles.values[-1], strict=True)
    )
    alt = f"Percentiles of the output of {percentiles.layer} against epochs, {title}: {ends}"
    return inline_svg(draw, title, alt)


def _last_values(found: Found) -> str:
    rows = [
        (
            link(run.key),
            tag("span", text(describe(run)), class_="nowrap"),
            text(percentiles.layer),
            f"{percentiles.epochs[-1]:.1f}",
            *(_shown(value) for value in percentiles.values[-1]),
        )
        for run, percentiles in found
    ]
    head = ("run", "network", "layer", "epochs", *(f"{p} %" for p in PERCENTILES))
    return table("Percentiles in the last entry", head, rows, class_="wide")


def _shown(value: float) -> str:
    return f"{value:.4g}".replace("-", MINUS) if math.isfinite(value) else DASH
