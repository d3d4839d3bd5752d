"""Training: the step, the loop around it, validation and what is written."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videogn.config import TrainConfig
from videogn.data.loader import ClipBatch
from videogn.data.transforms import normalize
from videogn.distributed import World, broadcast_buffers, gather_over_ranks, sum_over_ranks
from videogn.engine.checkpoint import TrainingState, save_checkpoint
from videogn.engine.metrics import Tally
from videogn.engine.optim import set_learning_rate
from videogn.engine.plan import TrainPlan
from videogn.engine.runs import RunFolder, RunLog
from videogn.errors import RunError
from videogn.models.norm import use_native_sync
from videogn.models.spec import WeightInfo

MIN_TOLERATED_FAILURES = 1
"""One unreadable video never stops a run, however short the list."""


@dataclass(frozen=True)
class Run:
    """What stays the same from the first to the last step of a run."""

    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.SGD
    info: WeightInfo
    plan: TrainPlan
    recipe: TrainConfig
    world: World
    folder: RunFolder
    seed: int
    report: Callable[[str], None]


@dataclass(frozen=True)
class Validation:
    """Accuracy over a validation list, and (path, reason) of each video that counts as wrong."""

    tally: Tally
    failures: list[tuple[str, str]]


def train_step(run: Run, batch: ClipBatch, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
    """One update of the weights.

    Returns:
        loss () and logits (B, K) of the batch before the update, labels (B,) int64.
    """
    device = run.world.device
    set_learning_rate(run.optimizer, run.plan.schedule.at(iteration))
    # Dropout becomes a function of seed, step and rank: a resumed run draws what an unbroken one
    # draws, and no generator's state has to be stored.
    torch.manual_seed(step_seed(run.seed, iteration, run.world.rank))

    clips = normalize(batch.clips_on(device), run.info.mean, run.info.std)
    labels = batch.labels.to(device, non_blocking=True)
    with autocast(device, run.recipe.precision):
        logits = run.model(clips)
    loss = F.cross_entropy(logits.float(), labels)

    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    return loss.detach(), logits.detach().float(), labels


def train(
    run: Run,
    state: TrainingState,
    batches: Iterator[ClipBatch],
    validate_now: Callable[[], Validation] | None,
) -> TrainingState:
    """Run the steps from ``state`` to the end of the plan.

    Args:
        batches: one batch per remaining step, from ``state.iteration`` on.
        validate_now: validation accuracy of the present weights, where there is a list for it.

    Raises:
        RunError: the loss is not finite, or too many videos cannot be decoded.
    """
    meter = _Meter(run, state.iteration)
    log = RunLog(run.folder.log) if run.world.is_main else None
    run.model.train()
    for iteration in range(state.iteration, run.plan.iterations):
        batch = meter.timed_next(batches)
        loss, logits, labels = train_step(run, batch, iteration)
        meter.add(loss, logits, labels, batch.failures)
        done = iteration + 1
        state = replace(state, iteration=done)
        at_end = done == run.plan.iterations
        validates = validate_now is not None and (at_end or done % run.recipe.val_interval == 0)
        saves = validates or at_end or done % run.recipe.checkpoint_interval == 0
        if saves or done % run.recipe.log_interval == 0:
            state = meter.flush(state, log)
        if validates and validate_now is not None:
            state = _validate(run, state, log, validate_now)
        if saves and run.world.is_main:
            save_checkpoint(run.folder.last, run.network, run.info, state, run.optimizer)
    return state


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """A 63-bit seed that differs between all steps and ranks of a run (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + iteration * 0xD1B54A32D192ED03 + rank + 1) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return (value ^ (value >> 31)) >> 1


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast of the forward pass, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


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
    )


def validate(
    network: nn.Module,
    batches: Iterable[ClipBatch],
    info: WeightInfo,
    world: World,
    precision: str,
) -> Validation:
    """Loss and accuracy over one clip per video, every video once, summed over the ranks.

    Args:
        batches: this rank's clips.
    """
    tally, failures = Tally.empty(world.device), []
    broadcast_buffers(network)
    network.eval()
    with torch.inference_mode():
        for batch in batches:
            tally = tally.add_failed(len(batch.failures))
            failures += batch.failures
            if len(batch.labels) == 0:
                continue
            clips = normalize(batch.clips_on(world.device), info.mean, info.std)
            labels = batch.labels.to(world.device)
            with autocast(world.device, precision):
                logits = network(clips).float()
            tally = tally.add(F.cross_entropy(logits, labels), logits, labels)
    network.train()
    everywhere = [failure for part in gather_over_ranks(failures) for failure in part]
    return Validation(Tally(sum_over_ranks(tally.sums)), sorted(everywhere))


def _validate(
    run: Run, state: TrainingState, log: RunLog | None, validate_now: Callable[[], Validation]
) -> TrainingState:
    started = time.monotonic()
    validation = validate_now()
    tally = validation.tally
    _check_validation(run, state, validation)
    best = tally.top1 > state.best_top1
    state = replace(state, best_top1=max(tally.top1, state.best_top1))
    if log is None:
        return state
    seconds = time.monotonic() - started
    for path, reason in validation.failures:
        run.report(f"warning: counted as wrong: {path}: {reason}")
        values = {"iteration": state.iteration, "path": path, "reason": reason}
        log.write("failed_val_video", values)
    run.report(
        f"validation at {state.iteration:,}: top-1 {tally.top1:.2f} %  top-5 {tally.top5:.2f} %  "
        f"loss {tally.loss:.4f}  ({tally.num_clips} videos, one clip each, {seconds:.0f} s)"
        f"{'  best so far' if best else ''}"
    )
    log.write(
        "val",
        {
            "iteration": state.iteration,
            "top1": tally.top1,
            "top5": tally.top5,
            "loss": tally.loss,
            "num_videos": tally.num_clips,
            "seconds": round(seconds, 3),
        },
    )
    if best:
        save_checkpoint(run.folder.best, run.network, run.info, state)
    return state


def _check_validation(run: Run, state: TrainingState, validation: Validation) -> None:
    if not torch.isfinite(validation.tally.sums).all():
        raise RunError(
            f"{run.folder.path}: the validation loss at iteration {state.iteration} is not finite; "
            "the checkpoint before is kept. Lower train.base_lr or lengthen "
            "train.warmup_iterations"
        )
    if len(validation.failures) == validation.tally.num_clips:
        path, reason = validation.failures[0]
        raise RunError(
            f"not one of the {validation.tally.num_clips} validation videos can be read; mend "
            f"data.val: {path}: {reason}"
        )


class _Meter:
    """Adds up what happened since the last progress line."""

    def __init__(self, run: Run, iteration: int) -> None:
        self._run = run
        self._first = iteration
        self._started = time.monotonic()
        self._begin(iteration)

    def _begin(self, iteration: int) -> None:
        self._since = iteration
        self._tally = Tally.empty(self._run.world.device)
        self._failures: list[tuple[str, str]] = []
        self._waited = 0.0
        self._clock = time.monotonic()

    def timed_next(self, batches: Iterator[ClipBatch]) -> ClipBatch:
        """The next batch, counting the time spent waiting for it."""
        before = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - before
        return batch

    def add(
        self,
        loss: Tensor,
        logits: Tensor,
        labels: Tensor,
        failures: list[tuple[str, str]],
    ) -> None:
        """Count one step."""
        self._tally = self._tally.add(loss, logits, labels)
        self._failures += failures

    def flush(self, state: TrainingState, log: RunLog | None) -> TrainingState:
        """Sum over the ranks, check, report; every rank comes here at the same iterations."""
        run, iteration = self._run, state.iteration
        if iteration == self._since:
            return state
        tally = Tally(sum_over_ranks(self._tally.sums))
        state = self._count_failures(state, log)
        if not torch.isfinite(tally.sums).all():
            raise RunError(
                f"{run.folder.path}: the loss is not finite between iterations {self._since + 1} "
                f"and {iteration}; nothing was saved since the checkpoint before. "
                "Lower train.base_lr or lengthen train.warmup_iterations"
            )
        seconds = time.monotonic() - self._clock
        speed = float(tally.sums[3]) / seconds
        pace = (time.monotonic() - self._started) / (iteration - self._first)
        remaining = (run.plan.iterations - iteration) * pace
        if log is not None:
            values = {
                "iteration": iteration,
                "epoch": iteration * run.plan.global_batch / run.plan.num_videos,
                "loss": tally.loss,
                "top1": tally.top1,
                "lr": run.plan.schedule.at(iteration - 1),
                "clips_per_second": round(speed, 3),
                "data_wait": round(self._waited / seconds, 4),
                "eta_seconds": round(remaining),
            }
            log.write("train", values)
            run.report(_progress_line(values, run.plan.iterations))
        self._begin(iteration)
        return state

    def _count_failures(self, state: TrainingState, log: RunLog | None) -> TrainingState:
        known = dict(state.failed_videos)
        new = dict(pair for part in gather_over_ranks(self._failures) for pair in part)
        for path in sorted(new.keys() - known.keys()):
            known[path] = new[path]
            if log is not None:
                self._run.report(f"warning: replaced {path}: {new[path]}")
                log.write(
                    "failed_video",
                    {"iteration": state.iteration, "path": path, "reason": new[path]},
                )
        num_videos, share = self._run.plan.num_videos, self._run.recipe.max_failed_fraction
        allowed = max(MIN_TOLERATED_FAILURES, share * num_videos)
        if len(known) > allowed:
            lines = "".join(f"\n  - {path}: {reason}" for path, reason in list(known.items())[:20])
            raise RunError(
                f"{len(known)} of {num_videos} training videos cannot be decoded, more than "
                f"train.max_failed_fraction={share:g} allows; "
                f"mend the list or raise it:{lines}"
            )
        return replace(state, failed_videos=known)


def _progress_line(values: dict[str, float], iterations: int) -> str:
    eta = int(values["eta_seconds"])
    return (
        f"iter {values['iteration']:,}/{iterations:,}  epoch {values['epoch']:.2f}  "
        f"loss {values['loss']:.4f}  top-1 {values['top1']:.1f} %  lr {values['lr']:.2e}  "
        f"{values['clips_per_second']:.1f} clips/s  data wait {100 * values['data_wait']:.0f} %  "
        f"eta {eta // 3600}:{eta // 60 % 60:02}:{eta % 60:02}"
    )
