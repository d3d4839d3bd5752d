import json
from pathlib import Path

from videogn.engine.experiments import table8
from videogn.engine.outcomes import Outcome
from videogn.engine.report.run_table import LogSummary, log_summary, run_table, summary_at

LOG = [
    {"kind": "start", "iteration": 0, "device": "cpu", "learning_rate": 0.5},
    {"kind": "train", "iteration": 10, "loss": 3.0, "top1": 5.0, "clips_per_second": 9.0},
    {"kind": "val", "iteration": 10, "top1": 7.0},
    {"kind": "start", "iteration": 10, "device": "cuda:0", "learning_rate": 0.25},
    {"kind": "train", "iteration": 20, "loss": 2.0, "top1": 6.5, "clips_per_second": 40.0},
    {"kind": "train", "iteration": 1200, "loss": 1.25, "top1": 50.0, "clips_per_second": 30.0},
    {"kind": "val", "iteration": 1200, "top1": 44.0},
    {"kind": "percentiles", "iteration": 1200},
]


def test_a_log_is_summed_up_by_its_last_entries() -> None:
    assert log_summary(LOG) == LogSummary(1200, "cuda:0", 0.25, 30.0, 1.25, 50.0, 44.0)


def test_what_a_log_does_not_tell_is_left_out(tmp_path: Path) -> None:
    nothing = LogSummary(None, None, None, None, None, None, None)
    assert log_summary([]) == summary_at(tmp_path) == nothing


def test_every_run_has_a_line(tmp_path: Path) -> None:
    run, other = tmp_path / "r1", tmp_path / "r2"
    run.mkdir()
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    cell = table8().cells[0]
    outcomes = [Outcome(run, cell, (50.0, 90.0)), Outcome(other, cell, (1.0, 2.0))]
    head, _, *rows = run_table(outcomes, images=False).splitlines()
    assert "clips/s" in head
    assert rows == [
        "| r1 | 1,200 | 0.25 | 30.0 | 1.250 | 50.0 | 44.0 | 50.00 / 90.00 |",
        "| r2 |  |  |  |  |  |  | 1.00 / 2.00 |",
    ]
