"""How the norm kernels cut tensors up, and the memory formats that they read.

All of it follows from a tensor's shape alone, so that results are the same bits everywhere. Shapes:
N samples, C channels, R places (T x H x W).
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

_TILE_BYTES = 4096
"""Of one tensor: 32 bytes a thread, two of the widest loads."""
_STATS_TILE_BYTES = 2048
"""Statistics are the quicker for more programs of fewer registers."""
_STATS_PROGRAMS = 1024
_SUMS_PROGRAMS = 640
_MAP_PROGRAMS = 8192
"""About as many programs: for those that reduce, as many as run at once and few to be merged."""
_STATS_TILES, _SUMS_TILES = 4, 2
"""Tiles that a program loads before it uses the first."""


@dataclass(frozen=True)
class Cut:
    """How a kernel cuts a tensor up: tiles, units of places, and splits of a sample.

    A split is one unit of a kernel that maps. Of one that reduces it is every ``splits``-th unit:
    programs that run side by side then read what lies side by side.
    """

    block_r: int
    block_c: int
    channel_blocks: int
    unit: int
    splits: int


@dataclass(frozen=True)
class Plan:
    """How a tensor is cut up: a function of its shape alone, so results are the same.

    ``samples`` is 1 where the batch's statistics let samples be one run of rows.
    """

    samples: int
    channels: int
    places: int
    strides: tuple[int, int, int]
    stats: Cut
    sums: Cut
    maps: Cut

    def programs(self, cut: Cut) -> int:
        """Programs of a kernel."""
        return self.samples * cut.splits * cut.channel_blocks

    def arguments(self, cut: Cut, num_groups: int) -> tuple[int, ...]:
        """What every kernel that works on tiles is told of the tensor, in its order."""
        sizes = (self.channels, self.places, self.channels // num_groups)
        return (*sizes, cut.splits, cut.unit, cut.channel_blocks, *self.strides)


@functools.lru_cache(maxsize=4096)
def plan(
    samples: int, channels: int, places: int, channels_last: bool, over_batch: bool, itemsize: int
) -> Plan:
    """How a tensor is cut up.

    Args:
        over_batch: whether statistics are over the batch.
        itemsize: bytes of a value.
    """
    if channels_last and over_batch:
        samples, places = 1, samples * places
    strides = (places * channels, channels, 1)
    if not channels_last:
        strides = (channels * places, 1, places)
    small = _block(channels, places, channels_last, _STATS_TILE_BYTES // itemsize)
    large = _block(channels, places, channels_last, _TILE_BYTES // itemsize)
    blocks = -(-channels // large[1])
    in_all = -(-places // large[0]) * samples * blocks
    per_map = 4 * max(1, in_all // (4 * _MAP_PROGRAMS)) * large[0]
    return Plan(
        samples,
        channels,
        places,
        strides,
        # The last, smaller unit of statistics belongs to one of the others.
        stats=_strided(samples, channels, small, _STATS_TILES, _STATS_PROGRAMS, places, whole=True),
        sums=_strided(samples, channels, large, _SUMS_TILES, _SUMS_PROGRAMS, places, whole=False),
        maps=Cut(*large, blocks, per_map, -(-places // per_map)),
    )


def _block(channels: int, places: int, channels_last: bool, size: int) -> tuple[int, int]:
    """Places and channels of a tile of ``size`` values, the longer along memory."""
    if channels_last:
        block_c = min(power_of_2(channels), 128)
        return min(power_of_2(places), size // block_c), block_c
    block_r = min(power_of_2(places), size)
    return block_r, min(power_of_2(channels), size // block_r)


def _strided(
    samples: int,
    channels: int,
    block: tuple[int, int],
    tiles: int,
    programs: int,
    places: int,
    *,
    whole: bool,
) -> Cut:
    """The cut of a kernel that reduces: units are dealt out evenly to about ``programs``."""
    unit = tiles * block[0]
    units = max(1, places // unit if whole else -(-places // unit))
    blocks = -(-channels // block[1])
    most = max(1, programs // (samples * blocks))
    each = -(-units // most)
    return Cut(*block, blocks, unit, -(-units // each))


def power_of_2(number: int) -> int:
    """The smallest power of 2 that is not below a number from 1."""
    return 1 << (number - 1).bit_length()


def _format(x: Tensor) -> torch.memory_format | None:
    """The memory format that x is in of those the kernels read; None where it is in neither."""
    last = _channels_last(x.ndim)
    if last is None:
        return torch.contiguous_format if x.is_contiguous() else None
    # One place per sample is both; channels are then to be the axis with a stride of 1.
    if x.is_contiguous(memory_format=last) and (not x.is_contiguous() or x.shape[1] > 1):
        return last
    return torch.contiguous_format if x.is_contiguous() else None


def _channels_last(ndim: int) -> torch.memory_format | None:
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(ndim)


def dense(x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """X in one of the two formats, a copy if need be, and which."""
    found = _format(x)
    if found is not None:
        return x, found
    last = _channels_last(x.ndim)
    wanted = last if last is not None and x.stride(1) == 1 else torch.contiguous_format
    return x.contiguous(memory_format=wanted), wanted


def plan_of(x: Tensor, memory_format: torch.memory_format, over_batch: bool) -> Plan:
    """How x is cut up, which is dense in a memory format."""
    samples, channels = x.shape[:2]
    last = memory_format != torch.contiguous_format
    places = x.numel() // (samples * channels)
    return plan(samples, channels, places, last, over_batch, x.element_size())
