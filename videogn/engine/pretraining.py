"""What a pre-training came to: errors on the validation images, as the paper reports them.

Errors are in percent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

MEDIAN_OF = 5
"""Validations at the end whose median the paper reports (section 4.1): one for each epoch there."""


@dataclass(frozen=True)
class Errors:
    """One validation.

    Attributes:
        iteration: after which it was.
        num_images: that were validated on; those that could not be read count as wrong.
    """

    iteration: int
    top1_error: float
    top5_error: float
    num_images: int


@dataclass(frozen=True)
class Outcome:
    """All validations of a run, the earliest first; there is one at least."""

    validations: tuple[Errors, ...]

    @property
    def last(self) -> Errors:
        """Of the weights in ``last.safetensors``."""
        return self.validations[-1]

    @property
    def best(self) -> Errors:
        """The lowest top-1 error; the earliest of equals, as ``best.safetensors`` is."""
        return min(self.validations, key=lambda each: each.top1_error)

    @property
    def at_end(self) -> tuple[Errors, ...]:
        """Those that the median is of: fewer than five where there are no more."""
        return self.validations[-MEDIAN_OF:]

    @property
    def median_top1_error(self) -> float:
        """The number to compare with the paper's, where validations are an epoch apart."""
        return median(each.top1_error for each in self.at_end)

    @property
    def median_top5_error(self) -> float:
        """Of the same validations, on its own."""
        return median(each.top5_error for each in self.at_end)

    def as_dict(self) -> dict[str, Any]:
        """The content of ``pretrain.json``."""
        return {
            "num_images": self.last.num_images,
            "last": _numbers(self.last),
            "best": _numbers(self.best),
            "median": {
                "top1_error": self.median_top1_error,
                "top5_error": self.median_top5_error,
                "iterations": [each.iteration for each in self.at_end],
            },
            "validations": [_numbers(each) for each in self.validations],
        }


def outcome_of(entries: Sequence[Mapping[str, Any]]) -> Outcome | None:
    """The validations among the entries of a run's log; None where there are none.

    Of several after one iteration the last counts, for a run that goes on may repeat one.
    """
    found = {
        entry["iteration"]: Errors(
            iteration=entry["iteration"],
            top1_error=_error(entry["top1"]),
            top5_error=_error(entry["top5"]),
            num_images=entry["num_videos"],
        )
        for entry in entries
        if entry.get("kind") == "val"
    }
    if not found:
        return None
    return Outcome(tuple(found[iteration] for iteration in sorted(found)))


def outcome_file(run: Path) -> Path:
    """Where a pre-training run leaves its outcome."""
    return run / "pretrain.json"


def _error(accuracy: float) -> float:
    # 100 - 76.11 is 23.89 but for the rounding of the difference.
    return round(100 - accuracy, 9)


def _numbers(errors: Errors) -> dict[str, float]:
    return {
        "iteration": errors.iteration,
        "top1_error": errors.top1_error,
        "top5_error": errors.top5_error,
    }
