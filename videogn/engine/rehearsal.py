"""A step before the first one: how long it takes, and whether the device has room for it."""

import time

import torch
import torch.nn.functional as F

from videogn.config import ClipConfig
from videogn.engine.arithmetic import autocast
from videogn.engine.memory_plan import MemoryPlan, memory_told
from videogn.engine.percentiles import check_called, watched
from videogn.engine.precise_bn import Buffers
from videogn.engine.trainer import Run, network_input, set_training


def rehearse(run: Run, clip: ClipConfig, memory: MemoryPlan) -> float:
    """Seconds of an iteration without its reading; nothing of the run changes.

    All ranks come here together, for they exchange gradients. The first pass also allocates and
    tunes, and lets torch settle in which portions gradients are exchanged: from the first real
    step on their sums have one order, also when a run goes on.

    Raises:
        RunError: the device has too little memory, or ``train.percentile_layer`` is not called.
    """
    layer = run.recipe.percentile_layer
    buffers = Buffers(run.trained.network)
    set_training(run.model, run.trained.network, run.frozen)
    try:
        with (
            memory_told(memory, "a step", graphs=run.captured),
            watched(run.trained.network, layer, keep=run.world.is_main) as seen,
        ):
            for _ in range(2):
                started = time.monotonic()
                _pass(run, clip)
                seconds = time.monotonic() - started
    finally:
        buffers.restore()
        run.trained.optimizer.zero_grad(set_to_none=True)
    if layer is not None:
        check_called(seen, layer)
    return seconds * run.plan.accumulation


def _pass(run: Run, clip: ClipConfig) -> None:
    device, count = run.world.device, run.plan.clips_per_gpu
    size = (count, 3, clip.num_frames, clip.crop_size, clip.crop_size)
    pixels = network_input(run, torch.zeros(size, dtype=torch.uint8, device=device))
    with autocast(device, run.recipe.precision):
        logits = run.model(pixels)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
