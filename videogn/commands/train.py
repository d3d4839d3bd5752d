"""Train a network from a config, on one or many GPUs."""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from videogn.commands.launching import launch, must_launch
from videogn.commands.setup import (
    PROBE_SAMPLES,
    SAMPLED_VIDEOS,
    build_model,
    check_augmentation,
    check_network,
    input_scale,
    list_of,
    planar_room,
    reader_lines,
    reading_workers,
    spec_of,
    train_clips,
    val_clips,
    video_opener,
)
from videogn.config import Config
from videogn.config_files import LoadedConfig, load_config
from videogn.data.annotations import spread
from videogn.data.dataset import TrainDataset, ValDataset
from videogn.data.limits import limited_memory
from videogn.data.list_checks import VideoList, VideoRecord
from videogn.data.loader import ClipBatch, TrainBatches, build_train_loader, build_val_loader
from videogn.data.shard_order import shard_order
from videogn.distributed import World, barrier, joined_world
from videogn.engine.checkpoint import TrainingState, load_checkpoint
from videogn.engine.optim import build_optimizer
from videogn.engine.plan import TrainPlan, make_plan, probe_memory
from videogn.engine.runs import RunFolder, RunLog, check_folder, claim
from videogn.engine.trainer import Run, Validation, train, train_step, validate, wrap_for_ranks
from videogn.errors import DecodeError, RunError
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import WeightFile, check_spec, load_into, read_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn train``."""
    parser.add_argument(
        "config", help="YAML file, such as configs/kinetics400/i3d_r50_gn_32x2_b8.yaml"
    )
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
        return launch(arguments.gpus, _words(arguments))
    with joined_world() as world:
        prepared = prepare(loaded, world.size)
        if arguments.dry_run:
            return dry_run(prepared, world)
        train_prepared(prepared, world)
    return 0


def _words(arguments: argparse.Namespace) -> list[str]:
    dry_run_word = ["--dry-run"] if arguments.dry_run else []
    return ["train", arguments.config, *dry_run_word, *arguments.overrides]


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs that can be checked without building the network."""

    config: Config
    train_list: VideoList
    val_list: VideoList | None
    weights: WeightFile | None
    info: WeightInfo
    plan: TrainPlan


def prepare(loaded: LoadedConfig, world_size: int) -> Prepared:
    """Read the lists and the weight file, and check that they and the config agree."""
    config = loaded.config
    check_augmentation(config)
    check_folder(RunFolder(Path(config.out)), config)
    num_classes = config.model.num_classes
    weights = read_weights(config.model.weights) if config.model.weights else None
    if weights is not None:
        check_spec(spec_of(config.model), weights)
    names = weights.info.class_names if weights else None
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
    plan = make_plan(config.train, num_videos=len(train_list.records), world_size=world_size)
    check_network(info.spec, config.clip)
    video_opener(config.data, "train")  # says now what is not installed
    return Prepared(config, train_list, val_list, weights, info, plan)


def train_prepared(prepared: Prepared, world: World) -> TrainingState:
    """Train from the beginning, or from where the run folder's last checkpoint stands."""
    config = prepared.config
    folder = RunFolder(Path(config.out))
    # Every rank looks before rank 0 writes, and all see the same state of the folder.
    goes_on = folder.last.exists()
    barrier()
    run, state = _build(prepared, world, folder, goes_on)
    if world.is_main:
        claim(folder, config)
    barrier()
    if world.is_main:
        _announce(prepared, run, state)
    if state.iteration == prepared.plan.iterations:
        run.report(f"{folder.path} is complete: {state.iteration:,} iterations are done")
        return state
    train_loader = _train_loader(prepared, run, state.iteration)
    validate_now = _validation(prepared, run)
    state = train(run, state, iter(train_loader), validate_now)
    run.report(f"done: {folder.path}")
    return state


def _build(
    prepared: Prepared, world: World, folder: RunFolder, goes_on: bool
) -> tuple[Run, TrainingState]:
    config, plan = prepared.config, prepared.plan
    network = build_model(config.model, config.seed)
    if prepared.weights is not None and not goes_on:
        load_into(network, prepared.info.spec, prepared.weights)
    network.to(world.device)
    optimizer = build_optimizer(
        network,
        learning_rate=plan.schedule.learning_rate,
        momentum=config.train.momentum,
        weight_decay=config.train.weight_decay,
        norm_weight_decay=config.train.norm_weight_decay,
    )
    state = TrainingState(
        iteration=0, global_batch=plan.global_batch, best_top1=-1.0, failed_videos={}
    )
    if goes_on:
        state = load_checkpoint(folder.last, network, prepared.info, optimizer)
        _check_position(folder, state, plan)
    run = Run(
        network=network,
        model=wrap_for_ranks(network, world),
        optimizer=optimizer,
        info=prepared.info,
        plan=plan,
        recipe=config.train,
        world=world,
        folder=folder,
        seed=config.seed,
        report=_say if world.is_main else _say_nothing,
    )
    return run, state


def _check_position(folder: RunFolder, state: TrainingState, plan: TrainPlan) -> None:
    if state.global_batch != plan.global_batch:
        raise RunError(
            f"{folder.last}: was trained with {state.global_batch} clips per iteration, this job "
            f"has {plan.global_batch} ({plan.clips_per_gpu} x {plan.world_size}), and the order of "
            "the samples depends on it: go on with "
            f"{state.global_batch // plan.clips_per_gpu} processes, or choose another out="
        )


def _announce(prepared: Prepared, run: Run, state: TrainingState) -> None:
    for line in (*_header(prepared), *prepared.plan.lines()):
        run.report(line)
    if state.iteration:
        run.report(f"goes on     from iteration {state.iteration:,} of {run.folder.last}")
    log = RunLog(run.folder.log)
    log.cut_after(state.iteration)
    values = prepared.plan.as_dict() | {
        "num_val_videos": len(prepared.val_list.records) if prepared.val_list else 0,
        "mean": list(prepared.info.mean),
        "std": list(prepared.info.std),
        "device": str(run.world.device),
        "torch": torch.__version__,
    }
    log.write("start", {"iteration": state.iteration, **values})


def _header(prepared: Prepared) -> Iterator[str]:
    spec, info = prepared.info.spec, prepared.info
    layout = f", layout {spec.layout}" if spec.family == "i3d" else ""
    yield (
        f"network     {spec.arch} {spec.norm}, {_norm_note(spec, prepared.plan)}{layout}, "
        f"{spec.num_classes} classes"
    )
    yield f"weights     {prepared.config.model.weights or 'random'}"
    yield f"input       mean {_triple(info.mean)}  std {_triple(info.std)}"
    num_val = len(prepared.val_list.records) if prepared.val_list else 0
    yield f"videos      {prepared.plan.num_videos:,} to train on, {num_val:,} to validate on"
    yield from reader_lines(prepared.config.data, "train", prepared.train_list)


def _norm_note(spec: NetworkSpec, plan: TrainPlan) -> str:
    """What the norm layers take their statistics over."""
    per_group = spec.channels_per_group
    notes = {
        "bn": f"statistics over {plan.clips_per_gpu} clips of one GPU",
        "sync_bn": f"statistics over {plan.global_batch} clips of all GPUs",
        "frozen_bn": "stored statistics, gamma and beta fixed",
        "gn": f"{per_group} channels per group" if per_group else f"{spec.num_groups} groups",
        "ln": "one group of all channels",
        "in": "one channel per group",
        "none": "no norm layers",
    }
    return notes[spec.norm]


def _triple(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _train_loader(prepared: Prepared, run: Run, first_step: int) -> Iterator[ClipBatch]:
    config, world = prepared.config, run.world
    clips_per_gpu = config.train.clips_per_gpu
    batches = TrainBatches(
        num_videos=prepared.plan.num_videos,
        clips_per_gpu=clips_per_gpu,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
        first_step=first_step,
        last_step=prepared.plan.iterations,
        order=shard_order(prepared.train_list.records, config.data.shuffle_buffer),
    )
    clips = train_clips(config, "train", world.device)
    dataset = TrainDataset(prepared.train_list.records, clips, config.seed)
    keys = [(0, index) for index in spread(range(len(dataset)), PROBE_SAMPLES)]
    workers = reading_workers(config.data, world, dataset, keys, clips_per_gpu)
    run.report(f"reading     {workers.line()}, clips finished {_where(config, world)}")
    return iter(build_train_loader(dataset, batches, workers))


def _where(config: Config, world: World) -> str:
    if config.train.rand_augment or not planar_room(config.data, world.device):
        return "as they are read"
    return "on the device where that is less to send"


def _validation(prepared: Prepared, run: Run) -> Callable[[], Validation] | None:
    if prepared.val_list is None:
        return None
    config, world = prepared.config, run.world
    clips = val_clips(config, world.device)
    dataset = ValDataset(prepared.val_list.records, clips, config.seed)
    shard, batch_size = world.shard(len(dataset)), config.train.clips_per_gpu
    keys = spread(shard, PROBE_SAMPLES)
    workers = reading_workers(config.data, world, dataset, keys, batch_size)
    loader = build_val_loader(dataset, shard, batch_size, workers)

    def now() -> Validation:
        return validate(run.network, loader, run.info, run.world, config.train.precision)

    return now


def dry_run(prepared: Prepared, world: World) -> int:
    """Check videos, weights and memory, print the plan and the time it will take, and stop.

    Raises:
        RunError: a video of the sample cannot be read, or a step does not fit in memory.
    """
    if not world.is_main:
        return 0
    config, plan = prepared.config, prepared.plan
    for line in (*_header(prepared), *plan.lines()):
        _say(line)
    records = [
        *prepared.train_list.records,
        *(prepared.val_list.records if prepared.val_list else ()),
    ]
    # Whole, whatever index there is.
    whole = video_opener(replace(config.data, index="never"), "train")
    _check_videos(spread(records, SAMPLED_VIDEOS), whole)
    lone = World(0, 1, world.device)
    run, _ = _build(prepared, lone, RunFolder(Path(config.out)), goes_on=False)
    sharing = plan.world_size if world.device.type == "cpu" else 1
    # Two clips where the plan has two: BN cannot train on one value per channel.
    num_clips = min(2, plan.clips_per_gpu)
    side = config.clip.crop_size
    memory = probe_memory(
        run.network,
        torch.zeros(num_clips, 3, config.clip.num_frames, side, side, device=world.device),
        clips_per_gpu=plan.clips_per_gpu,
        processes_on_device=sharing,
    )
    _say(memory.line())
    memory.check()
    _say(_step_time(prepared, run))
    _say("dry run: everything is in order; nothing was trained or written")
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
    _say(f"sample      {len(records)} videos decode whole")


def _step_time(prepared: Prepared, run: Run) -> str:
    """Seconds of one measured step, with its reading, and what the run will take at that pace."""
    loader = _train_loader(prepared, run, 0)
    started = time.monotonic()
    batch = next(loader)
    read = time.monotonic() - started
    train_step(run, batch, 0)  # the first step also allocates and tunes
    started = time.monotonic()
    train_step(run, batch, 1)
    step = time.monotonic() - started
    seconds = prepared.plan.iterations * step
    return (
        f"step        {step:.2f} s for {prepared.plan.clips_per_gpu} clips on {run.world.device} "
        f"(first batch read in {read:.2f} s); eta {seconds / 3600:.1f} h for "
        f"{prepared.plan.iterations:,} iterations, if reading keeps up and before validation"
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    del line
