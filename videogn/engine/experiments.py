"""The paper's experiments as trainings with their places in a table.

Nothing here trains: :mod:`videogn.commands.reproduce` does, and shows what comes out beside what
the paper has published. Accuracies and errors are in percent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from videogn.config import TrainConfig
from videogn.engine.report.table8 import COLUMNS, NORMS, PUBLISHED, Column, Setting
from videogn.engine.report.table8 import Cell as Place

Measure = Literal["accuracy", "error"]


@dataclass(frozen=True)
class Cell:
    """One training, and where its outcome stands.

    Attributes:
        name: of its run's folder, and the word that chooses it alone.
        config: its YAML file: a path, or the name of a shipped one such as
            ``kinetics400/i3d_r50_gn_32x2_b8``.
        row, column: of the table.
        settings: dotted config keys and values that make it this cell; those of ``words`` are set
            on the command line.
        words: keys of ``settings`` that the config file does not have already.
        published: top-1 and, where it is known, top-5, by the table's measure.
    """

    name: str
    config: str
    row: str
    column: str
    settings: Mapping[str, Any]
    words: tuple[str, ...] = ()
    published: tuple[float, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """What ``words`` are on the command line."""
        return [f"{key}={self.settings[key]}" for key in self.words]

    @property
    def place(self) -> tuple[str, str]:
        """Row and column."""
        return self.row, self.column

    def fits(self, setting: Setting) -> bool:
        """Whether a run with such settings belongs here."""
        return all(setting(key) == value for key, value in self.settings.items())


@dataclass(frozen=True)
class Experiment:
    """A table of the paper, or one of its kind.

    Attributes:
        name: the word of the command line.
        corner: what the columns are.
        measure: of the numbers.
        images: whether networks are pre-trained on images and measured by their validations;
            others are trained on video and tested.
        difference: two rows whose difference is shown, the first minus the second.
    """

    name: str
    title: str
    corner: str
    measure: Measure
    images: bool
    cells: tuple[Cell, ...]
    difference: tuple[str, str] | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        """In the order of the cells."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """In the order of the cells."""
        return tuple(dict.fromkeys(cell.column for cell in self.cells))


def table8() -> Experiment:
    """Table 8: accuracy on Kinetics-400 by clip length and clips per GPU."""
    return Experiment(
        name="table8",
        title="Kinetics-400 validation, ResNet-50 I3D, 10 clips: top-1 / top-5 accuracy (%)",
        corner="frames x stride, clips per GPU",
        measure="accuracy",
        images=False,
        cells=tuple(_table8_cell(norm, column) for norm in NORMS for column in COLUMNS),
        difference=("GN", "BN"),
    )


def _table8_cell(norm: str, column: Column) -> Cell:
    size = f"{norm}_{column.num_frames}x{column.frame_stride}_b{column.clips_per_gpu}"
    return Cell(
        name=size,
        config=f"kinetics400/i3d_r50_{size}",
        row=norm.upper(),
        column=f"{column.num_frames} x {column.frame_stride}, {column.clips_per_gpu}",
        settings={
            "model.norm": norm,
            "clip.num_frames": column.num_frames,
            "clip.frame_stride": column.frame_stride,
            "train.clips_per_gpu": column.clips_per_gpu,
        },
        published=PUBLISHED[Place(norm, column)],
    )


@dataclass(frozen=True)
class Recipe:
    """What a sweep trains at several batches.

    Attributes:
        name: of its row.
        config: its YAML file.
        norm: its ``model.norm``.
    """

    name: str
    config: str
    norm: str


def batch_sweep(recipes: Sequence[Recipe], batches: Sequence[int]) -> Experiment:
    """Accuracy by clips per GPU, of the same recipes at each of them (paper, Figures 1 and 5)."""
    return Experiment(
        name="batch-sweep",
        title="top-1 / top-5 accuracy (%) by clips per GPU",
        corner="clips per GPU",
        measure="accuracy",
        images=False,
        cells=tuple(
            Cell(
                name=f"{recipe.name.lower()}_b{batch}",
                config=recipe.config,
                row=recipe.name,
                column=str(batch),
                settings={"model.norm": recipe.norm, "train.clips_per_gpu": batch},
                words=("train.clips_per_gpu",),
            )
            for recipe in recipes
            for batch in batches
        ),
        difference=_difference([recipe.name for recipe in recipes]),
    )


def _difference(rows: Sequence[str]) -> tuple[str, str] | None:
    return ("GN", "BN") if {"GN", "BN"} <= set(rows) else None


def with_seeds(experiment: Experiment, seeds: Sequence[int]) -> Experiment:
    """An experiment whose every cell is trained once with each seed."""
    cells = tuple(
        replace(
            cell,
            name=f"{cell.name}_s{seed}",
            settings={**cell.settings, "seed": seed},
            words=(*cell.words, "seed"),
        )
        for cell in experiment.cells
        for seed in seeds
    )
    return replace(experiment, cells=cells)


def keep_epochs(train: TrainConfig, batch: int) -> Iterator[str]:
    """Words that let a recipe see each video as often at another batch as at its own.

    Learning rates follow the batch by themselves (paper, section 4.1); what the recipe counts in
    iterations does not, but for those of ``train.epochs``.

    Args:
        batch: clips per iteration, over all GPUs and steps of accumulation.
    """
    counts = {"warmup_iterations": train.warmup_iterations}
    if train.epochs is None:
        counts["iterations"] = train.iterations
    if train.val_epochs is None:
        counts["val_interval"] = train.val_interval
    for key, count in counts.items():
        kept = round(count * train.base_batch / batch)
        if kept != count:
            yield f"train.{key}={max(kept, min(count, 1))}"
