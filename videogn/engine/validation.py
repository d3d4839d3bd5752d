"""Validation during training: one clip of every video, and what is said about it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from videogn.data.loader import ClipBatch
from videogn.data.transforms import normalize
from videogn.distributed import (
    World,
    any_rank,
    broadcast_buffers,
    gather_over_ranks,
    sum_over_ranks,
)
from videogn.engine.arithmetic import autocast
from videogn.engine.checkpoint import TrainingState
from videogn.engine.metrics import Tally
from videogn.engine.runs import RunFolder, RunLog
from videogn.errors import RunError
from videogn.models.spec import WeightInfo


@dataclass(frozen=True)
class Validation:
    """Accuracy over a validation list, and (path, reason) of each video that counts as wrong."""

    tally: Tally
    failures: list[tuple[str, str]]
    seconds: float


def validate(
    network: nn.Module,
    batches: Iterable[ClipBatch],
    num_rounds: int,
    info: WeightInfo,
    world: World,
    precision: str,
    stop_asked: Callable[[], bool],
) -> Validation | None:
    """Loss and accuracy over one clip per video, every video once, summed over the ranks.

    Args:
        batches: this rank's clips.
        num_rounds: batches of the rank that has most.
        stop_asked: whether this process was asked to stop.

    Returns:
        None where a rank was asked to stop before the end.
    """
    started = time.monotonic()
    tally, failures = Tally.empty(world.device), []
    broadcast_buffers(network)
    network.eval()
    left = iter(batches)
    with torch.inference_mode():
        for _ in range(num_rounds):
            if any_rank(stop_asked(), world.device):
                return None
            batch = next(left, None)
            if batch is None:
                continue
            tally = tally.add_failed(len(batch.failures))
            failures += batch.failures
            if len(batch.labels) == 0:
                continue
            clips = normalize(batch.clips_on(world.device), info.mean, info.std)
            labels = batch.labels.to(world.device)
            with autocast(world.device, precision):
                logits = network(clips).float()
            tally = tally.add(F.cross_entropy(logits, labels), logits, labels)
    everywhere = [failure for part in gather_over_ranks(failures) for failure in part]
    sums = sum_over_ranks(tally.sums)
    return Validation(Tally(sums), sorted(everywhere), time.monotonic() - started)


def report_validation(
    validation: Validation,
    state: TrainingState,
    folder: RunFolder,
    log: RunLog | None,
    report: Callable[[str], None],
) -> tuple[TrainingState, bool]:
    """Check, print and log a validation.

    Returns:
        The state after it, and whether it is the best so far.

    Raises:
        RunError: the loss is not finite, or not one video could be read.
    """
    _check(validation, state, folder)
    tally = validation.tally
    best = tally.top1 > state.best_top1
    state = replace(state, best_top1=max(tally.top1, state.best_top1))
    if log is None:
        return state, best
    for path, reason in validation.failures:
        report(f"warning: counted as wrong: {path}: {reason}")
        values = {"iteration": state.iteration, "path": path, "reason": reason}
        log.write("failed_val_video", values)
    report(
        f"validation at {state.iteration:,}: top-1 {tally.top1:.2f} %  top-5 {tally.top5:.2f} %  "
        f"loss {tally.loss:.4f}  ({tally.num_clips} videos, one clip each, "
        f"{validation.seconds:.0f} s){'  best so far' if best else ''}"
    )
    log.write(
        "val",
        {
            "iteration": state.iteration,
            "top1": tally.top1,
            "top5": tally.top5,
            "loss": tally.loss,
            "num_videos": tally.num_clips,
            "seconds": round(validation.seconds, 3),
        },
    )
    return state, best


def _check(validation: Validation, state: TrainingState, folder: RunFolder) -> None:
    if not torch.isfinite(validation.tally.sums).all():
        raise RunError(
            f"{folder.path}: the validation loss at iteration {state.iteration} is not finite; "
            "the checkpoint before is kept. Lower train.base_lr or lengthen "
            "train.warmup_iterations"
        )
    if len(validation.failures) == validation.tally.num_clips:
        path, reason = validation.failures[0]
        raise RunError(
            f"not one of the {validation.tally.num_clips} validation videos can be read; mend "
            f"data.val: {path}: {reason}"
        )
