"""What the logs of an experiment's trainings say, a line for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from videogn.engine.outcomes import Outcome
from videogn.engine.report.reading import LOG, read_entries


@dataclass(frozen=True)
class LogSummary:
    """The last of each number in a log; None where it has none.

    Attributes:
        device: as torch names it.
        learning_rate: the highest of the schedule.
        clips_per_second: the median over the progress lines.
        train_loss, train_top1: of the last stretch of training, in percent.
        val_top1: of the last validation, one clip or image each.
    """

    iterations: int | None
    device: str | None
    learning_rate: float | None
    clips_per_second: float | None
    train_loss: float | None
    train_top1: float | None
    val_top1: float | None


def log_summary(entries: Sequence[Mapping[str, Any]]) -> LogSummary:
    """The summary of a log's entries."""
    kinds = ("start", "train", "val")
    starts, steps, tests = ([e for e in entries if e.get("kind") == kind] for kind in kinds)
    start, step, test = (found[-1] if found else {} for found in (starts, steps, tests))
    paces = [entry["clips_per_second"] for entry in steps if "clips_per_second" in entry]
    return LogSummary(
        iterations=step.get("iteration"),
        device=start.get("device"),
        learning_rate=start.get("learning_rate"),
        clips_per_second=median(paces) if paces else None,
        train_loss=step.get("loss"),
        train_top1=step.get("top1"),
        val_top1=test.get("top1"),
    )


def summary_at(run: Path) -> LogSummary:
    """The summary of the log in a run's folder; empty where there is none."""
    return log_summary(read_entries(run / LOG) if (run / LOG).is_file() else [])


def run_table(outcomes: Sequence[Outcome], images: bool) -> str:
    """A Markdown table of the runs behind a table's numbers."""
    things = "images" if images else "clips"
    head = (
        *("run", "iterations", "learning rate", f"{things}/s", "training loss"),
        *("training top-1 (%)", "validation top-1 (%)", "outcome (%)"),
    )
    rows = [head, ("---",) * len(head), *(_row(one) for one in outcomes)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(outcome: Outcome) -> tuple[str, ...]:
    found = summary_at(outcome.run)
    return (
        outcome.run.name,
        _number(found.iterations, ","),
        _number(found.learning_rate, ".4g"),
        _number(found.clips_per_second, ".1f"),
        _number(found.train_loss, ".3f"),
        _number(found.train_top1, ".1f"),
        _number(found.val_top1, ".1f"),
        " / ".join(f"{value:.2f}" for value in outcome.values),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
