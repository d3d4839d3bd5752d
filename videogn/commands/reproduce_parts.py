"""The trainings of an experiment: what they are called with, where they stand, and running them."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videogn.commands.launching import launch
from videogn.commands.shipped import config_file
from videogn.commands.step_time import Asked, Found, look_ahead
from videogn.config import Config
from videogn.config_files import load_config, to_tree
from videogn.engine.experiments import Cell, Experiment, keep_epochs
from videogn.engine.outcomes import asked_iterations, has_outcome, read_pretraining
from videogn.engine.plan import duration
from videogn.engine.runs import RunFolder, check_folder
from videogn.engine.test_folder import INSIDE, read_results
from videogn.errors import ConfigError, RunError
from videogn.stopping import EXIT_CODE, stop_request

NORM = "{norm}"
"""Stands in words for the norm of the cell."""
TEST_SECTIONS = ("test.", "data.")
SIGNALLED = 128
"""Exit codes above it are of signals."""


@dataclass(frozen=True)
class Job:
    """One cell on this machine.

    Attributes:
        words: ``key=value`` behind the config of its training.
        test_words: those behind the config of its test.
    """

    cell: Cell
    path: Path
    words: tuple[str, ...]
    test_words: tuple[str, ...]
    config: Config

    @property
    def folder(self) -> RunFolder:
        """Where it is trained."""
        return RunFolder(Path(self.config.out))


@dataclass(frozen=True)
class Standing:
    """How far a job has come.

    Attributes:
        done: finished iterations.
        finished: whether its outcome is there.
        tested_on: the list of its test, where that is another than the one asked for now.
    """

    done: int
    finished: bool
    tested_on: str | None = None


def make_job(
    cell: Cell, out: Path, data: Sequence[str], words: Sequence[str], world_size: int
) -> Job:
    """What a cell's commands are called with.

    Args:
        data: the words of its lists.
        words: of the user.

    Raises:
        ConfigError: the config is wrong, or a word would make the cell another.
    """
    path = config_file(cell.config)
    _check_words(cell, words)
    given = [f"out={out / cell.name}", *data, *cell.overrides]
    norm = load_config(path, given).config.model.norm
    words = [word.replace(NORM, norm) for word in words]
    # What the user counts in iterations is counted as in the config: at its base batch.
    every = (*given, *words, *_kept(load_config(path, [*given, *words]).config, world_size))
    return Job(
        cell=cell,
        path=path,
        words=every,
        test_words=tuple(word for word in words if word.startswith(TEST_SECTIONS)),
        config=load_config(path, every).config,
    )


def _check_words(cell: Cell, words: Sequence[str]) -> None:
    for word in words:
        key = word.partition("=")[0]
        if key in cell.settings or key == "out":
            raise ConfigError(
                f"{word}: {key} is what the cells of this experiment are told apart by; leave it "
                "out (--only chooses cells, --out the folder)"
            )


def _kept(config: Config, world_size: int) -> Iterator[str]:
    """The counts of iterations at the batch that the run has, or will have."""
    train = config.train
    state = RunFolder(Path(config.out)).checkpoints.peek()
    # A run keeps the batch that it began with, on however many GPUs it goes on.
    begun = train.clips_per_gpu * world_size * train.accumulation
    return keep_epochs(train, begun if state is None else state.global_batch)


def standing(job: Job, experiment: Experiment) -> Standing:
    """How far a job has come, by what its folder holds.

    Raises:
        RunError: the folder holds another run, or another test.
    """
    folder = job.folder
    check_folder(folder, job.config)
    state = folder.checkpoints.peek()
    done = 0 if state is None else state.iteration
    if state is None or not has_outcome(folder.path, images=experiment.images):
        return Standing(done, finished=False)
    other = None
    if experiment.images:
        reached = read_pretraining(folder.path)["last"]["iteration"]
    else:
        test = folder.path / INSIDE[0]
        results = read_results(test)
        _check_test(test, results, job)
        reached = results.get("iteration")
        other = results.get("list") if results.get("list") != job.config.data.test else None
    asked = asked_iterations(folder.path)
    at_end = reached == done == asked and not _goes_further(folder, job)
    return Standing(done, finished=at_end, tested_on=other)


def _check_test(test: Path, results: dict[str, Any], job: Job) -> None:
    was = (results.get("config") or {}).get("test")
    now = to_tree(job.config)["test"]
    if was != now:
        raise RunError(
            f"{test}: holds another test: its config says test: {was}, and now it is {now}; "
            "remove the folder, or give the words of then"
        )


def _goes_further(folder: RunFolder, job: Job) -> bool:
    """Whether the job is longer than what its folder was last started with."""
    was = load_config(folder.config).config.train
    now = job.config.train
    return (was.iterations, was.epochs) != (now.iterations, now.epochs)


@dataclass(frozen=True)
class Planned:
    """A job, where it stands, and what it will take where it has to be trained."""

    job: Job
    standing: Standing
    found: Found | None

    @property
    def seconds(self) -> float | None:
        """Of the iterations that are left; None where no step was measured."""
        if self.found is None:
            return 0.0
        if self.found.time is None:
            return None
        return (self.found.plan.iterations - self.standing.done) * self.found.time.step


def plan_jobs(jobs: Sequence[Job], experiment: Experiment, world_size: int) -> list[Planned]:
    """Check every job that is not finished, and measure a step of each kind of them.

    Raises:
        UserError: the first thing that is wrong with one of them.
    """
    standings = [standing(job, experiment) for job in jobs]
    left = [job for job, how in zip(jobs, standings, strict=True) if not how.finished]
    for job in left:
        _check_shares(job, world_size)
    timed: dict[tuple[str, tuple[str, ...]], int] = {}
    asked = []
    for place, job in enumerate(left):
        # Seeds and folders cost the same.
        kind = str(job.path), _without(job.words, ("seed", "out"))
        asked.append(Asked(job.path, job.words, timed=timed.setdefault(kind, place) == place))
    found = look_ahead(asked, world_size)
    for place, job in enumerate(left):
        first = timed[str(job.path), _without(job.words, ("seed", "out"))]
        found[place] = Found(found[place].plan, found[first].time)
    of_job = dict(zip((job.cell.name for job in left), found, strict=True))
    return [
        Planned(job, how, of_job.get(job.cell.name))
        for job, how in zip(jobs, standings, strict=True)
    ]


def _check_shares(job: Job, world_size: int) -> None:
    """Refuse GPUs on which a run would go on with fewer clips on each, and be another cell.

    Raises:
        RunError: naming the numbers of GPUs that keep them.
    """
    state, clips = job.folder.checkpoints.peek(), job.config.train.clips_per_gpu
    if state is None or state.global_batch % (clips * world_size) == 0:
        return
    shares = state.global_batch // clips
    fitting = [str(number) for number in range(1, shares + 1) if shares % number == 0]
    raise RunError(
        f"{job.folder.path}: was begun with {state.global_batch} clips per iteration, {clips} on "
        f"each GPU, and {world_size} GPUs cannot take as many each; go on with --gpus "
        f"{' or '.join(fitting)}"
    )


def _without(words: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word.partition("=")[0] not in keys)


def plan_lines(planned: Sequence[Planned], world_size: int) -> Iterator[str]:
    """The plan as a table, and how long all of it will take."""
    head = ("cell", "iterations", "epochs", "lr", "clips/GPU", "GPUs", "s/step", "hours", "state")
    rows = [head, *(_plan_row(one, world_size) for one in planned)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    for row in rows:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
    seconds = [one.seconds for one in planned]
    if any(seconds):
        total = sum(one for one in seconds if one is not None)
        yield (
            f"{total / 3600:.1f} hours of training are left ({duration(total)}), by steps measured "
            "on one device; reading that does not keep up, validations and tests come on top"
        )


def _plan_row(one: Planned, world_size: int) -> tuple[str, ...]:
    name, how = one.job.cell.name, one.standing
    if one.found is None:
        clips = str(one.job.config.train.clips_per_gpu)
        # The same videos may lie elsewhere now; whether they do is not looked at.
        where = f", tested on {how.tested_on}" if how.tested_on else ""
        return name, f"{how.done:,}", "", "", clips, "", "", "", f"finished{where}"
    plan, time = one.found
    state = "missing"
    if how.done:
        state = f"{how.done:,} done" if how.done < plan.iterations else "trained, not tested"
    return (
        name,
        f"{plan.iterations:,}",
        f"{plan.epochs:.1f}",
        f"{plan.schedule.learning_rate:g}",
        str(plan.clips_per_gpu),
        str(world_size),
        "" if time is None else f"{time.step:.3g}",
        "" if one.seconds is None else f"{one.seconds / 3600:.1f}",
        state,
    )


def commands_of(job: Job, experiment: Experiment) -> list[list[str]]:
    """The commands that a job is, as words behind ``videogn``."""
    first = "pretrain" if experiment.images else "train"
    training = [first, str(job.path), *job.words]
    if experiment.images:
        return [training]
    folder = job.folder
    test = ["test", str(folder.config), "--checkpoint", str(folder.path), *job.test_words]
    return [training, test]


def shown(words: Sequence[str], world_size: int) -> str:
    """A command as it would be typed."""
    gpus = ["--gpus", str(world_size)] if world_size > 1 else []
    return f"videogn {shlex.join([*words, *gpus])}"


def run_job(job: Job, experiment: Experiment, world_size: int) -> int:
    """Run a job's commands, each as a job of ranks of its own, and return the first failure's code.

    What is done already ends at once.
    """
    for words in commands_of(job, experiment):
        if stop_request.made:
            return EXIT_CODE
        print(f"\n$ {shown(words, world_size)}", flush=True)
        code = launch(world_size, words)
        if code:
            return code
    return 0


def run_jobs(planned: Sequence[Planned], experiment: Experiment, world_size: int) -> int:
    """Run every job that is not finished; one that fails does not keep the others from running.

    Returns:
        0, the first failure's code, or that of the signal that stopped all.
    """
    failures: dict[str, int] = {}
    for one in planned:
        if one.standing.finished:
            continue
        code = run_job(one.job, experiment, world_size)
        if code == EXIT_CODE or code >= SIGNALLED:
            return code
        if code:
            failures[one.job.cell.name] = code
            print(f"videogn: {one.job.cell.name} failed; going on with the others", flush=True)
    if failures:
        told = ", ".join(f"{name} (exit code {code})" for name, code in failures.items())
        print(f"failed: {told}; the same command tries them again", flush=True)
    return next(iter(failures.values()), 0)


def finished_jobs(jobs: Sequence[Job], experiment: Experiment) -> Iterator[Job]:
    """The jobs whose outcomes are what is asked for now; a line for each that has another one."""
    for job in jobs:
        if not has_outcome(job.folder.path, images=experiment.images):
            continue
        try:
            finished, why = standing(job, experiment).finished, "its numbers are of another length"
        except RunError as error:
            finished, why = False, str(error)
        if finished:
            yield job
        else:
            print(f"not shown: {job.cell.name}: {why}", flush=True)


def chosen(experiment: Experiment, only: Sequence[str]) -> list[Cell]:
    """The cells of an experiment, or those whose names begin with a word of ``only``.

    A number is meant whole: ``bn_b1`` is not the beginning of ``bn_b16``.

    Raises:
        ConfigError: a word is the beginning of none.
    """
    for word in only:
        if not any(_begins(cell.name, word) for cell in experiment.cells):
            names = ", ".join(cell.name for cell in experiment.cells)
            raise ConfigError(f"--only {word}: no cell's name begins so; they are {names}")
    return [
        cell
        for cell in experiment.cells
        if not only or any(_begins(cell.name, word) for word in only)
    ]


def _begins(name: str, word: str) -> bool:
    cut_number = word[-1:].isdigit() and name[len(word) :][:1].isdigit()
    return word != "" and name.startswith(word) and not cut_number
