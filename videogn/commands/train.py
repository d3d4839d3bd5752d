"""Train a network from a config, on one or many GPUs."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch

from videogn.commands.launching import launch, must_launch
from videogn.commands.run_parts import (
    Prepared,
    build_run,
    check_compute,
    check_percentile_layer,
    execution_on,
    freeze,
    memory_plan,
    train_batches,
    validation,
)
from videogn.commands.setup import (
    SAMPLED_VIDEOS,
    build_model,
    check_augmentation,
    check_network,
    input_scale,
    list_of,
    reader_lines,
    reporter,
    say,
    spec_of,
    video_opener,
)
from videogn.config import STILL_ARCHS, Config
from videogn.config_files import LoadedConfig, load_config
from videogn.data.annotations import spread
from videogn.data.limits import limited_memory
from videogn.data.list_checks import VideoRecord
from videogn.distributed import World, from_first_rank, gather_over_ranks, joined_world
from videogn.engine.arithmetic import set_arithmetic
from videogn.engine.checkpoint import TrainingState
from videogn.engine.lock import run_lock
from videogn.engine.memory_plan import memory_told
from videogn.engine.plan import TrainPlan, make_plan
from videogn.engine.rehearsal import rehearse
from videogn.engine.resuming import share_batch
from videogn.engine.runs import RunFolder, RunLog, check_folder, check_lists, claim
from videogn.engine.trainer import Run, set_training, train, train_step
from videogn.errors import ConfigError, DecodeError, RunError
from videogn.files import write_text
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import WeightFile, check_backbone, read_weights
from videogn.stopping import EXIT_CODE, stop_request
from videogn.watchdog import Watchdog

COLLECTIVE_FACTOR = 1.5
"""Ranks wait for each other a little longer than the watchdog, whose message says more."""


def add_arguments(
    parser: argparse.ArgumentParser, example: str = "configs/kinetics400/i3d_r50_gn_32x2_b8.yaml"
) -> None:
    """The options of ``videogn train``."""
    parser.add_argument("config", help=f"YAML file, such as {example}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values to change")
    parser.add_argument("--gpus", type=int, metavar="N", help="processes to start, one per GPU")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check config, lists, 20 videos, weights and memory, print the plan, then stop",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check everything a run needs, then train."""
    loaded = load_config(arguments.config, arguments.overrides)
    if must_launch(arguments.gpus):
        # Whatever is wrong is said once here, before any rank starts.
        prepare(loaded, arguments.gpus)
        return EXIT_CODE if stop_request.made else launch(arguments.gpus, _words(arguments))
    timeout = loaded.config.train.timeout
    with joined_world(COLLECTIVE_FACTOR * timeout) as world:
        prepared = prepare(loaded, world.size)
        set_arithmetic(prepared.config.train.precision, fixed_shapes=True)
        if arguments.dry_run:
            return dry_run(prepared, world)
        with _locked(prepared.folder, world), Watchdog(world, timeout) as watch:
            return train_prepared(prepared, world, watch)


def _words(arguments: argparse.Namespace) -> list[str]:
    dry_run_word = ["--dry-run"] if arguments.dry_run else []
    return ["train", arguments.config, *dry_run_word, *arguments.overrides]


def prepare(loaded: LoadedConfig, world_size: int) -> Prepared:
    """Read the lists and the weight file, and check that they and the config agree."""
    check_augmentation(loaded.config)
    config = _keep_batch(loaded.config, world_size)
    check_compute(config)
    folder = RunFolder(Path(config.out))
    check_folder(folder, config)
    num_classes = config.model.num_classes
    weights = _read_weights(config.model.weights) if config.model.weights else None
    if weights is not None:
        check_backbone(spec_of(config.model), weights)
    same_classes = weights is not None and weights.info.spec.num_classes == num_classes
    names = weights.info.class_names if weights and same_classes else None
    train_list = list_of(config.data, "train", num_classes, names)
    val_list = None
    if config.data.val:
        val_list = list_of(config.data, "val", num_classes, names or train_list.class_names)
    mean, std = input_scale(loaded, weights.info if weights else None, str(config.model.weights))
    info = WeightInfo(
        spec=spec_of(config.model),
        class_names=names or train_list.class_names,
        mean=mean,
        std=std,
        source=weights.info.source if weights else None,
        source_sha256=weights.info.source_sha256 if weights else None,
        temporal_init=weights.info.temporal_init if weights else None,
    )
    num_videos = len(train_list.records)
    plan = make_plan(
        config.train,
        num_videos=num_videos,
        world_size=world_size,
        norm=info.spec.norm,
        of_images=config.model.arch in STILL_ARCHS,
    )
    _check_distance(folder, config, plan)
    check_network(info.spec, config.clip)
    with torch.device("meta"):
        network = build_model(config.model, config.seed)
        freeze(network, config.train.freeze)
        check_percentile_layer(network, config)
    video_opener(config.data, "train")  # says now what is not installed
    prepared = Prepared(config, train_list, val_list, weights, info, plan)
    check_lists(folder, _lists(prepared))
    return prepared


def _read_weights(name: str) -> WeightFile:
    if not Path(name).exists():
        raise ConfigError(
            f"model.weights={name}: no such file; make it by `videogn inflate 2D_WEIGHTS -o "
            f"{name}`, name another, or set model.weights=null to start from random ones"
        )
    return read_weights(name)


def _keep_batch(config: Config, world_size: int) -> Config:
    """The config with as many clips per iteration as the run had that it goes on with.

    Raises:
        RunError: the GPUs cannot share them.
    """
    folder = RunFolder(Path(config.out))
    state = folder.checkpoints.peek()
    if state is None or config.resume == "never":
        return config
    try:
        clips, times = share_batch(
            state.global_batch,
            world_size=world_size,
            clips_per_gpu=config.train.clips_per_gpu,
            accumulation=config.train.accumulation,
        )
    except RunError as error:
        raise RunError(f"{folder.path}: {error}") from error
    return replace(config, train=replace(config.train, clips_per_gpu=clips, accumulation=times))


def _check_distance(folder: RunFolder, config: Config, plan: TrainPlan) -> None:
    """Refuse a run that has come further than it is to go.

    Raises:
        RunError: naming both iterations.
    """
    state = folder.checkpoints.peek()
    if state is None or config.resume == "never" or state.iteration <= plan.iterations:
        return
    epochs = config.train.epochs
    asked = f"train.iterations={plan.iterations}" if epochs is None else f"train.epochs={epochs:g}"
    raise RunError(
        f"{folder.path}: has {state.iteration:,} iterations already and {asked} asks for "
        f"{plan.iterations:,}; choose another out=, or more iterations"
    )


def _lists(prepared: Prepared) -> dict[str, Sequence[VideoRecord]]:
    lists: dict[str, Sequence[VideoRecord]] = {"train": prepared.train_list.records}
    if prepared.val_list is not None:
        lists["val"] = prepared.val_list.records
    return lists


@contextmanager
def _locked(folder: RunFolder, world: World) -> Iterator[None]:
    """The first rank keeps other runs out of the folder."""
    with run_lock(folder.lock) if world.is_main else nullcontext():
        yield


def train_prepared(prepared: Prepared, world: World, watch: Watchdog) -> int:
    """Train from the beginning, or from where the run folder's newest sound checkpoint stands.

    Returns:
        0, or the exit code of a run that a signal stopped.
    """
    folder, report = prepared.folder, reporter(world)
    # The first rank looks before it writes, and all take what it has found.
    newest = folder.checkpoints.newest_sound(report) if world.is_main else None
    resume_from = from_first_rank(newest)
    # Before a pass is captured, which would run out of memory and know less of the remedy.
    memory = memory_plan(prepared, world)
    run, state = build_run(prepared, world, memory, resume_from, report, watch.stage)
    if world.is_main:
        claim(folder, prepared.config, _lists(prepared))
        if resume_from is not None:
            folder.checkpoints.set_aside_after(resume_from)
            folder.checkpoints.point_last_to(resume_from)
        _announce(prepared, run, state)
    if state.iteration == prepared.plan.iterations == state.settled:
        report(f"{folder.path} is complete: {state.iteration:,} iterations are done")
        return 0
    seconds = rehearse(run, prepared.config.clip, memory)
    report(memory.line(graphs=run.captured))
    report(prepared.plan.ends_line(seconds, datetime.now().astimezone(), done=state.iteration))
    batches = train_batches(prepared, world, report, state.iteration, prepared.plan.iterations)
    with memory_told(memory, "training or validation", graphs=run.captured):
        state = train(run, state, batches, validation(prepared, run))
    if state.iteration == prepared.plan.iterations == state.settled:
        report(f"done: {folder.path}")
        return 0
    _tell_stopped(run, state)
    return EXIT_CODE


def _tell_stopped(run: Run, state: TrainingState) -> None:
    """Leave word that the run was stopped by a signal and is saved."""
    signals = gather_over_ranks(stop_request.signal.name if stop_request.signal else None)
    if not run.world.is_main:
        return
    name = next(name for name in signals if name)
    values = {"iteration": state.iteration, "signal": name}
    write_text(run.folder.preempted, json.dumps(values) + "\n")
    run.report(
        f"stopped by {name}: iteration {state.iteration:,} of {run.plan.iterations:,} is saved in "
        f"{run.folder.path}; the same command goes on from there (exit code {EXIT_CODE})"
    )


def _announce(prepared: Prepared, run: Run, state: TrainingState) -> None:
    for line in (*_header(prepared, run.world), *prepared.plan.lines()):
        run.report(line)
    if state.iteration:
        run.report(
            f"goes on     from iteration {state.iteration:,} in "
            f"{run.folder.checkpoints.path_of(state.iteration)}"
        )
    log = RunLog(run.folder.log)
    reported, settled = state.window.since, state.settled
    limits = {"train": reported, "val": settled, "failed_val_video": settled}
    log.cut_after(state.iteration, limits)
    values = prepared.plan.as_dict() | {
        "num_val_videos": len(prepared.val_list.records) if prepared.val_list else 0,
        "mean": list(prepared.info.mean),
        "std": list(prepared.info.std),
        "device": str(run.world.device),
        "torch": torch.__version__,
    }
    log.write("start", {"iteration": state.iteration, **values})


def _header(prepared: Prepared, world: World) -> Iterator[str]:
    spec, info = prepared.info.spec, prepared.info
    layout = f", layout {spec.layout}" if spec.family == "i3d" else ""
    yield (
        f"network     {spec.arch} {spec.norm}, {_norm_note(spec, prepared.plan)}{layout}, "
        f"{spec.num_classes} classes"
    )
    yield f"weights     {prepared.config.model.weights or 'random'}"
    yield f"compute     {execution_on(prepared, world)}"
    yield f"input       mean {_triple(info.mean)}  std {_triple(info.std)}"
    num_val = len(prepared.val_list.records) if prepared.val_list else 0
    yield f"videos      {prepared.plan.num_videos:,} to train on, {num_val:,} to validate on"
    yield from reader_lines(prepared.config.data, "train", prepared.train_list)


def _norm_note(spec: NetworkSpec, plan: TrainPlan) -> str:
    """What the norm layers take their statistics over."""
    per_group = spec.channels_per_group
    notes = {
        "bn": f"statistics over {plan.clips_per_gpu} clips of one GPU",
        "sync_bn": f"statistics over {plan.bn_batch} clips of all GPUs",
        "frozen_bn": "stored statistics, gamma and beta fixed",
        "gn": f"{per_group} channels per group" if per_group else f"{spec.num_groups} groups",
        "ln": "one group of all channels",
        "in": "one channel per group",
        "none": "no norm layers",
    }
    return notes[spec.norm]


def _triple(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def dry_run(prepared: Prepared, world: World) -> int:
    """Check videos, weights and memory, print the plan and the time it will take, and stop.

    Raises:
        RunError: a video of the sample cannot be read, or a step does not fit in memory.
    """
    if not world.is_main:
        return 0
    config, plan = prepared.config, prepared.plan
    for line in (*_header(prepared, world), *plan.lines()):
        say(line)
    records = [
        *prepared.train_list.records,
        *(prepared.val_list.records if prepared.val_list else ()),
    ]
    # Whole, whatever index there is.
    whole = video_opener(replace(config.data, index="never"), "train")
    _check_videos(spread(records, SAMPLED_VIDEOS), whole)
    memory = memory_plan(prepared, world)
    run, _ = build_run(prepared, World(0, 1, world.device), memory, None, say)
    say(memory.line(graphs=run.captured))
    with memory_told(memory, "a step", graphs=run.captured):
        say(_step_line(prepared, run))
    say("dry run: everything is in order; nothing was trained or written")
    return 0


def _check_videos(records: list[VideoRecord], reader: Callable[[str], object]) -> None:
    bad = []
    for record in records:
        try:
            with limited_memory():
                reader(record.path)
        except DecodeError as error:
            bad.append(str(error))
    if bad:
        lines = "".join(f"\n  - {line}" for line in bad)
        raise RunError(f"{len(bad)} of {len(records)} sampled videos cannot be read:{lines}")
    say(f"sample      {len(records)} videos decode whole")


class StepTime(NamedTuple):
    """Seconds of one measured iteration.

    Attributes:
        step: of the update.
        read: until its clips were there, workers' start included.
    """

    step: float
    read: float


def time_step(prepared: Prepared, run: Run) -> StepTime:
    """Measure the second of two iterations on the same clips."""
    times = prepared.plan.accumulation
    loader = train_batches(prepared, run.world, run.report, 0, 1)
    started = time.monotonic()
    batches = [next(loader) for _ in range(times)]
    read = time.monotonic() - started
    set_training(run.model, run.trained.network, run.frozen)
    train_step(run, batches, 0)  # the first step also allocates and tunes
    started = time.monotonic()
    train_step(run, batches, 1)
    return StepTime(time.monotonic() - started, read)


def _step_line(prepared: Prepared, run: Run) -> str:
    step, read = time_step(prepared, run)
    seconds = prepared.plan.iterations * step
    return (
        f"step        {step:.2f} s for {prepared.plan.clips_per_gpu} clips on {run.world.device} "
        f"(first batch read in {read:.2f} s); eta {seconds / 3600:.1f} h for "
        f"{prepared.plan.iterations:,} iterations, if reading keeps up and before validation"
    )
