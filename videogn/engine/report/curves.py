"""Figure 7 of the paper: the 1-clip validation error over the epochs of a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videogn.engine.report.epochs import by_epoch, is_number
from videogn.engine.report.reading import TestedRun
from videogn.engine.report.table8 import Cell, cell_of

FIGURE_FRAMES = 32
"""The figure is of 32-frame clips alone."""


@dataclass(frozen=True)
class Curve:
    """Validation errors of one run, in order of time.

    Attributes:
        key: of the run.
        norm: as in the config.
        clips_per_gpu: None where it is not known.
        epochs: how often each training video had been drawn.
        errors: percent of the validation videos, one clip each.
    """

    key: str
    norm: str
    clips_per_gpu: int | None
    epochs: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Drawn:
    """What becomes of a run's curve.

    Attributes:
        curve: None where there is none to draw.
        belongs: whether it is one of Figure 7's.
        why: why there is none, or why it is not one of Figure 7's.
    """

    curve: Curve | None
    belongs: bool
    why: str


def drawn(run: TestedRun) -> Drawn:
    """The curve of a run and whether Figure 7 has one like it."""
    if run.training is None:
        return Drawn(None, False, "the test does not lie in the folder of a training run")
    points = _points(run.training.log)
    if not points:
        return Drawn(None, False, "its log has no validation, or does not tell its epochs")
    curve = Curve(
        key=run.key,
        norm=str(run.setting("model.norm")),
        clips_per_gpu=run.setting("train.clips_per_gpu"),
        epochs=tuple(epoch for epoch, _ in points),
        errors=tuple(error for _, error in points),
    )
    why = _why_not(run)
    return Drawn(curve, not why, why)


def _why_not(run: TestedRun) -> str:
    """Why a run's validation is not what Figure 7 shows; empty where it is."""
    clip = run.setting("train.val_clip") or "augmented"
    if clip != "augmented":
        return (
            f"validated on one {clip} clip (train.val_clip={clip}); Figure 7's clip is augmented "
            "as in training"
        )
    cell = cell_of(run.setting, None)
    if not isinstance(cell, Cell):
        return cell
    frames = cell.column.num_frames
    return "" if frames == FIGURE_FRAMES else f"clips of {frames} frames; Figure 7's have 32"


def _points(log: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(epoch, error) of each validation; later entries win."""
    found: dict[float, float] = {}
    for epoch, entry in by_epoch(log, "val"):
        top1 = entry.get("top1", -1)
        if is_number(top1) and 0 <= top1 <= 100:
            found[epoch] = 100 - top1
    return sorted(found.items())
