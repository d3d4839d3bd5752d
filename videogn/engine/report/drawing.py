"""Pictures of the report: curves as SVG, the confusion of many classes as PNG.

Both follow the page's colours, light or dark: the SVG names the page's variables, the PNG is
transparent.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from videogn.engine.report.curves import Curve
from videogn.engine.report.markup import text

INK, GRID = "#010203", "#010204"
"""Stand for the page's colours of text and grid until the SVG is written."""
LINES = tuple(f"#0102{number:02x}" for number in range(0x10, 0x18))
"""Stand for the page's colours of curves."""
PAGE_COLOURS = {
    INK: "currentColor",
    GRID: "var(--grid)",
    **{line: f"var(--line{number})" for number, line in enumerate(LINES)},
}
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Line and mark of each number of clips per GPU, so that colours are not needed."""
SALT = "videogn"
SIZE = (5.2, 3.7)
"""Inches of one panel."""
RIGHT_COLOUR, WRONG_COLOUR = (31, 119, 180), (213, 94, 0)
MAX_MARKS = 40


def error_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Ends of the y axis, in percent, that all curves fit between."""
    errors = [error for curve in curves for error in curve.errors]
    low, high = min(errors), max(errors)
    room = max(1.0, 0.08 * (high - low))
    return max(0.0, low - room), min(100.0, high + room)


def panel(
    curves: Sequence[Curve],
    labels: Sequence[str],
    *,
    title: str,
    alt: str,
    missing: Sequence[str],
    y_range: tuple[float, float],
    x_end: float,
) -> str:
    """One panel of errors over epochs as inline SVG.

    Args:
        labels: one for each curve.
        alt: what the picture shows, for those who do not see it.
        missing: curves that should be there, written into the panel.
        y_range: ends of the y axis in percent.
        x_end: end of the x axis in epochs.
    """

    def draw(axes: Any) -> None:
        for number, (curve, label) in enumerate(zip(curves, labels, strict=True)):
            _draw(axes, curve, label, LINES[number % len(LINES)])
        axes.set(ylim=y_range, xlim=(0, x_end))
        legend = {"handlelength": 3.2} if curves else None
        framed(axes, title, "epochs", "1-clip validation error (%)", legend=legend)
        _write_missing(axes, missing, alone=not curves)

    return inline_svg(draw, title, alt)


def inline_svg(draw: Callable[[Any], None], title: str, alt: str) -> str:
    """What ``draw`` draws on matplotlib's axes, as inline SVG in the page's colours.

    Args:
        title: of no other picture of the page: names within the SVG begin with it.
        alt: what the picture shows, for those who do not see it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    metadata: Any = {"Date": None}
    written = io.StringIO()
    with matplotlib.rc_context():
        # Whatever the user has set for other figures would make other bytes.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": SALT, "svg.fonttype": "path"})
        # A dollar sign in a name of a config begins no formula.
        matplotlib.rcParams["text.parse_math"] = False
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots())
        figure.savefig(written, format="svg", transparent=True, metadata=metadata)
    return _inline(written.getvalue(), title, alt)


def _draw(axes: Any, curve: Curve, label: str, colour: str) -> None:
    line, mark = STYLES[_style(curve)]
    axes.plot(
        curve.epochs,
        curve.errors,
        line,
        marker=mark,
        markersize=4.5,
        markevery=max(1, len(curve.epochs) // MAX_MARKS),
        linewidth=1.8,
        color=colour,
        label=label,
    )


def framed(
    axes: Any,
    title: str,
    x: str,
    y: str,
    *,
    title_size: int = 13,
    legend: Mapping[str, Any] | None = None,
) -> None:
    """Title, grid, names of the axes and legend in the page's colours.

    Args:
        legend: matplotlib's options for it; None for no legend.
    """
    axes.set_title(title, color=INK, fontsize=title_size)
    axes.set_xlabel(x, color=INK, fontsize=11)
    axes.set_ylabel(y, color=INK, fontsize=11)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=10)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    if legend is not None:
        axes.legend(**{"labelcolor": INK, "frameon": False, "fontsize": 10, **legend})


def _write_missing(axes: Any, missing: Sequence[str], *, alone: bool) -> None:
    """In the middle of an empty panel, else at the lower left, below falling curves."""
    x, y, across, up = (0.5, 0.5, "center", "center") if alone else (0.03, 0.03, "left", "bottom")
    words = "\n".join(f"missing: {name}" for name in missing)
    style = {"color": INK, "fontsize": 10, "style": "italic", "ha": across, "va": up}
    axes.text(x, y, words, transform=axes.transAxes, **style)


def _style(curve: Curve) -> int:
    clips = curve.clips_per_gpu
    return {8: 0, 4: 1}.get(clips, 2) if isinstance(clips, int) else 3


def _inline(svg: str, title: str, alt: str) -> str:
    """An SVG file as part of a page: no addresses, names of its own, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    own = re.sub(r"\W+", "", title)
    svg = re.sub(r'\bid="', f'id="{own}-', svg)
    svg = re.sub(r'href="#', f'href="#{own}-', svg)
    svg = re.sub(r"url\(#", f"url(#{own}-", svg)
    for stand_in, colour in PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{text(alt)}"', 1).strip()


def confusion_png(matrix: np.ndarray) -> bytes:
    """A confusion matrix with one pixel per pair, the denser the larger its share of the row.

    Args:
        matrix: (K, K) int, rows the true classes.
    """
    from matplotlib.image import imsave

    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    pixels = np.empty((*matrix.shape, 4), dtype=np.uint8)
    pixels[..., :3] = WRONG_COLOUR
    np.einsum("iic->ic", pixels)[:, :3] = RIGHT_COLOUR
    # A single video among fifty is to be seen.
    pixels[..., 3] = np.where(matrix > 0, np.rint(255 * (0.45 + 0.55 * share)), 0)
    written = io.BytesIO()
    metadata: Any = {"Software": None}
    imsave(written, pixels, format="png", metadata=metadata)
    return written.getvalue()
