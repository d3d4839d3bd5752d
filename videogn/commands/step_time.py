"""What a training will do and how long its steps take, found out without beginning it."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import torch

from videogn.commands.measuring_process import begin
from videogn.commands.run_parts import build_run, memory_plan
from videogn.commands.train import StepTime, prepare, time_step
from videogn.config_files import load_config
from videogn.distributed import World, joined_world
from videogn.engine.arithmetic import set_arithmetic
from videogn.engine.memory_plan import memory_told
from videogn.engine.plan import TrainPlan
from videogn.errors import RunError


class Asked(NamedTuple):
    """A training.

    Attributes:
        words: ``key=value`` words behind its config.
        timed: whether its step is to be measured.
    """

    config: Path
    words: tuple[str, ...]
    timed: bool


class Found(NamedTuple):
    """What there is to know of it; no time where none was measured."""

    plan: TrainPlan
    time: StepTime | None


def look_ahead(asked: Sequence[Asked], world_size: int) -> list[Found]:
    """Check trainings as their commands would, and measure steps on one device.

    In a process of its own, which gives a GPU's memory back when it ends.

    Raises:
        UserError: the first thing that is wrong with one of them.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context, begin, (os.getpid(),)) as pool:
            return [pool.submit(_found, one, world_size).result() for one in asked]
    except BrokenProcessPool as error:
        raise RunError(
            "the process that measures steps was ended; is the machine out of memory? Set "
            "fewer data.num_workers, or try one cell alone by --only"
        ) from error


def _found(asked: Asked, world_size: int) -> Found:
    prepared = prepare(load_config(asked.config, asked.words), world_size)
    if not asked.timed:
        return Found(prepared.plan, None)
    with joined_world() as world:
        set_arithmetic(prepared.config.train.precision, fixed_shapes=True)
        memory = memory_plan(prepared, world)
        run, _ = build_run(prepared, World(0, 1, world.device), memory, None, _silent)
        with memory_told(memory, "a step", graphs=run.captured):
            time = time_step(prepared, run)
    del run
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Found(prepared.plan, time)


def _silent(line: str) -> None:
    del line
