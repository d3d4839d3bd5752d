"""What a training run is made of: the network and its optimizer, the loaders, the validation."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from videogn.commands.capturing import captured
from videogn.commands.setup import (
    PROBE_SAMPLES,
    build_model,
    reading_workers,
    spec_of,
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
from videogn.engine.arithmetic import autocast, dtype_of
from videogn.engine.checkpoint import Trained, TrainingState, load_checkpoint
from videogn.engine.compute import Machine, choose_execution, uses_graphs
from videogn.engine.memory_plan import MemoryPlan, check_memory
from videogn.engine.mixing import make_mixing
from videogn.engine.optim import build_optimizer
from videogn.engine.percentiles import find_layer
from videogn.engine.plan import TrainPlan
from videogn.engine.precise_bn import update_statistics
from videogn.engine.runs import RunFolder
from videogn.engine.trainer import Run, ValidateNow, input_dtype, set_training, wrap_for_ranks
from videogn.engine.validation import Validation, validate
from videogn.errors import ConfigError
from videogn.models.cpu_halves import make_sound
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
    memory: MemoryPlan,
    resume_from: Path | None,
    report: Callable[[str], None],
    stage: Callable[[Stage, int], None] = _untold,
) -> tuple[Run, TrainingState]:
    """The network with its weights and all that trains it, and where it stands.

    Args:
        memory: of a step, by which it is decided whether its passes are captured.
        resume_from: checkpoint to go on from; None to begin.
        stage: is told what the process is about to do.

    Raises:
        ConfigError: the config cannot be computed here.
        RunError: a pass cannot be captured as CUDA graphs, which are asked for.
    """
    config, plan = prepared.config, prepared.plan
    network = build_model(config.model, config.seed)
    if prepared.weights is not None and resume_from is None:
        load_backbone(network, prepared.info.spec, prepared.weights)
    execution = execution_on(prepared, world)
    network, layout = execution.apply(network, world.device), execution.memory_format
    if world.device.type == "cpu" and dtype_of(config.train.precision) != torch.float32:
        make_sound(network)
    freeze(network, config.train.freeze)
    if config.train.percentile_layer is not None:
        find_layer(network, config.train.percentile_layer, form=str(execution))
    trained = _trained(network, config.train, plan, world.device)
    state = TrainingState(iteration=0, global_batch=plan.global_batch)
    if resume_from is not None:
        state = load_checkpoint(resume_from, trained, prepared.info)
    train = config.train
    mixing = make_mixing(train.mixup_alpha, train.cutmix_alpha, config.model.num_classes)
    graphs, clips = None, None
    if state.iteration < plan.iterations and _wants_graphs(
        config, execution, Machine.of(world.device)
    ):
        set_training(network, network, train.freeze)
        dtype = input_dtype(train, world.device, mixed=mixing is not None)
        clips = _blank_clips(config, world.device, dtype).contiguous(memory_format=layout)
        graphs = captured(network, clips, config, memory, world, report)
    run = Run(
        trained=trained,
        model=_callable(network if graphs is None else graphs, world, compiled=train.compile),
        static_clips=clips if graphs is not None else None,
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


def _callable(model: nn.Module, world: World, *, compiled: bool) -> nn.Module:
    """A network, or its graphs, as the step calls it."""
    wrapped = wrap_for_ranks(model, world)
    return _compiled(wrapped) if compiled else wrapped


def _wants_graphs(config: Config, execution: Execution, machine: Machine) -> bool:
    return uses_graphs(
        config.compute,
        execution,
        machine,
        accumulation=config.train.accumulation,
        compiled=config.train.compile,
        watched=config.train.percentile_layer is not None,
    )


def check_compute(config: Config) -> None:
    """Refuse a config that cannot be computed on this machine, without computing on it.

    The process that starts the ranks can say so once. They look again, with kernels tried.

    Raises:
        ConfigError: as :func:`choose_execution` and :func:`uses_graphs`.
    """
    machine = Machine.untried(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    _wants_graphs(config, train_execution(config, spec_of(config.model), machine), machine)


def _blank_clips(config: Config, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(B, 3, T, H, W) of a step."""
    clip = config.clip
    size = (config.train.clips_per_gpu, 3, clip.num_frames, clip.crop_size, clip.crop_size)
    return torch.zeros(size, dtype=dtype, device=device)


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


def execution_on(prepared: Prepared, world: World) -> Execution:
    """The form in which a run's network trains on this device."""
    return train_execution(prepared.config, prepared.info.spec, Machine.of(world.device))


def memory_plan(prepared: Prepared, world: World) -> MemoryPlan:
    """What a step needs of this device, refused where it cannot be.

    Raises:
        RunError: naming the largest number of clips per GPU that fits.
    """
    clip, train = prepared.config.clip, prepared.config.train
    return check_memory(
        prepared.info.spec,
        (clip.num_frames, clip.crop_size, clip.crop_size),
        clips_per_gpu=train.clips_per_gpu,
        precision=train.precision,
        device=world.device,
        execution=execution_on(prepared, world),
        local_ranks=world.local_size,
        averaged=train.ema_decay is not None,
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


def check_percentile_layer(network: nn.Module, config: Config) -> None:
    """Refuse ``train.percentile_layer`` where its output could not be looked at.

    Raises:
        ConfigError: the network has no such layer, or is to be compiled.
    """
    layer = config.train.percentile_layer
    if layer is None:
        return
    find_layer(network, layer)
    if config.train.compile:
        raise ConfigError(
            f"train.percentile_layer={layer} and train.compile=true exclude each other: such a "
            "network does not stop at a layer; set one of them"
        )


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
