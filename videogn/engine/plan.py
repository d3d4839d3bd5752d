"""The numbers that follow from a config, a list and the number of GPUs, written out in full."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from videogn.config import TrainConfig
from videogn.engine.optim import Schedule, StepSchedule, make_schedule, scale_learning_rate
from videogn.errors import ConfigError

BATCH_TOLERANCE = 1.5
"""Epochs that differ by more than this factor from the recipe's are worth a warning."""

RECIPE = TrainConfig()
"""The released recipe, whose learning rate and batch belong together."""

SMALL_BATCH = 8
"""Clips below which BN lost accuracy in the paper (Table 8)."""
SMALL_IMAGE_BATCH = 16
"""Images below which it did (Table 2)."""


@dataclass(frozen=True)
class TrainPlan:
    """What a training run will do.

    Attributes:
        num_videos: length of the training list.
        world_size: processes, one per GPU.
        iterations: updates of the weights.
        val_interval: iterations between validations.
        schedule: the learning rate of every iteration.
        accumulation: batches of a GPU whose gradients are added up to one update.
        norm: of the network, where the plan is to speak of it.
        keeps_epochs: whether the iterations follow the batch.
        of_images: whether a clip is an image.
    """

    num_videos: int
    clips_per_gpu: int
    world_size: int
    iterations: int
    val_interval: int
    schedule: Schedule
    base_lr: float
    base_batch: int
    accumulation: int = 1
    norm: str | None = None
    keeps_epochs: bool = False
    of_images: bool = False

    @property
    def global_batch(self) -> int:
        """Clips per iteration over all processes and steps of accumulation."""
        return self.clips_per_gpu * self.world_size * self.accumulation

    @property
    def bn_batch(self) -> int | None:
        """Clips that batch norm takes statistics over; None where the norm takes none of clips."""
        return {
            "bn": self.clips_per_gpu,
            "sync_bn": self.clips_per_gpu * self.world_size,
        }.get(self.norm or "")

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
        schedule = self.schedule
        steps: dict[str, object] = {}
        if isinstance(schedule, StepSchedule):
            steps = {"lr_milestones": list(schedule.milestones), "lr_gamma": schedule.gamma}
        return {
            "num_videos": self.num_videos,
            "clips_per_gpu": self.clips_per_gpu,
            "world_size": self.world_size,
            "accumulation": self.accumulation,
            "global_batch": self.global_batch,
            "norm": self.norm,
            "bn_batch": self.bn_batch,
            "base_lr": self.base_lr,
            "base_batch": self.base_batch,
            "schedule": "step" if steps else "cosine",
            "learning_rate": schedule.learning_rate,
            **steps,
            "warmup_iterations": schedule.warmup_iterations,
            "iterations": self.iterations,
            "epochs": self.epochs,
        }

    def lines(self) -> Iterator[str]:
        """The plan as text, with a note on whatever was scaled without what belongs to it."""
        yield f"batch       {self._batch()} = {_count(self.global_batch, 'clip')}"
        yield from self._batch_norm()
        yield (
            f"lr          {self.base_lr:g} x {self.global_batch}/{self.base_batch} "
            f"= {self.schedule.learning_rate:g}, {self._decay()}"
        )
        yield f"warm-up     {self._warm_up()}"
        yield (
            f"iterations  {self.iterations:,} = {self.iterations * self.global_batch:,} clips "
            f"= {self.epochs:.1f} epochs of {self.num_videos:,} videos"
        )
        yield from self._notes()

    def ends_line(self, seconds_per_step: float, now: datetime, *, done: int = 0) -> str:
        """When the run will end at a pace, as one line of text.

        Args:
            seconds_per_step: of one iteration, with all its steps of accumulation.
            done: finished iterations.
        """
        left = (self.iterations - done) * seconds_per_step
        pace = f"{seconds_per_step:.2f} s per iteration, before validation"
        try:
            end = now + timedelta(seconds=left)
        except OverflowError:
            return f"ends        after the year 9999 at {pace}"
        return f"ends        {end:%Y-%m-%d %H:%M %Z}".rstrip() + f", in {duration(left)} at {pace}"

    def _batch(self) -> str:
        clips, gpus = _count(self.clips_per_gpu, "clip"), _count(self.world_size, "GPU")
        steps = f" x {self.accumulation} steps of accumulation" if self.accumulation > 1 else ""
        return f"{clips} per GPU x {gpus}{steps}"

    def _batch_norm(self) -> Iterator[str]:
        """What batch norm sees of the batch, and what the paper found where that is little."""
        if self.bn_batch is None:
            return
        whose = "each GPU's own" if self.norm == "bn" else "those of all GPUs in one step"
        grows = "; accumulation does not enlarge it" if self.accumulation > 1 else ""
        yield f"BN's batch  {_count(self.bn_batch, 'clip')}, {whose}{grows}"
        if self.of_images and self.bn_batch < SMALL_IMAGE_BATCH:
            yield (
                f"hint        below {SMALL_IMAGE_BATCH} images BN loses, GN does not: from 32 to 2 "
                "images per GPU their top-1 error on ImageNet"
            )
            yield (
                "            went from 23.6 to 34.7 and from 24.1 to 24.1 (GN paper, Table 2). "
                "model.norm=gn"
            )
        elif not self.of_images and self.bn_batch < SMALL_BATCH:
            yield (
                f"hint        below {SMALL_BATCH} clips BN loses, GN hardly: from 8 to 4 clips per "
                "GPU their top-1 on Kinetics-400 went from 73.3 to 72.1 and from 73.0 to 72.8;"
            )
            yield (
                "            with 64 frames at 4 clips BN had 73.3, GN 74.5 (GN paper, Table 8). "
                "model.norm=gn"
            )

    def _decay(self) -> str:
        schedule = self.schedule
        if isinstance(schedule, StepSchedule):
            places = ", ".join(f"{m:,}" for m in schedule.milestones) or "no iteration"
            return f"x {schedule.gamma:g} at {places}"
        return f"a cosine down to {schedule.at(self.iterations - 1):.2g}"

    def _warm_up(self) -> str:
        count = self.schedule.warmup_iterations
        if count == 0:
            return "none"
        return f"{count:,} iterations from {self.schedule.at(0):g}"

    def _notes(self) -> Iterator[str]:
        ratio = self.base_batch / self.global_batch
        if not self.keeps_epochs and max(ratio, 1 / ratio) > BATCH_TOLERANCE:
            yield (
                f"note        at the base batch of {self.base_batch} these iterations would be "
                f"{self.base_epochs:.1f} epochs; train.iterations={round(self.iterations * ratio)} "
                "would keep that number"
            )
        same_lr = math.isclose(self.base_lr, RECIPE.base_lr)
        same_batch = self.base_batch == RECIPE.base_batch
        # Images have another recipe.
        if same_lr == same_batch or self.of_images:
            return
        changed, left = ("base_batch", "base_lr") if same_lr else ("base_lr", "base_batch")
        scaled = scale_learning_rate(RECIPE.base_lr, RECIPE.base_batch, self.global_batch)
        yield (
            f"note        train.{changed}={getattr(self, changed):g} is not the recipe's, "
            f"train.{left} is: the recipe's {RECIPE.base_lr:g} at {RECIPE.base_batch} clips would "
            f"be {scaled:g} at {self.global_batch}, here it is {self.schedule.learning_rate:g}"
        )
        if not same_lr and math.isclose(self.base_lr, scaled):
            yield (
                f"            base_lr is scaled to the batch by itself: train.base_lr="
                f"{RECIPE.base_lr:g} gives {scaled:g}"
            )


def make_plan(
    train: TrainConfig,
    *,
    num_videos: int,
    world_size: int,
    norm: str | None = None,
    of_images: bool = False,
) -> TrainPlan:
    """Work out a run's numbers from its recipe, its list and its number of processes.

    Args:
        norm: of the network.
        of_images: whether a clip is an image.

    Raises:
        ConfigError: warm-up would not end.
    """
    global_batch = train.clips_per_gpu * world_size * train.accumulation
    per_epoch = math.ceil(num_videos / global_batch)
    iterations, val_interval = train.iterations, train.val_interval
    if train.epochs is not None:
        iterations = max(1, round(train.epochs * per_epoch))
    if train.val_epochs is not None:
        val_interval = max(1, round(train.val_epochs * per_epoch))
    if train.warmup_iterations >= iterations:
        raise ConfigError(
            f"train.warmup_iterations ({train.warmup_iterations}) must be below the "
            f"{iterations:,} iterations of train.epochs={train.epochs:g}"
            if train.epochs is not None
            else f"train.warmup_iterations ({train.warmup_iterations}) must be below "
            f"train.iterations ({iterations})"
        )
    learning_rate = scale_learning_rate(train.base_lr, train.base_batch, global_batch)
    return TrainPlan(
        num_videos=num_videos,
        clips_per_gpu=train.clips_per_gpu,
        world_size=world_size,
        iterations=iterations,
        val_interval=val_interval,
        schedule=make_schedule(train, learning_rate, iterations),
        base_lr=train.base_lr,
        base_batch=train.base_batch,
        accumulation=train.accumulation,
        norm=norm,
        keeps_epochs=train.epochs is not None,
        of_images=of_images,
    )


def duration(seconds: float) -> str:
    """A length of time as text, rounded to what matters: 3 d 4 h, 5 h 10 min, 12 min, 40 s."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
