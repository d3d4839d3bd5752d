"""The whole report as one HTML page that loads nothing and runs nothing."""

from collections.abc import Sequence

from videogn.engine.report.comparison import (
    describe,
    figure7_section,
    place_all,
    provenance_section,
    table8_section,
)
from videogn.engine.report.figure6 import figure6_section
from videogn.engine.report.markup import counted, items, tag, text
from videogn.engine.report.measures import summary
from videogn.engine.report.reading import TestedRun
from videogn.engine.report.single import run_section
from videogn.engine.report.style import CSS

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing is loaded and no script runs, whatever stands on the page."""


def page(runs: Sequence[TestedRun]) -> str:
    """The report on some runs; the same runs give the same bytes."""
    summaries = {run.key: summary(run) for run in runs}
    sections = (
        table8_section(runs, summaries, place_all(runs)),
        figure6_section(runs),
        figure7_section(runs),
        *(run_section(run, summaries[run.key]) for run in runs),
        provenance_section(runs),
    )
    shown = [section for section in sections if section]
    body = _top(runs, has_figure6=bool(sections[1])) + tag("main", "\n".join(shown))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(_title(runs))}</title>\n{tag('style', CSS)}\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _title(runs: Sequence[TestedRun]) -> str:
    return f"videogn report: {counted(len(runs), 'run')}"


def _top(runs: Sequence[TestedRun], *, has_figure6: bool) -> str:
    links = [
        tag("a", "Table 8", href="#table8"),
        *([tag("a", "Figure 6", href="#figure6")] if has_figure6 else []),
        tag("a", "Figure 7", href="#figure7"),
        *(tag("a", f"{run.key}: {text(describe(run))}", href=f"#{run.key}") for run in runs),
        tag("a", "Provenance", href="#provenance"),
    ]
    content = (
        tag("h1", text(_title(runs)))
        + tag(
            "p",
            "Multi-clip tests beside the video results of Group Normalization (Wu and He, 2018).",
            class_="soft",
        )
        + tag("nav", items(links), aria_label="Sections")
    )
    return tag("header", content, class_="top")
