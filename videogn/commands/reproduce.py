"""Train and test the cells of one of the paper's tables, and show them beside its numbers.

EXPERIMENT is table8, batch-sweep (the same configs at several batches), table1, table2 or table3 of
ImageNet, or its resnet101 or vgg16.
What is there already is not done again: the same command goes on where it was.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from videogn.commands.data_folder import data_words
from videogn.commands.reproduce_parts import (
    Job,
    chosen,
    commands_of,
    finished_jobs,
    make_job,
    plan_jobs,
    plan_lines,
    run_jobs,
    shown,
)
from videogn.commands.shipped import config_file
from videogn.config_files import load_config
from videogn.distributed import launched
from videogn.engine.experiments import Cell, Experiment, Recipe, batch_sweep, table8, with_seeds
from videogn.engine.image_experiments import resnet101, table1, table2, table3, vgg16
from videogn.engine.outcomes import (
    Outcome,
    check_complete,
    config_departures,
    entries,
    image_departures,
    image_setting,
    placed,
    pretrained,
    read_pretraining,
    read_tests,
    tested,
)
from videogn.engine.report.page import page
from videogn.engine.report.percentiles import draw_side_by_side
from videogn.engine.report.reading import TestedRun
from videogn.engine.report.run_table import run_table
from videogn.engine.report.sweep_plot import draw_sweep, has_plot
from videogn.engine.report.table8 import cell_of, departures
from videogn.engine.report.tables import json_table, markdown_table, text_table
from videogn.engine.runs import RunFolder
from videogn.errors import ConfigError, RunError
from videogn.files import check_writable, printable, write_text
from videogn.stopping import stop_request

SWEPT = ("kinetics400/i3d_r50_bn_32x2_b8", "kinetics400/i3d_r50_gn_32x2_b8")
BATCHES = (8, 4, 2, 1)
SWEEP = "batch-sweep"
COUNTED = (
    *("seed", "model.weights", "data.class_names"),
    *("train.iterations", "train.warmup_iterations", "train.val_interval"),
)
"""Keys in which the runs of a sweep differ from its configs by its nature."""
TABLES: dict[str, Callable[[], Experiment]] = {
    "table8": table8,
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "resnet101": resnet101,
    "vgg16": vgg16,
}
"""Word of the command line -> experiment."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn reproduce``."""
    parser.add_argument("experiment", choices=[*TABLES, SWEEP])
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to every cell's config; {norm} stands for the cell's norm",
    )
    parser.add_argument(
        "--data", metavar="DIR", type=Path, help="folder with train and val lists or trees"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where all goes")
    parser.add_argument("--gpus", type=int, metavar="N", help="of this machine; all unless given")
    parser.add_argument(
        "--only", type=_words, default=[], metavar="CELL,…", help="cells whose names begin so"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, then stop")
    parser.add_argument(
        "--collect",
        nargs="+",
        default=[],
        metavar="RUN",
        help="show runs made elsewhere instead of training any",
    )
    parser.add_argument(
        "--seeds", type=_numbers, metavar="S,S,…", help="train every cell with each of these seeds"
    )
    parser.add_argument(
        "--batches", type=_numbers, metavar="B,B,…", help=f"of {SWEEP}; 8,4,2,1 unless given"
    )
    parser.add_argument(
        "--configs", nargs="+", metavar="CONFIG", help=f"of {SWEEP}; the paper's BN and GN nets"
    )


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 8,4") from None
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} has a number twice")
    return numbers


def run(arguments: argparse.Namespace) -> int:
    """Plan, train and test what is missing, then write the tables; or one of these alone."""
    experiment = _experiment(arguments)
    if arguments.collect:
        return _collect(experiment, arguments)
    if launched():
        raise RunError(
            "videogn reproduce starts its ranks by itself and cannot be one; run it without a "
            "launcher, or run the commands of --dry-run under yours and then --collect"
        )
    world_size = _world_size(arguments.gpus)
    data = _data(arguments, experiment)

    def jobs_of(cells: Iterable[Cell]) -> list[Job]:
        words = arguments.overrides
        return [make_job(cell, arguments.out, data, words, world_size) for cell in cells]

    jobs = jobs_of(chosen(experiment, arguments.only))
    planned = plan_jobs(jobs, experiment, world_size)
    print(f"{experiment.title}\n")
    for line in plan_lines(planned, world_size):
        print(line, flush=True)
    if arguments.dry_run:
        print("\nthe commands, of which any may be run elsewhere:")
        for job in jobs:
            for words in commands_of(job, experiment):
                print(f"  {shown(words, world_size)}")
        print("dry run: nothing was trained or written")
        return 0
    # Between two commands too a signal is to stop all.
    stop_request.install()
    code = run_jobs(planned, experiment, world_size)
    # Asked anew: the runs have begun now, those of other machines too.
    shown_jobs = finished_jobs(jobs_of(experiment.cells), experiment)
    there = {job.folder.path: job.cell for job in shown_jobs}
    if there:
        _show(experiment, there, arguments.out)
    return code


def _data(arguments: argparse.Namespace, experiment: Experiment) -> list[str]:
    if arguments.data is None:
        return []
    given = dict(word.split("=", 1) for word in arguments.overrides if "=" in word)
    tests_on_val = arguments.experiment == "table8" or experiment.images
    return data_words(arguments.data, tests_on_val=tests_on_val, given=given)


def _show(experiment: Experiment, there: Mapping[Path, Cell], out: Path) -> None:
    """The outcomes of run folders whose cells are known."""
    if not experiment.images:
        _show_tests(experiment, read_tests(list(there)), list(there.values()), out)
        return
    outcomes = [pretrained(folder, cell) for folder, cell in there.items()]
    whys = [(folder.name, _image_departures(folder, cell)) for folder, cell in there.items()]
    _write(experiment, outcomes, _told_once(whys), out)


def _show_tests(
    experiment: Experiment, runs: Sequence[TestedRun], cells: Sequence[Cell], out: Path
) -> None:
    """The outcomes of tested runs, and of Table 8 their report."""
    outcomes = [tested(experiment, run, cell) for run, cell in zip(runs, cells, strict=True)]
    of_table8 = experiment.name == "table8"
    whys = [
        (Path(run.name).name, list(_video_departures(run, cell, of_table8=of_table8)))
        for run, cell in zip(runs, cells, strict=True)
    ]
    if of_table8:
        report = out / "report.html"
        check_writable(report)
        write_text(report, page(runs))
        print(f"wrote {printable(report)}")
    _write(experiment, outcomes, _told_once(whys), out)


def _experiment(arguments: argparse.Namespace) -> Experiment:
    """The experiment that the command line describes.

    Raises:
        ConfigError: an option belongs to another one, or a number makes no sense.
    """
    sweep = arguments.experiment == SWEEP
    for name in ("batches", "configs"):
        if getattr(arguments, name) is not None and not sweep:
            raise ConfigError(f"--{name} is for {SWEEP}; the cells of a table are what they are")
    for name, least in (("batches", 1), ("seeds", 0)):
        low = [number for number in getattr(arguments, name) or () if number < least]
        if low:
            raise ConfigError(f"--{name} {low[0]}: must be {least} or more")
    if sweep:
        recipes = _recipes(arguments.configs or SWEPT)
        experiment = batch_sweep(recipes, arguments.batches or BATCHES)
    else:
        experiment = TABLES[arguments.experiment]()
    return with_seeds(experiment, arguments.seeds) if arguments.seeds else experiment


def _recipes(configs: Sequence[str]) -> list[Recipe]:
    """A row for each config, called by its norm, or by its file where norms are not enough."""
    paths = [config_file(name) for name in configs]
    norms = [load_config(path).config.model.norm for path in paths]
    by_norm = len(set(norms)) == len(norms)
    names = [
        norm.upper() if by_norm else path.stem for norm, path in zip(norms, paths, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ConfigError(f"--configs: {' '.join(configs)}: two of them have one name")
    found = zip(names, configs, norms, strict=True)
    return [Recipe(name, config, norm) for name, config, norm in found]


def _world_size(gpus: int | None) -> int:
    available = torch.cuda.device_count()
    if gpus is None:
        return max(1, available)
    if gpus < 1:
        raise RunError(f"--gpus {gpus} makes no sense; give 1 or more")
    if available and gpus > available:
        raise RunError(f"--gpus {gpus}: this machine has {available} GPUs")
    return gpus


def _collect(experiment: Experiment, arguments: argparse.Namespace) -> int:
    others = (arguments.data, arguments.overrides, arguments.only, arguments.gpus)
    if any(others) or arguments.dry_run:
        raise ConfigError(
            "--collect shows runs and trains none: leave --data, --only, --gpus, --dry-run and "
            "key=value out"
        )
    folders = [Path(name) for name in arguments.collect]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("--collect: a run is named twice; name each once")
    if experiment.images:
        settings = [image_setting(folder) for folder in folders]
        for folder in folders:
            check_complete(folder, read_pretraining(folder)["last"]["iteration"])
    else:
        runs = read_tests(arguments.collect)
        settings = [run.setting for run in runs]
        for run in runs:
            # The best weights may be of any iteration.
            if run.training is not None and run.results.get("weights") != "best":
                check_complete(run.training.folder, run.results.get("iteration"))
    cells = [
        placed(experiment, setting, str(folder))
        for folder, setting in zip(folders, settings, strict=True)
    ]
    if experiment.images:
        _show(experiment, dict(zip(folders, cells, strict=True)), arguments.out)
    else:
        _show_tests(experiment, runs, cells, arguments.out)
    return 0


def _write(
    experiment: Experiment, outcomes: Sequence[Outcome], told: Sequence[str], out: Path
) -> None:
    """Print the table and write it, its numbers and its picture.

    Args:
        told: what is not as in the paper or in the configs.
    """
    found = entries(experiment, outcomes)
    print()
    whose = "their configs" if experiment.name == SWEEP else "the paper"
    departed = ["", f"not as in {whose}:", "", *(f"- {line}" for line in told)] if told else []
    for line in (*text_table(experiment, found), *departed):
        print(line)
    parts = [markdown_table(experiment, found), run_table(outcomes, experiment.images)]
    files = {
        f"{experiment.name}.md": "\n".join([*parts, *departed[1:]]).rstrip("\n") + "\n",
        f"{experiment.name}.json": json_table(experiment, found),
    }
    for name, text in files.items():
        check_writable(out / name)
        write_text(out / name, text)
    names = [*files]
    if has_plot(experiment):
        names.append(f"{experiment.name}.png")
        draw_sweep(experiment, found, out / names[-1])
    logs = [(one.run.name, RunFolder(one.run).log) for one in outcomes]
    percentiles = f"{experiment.name}_percentiles.png"
    if draw_side_by_side([one for one in logs if one[1].is_file()], out / percentiles):
        names.append(percentiles)
    print(f"wrote {', '.join(printable(out / name) for name in names)}", flush=True)


def _image_departures(folder: Path, cell: Cell) -> list[str]:
    return list(image_departures(folder, load_config(config_file(cell.config)).config))


def _video_departures(run: TestedRun, cell: Cell, *, of_table8: bool) -> Iterator[str]:
    """What is not as in the paper, or, of a sweep, as in its config."""
    if run.results.get("weights") == "best":
        yield "the weights are those of the best validation, not the last ones"
    if not of_table8:
        if run.training is not None:
            shipped = load_config(config_file(cell.config)).config
            yield from config_departures(run.training.folder, shipped, but=COUNTED)
        return
    place = cell_of(run.setting, run.results.get("weights"))
    if isinstance(place, str):
        yield place
    yield from departures(run.setting, run.results["num_videos"])


def _told_once(whys: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """What of runs is not the paper's, one line for all runs that it is true of.

    Args:
        whys: name of each run and a sentence on each thing.
    """
    told: dict[str, list[str]] = {}
    for name, sentences in whys:
        for why in sentences:
            told.setdefault(why, []).append(name)
    return [
        f"{why} ({'all' if len(names) == len(whys) else ', '.join(names)})"
        for why, names in told.items()
    ]
