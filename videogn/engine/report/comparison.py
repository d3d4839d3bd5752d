"""The report's sections that compare runs: Table 8, other runs, Figure 7, and where all is from."""

from collections.abc import Mapping, Sequence

from videogn.engine.report.curves import Curve, Drawn, drawn
from videogn.engine.report.drawing import error_range, panel
from videogn.engine.report.markup import (
    DASH,
    MINUS,
    TIMES,
    counted,
    items,
    scrolling,
    table,
    tag,
    text,
)
from videogn.engine.report.measures import Summary
from videogn.engine.report.reading import TestedRun
from videogn.engine.report.table8 import (
    COLUMNS,
    NORMS,
    PUBLISHED,
    Cell,
    Percent,
    cell_of,
    column_of,
    departures,
)
from videogn.engine.statistics import LEVEL, difference_interval
from videogn.engine.test_folder import COMPARED

LEVEL_TEXT = f"{100 * LEVEL:g} %"
Placed = Mapping[str, Cell | str]
"""Key of a run -> its cell, or why it has none."""
FIGURE_CLIPS = (8, 4)
NORM_NAMES = {
    "bn": "BN",
    "gn": "GN",
    "ln": "LN",
    "in": "IN",
    "none": "no norm",
    "sync_bn": "synchronised BN",
    "frozen_bn": "frozen BN",
}
BATCH_NORMS = ("bn", "sync_bn", "frozen_bn")
MUST_AGREE = COMPARED
"""Results that two tests must share for their difference to be one of the networks alone."""


def norm_name(norm: object) -> str:
    """A norm as people write it."""
    return NORM_NAMES.get(str(norm), str(norm))


def describe(run: TestedRun) -> str:
    """A run in a few words: ``GN, 32 x 2 frames, 8 clips per GPU``."""
    column, norm = column_of(run.setting), norm_name(run.setting("model.norm"))
    frames = f"{column.num_frames} {TIMES} {column.frame_stride} frames"
    return f"{norm}, {frames}, {column.clips_per_gpu} clips per GPU"


def link(key: str) -> str:
    """A link to the section of a run."""
    return tag("a", text(key), href=f"#{key}")


def percents(pair: Percent, digits: int = 2) -> str:
    """``73.30 / 90.70``."""
    return " / ".join(f"{value:.{digits}f}" for value in pair)


def interval_text(summary: Summary) -> str:
    """Both intervals, the lower end before the upper."""
    return " / ".join(f"{low:.2f}{DASH}{high:.2f}" for low, high in summary.intervals)


def signed(pair: Percent) -> str:
    """Both differences with their signs, as in the paper's table."""
    return " / ".join(f"{value:+.2f}".replace("-", MINUS) for value in pair)


def minus(left: Percent, right: Percent) -> Percent:
    """Left minus right."""
    return left[0] - right[0], left[1] - right[1]


def table8_section(
    runs: Sequence[TestedRun], summaries: Mapping[str, Summary], placed: Placed
) -> str:
    """Table 8 with ours beside, what differs from the paper, and the runs that are no cell."""
    head = "".join(
        tag("th", f"{c.num_frames} frames, {c.clips_per_gpu} clips per GPU", scope="col")
        for c in COLUMNS
    )
    top = tag("thead", tag("tr", tag("th", "norm", scope="col") + head))
    rows = "".join(_norm_row(norm, runs, summaries, placed) for norm in NORMS)
    rows += _difference_row(runs, summaries, placed)
    caption = tag("caption", "Kinetics-400 validation, R50-I3D, top-1 / top-5 accuracy in percent")
    whole = scrolling(
        tag("table", caption + top + tag("tbody", rows), class_="table8"), "Table 8 of the paper"
    )
    content = (
        tag("h2", "Table 8: accuracy by clip length and clips per GPU")
        + tag(
            "p",
            "Above in each cell stands what the paper has published, below it the runs of this "
            "report with their bootstrap interval and their distance to it.",
        )
        + whole
        + _departures(runs, placed)
        + _others(runs, summaries, placed)
    )
    return tag("section", content, id="table8")


def _norm_row(
    norm: str, runs: Sequence[TestedRun], summaries: Mapping[str, Summary], placed: Placed
) -> str:
    cells = ""
    for column in COLUMNS:
        cell = Cell(norm, column)
        ours = [summaries[run.key] for run in runs if placed[run.key] == cell]
        blocks = "".join(_ours(summary, PUBLISHED[cell]) for summary in ours)
        cells += tag("td", _published(PUBLISHED[cell]) + (blocks or _missing("no run")))
    return tag("tr", tag("th", norm_name(norm), scope="row") + cells)


def _published(pair: Percent) -> str:
    return tag("span", "paper", class_="small") + tag("span", percents(pair, 1), class_="pair")


def _missing(what: str) -> str:
    return tag("div", tag("span", f"missing: {what}", class_="missing"))


def _ours(summary: Summary, published: Percent) -> str:
    within = [
        "inside" if low <= value <= high else "outside"
        for value, (low, high) in zip(published, summary.intervals, strict=True)
    ]
    lines = (
        tag("span", link(summary.key), class_="small")
        + tag("span", percents(summary.accuracy), class_="pair")
        + tag("span", f"{LEVEL_TEXT} {interval_text(summary)}", class_="small")
        + tag(
            "span",
            f"ours {MINUS} paper {signed(minus(summary.accuracy, published))}",
            class_="small",
        )
        + tag("span", f"paper's value: {' / '.join(within)} the interval", class_="small")
    )
    return tag("div", lines, class_="ours")


def _difference_row(
    runs: Sequence[TestedRun], summaries: Mapping[str, Summary], placed: Placed
) -> str:
    cells = ""
    for column in COLUMNS:
        of_paper = minus(PUBLISHED[Cell("gn", column)], PUBLISHED[Cell("bn", column)])
        there = {
            norm: [run for run in runs if placed[run.key] == Cell(norm, column)] for norm in NORMS
        }
        pairs = [(gn, bn) for gn in there["gn"] for bn in there["bn"]]
        blocks = "".join(_difference(gn, bn, summaries) for gn, bn in pairs)
        absent = " and ".join(norm_name(norm) for norm in NORMS if not there[norm])
        shown = tag("span", "paper", class_="small") + tag(
            "span", " / ".join(f"{v:+.1f}".replace("-", MINUS) for v in of_paper), class_="pair"
        )
        cells += tag("td", shown + (blocks or _missing(f"no run of {absent}")))
    return tag("tr", tag("th", f"GN {MINUS} BN", scope="row") + cells)


def _difference(gn: TestedRun, bn: TestedRun, summaries: Mapping[str, Summary]) -> str:
    ours = minus(summaries[gn.key].accuracy, summaries[bn.key].accuracy)
    differ = [key for key in MUST_AGREE if gn.results.get(key) != bn.results.get(key)]
    if gn.scores.videos != bn.scores.videos and "list_sha256" not in differ:
        differ.append("the videos")
    warning = f"not one test: {', '.join(differ)} differ" if differ else "same list, same test"
    lines = (
        tag("span", f"{link(gn.key)} {MINUS} {link(bn.key)}", class_="small")
        + tag("span", signed(ours), class_="pair")
        + ("" if differ else tag("span", _difference_intervals(gn, bn), class_="small"))
        + tag("span", text(warning), class_="small")
    )
    return tag("div", lines, class_="ours")


def _difference_intervals(gn: TestedRun, bn: TestedRun) -> str:
    """Intervals of the differences on the same videos."""
    shown = []
    for k in (1, 5):
        ours, theirs = (run.scores.outcome.right(k) for run in (gn, bn))
        only = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        ends = difference_interval(*only, len(ours))
        shown.append(" to ".join(f"{end:+.2f}".replace("-", MINUS) for end in ends))
    return f"{LEVEL_TEXT} {' / '.join(shown)}"


def _departures(runs: Sequence[TestedRun], placed: Placed) -> str:
    """What differs from the paper, one sentence for all runs that it is true of."""
    told: dict[str, list[str]] = {}
    ours = [run for run in runs if isinstance(placed[run.key], Cell)]
    for run in ours:
        for sentence in _departures_of(run):
            told.setdefault(sentence, []).append(run.key)
    if not ours:
        return ""
    if not told:
        return tag(
            "p", "Recipes and tests of the runs above are the paper's, as far as it tells them."
        )
    lines = [f"{', '.join(map(link, keys))}: {text(sentence)}" for sentence, keys in told.items()]
    return tag("h3", "What differs from the paper") + items(lines, class_="notes")


def _departures_of(run: TestedRun) -> list[str]:
    found = departures(run.setting, run.results["num_videos"])
    if run.results.get("weights") == "best":
        found.append("the weights are those of the best validation, not the last ones")
    clips = run.training.clips_per_gpu if run.training else []
    if len(clips) > 1:
        found.append(f"clips per GPU changed in training: {', '.join(map(str, clips))}")
    failed = run.results["num_failed"]
    if failed:
        found.append(f"{counted(failed, 'video')} could not be read and count as wrong")
    return found


def _others(runs: Sequence[TestedRun], summaries: Mapping[str, Summary], placed: Placed) -> str:
    rows = []
    for run in runs:
        why = placed[run.key]
        if isinstance(why, Cell):
            continue
        column, summary = column_of(run.setting), summaries[run.key]
        rows.append(
            (
                link(run.key),
                text(norm_name(run.setting("model.norm"))),
                text(f"{column.num_frames} {TIMES} {column.frame_stride}"),
                text(column.clips_per_gpu),
                tag("span", percents(summary.accuracy), class_="nowrap"),
                interval_text(summary),
                tag("span", coverage_text(summary), class_="nowrap"),
                text(protocol_text(run)),
                tag("div", text(why), class_="why"),
            )
        )
    if not rows:
        return ""
    head = (
        "run",
        "norm",
        f"frames {TIMES} stride",
        "clips / GPU",
        "top-1 / top-5",
        f"{LEVEL_TEXT} interval",
        "coverage",
        "test",
        "why it is no cell",
    )
    return tag("h3", "Runs that are no cell of the table") + table(
        "Accuracy in percent", head, rows, class_="wide"
    )


def coverage_text(summary: Summary) -> str:
    """``19,700 of 19,761 (99.7 %)``; never 100 where a video is missing."""
    share = 100 * summary.num_tested / summary.num_videos
    digits = 1 if share == 100 or share < 99.95 else 3
    return f"{summary.num_tested:,} of {summary.num_videos:,} ({share:.{digits}f} %)"


def protocol_text(run: TestedRun) -> str:
    """``paper, 10 clips x 1 crop``."""
    clips, crops = run.results.get("num_clips", "?"), run.results.get("num_crops", "?")
    words = "crop" if crops == 1 else "crops"
    protocol = run.results.get("protocol", "?")
    return f"{protocol}, {clips} clips {TIMES} {crops} {words}"


def figure7_section(runs: Sequence[TestedRun]) -> str:
    """Figure 7 with the curves that belong to it, and the others in a figure of their own."""
    found = {run.key: drawn(run) for run in runs}
    ours = [d for d in found.values() if d.belongs]
    others = [d for d in found.values() if d.curve is not None and not d.belongs]
    content = tag("h2", "Figure 7: error during training") + tag(
        "p",
        "Error of one augmented clip of each validation video against epochs, on Kinetics-400 with "
        "32-frame clips. It is not the error of the test above. The paper's own curves are not "
        "published as numbers.",
    )
    content += _panels(ours, figure=True)
    if others:
        content += tag("h3", "Other validation curves") + tag(
            "p", "They are not comparable with Figure 7; the table says why."
        )
        content += _panels(others, figure=False)
    return tag("section", content + _curve_table(runs, found), id="figure7")


def _panels(curves: Sequence[Drawn], *, figure: bool) -> str:
    """Two panels with one y axis: batch norms left, the others right.

    Args:
        figure: whether they are Figure 7, of which four curves are expected.
    """
    every = [d.curve for d in curves if d.curve is not None]
    y_range = error_range(every) if every else (0.0, 100.0)
    x_end = 1.02 * (max(curve.epochs[-1] for curve in every) or 1) if every else 100
    titles = ("BN", "GN") if figure else ("BN and its kinds", "GN and other norms")
    shown = ""
    for title, left in zip(titles, (True, False), strict=True):
        there = [curve for curve in every if (curve.norm in BATCH_NORMS) == left]
        labels = [_label(curve, with_norm=not figure) for curve in there]
        shown += panel(
            there,
            labels,
            title=title,
            alt=_alt(title, there, labels),
            missing=_missing_curves(there) if figure else [] if there else ["any run"],
            y_range=y_range,
            x_end=x_end,
        )
    return tag("div", shown, class_="panels")


def _label(curve: Curve, *, with_norm: bool) -> str:
    norm = f"{norm_name(curve.norm)}, " if with_norm else ""
    return f"{norm}{curve.clips_per_gpu} clips per GPU ({curve.key})"


def _alt(title: str, curves: Sequence[Curve], labels: Sequence[str]) -> str:
    ends = [
        f"{label} ends at {curve.errors[-1]:.1f} %"
        for label, curve in zip(labels, curves, strict=True)
    ]
    return f"1-clip validation error against epochs, {title}: {'; '.join(ends) or 'no curve'}"


def _missing_curves(there: Sequence[Curve]) -> list[str]:
    found = [curve.clips_per_gpu for curve in there]
    return [f"{clips} clips per GPU" for clips in FIGURE_CLIPS if clips not in found]


def _curve_table(runs: Sequence[TestedRun], found: Mapping[str, Drawn]) -> str:
    rows = []
    for run in runs:
        this = found[run.key]
        numbers = (DASH, DASH, DASH, DASH)
        if this.curve is not None:
            errors = this.curve.errors
            numbers = (
                f"{len(errors)}",
                f"{this.curve.epochs[-1]:.1f}",
                f"{errors[-1]:.2f}",
                f"{min(errors):.2f}",
            )
        where = "Figure 7" if this.belongs else "other curve" if this.curve else "missing"
        note = f"{where}: {this.why}" if this.why else where
        rows.append(
            (link(run.key), tag("span", text(describe(run)), class_="nowrap"), *numbers, text(note))
        )
    head = ("run", "network", "validations", "epochs", "last error (%)", "lowest (%)", "curve")
    return tag("h3", "The curves in numbers") + table(
        "1-clip validation error", head, rows, class_="wide"
    )


def provenance_section(runs: Sequence[TestedRun]) -> str:
    """Which weights and which list each test was of, and how it was done."""
    rows = [
        (
            link(run.key) + tag("span", text(run.name), class_="small path"),
            _hashed(run, "checkpoint", "checkpoint_sha256")
            + tag("span", text(_weights(run)), class_="small"),
            _hashed(run, "list", "list_sha256"),
            text(protocol_text(run))
            + tag("span", text(f"average: {run.setting('test.average')}"), class_="small")
            + tag("span", text(f"short side: {_told(run, 'short_side')}"), class_="small")
            + tag("span", text(f"reader: {_told(run, 'reader')}"), class_="small"),
        )
        for run in runs
    ]
    head = ("run", "checkpoint and its sha256", "list and its sha256", "test")
    content = tag("h2", "Provenance") + table(
        "Where the numbers are from", head, rows, class_="wide"
    )
    return tag("section", content, id="provenance")


def _hashed(run: TestedRun, name: str, digest: str) -> str:
    path, sha = _told(run, name), _told(run, digest)
    return tag("span", text(path), class_="path") + tag("div", text(sha), class_="hash soft")


def _weights(run: TestedRun) -> str:
    iteration = run.results.get("iteration")
    at = f", iteration {iteration:,}" if isinstance(iteration, int) else ""
    return f"{_told(run, 'weights')} weights{at}"


def _told(run: TestedRun, key: str) -> object:
    value = run.results.get(key)
    return "not told" if value is None else value


def place_all(runs: Sequence[TestedRun]) -> dict[str, Cell | str]:
    """Each run's cell, or why it has none."""
    return {run.key: cell_of(run.setting, run.results.get("weights")) for run in runs}
