"""What trainings have come to, read from their folders without a network."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from videogn.config import Config
from videogn.config_files import differences, load_config, to_tree
from videogn.engine.experiments import Cell, Experiment
from videogn.engine.pretraining import outcome_file
from videogn.engine.report.reading import CONFIG, LOG, TestedRun, read_entries, read_run
from videogn.engine.report.table8 import Setting, settings_of
from videogn.engine.runs import HARMLESS
from videogn.engine.test_folder import INSIDE, RESULTS
from videogn.errors import RunError

VAL_IMAGES = 50_000
"""Validation images of ImageNet."""
GPUS = 8
"""Of the paper's trainings on ImageNet."""


@dataclass(frozen=True)
class Outcome:
    """One training's numbers.

    Attributes:
        run: its folder.
        cell: where they stand; those of several seeds stand together.
        values: top-1 and perhaps top-5 in percent, by the experiment's measure.
    """

    run: Path
    cell: Cell
    values: tuple[float, ...]


@dataclass(frozen=True)
class Entry:
    """What stands at one place of a table.

    Attributes:
        published: the paper's numbers; empty where it has none.
        outcomes: ours, one for each training.
    """

    published: tuple[float, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def means(self) -> tuple[float, ...]:
        """Of each number over the trainings; empty where there is none."""
        return tuple(mean(values) for values in self._columns())

    @property
    def spreads(self) -> tuple[float, ...]:
        """Standard deviations of single trainings (n - 1); empty where there are not two."""
        if len(self.outcomes) < 2:
            return ()
        return tuple(stdev(values) for values in self._columns())

    def _columns(self) -> list[tuple[float, ...]]:
        return list(zip(*(outcome.values for outcome in self.outcomes), strict=True))


def entries(experiment: Experiment, outcomes: Iterable[Outcome]) -> dict[tuple[str, str], Entry]:
    """Every place of an experiment's table, in the order of its cells."""
    found = list(outcomes)
    return {
        cell.place: Entry(
            cell.published, tuple(one for one in found if one.cell.place == cell.place)
        )
        for cell in experiment.cells
    }


def tested(experiment: Experiment, run: TestedRun, cell: Cell) -> Outcome:
    """The outcome of a run that has been tested."""
    top1, top5 = run.results["top1"], run.results["top5"]
    values = (top1, top5) if experiment.measure == "accuracy" else (100 - top1, 100 - top5)
    return Outcome(Path(run.name), cell, values)


def has_outcome(run: Path, *, images: bool) -> bool:
    """Whether a run's folder tells what came of it."""
    if images:
        return outcome_file(run).is_file()
    return (run / INSIDE[0] / RESULTS).is_file()


def pretrained(run: Path, cell: Cell) -> Outcome:
    """The outcome of a pre-training on images: the median error of its last epochs.

    Raises:
        RunError: it is not there, or damaged.
    """
    return Outcome(run, cell, (float(read_pretraining(run)["median"]["top1_error"]),))


def read_pretraining(run: Path) -> dict[str, Any]:
    """What ``videogn pretrain`` left of a finished run.

    Raises:
        RunError: it is not there, or damaged.
    """
    path = outcome_file(run)
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sound = isinstance(tree["last"]["iteration"], int)
        error = tree["median"]["top1_error"]
        if not (sound and type(error) in (int, float) and 0 <= error <= 100):
            raise ValueError("its errors cannot be")
    except FileNotFoundError as error:
        raise RunError(
            f"{path}: no such file; `videogn pretrain` writes it when its run is complete"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: cannot be read: {error}; start the finished run again to write it anew"
        ) from error
    return tree


def asked_iterations(run: Path) -> int | None:
    """Iterations of the whole training by the newest start in a run's log; None if untold.

    Raises:
        RunError: the log cannot be read.
    """
    asked = _newest_start(run).get("iterations")
    return asked if type(asked) is int else None


def _newest_start(run: Path) -> Mapping[str, Any]:
    log = run / LOG
    starts = [e for e in (read_entries(log) if log.is_file() else []) if e.get("kind") == "start"]
    return starts[-1] if starts else {}


def check_complete(run: Path, reached: int | None) -> None:
    """Refuse numbers of a training's middle.

    Args:
        run: the folder of the training; one whose log does not tell its length is taken as it is.
        reached: the iteration that the numbers are of.

    Raises:
        RunError: the training was to be of another length.
    """
    asked = asked_iterations(run)
    if asked is not None and reached != asked:
        raise RunError(
            f"{run}: its numbers are of iteration {reached}, and the training has {asked}; finish "
            "it, and test its last checkpoint"
        )


def image_departures(run: Path, shipped: Config) -> Iterator[str]:
    """What of a pre-training is not as in the paper, a sentence each.

    Args:
        shipped: the config of its cell, which has the paper's recipe.

    Raises:
        UserError: the run's config, log or outcome cannot be read.
    """
    yield from config_departures(run, shipped)
    images = read_pretraining(run).get("num_images")
    if images != VAL_IMAGES:
        yield f"{images} images to validate on; ImageNet has {VAL_IMAGES:,}"
    batch, papers = _newest_start(run).get("global_batch"), GPUS * shipped.train.clips_per_gpu
    if batch != papers:
        yield f"{batch} images an iteration; the paper has {papers}, on {GPUS} GPUs"


def config_departures(
    run: Path, shipped: Config, *, but: Collection[str] = ("seed",)
) -> Iterator[str]:
    """What of a run's recipe is not that of the config of its cell, a sentence each.

    Args:
        but: keys that may differ.

    Raises:
        ConfigError: the run's config cannot be read.
    """
    config = load_config(run / CONFIG).config
    for key, (wanted, found) in differences(shipped, config).items():
        counts = key in ("train.epochs", "train.iterations") or key not in HARMLESS
        if counts and key not in but:
            yield f"{key} is {found}; the cell's config has {wanted}"


def image_setting(run: Path) -> Setting:
    """The settings of a pre-training.

    Raises:
        ConfigError: its config cannot be read.
    """
    return settings_of(to_tree(load_config(run / CONFIG).config))


def placed(experiment: Experiment, setting: Setting, name: str) -> Cell:
    """The cell that a run made elsewhere belongs to.

    Args:
        setting: of the run.

    Raises:
        RunError: it belongs to none; the message has what is nearest. Or it may belong to several.
    """
    fitting = [cell for cell in experiment.cells if cell.fits(setting)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        told = " or ".join(cell.name for cell in fitting)
        raise RunError(
            f"{name}: may be {told}, which its settings do not tell apart; collect the rows of "
            "--configs one by one"
        )
    nearest = min(experiment.cells, key=lambda cell: len(_misses(cell, setting)))
    told = ", ".join(
        f"{key} is {found} and not {wanted}"
        for key, (found, wanted) in _misses(nearest, setting).items()
    )
    raise RunError(f"{name}: is no cell of {experiment.name}; of {nearest.name} it differs: {told}")


def _misses(cell: Cell, setting: Setting) -> Mapping[str, tuple[Any, Any]]:
    return {
        key: (setting(key), value) for key, value in cell.settings.items() if setting(key) != value
    }


def read_tests(names: Sequence[str | Path]) -> list[TestedRun]:
    """Tested runs in order.

    Raises:
        RunError: one has no test, or a damaged one.
    """
    return [read_run(str(name), f"R{number}") for number, name in enumerate(names, start=1)]
