"""Training: the step, the loop around it and what is saved when."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from videogn.config import TrainConfig
from videogn.data.transforms import normalize
from videogn.distributed import World, gather_over_ranks, sum_over_ranks
from videogn.engine.ahead import Ahead, Batch
from videogn.engine.arithmetic import autocast, dtype_of
from videogn.engine.checkpoint import Trained, TrainingState, save_checkpoint, save_weights
from videogn.engine.meter import Meter
from videogn.engine.mixing import Mixing
from videogn.engine.optim import set_learning_rate
from videogn.engine.percentiles import Seen, check_called, percentile_entry, watched
from videogn.engine.plan import TrainPlan
from videogn.engine.precise_bn import Buffers
from videogn.engine.report.percentiles import draw_percentiles
from videogn.engine.runs import RunFolder, RunLog
from videogn.engine.validation import Validation, report_validation
from videogn.errors import RunError
from videogn.models.norm import use_native_sync
from videogn.models.spec import WeightInfo
from videogn.watchdog import Stage


def _no_stop() -> bool:
    return False


def _nothing_to_refresh(stop_asked: Callable[[], bool]) -> bool:
    del stop_asked
    return True


def _nothing() -> None:
    pass


def _no_stage(stage: Stage, iteration: int) -> None:
    del stage, iteration


ValidateNow = Callable[[Callable[[], bool]], Validation | None]
"""Validates the present weights, asking before every batch whether to stop; None where it was."""


@dataclass(frozen=True)
class Run:
    """What stays the same from the first to the last step of a run.

    Attributes:
        trained: the network and all that changes with it.
        model: the network as the step calls it: wrapped for several ranks, or compiled.
        static_clips: where the model's training pass reads its clips, if it is CUDA graphs.
        mixing: mixes the clips of a batch, where the recipe wants it.
        frozen: names of the parts of the network that are not trained.
        memory_format: of the clips, and of the network's weights.
        name_of: a training video's name by its place in the list.
        stop_asked: whether a signal has asked this process to stop.
        stage: is told what the process is about to do, and in which iteration.
        refresh_statistics: makes BN's stored statistics those of the present weights; tells
            whether it came to an end before a rank was asked to stop.
    """

    trained: Trained
    model: nn.Module
    info: WeightInfo
    plan: TrainPlan
    recipe: TrainConfig
    world: World
    folder: RunFolder
    seed: int
    report: Callable[[str], None]
    memory_format: torch.memory_format = torch.contiguous_format
    static_clips: Tensor | None = None
    name_of: Callable[[int], str] = str
    mixing: Mixing | None = None
    frozen: tuple[str, ...] = ()
    stop_asked: Callable[[], bool] = _no_stop
    stage: Callable[[Stage, int], None] = _no_stage
    refresh_statistics: Callable[[Callable[[], bool]], bool] = _nothing_to_refresh

    @property
    def captured(self) -> bool:
        """Whether the model's training pass is CUDA graphs."""
        return self.static_clips is not None


@dataclass(frozen=True)
class Step:
    """What came out of a step.

    Attributes:
        loss: () mean over the clips of this rank.
        logits: (B, K) before the update.
        labels: (B,) int64.
        updated: whether the weights were updated: not where a rank's loss is not finite.
        stop: whether a rank was asked to stop.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor
    updated: bool
    stop: bool


def train_step(
    run: Run,
    batches: Sequence[Batch],
    iteration: int,
    meanwhile: Callable[[], None] = _nothing,
) -> Step:
    """One update of the weights, by the gradients of all ``batches`` of all ranks.

    Where the loss of any rank is not finite no rank updates.

    Args:
        meanwhile: called while a GPU computes the gradients.
    """
    optimizer, scaler = run.trained.optimizer, run.trained.scaler
    set_learning_rate(optimizer, run.plan.schedule.at(iteration))
    optimizer.zero_grad(set_to_none=True)
    loss, logits, labels = _gradients(run, batches, iteration)
    sound = torch.isfinite(loss) & _bounded_gradients(run)
    meanwhile()
    finite, stop = _agree(sound, run.stop_asked())
    if finite:
        scaler.step(optimizer)
        scaler.update()
        if run.trained.average is not None:
            run.trained.average.update_parameters(run.trained.network)
    return Step(loss, logits, labels, finite, stop)


def _gradients(run: Run, batches: Sequence[Batch], iteration: int) -> tuple[Tensor, Tensor, Tensor]:
    """Add up the gradients of one batch after the other; ranks exchange them with the last."""
    losses, logits, labels = [], [], []
    for number, batch in enumerate(batches):
        is_last = number == len(batches) - 1
        # Dropout and mixing become functions of seed, step and rank: a resumed run draws what an
        # unbroken one draws, and no generator's state has to be stored.
        torch.manual_seed(step_seed(run.seed, iteration * len(batches) + number, run.world.rank))
        with nullcontext() if is_last else _no_exchange(run.model):
            part, scores, truth = _forward(run, batch)
            run.trained.scaler.scale(part / len(batches)).backward()  # type: ignore[no-untyped-call]
        losses.append(part.detach())
        logits.append(scores.detach())
        labels.append(truth)
    return torch.stack(losses).mean(), torch.cat(logits), torch.cat(labels)


def _forward(run: Run, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    device, recipe = run.world.device, run.recipe
    clips = network_input(run, batch.clips_on(device))
    labels = batch.labels.to(device, non_blocking=True)
    targets = labels
    if run.mixing is not None:
        clips, targets = run.mixing(clips, labels)
    with autocast(device, recipe.precision):
        logits = run.model(clips)
    logits = logits.float()
    loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
    return loss, logits, labels


def network_input(run: Run, clips: Tensor) -> Tensor:
    """(B, 3, T, H, W) uint8 clips as the network takes them in a step, but for mixing."""
    dtype = input_dtype(run.recipe, run.world.device, mixed=run.mixing is not None)
    # Straight to where graphs read it: no copy, and no memory of its own.
    static = run.static_clips
    fits = static is not None and static.shape == clips.shape and run.mixing is None
    out = static if fits else None
    return normalize(clips, run.info.mean, run.info.std, run.memory_format, dtype, out)


def input_dtype(recipe: TrainConfig, device: torch.device, *, mixed: bool) -> torch.dtype:
    """Of the clips that the network is called with."""
    if device.type == "cuda" and not mixed:
        # Rounded as autocast would, and never written in float32.
        return dtype_of(recipe.precision)
    return torch.float32


def _no_exchange(model: nn.Module) -> "nullcontext[None]":
    # A compiled model passes the attribute of the wrapped one on.
    return model.no_sync() if hasattr(model, "no_sync") else nullcontext()  # type: ignore[operator]


def _bounded_gradients(run: Run) -> Tensor:
    """Clip the gradients where the recipe wants it, and tell whether all are finite, () bool.

    fp16's loss scale has a step of infinite gradients of its own, which it passes over.
    """
    recipe, scaler = run.recipe, run.trained.scaler
    if scaler.is_enabled() and recipe.clip_norm is None:
        return torch.ones((), dtype=torch.bool, device=run.world.device)
    scaler.unscale_(run.trained.optimizer)
    parameters = [p for p in run.trained.network.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if recipe.clip_norm is not None:
        clip_grads_with_norm_(parameters, recipe.clip_norm, norm)
    return torch.ones_like(norm, dtype=torch.bool) if scaler.is_enabled() else torch.isfinite(norm)


def _agree(finite: Tensor, stop: bool) -> tuple[bool, bool]:
    """Whether all ranks' numbers are finite, and whether any rank was asked to stop."""
    status = torch.stack([(~finite).double(), torch.full_like(finite, stop).double()])
    broken, stops = sum_over_ranks(status).tolist()
    return broken == 0, stops > 0


def train(
    run: Run,
    state: TrainingState,
    batches: Iterator[Batch],
    validate_now: ValidateNow | None,
) -> TrainingState:
    """Run the steps from ``state`` to the end of the plan, or until a signal asks to stop.

    Args:
        batches: of the remaining steps, from ``state.iteration`` on.
        validate_now: validation accuracy of the present weights, where there is a list for it.

    Returns:
        Where the run stands; it is saved.

    Raises:
        RunError: a loss is not finite, too many videos cannot be decoded, a file cannot be
            written, or ``train.percentile_layer`` is not called.
    """
    log = RunLog(run.folder.log) if run.world.is_main else None
    meter = Meter(run.plan, run.recipe, run.world, run.report, log, state)
    recipe, validates = run.recipe, validate_now is not None
    buffers, stop = Buffers(run.trained.network), False
    source = Ahead(batches, run.plan.accumulation, run.world.device)

    def bring(iteration: int) -> None:
        run.stage("reading", iteration)
        meter.waiting(source.ask)
        run.stage("step", iteration)

    set_training(run.model, run.trained.network, run.frozen)
    if state.settled < state.iteration:
        # Stopped between a step and what follows it.
        state, stop = _milestone(run, meter, state, validate_now)
    while state.iteration < run.plan.iterations and not stop:
        iteration = state.iteration
        bring(iteration)
        # The device waits here for what is still on its way to it.
        parts = meter.waiting(source.take)
        buffers.keep()
        is_last = iteration + 1 == run.plan.iterations
        early = source.overlaps and not is_last
        layer = recipe.percentile_layer if _reports(run, iteration + 1, validates) else None
        with watched(run.trained.network, layer, keep=run.world.is_main) as seen:
            step = train_step(
                run, parts, iteration, partial(bring, iteration) if early else _nothing
            )
        if not step.updated:
            buffers.restore()
            _end_at_numbers(run, meter, state, step, parts)
        meter.add(step.loss, step.logits, step.labels, parts, iteration + 1)
        if layer is not None:
            _log_percentiles(log, seen, layer, iteration + 1)
        state, stop = replace(state, iteration=iteration + 1), step.stop
        if not stop:
            state, stop = _milestone(run, meter, state, validate_now)
    return _saved(run, meter, state) if stop else state


def _milestone(
    run: Run,
    meter: Meter,
    state: TrainingState,
    validate_now: ValidateNow | None,
) -> tuple[TrainingState, bool]:
    """Report, validate and save where the recipe wants it after this iteration.

    Returns:
        The state, and whether it was asked to stop before all of it was done.
    """
    done, recipe = state.iteration, run.recipe
    at_end = done == run.plan.iterations
    validates = _validates(run, done, validate_now is not None)
    saves = validates or at_end or done % recipe.checkpoint_interval == 0
    if _reports(run, done, validate_now is not None):
        state = meter.flush(state)
    if not saves:
        return state, False

    def stop_asked() -> bool:
        # Asked before every batch: a long validation is progress too.
        run.stage("validation", done)
        return run.stop_asked()

    if not run.refresh_statistics(stop_asked):
        return state, True
    if validates and validate_now is not None:
        validation = validate_now(stop_asked)
        if validation is None:
            return state, True
        state, best = report_validation(validation, state, run.folder, meter.log, run.report)
        if best and run.world.is_main:
            save_weights(run.folder.best, run.trained, run.info, state)
    set_training(run.model, run.trained.network, run.frozen)
    state = _saved(run, meter, replace(state, settled=done))
    if recipe.percentile_layer is not None and run.world.is_main and (validates or at_end):
        draw_percentiles(run.folder.log, run.folder.percentiles, run.report)
    return state, False


def _validates(run: Run, done: int, has_list: bool) -> bool:
    """Whether a validation follows an iteration, where there is a list for it."""
    return has_list and (done == run.plan.iterations or done % run.plan.val_interval == 0)


def _reports(run: Run, done: int, has_list: bool) -> bool:
    """Whether a progress line follows an iteration."""
    regular = done == run.plan.iterations or done % run.recipe.log_interval == 0
    return regular or _validates(run, done, has_list)


def _log_percentiles(log: RunLog | None, seen: Seen, layer: str, iteration: int) -> None:
    """Written before anything is saved, so that no iteration is saved without its entry.

    Raises:
        RunError: the layer was not called, on any rank, or the log cannot be written.
    """
    check_called(seen, layer)
    if log is not None:
        log.write(*percentile_entry(seen, layer, iteration))


def _saved(run: Run, meter: Meter, state: TrainingState) -> TrainingState:
    """Write a checkpoint of a state; every rank brings its part of it."""
    run.stage("saving", state.iteration)
    state = replace(meter.collect(state), scaler=run.trained.scaler.state_dict())
    if run.world.is_main:
        checkpoints, keep = run.folder.checkpoints, run.recipe.keep_checkpoints
        save_checkpoint(checkpoints, run.trained, run.info, state, keep)
    return state


def _end_at_numbers(
    run: Run, meter: Meter, state: TrainingState, step: Step, batches: Sequence[Batch]
) -> None:
    """Save the state before a step whose numbers are not finite, and say which clips it had.

    Raises:
        RunError: always.
    """
    loss = float(step.loss)
    names = [run.name_of(int(place)) for batch in batches for place in batch.places]
    found = gather_over_ranks((loss, names))
    _saved(run, meter, state)
    ill = [i for i, (value, _) in enumerate(found) if not torch.isfinite(torch.tensor(value))]
    what = "the loss is" if ill else "the loss is finite and its gradients are"
    lines = "".join(
        f"\n  - rank {rank}, loss {found[rank][0]:g}: {', '.join(found[rank][1])}"
        for rank in ill or range(len(found))
    )
    raise RunError(
        f"{run.folder.path}: {what} not finite at iteration {state.iteration + 1:,}; the weights "
        f"before it are saved in {run.folder.checkpoints.path_of(state.iteration).name}. Look at "
        "these clips, or lower train.base_lr or lengthen train.warmup_iterations in a new "
        f"out=:{lines}"
    )


def set_training(model: nn.Module, network: nn.Module, frozen: Sequence[str]) -> None:
    """Put a model into training, but for the parts of its network that are frozen."""
    model.train()
    for name in frozen:
        network.get_submodule(name).eval()


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """A 63-bit seed that differs between all steps and ranks of a run (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + iteration * 0xD1B54A32D192ED03 + rank + 1) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return (value ^ (value >> 31)) >> 1


def wrap_for_ranks(network: nn.Module, world: World) -> nn.Module:
    """Average gradients over the ranks of a job.

    BN keeps the statistics of each rank's own clips, as in the paper; running statistics are
    those of rank 0.
    """
    if world.size == 1:
        return network
    if world.device.type == "cuda":
        network = use_native_sync(network)
    return DistributedDataParallel(
        network,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=True,
        **_buffers_stay(),
    )


def _buffers_stay() -> dict[str, Any]:
    """Keeps BN's buffers from being sent round at each step; torch renamed the option."""
    options = inspect.signature(DistributedDataParallel).parameters
    newer = "forward_sync_buffers"
    return {newer if newer in options else "broadcast_buffers": False}
