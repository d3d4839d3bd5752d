"""A list that is scored: every video once, on any number of ranks, and on from where it was.

It is what ``test``, ``predict`` and ``features`` have in common once
:mod:`videogn.commands.test_parts` has checked what they read.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from videogn.commands.launching import launch, must_launch
from videogn.commands.options import with_short_forms
from videogn.commands.setup import (
    PROBE_SAMPLES,
    build_model,
    planar_room,
    reader_lines,
    reading_workers,
    reporter,
    spec_of,
    video_opener,
)
from videogn.commands.test_parts import Prepared
from videogn.config_files import LoadedConfig, load_config
from videogn.data.annotations import spread
from videogn.data.dataset import TestDataset, VideoViews
from videogn.data.loader import build_test_loader
from videogn.distributed import World, gather_over_ranks, joined_world
from videogn.engine.arithmetic import set_arithmetic
from videogn.engine.compute import Machine, choose_execution, replays_passes
from videogn.engine.evaluator import Scorer, VideoScore
from videogn.engine.journal import Journal
from videogn.engine.lock import run_lock
from videogn.engine.pass_size import Measure, make_pass_size
from videogn.engine.recipes import compiled, make_ready
from videogn.engine.replays import Replays
from videogn.engine.scoring import Listed, ReadingClock, score_list
from videogn.errors import RunError
from videogn.files import printable
from videogn.models.folding import fold_batch_norms
from videogn.models.weights import load_into
from videogn.stopping import EXIT_CODE, stop_request
from videogn.watchdog import Watchdog

COLLECTIVE_FACTOR = 1.5
"""The watchdog's message shall come before that of a reduction that has waited too long."""
MeasureOf = Callable[[nn.Module], Measure]


def run_on_ranks(
    arguments: argparse.Namespace,
    words: Sequence[str],
    check: Callable[[LoadedConfig], "Job"],
) -> int:
    """Check everything, start ranks where asked to, and score the list on them.

    Args:
        words: of the command line, for the ranks.
        check: prepares the job, or raises over what is wrong with it.

    Returns:
        0, or the exit code of a job that a signal stopped.
    """
    loaded = load_config(arguments.config, with_short_forms(arguments))
    launches = must_launch(arguments.gpus)
    # Whatever is wrong is said once here, before any rank starts.
    job = check(loaded)
    if launches:
        return EXIT_CODE if stop_request.made else launch(arguments.gpus, words)
    timeout = loaded.config.train.timeout
    with (
        joined_world(COLLECTIVE_FACTOR * timeout) as world,
        _locked(job.lock, world),
        Watchdog(world, timeout) as watch,
    ):
        if world.is_main:
            job.check()
        return job.run(world, watch)


@contextmanager
def _locked(lock: Path, world: World) -> Iterator[None]:
    """The first rank keeps other tests out of the folder."""
    with run_lock(lock) if world.is_main else nullcontext():
        yield


@dataclass(frozen=True)
class Job:
    """A list to be scored, and what becomes of the scores.

    Attributes:
        measure_of: what is kept of each view, by a network.
        journal: where scores are until all are there.
        lock: a file that keeps other jobs out.
        check: refuses a folder that holds something else; asked once more behind the lock, for
            which a job may have waited.
        finish: makes the results of all scores, in list order, on the first rank, also where
            every video failed; the last argument is the first rank's place.
    """

    prepared: Prepared
    measure_of: MeasureOf
    journal: Journal
    lock: Path
    check: Callable[[], None]
    finish: Callable[[list[VideoScore], World], None]

    def run(self, world: World, watch: Watchdog) -> int:
        """Score what is not scored yet, on this rank and the others.

        Raises:
            RunError: the ranks would not compute alike, or no video could be read.
        """
        prepared, waits = self.prepared, ReadingClock()
        _check_alike(prepared)
        # Videos have many shapes, and measuring for each would take longer than it gains.
        set_arithmetic(prepared.precision, fixed_shapes=False)
        listed = Listed(
            num_videos=len(prepared.videos.records),
            journal=self.journal,
            world=world,
            stop_asked=lambda: stop_request.made,
            tell=lambda scored: watch.stage("scoring", scored),
            report=reporter(world),
        )
        lines = reader_lines(prepared.config.data, "test", prepared.videos)
        for line in (*prepared.choice.notes, *lines):
            listed.report(line)

        def score(places: Sequence[int]) -> Iterator[VideoScore]:
            return _score(prepared, self.measure_of, world, places, waits, listed.report)

        pace = score_list(listed, score, waits)
        if pace is None:
            _tell_stopped(listed)
            return EXIT_CODE
        if pace.num_videos:
            listed.report(pace.line())
        if world.is_main:
            watch.stage("saving", 0)
            scored = listed.collected()
            self.finish(scored, world)
            self.journal.remove()
            self._check_any(scored)
        return 0

    def _check_any(self, scored: Sequence[VideoScore]) -> None:
        """Refuse a list of failures only, once its journal is gone: mended, it is tried anew.

        Raises:
            RunError: not one video could be read.
        """
        if any(score.arrays is not None for score in scored):
            return
        videos = self.prepared.videos
        first = scored[0]
        raise RunError(
            f"{printable(videos.source)}: none of its {len(scored)} videos could be read, such as "
            f"{printable(videos.records[first.place].name)}: {printable(first.reason)}"
        )


def partial_folder(file: Path) -> Path:
    """Where the scores of a job are until its one file of results is written."""
    return file.with_name(f"{file.name}.partial")


def job_of_file(
    prepared: Prepared,
    file: Path,
    identity: Mapping[str, Any],
    *,
    measure_of: MeasureOf,
    check: Callable[[], None],
    finish: Callable[[list[VideoScore], World], None],
) -> Job:
    """A job whose results are one file, with its journal and its lock beside it.

    Args:
        identity: what decides the scores; see :class:`Journal`.
        measure_of, check, finish: as :class:`Job` has them; the check is made here too.

    Raises:
        RunError: of the check, or another job has begun there.
    """
    check()
    journal = Journal(partial_folder(file), identity)
    journal.check()
    lock = file.with_name(f"{file.name}.lock")
    return Job(prepared, measure_of, journal, lock, check, finish)


def _check_alike(prepared: Prepared) -> None:
    """Refuse hosts of different kinds, of which each would choose for itself."""
    found = sorted(set(gather_over_ranks(f"{prepared.precision}, {prepared.choice.recipe}")))
    if len(found) > 1:
        raise RunError(
            f"the hosts of this test would compute differently ({' and '.join(found)}); set "
            "test.precision and test.recipe to what all of them have"
        )


def _score(
    prepared: Prepared,
    measure_of: MeasureOf,
    world: World,
    places: Sequence[int],
    waits: ReadingClock,
    report: Callable[[str], None],
) -> Iterator[VideoScore]:
    """Scores of the videos of these places."""
    scorer = _scorer(prepared, measure_of, world, report)
    data, dataset = prepared.config.data, _dataset(prepared, world)
    workers = reading_workers(data, world, dataset, spread(places, PROBE_SAMPLES), 1)
    videos: Iterator[VideoViews] = waits.timed(build_test_loader(dataset, places, workers))
    return scorer.scores(videos)


def _scorer(
    prepared: Prepared, measure_of: MeasureOf, world: World, report: Callable[[str], None]
) -> Scorer:
    config, precision, device = prepared.config, prepared.precision, world.device
    network = build_model(config.model, config.seed)
    load_into(network, spec_of(config.model), prepared.weights)
    network.to(device).eval()
    recipe = prepared.choice.recipe
    layout, replaying = _make_ready(prepared, network, device)
    # One shape to compile, whatever the memory and the number of views.
    fixed = config.test.views_per_pass or (1 if recipe == "compiled" else None)
    pass_size = make_pass_size(
        network,
        measure_of,
        fixed=fixed,
        precision=precision,
        device=device,
        sharing=world.local_size if device.type == "cpu" else 1,
        memory_format=layout,
    )
    measure, replays = measure_of(network), None
    if recipe == "compiled":
        measure = compiled(measure)
    if replaying:
        replays = Replays(measure, device, precision, layout, pass_size, report)
    return Scorer(
        measure=measure,
        device=device,
        mean=prepared.mean,
        std=prepared.std,
        precision=precision,
        pass_size=pass_size,
        memory_format=layout,
        replays=replays,
    )


def _make_ready(
    prepared: Prepared, network: nn.Module, device: torch.device
) -> tuple[torch.memory_format, bool]:
    """Bring a network into the form that is fastest on a device.

    Returns:
        The order in memory of its clips, and whether its passes become CUDA graphs.

    Raises:
        ConfigError: the config asks for a form that cannot be had here.
    """
    config, size = prepared.config, prepared.config.clip.crop_size
    view = (config.clip.num_frames, size, size)
    if device.type == "cpu":
        return make_ready(network, prepared.choice.recipe, view, prepared.precision), False
    # The training's choice of what to compute again is none of the test's.
    machine = Machine.of(device)
    execution = choose_execution(
        replace(config.compute, recompute="none"),
        spec_of(config.model),
        machine,
        precision=prepared.precision,
    )
    fold_batch_norms(network, view)
    execution.apply(network)
    return execution.memory_format, replays_passes(config.compute, execution, machine)


def _dataset(prepared: Prepared, world: World) -> TestDataset:
    config = prepared.config
    return TestDataset(
        prepared.videos.records,
        num_frames=config.clip.num_frames,
        frame_stride=config.clip.frame_stride,
        fps=config.clip.fps,
        **prepared.views._asdict(),
        protocol=config.test.protocol,
        short_side=config.clip.short_side_min,
        crop_size=config.clip.crop_size,
        open_video=video_opener(config.data, "test"),
        planar=planar_room(config.data, world.device) > 0,
    )


def _tell_stopped(listed: Listed) -> None:
    signals = gather_over_ranks(stop_request.signal.name if stop_request.signal else None)
    if not listed.world.is_main:
        return
    name = next(name for name in signals if name)
    done = len(listed.journal.places())
    listed.report(
        f"stopped by {name}: the scores of {done:,} of {listed.num_videos:,} videos are saved in "
        f"{listed.journal.folder}; the same command goes on from there (exit code {EXIT_CODE})"
    )
