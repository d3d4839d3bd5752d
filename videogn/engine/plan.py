"""The numbers that follow from a config, a list and the number of GPUs, written out in full."""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videogn.config import TrainConfig
from videogn.engine.optim import Schedule, make_schedule, scale_learning_rate
from videogn.errors import RunError

BATCH_TOLERANCE = 1.5
"""Epochs that differ by more than this factor from the recipe's are worth a warning."""


@dataclass(frozen=True)
class TrainPlan:
    """What a training run will do.

    Attributes:
        num_videos: length of the training list.
        world_size: processes, one per GPU.
        schedule: the learning rate of every iteration.
        base_epochs: epochs the iterations would be at the recipe's ``base_batch``.
    """

    num_videos: int
    clips_per_gpu: int
    world_size: int
    iterations: int
    schedule: Schedule
    base_lr: float
    base_batch: int
    accumulation: int = 1

    @property
    def global_batch(self) -> int:
        """Clips per iteration over all processes."""
        return self.clips_per_gpu * self.world_size * self.accumulation

    @property
    def epochs(self) -> float:
        """Times each video is drawn."""
        return self.iterations * self.global_batch / self.num_videos

    @property
    def base_epochs(self) -> float:
        """Epochs of the same iterations at ``base_batch`` clips."""
        return self.iterations * self.base_batch / self.num_videos

    def as_dict(self) -> dict[str, object]:
        """Every number of the plan, for the log."""
        return {
            "num_videos": self.num_videos,
            "clips_per_gpu": self.clips_per_gpu,
            "world_size": self.world_size,
            "global_batch": self.global_batch,
            "base_lr": self.base_lr,
            "base_batch": self.base_batch,
            "learning_rate": self.schedule.learning_rate,
            "lr_milestones": list(self.schedule.milestones),
            "lr_gamma": self.schedule.gamma,
            "warmup_iterations": self.schedule.warmup_iterations,
            "iterations": self.iterations,
            "epochs": self.epochs,
        }

    def lines(self) -> Iterator[str]:
        """The plan as text, with a warning where the batch was scaled and the epochs were not."""
        schedule = self.schedule
        yield (
            f"batch       {self.clips_per_gpu} clips per GPU x {self.world_size} "
            f"{'process' if self.world_size == 1 else 'processes'} = {self.global_batch} clips"
        )
        yield (
            f"lr          {self.base_lr:g} x {self.global_batch}/{self.base_batch} "
            f"= {schedule.learning_rate:g}, x {schedule.gamma:g} at "
            f"{', '.join(f'{m:,}' for m in schedule.milestones) or 'no iteration'}"
        )
        yield f"warm-up     {schedule.warmup_iterations:,} iterations"
        yield (
            f"iterations  {self.iterations:,} = {self.iterations * self.global_batch:,} clips "
            f"= {self.epochs:.1f} epochs of {self.num_videos:,} videos"
        )
        ratio = self.base_batch / self.global_batch
        if max(ratio, 1 / ratio) > BATCH_TOLERANCE:
            yield (
                f"note        at the base batch of {self.base_batch} these iterations would be "
                f"{self.base_epochs:.1f} epochs; train.iterations={round(self.iterations * ratio)} "
                "would keep that number"
            )


def make_plan(train: TrainConfig, *, num_videos: int, world_size: int) -> TrainPlan:
    """Work out a run's numbers from its recipe, its list and its number of processes."""
    learning_rate = scale_learning_rate(
        train.base_lr, train.base_batch, train.clips_per_gpu * world_size * train.accumulation
    )
    schedule = make_schedule(train, learning_rate)
    return TrainPlan(
        num_videos=num_videos,
        clips_per_gpu=train.clips_per_gpu,
        world_size=world_size,
        iterations=train.iterations,
        schedule=schedule,
        base_lr=train.base_lr,
        base_batch=train.base_batch,
        accumulation=train.accumulation,
    )


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of a training step on one device, in bytes.

    Attributes:
        state_bytes: weights, gradients and momentum.
        clip_bytes: what one clip keeps for the backward pass.
        available_bytes: what the device has left.
    """

    state_bytes: int
    clip_bytes: int
    available_bytes: int
    clips_per_gpu: int

    @property
    def total_bytes(self) -> int:
        """State and the activations of all clips."""
        return self.state_bytes + self.clips_per_gpu * self.clip_bytes

    @property
    def largest_batch(self) -> int:
        """The most clips per GPU that fit."""
        return max(0, (self.available_bytes - self.state_bytes) // max(1, self.clip_bytes))

    def line(self) -> str:
        """The plan as one line of text."""
        return (
            f"memory      {_gib(self.state_bytes)} for weights, gradients and momentum + "
            f"{self.clips_per_gpu} x {_gib(self.clip_bytes)} per clip = {_gib(self.total_bytes)} "
            f"of {_gib(self.available_bytes)} free"
        )

    def check(self) -> None:
        """Refuse a plan that cannot fit.

        Raises:
            RunError: naming the largest number of clips per GPU that fits.
        """
        if self.total_bytes > self.available_bytes:
            raise RunError(
                f"train.clips_per_gpu={self.clips_per_gpu} needs about {_gib(self.total_bytes)} "
                f"and {_gib(self.available_bytes)} are free; "
                f"at most {self.largest_batch} clips fit"
            )


def probe_memory(
    model: nn.Module, clips: Tensor, *, clips_per_gpu: int, processes_on_device: int
) -> MemoryPlan:
    """Measure what a few clips keep for the backward pass, and scale it to the batch.

    Args:
        clips: (B, C, T, H, W) float32, on the device of ``model``.
        processes_on_device: processes that share the device's memory (CPU ranks do).
    """
    return MemoryPlan(
        state_bytes=state_bytes(model),
        clip_bytes=kept_bytes(model, clips) // len(clips),
        available_bytes=available_bytes(clips.device) // processes_on_device,
        clips_per_gpu=clips_per_gpu,
    )


def state_bytes(model: nn.Module) -> int:
    """Weights, and gradients and momentum of those that are trained."""
    return sum(
        p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in model.parameters()
    )


def kept_bytes(model: nn.Module, clips: Tensor) -> int:
    """What the forward pass of a training step keeps for the backward pass.

    Args:
        clips: (B, C, T, H, W) float32; on the meta device nothing is computed or kept.
    """
    # By the storage's own identity: on the meta device every address is 0.
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    model.train()
    labels = torch.zeros(len(clips), dtype=torch.long, device=clips.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = F.cross_entropy(model(clips), labels)
    del loss
    return sum(storage.nbytes() for storage in kept.values())


def available_bytes(device: torch.device) -> int:
    """Memory the device has free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
