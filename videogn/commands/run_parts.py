"""What a training run is made of: the network and its optimizer, the loaders, the validation."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from videogn.commands.setup import (
    PROBE_SAMPLES,
    build_model,
    reading_workers,
    train_clips,
    train_room,
    val_clips,
)
from videogn.config import Config, TrainConfig
from videogn.data.annotations import spread
from videogn.data.dataset import TrainDataset, ValDataset
from videogn.data.list_checks import VideoList
from videogn.data.loader import ClipBatch, TrainBatches, build_train_loader, build_val_loader
from videogn.data.shard_order import shard_order
from videogn.data.transforms import normalize
from videogn.data.workers import Workers
from videogn.distributed import World, any_rank
from videogn.engine.checkpoint import Trained, TrainingState, load_checkpoint
from videogn.engine.compute import Machine, choose_execution, uses_graphs
from videogn.engine.graphs import replayed
from videogn.engine.memory import is_out_of_memory
from videogn.engine.mixing import Mixing, make_mixing
from videogn.engine.optim import build_optimizer
from videogn.engine.plan import TrainPlan
from videogn.engine.precise_bn import update_statistics
from videogn.engine.runs import RunFolder
from videogn.engine.trainer import Run, ValidateNow, input_dtype, set_training, wrap_for_ranks
from videogn.engine.validation import Validation, autocast, validate
from videogn.errors import ConfigError, RunError
from videogn.models.execution import Execution
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import WeightFile, load_backbone
from videogn.stopping import stop_request
from videogn.watchdog import Stage


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs that can be checked without building the network."""

    config: Config
    train_list: VideoList
    val_list: VideoList | None
    weights: WeightFile | None
    info: WeightInfo
    plan: TrainPlan

    @property
    def folder(self) -> RunFolder:
        """Where the run is."""
        return RunFolder(Path(self.config.out))


def _untold(stage: Stage, iteration: int) -> None:
    del stage, iteration


def build_run(
    prepared: Prepared,
    world: World,
    resume_from: Path | None,
    report: Callable[[str], None],
    stage: Callable[[Stage, int], None] = _untold,
) -> tuple[Run, TrainingState]:
    """The network with its weights and all that trains it, and where it stands.

    Args:
        resume_from: checkpoint to go on from; None to begin.
        stage: is told what the process is about to do.
    """
    config, plan = prepared.config, prepared.plan
    network = build_model(config.model, config.seed)
    if prepared.weights is not None and resume_from is None:
        load_backbone(network, prepared.info.spec, prepared.weights)
    execution = train_execution(config, prepared.info.spec, Machine.of(world.device))
    network, layout = execution.apply(network, world.device), execution.memory_format
    freeze(network, config.train.freeze)
    trained = _trained(network, config.train, plan, world.device)
    state = TrainingState(iteration=0, global_batch=plan.global_batch)
    if resume_from is not None:
        state = load_checkpoint(resume_from, trained, prepared.info)
    train = config.train
    mixing = make_mixing(train.mixup_alpha, train.cutmix_alpha, config.model.num_classes)
    trains = state.iteration < plan.iterations
    run = Run(
        trained=trained,
        model=_callable(prepared, network, mixing, world, execution, trains=trains),
        info=prepared.info,
        plan=plan,
        recipe=train,
        world=world,
        folder=prepared.folder,
        seed=config.seed,
        report=report,
        memory_format=layout,
        name_of=lambda place: prepared.train_list.records[place].name,
        mixing=mixing,
        frozen=train.freeze,
        stop_asked=lambda: stop_request.made,
        stage=stage,
        refresh_statistics=_statistics(prepared, trained, world, layout),
    )
    return run, state


def _callable(
    prepared: Prepared,
    network: nn.Module,
    mixing: Mixing | None,
    world: World,
    execution: Execution,
    *,
    trains: bool,
) -> nn.Module:
    """The network as the step calls it.

    Args:
        trains: whether there are steps left.
    """
    config, model = prepared.config, network
    graphs = uses_graphs(
        config.compute,
        execution,
        Machine.of(world.device),
        accumulation=prepared.plan.accumulation,
        compiled=config.train.compile,
    )
    if graphs and trains:
        set_training(network, network, config.train.freeze)
        side = config.clip.crop_size
        clips = torch.zeros(
            (config.train.clips_per_gpu, 3, config.clip.num_frames, side, side),
            dtype=input_dtype(config.train, world.device, mixed=mixing is not None),
            device=world.device,
        )
        clips = clips.contiguous(memory_format=execution.memory_format)
        model = _captured(network, clips, config.train)
    model = wrap_for_ranks(model, world)
    return _compiled(model) if config.train.compile else model


def _captured(network: nn.Module, clips: Tensor, train: TrainConfig) -> nn.Module:
    try:
        return replayed(network, clips, train.precision)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise RunError(
                f"train.clips_per_gpu={train.clips_per_gpu}: a training pass ran out of memory "
                "while it was captured as CUDA graphs; set a smaller train.clips_per_gpu, "
                "compute.recompute=act+conv_c or compute.graphs=off"
            ) from error
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"a training pass cannot be captured as CUDA graphs here: {line}; set "
            "compute.graphs=off"
        ) from error


def _compiled(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return compiled


def train_execution(
    config: Config, spec: NetworkSpec, machine: Machine, *, precision: str | None = None
) -> Execution:
    """The form in which a config's network trains.

    Args:
        spec: the network, perhaps with another norm.
        precision: another than the config's.

    Raises:
        ConfigError: as :func:`choose_execution`.
    """
    train = config.train
    return choose_execution(
        config.compute,
        spec,
        machine,
        precision=precision or train.precision,
        memory_format=train.memory_format,
        compiled=train.compile,
    )


def freeze(network: nn.Module, names: tuple[str, ...]) -> None:
    """Keep parts of a network from being trained.

    Raises:
        ConfigError: the network has no part of a name, or nothing is left to train.
    """
    for name in names:
        try:
            network.get_submodule(name).requires_grad_(False)
        except AttributeError as error:
            parts = [part for part, _ in network.named_modules() if part.count(".") < 2 and part]
            raise ConfigError(
                f"train.freeze: the network has no part {name!r}; its parts are {', '.join(parts)}"
            ) from error
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(f"train.freeze={list(names)} leaves nothing to train")


def _trained(
    network: nn.Module, train: TrainConfig, plan: TrainPlan, device: torch.device
) -> Trained:
    optimizer = build_optimizer(
        network,
        learning_rate=plan.schedule.learning_rate,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        norm_weight_decay=train.norm_weight_decay,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    average = None
    if train.ema_decay is not None:
        rule = get_ema_multi_avg_fn(train.ema_decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=rule)
    return Trained(network, optimizer, scaler, average)


def train_batches(
    prepared: Prepared, world: World, report: Callable[[str], None], first: int, last: int
) -> Iterator[ClipBatch]:
    """This rank's batches, ``accumulation`` for each of the iterations first … last - 1."""
    config, times = prepared.config, prepared.plan.accumulation
    dataset = _train_dataset(prepared, world)
    keys = [(0, index) for index in spread(range(len(dataset)), PROBE_SAMPLES)]
    workers = reading_workers(config.data, world, dataset, keys, config.train.clips_per_gpu)
    where = (
        "on the device where that is less to send"
        if train_room(config, world.device)
        else "as they are read"
    )
    report(f"reading     {workers.line()}, clips finished {where}")
    return iter(_loader(prepared, world, dataset, workers, first * times, last * times))


def _train_dataset(prepared: Prepared, world: World) -> TrainDataset:
    clips = train_clips(prepared.config, "train", world.device)
    return TrainDataset(prepared.train_list.records, clips, prepared.config.seed)


def _loader(
    prepared: Prepared,
    world: World,
    dataset: TrainDataset,
    workers: Workers,
    first: int,
    last: int,
) -> Iterator[ClipBatch]:
    config = prepared.config
    batches = TrainBatches(
        num_videos=prepared.plan.num_videos,
        clips_per_gpu=config.train.clips_per_gpu,
        accumulation=prepared.plan.accumulation,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
        first_step=first,
        last_step=last,
        order=shard_order(prepared.train_list.records, config.data.shuffle_buffer),
    )
    return iter(build_train_loader(dataset, batches, workers))


def _statistics(
    prepared: Prepared, trained: Trained, world: World, layout: torch.memory_format
) -> Callable[[Callable[[], bool]], bool]:
    """Makes BN's stored statistics those of the present weights, as the first steps saw clips."""
    train = prepared.config.train
    if prepared.info.spec.norm != "bn" or train.precise_bn_batches == 0:
        return lambda stop_asked: True
    dataset = _train_dataset(prepared, world)
    wanted = min(train.precise_bn_batches, prepared.plan.num_videos // train.clips_per_gpu)
    num_batches = max(1, math.ceil(wanted / world.size))
    workers = reading_workers(
        prepared.config.data, world, dataset, [(0, 0)], train.clips_per_gpu
    ).at_most(num_batches)

    def clips() -> Iterator[Tensor]:
        for batch in _loader(prepared, world, dataset, workers, 0, num_batches):
            pixels = normalize(batch.clips_on(world.device), prepared.info.mean, prepared.info.std)
            yield pixels.contiguous(memory_format=layout)

    def refresh(stop_asked: Callable[[], bool]) -> bool:
        network = trained.evaluated
        set_training(network, network, train.freeze)
        with autocast(world.device, train.precision):
            return update_statistics(
                network, clips(), num_batches, world, lambda: any_rank(stop_asked(), world.device)
            )

    return refresh


def validation(prepared: Prepared, run: Run) -> ValidateNow | None:
    """Validates the present weights; None where there is no list for it."""
    if prepared.val_list is None:
        return None
    config, world = prepared.config, run.world
    clips = val_clips(config, world.device)
    dataset = ValDataset(prepared.val_list.records, clips, config.seed)
    shard, batch_size = world.shard(len(dataset)), config.train.clips_per_gpu
    num_rounds = math.ceil(math.ceil(len(dataset) / world.size) / batch_size)
    keys = spread(shard, PROBE_SAMPLES)
    workers = reading_workers(config.data, world, dataset, keys, batch_size)
    loader = build_val_loader(dataset, shard, batch_size, workers)

    def now(stop_asked: Callable[[], bool]) -> Validation | None:
        return validate(
            run.trained.evaluated,
            loader,
            num_rounds,
            run.info,
            run.world,
            config.train.precision,
            stop_asked,
        )

    return now
