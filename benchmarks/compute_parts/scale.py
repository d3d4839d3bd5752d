"""How large a run is: the real thing, or one through every line on a CPU."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from compute_parts.page import Page
from compute_parts.timing import Timer


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        network: arguments of ``i3d``.
        clips: of the main tables.
        sweep, long_sweep: numbers of clips of the sweep over short and over long clips.
        frames: short and long clips.
        size: pixels of a training crop.
        test: (T, H, W) of a test view.
        views: of one video in the test.
        rounds: of an interleaved comparison.
        big: bytes of a large copy.
        matmul: side of a large matrix product.
    """

    network: dict[str, Any]
    clips: int
    sweep: tuple[int, ...]
    long_sweep: tuple[int, ...]
    frames: tuple[int, int]
    size: int
    test: tuple[int, int, int]
    views: int
    rounds: int
    big: int
    matmul: int


WHOLE = Scale(
    network={},
    clips=8,
    sweep=(1, 4, 16, 32),
    long_sweep=(1, 8, 32),
    frames=(32, 64),
    size=224,
    test=(32, 256, 340),
    views=10,
    rounds=5,
    big=2**32,
    matmul=8192,
)
TINY = Scale(
    network={"width": 8, "num_groups": 2, "depths": (1,), "num_classes": 5},
    clips=1,
    sweep=(1,),
    long_sweep=(1,),
    frames=(8, 10),
    size=16,
    test=(8, 16, 24),
    views=1,
    rounds=1,
    big=2**20,
    matmul=64,
)


@dataclass
class Bench:
    """What every section gets: where to measure, how much, where to write, what is known so far."""

    device: torch.device
    scale: Scale
    timer: Timer
    page: Page
    dry: bool
    known: dict[str, float] = field(default_factory=dict)
    """Name -> number, for the sections after: rates, times, bytes."""
    networks: dict[str, nn.Module] = field(default_factory=dict)
    """Norm and layout -> network as it is built."""

    def within(self, seconds: float) -> "Timer":
        """A timer that ends within so many seconds, or with the run."""
        return Timer(self.device, min(self.timer.ends_at, time.monotonic() + seconds))
