"""How many views of a video go through the network at once: as many as a memory budget holds.

Shapes: V views of T frames of H x W pixels.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from videogn.engine.allocations import Allocations, MetaAutocast
from videogn.engine.arithmetic import dtype_of
from videogn.engine.device_memory import available_bytes
from videogn.models.summary import on_meta

SHARE = 0.7
"""Of the memory that is free when the first video comes; the rest is for what torch rounds up."""

CPU_PASS = 1 << 20
"""Frames times pixels of a pass on a CPU, per thread: with more its tensors go through memory that
is asked for anew, not through the cache; with less many threads have little to share."""

Measure = Callable[[Tensor], tuple[Tensor, ...]]
"""From views (V, 3, T, H, W), normalised, to what is kept of each, tensors (V, …) float32."""


class PassSize:
    """Cuts the views of videos into passes.

    The bytes that a view takes are found by a probe with the first video and grow with its pixels.
    Where all views do not fit, or are more than is good, they are shared out evenly.

    Args:
        fixed: views of each pass, whatever the memory; None to choose.
        room_bytes: memory that a pass may take.
        probe: bytes that a pass of one view takes, by the view's shape (T, H, W).
        most_pixels: frames times pixels of the views of a pass, but for one larger view; None for
            as many as the memory holds.
    """

    def __init__(
        self,
        fixed: int | None,
        room_bytes: int,
        probe: Callable[[tuple[int, int, int]], int],
        most_pixels: int | None = None,
    ) -> None:
        self.fixed = fixed
        self._room_bytes = room_bytes
        self._probe = probe
        self._most_pixels = most_pixels
        self._bytes_per_sample = 0.0
        self._last, self._last_bytes = 0, 0

    def spans(self, num_views: int, view: tuple[int, int, int]) -> list[tuple[int, int]]:
        """First view of each pass, and the one after its last.

        Args:
            view: (T, H, W).
        """
        size = self.fixed
        if size is None:
            num_passes = math.ceil(num_views / self._fitting(view))
            size = math.ceil(num_views / num_passes)
            self._last_bytes = math.ceil(size * self._bytes_of(view))
        self._last = size
        return [(first, min(first + size, num_views)) for first in range(0, num_views, size)]

    def shrink(self) -> bool:
        """Make passes half as large after the device ran out of memory.

        Returns:
            False where the number of views is fixed, or was one, or the probe found no room.
        """
        self._room_bytes = min(self._room_bytes, self._last_bytes) // 2
        return self.fixed is None and self._last > 1

    def holds(self, times: float, num_views: int, view: tuple[int, int, int]) -> bool:
        """Whether the room holds ``times`` what a pass of so many views takes."""
        return times * num_views * self._bytes_of(view) <= self._room_bytes

    def _fitting(self, view: tuple[int, int, int]) -> int:
        fitting = int(self._room_bytes / self._bytes_of(view))
        if self._most_pixels is not None:
            fitting = min(fitting, self._most_pixels // math.prod(view))
        return max(1, fitting)

    def _bytes_of(self, view: tuple[int, int, int]) -> float:
        if not self._bytes_per_sample:
            self._bytes_per_sample = self._probe(view) / math.prod(view)
        return self._bytes_per_sample * math.prod(view)


def make_pass_size(
    network: nn.Module,
    measure_of: Callable[[nn.Module], Measure],
    *,
    fixed: int | None,
    precision: str,
    device: torch.device,
    sharing: int,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> PassSize:
    """The size of passes of a network on a device.

    Args:
        network: where it computes.
        measure_of: what is to be computed, by a network.
        fixed: as in :class:`PassSize`.
        precision: of autocast.
        sharing: processes that share the device's memory.
        memory_format: of the views.
    """

    def probe(view: tuple[int, int, int]) -> int:
        if device.type == "cuda":
            return _measured(measure_of(network), view, precision, device)
        clip = torch.empty((1, 3, *view), device="meta", memory_format=memory_format)
        return _counted(measure_of(on_meta(network)), clip, precision)

    room = int(SHARE * available_bytes(device)) // sharing
    most = CPU_PASS * torch.get_num_threads() if device.type == "cpu" else None
    return PassSize(fixed, room, probe, most)


@torch.inference_mode()
def _counted(measure: Measure, clip: Tensor, precision: str) -> int:
    """Bytes that are alive at once in a pass of one view, by the allocations on the meta device."""
    dtype = dtype_of(precision)
    casts = MetaAutocast(dtype, "cpu") if dtype != torch.float32 else nullcontext()
    with Allocations([]) as allocations, casts:
        measure(clip)
    return int(max(allocations.with_workspace))


@torch.inference_mode()
def _measured(
    measure: Measure, view: tuple[int, int, int], precision: str, device: torch.device
) -> int:
    """Bytes that a pass of one view takes on a GPU, by torch's own count."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    dtype = dtype_of(precision)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        measure(torch.zeros((1, 3, *view), device=device))
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before
