"""The order of an epoch over tar shards: permuted shards, then a shuffle buffer.

A permutation of the whole list would read from every shard at once. Here reads stay within a
window that walks through the shards, so what they touch is read from the disk together::

    shards 2 0 1, buffer of 3:   c0 c1 c2 c3 a0 a1 …   ->   c1 c0 a0 c3 …

N samples; K samples in the buffer.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from videogn.data.list_checks import VideoRecord
from videogn.files import locate

SHARDS = 3
"""Ends the seeds of these orders, so that nothing else is drawn from the same one."""


def shards_of(records: Sequence[VideoRecord]) -> list[np.ndarray] | None:
    """Indices of the records of each shard, (n,) int64, in the order they lie in it.

    None where some record is no member of a shard.
    """
    parts = [locate(record.path) for record in records]
    if not parts or any(part.size is None for part in parts):
        return None
    files, owners = np.unique([part.file for part in parts], return_inverse=True)
    starts = np.array([part.start for part in parts], dtype=np.int64)
    by_place = np.lexsort((starts, owners)).astype(np.int64)
    cuts = np.searchsorted(owners[by_place], np.arange(len(files) + 1))
    return [by_place[first:last] for first, last in pairwise(cuts)]


def shard_order(
    records: Sequence[VideoRecord], buffer: int
) -> Callable[[int, int], np.ndarray] | None:
    """What gives the order of an epoch by (seed, epoch); None for a list of other files."""
    shards = shards_of(records)
    if shards is None:
        return None
    return lambda seed, epoch: buffered_order(shards, buffer, seed, epoch)


def buffered_order(shards: Sequence[np.ndarray], buffer: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, (N,) int64: all indices of all shards, each once.

    Sample i of the permuted shards comes out at place i - K + 1 at the earliest.

    Args:
        shards: indices of each shard's samples, in the order they lie in it.
        buffer: K, samples that the next one is drawn from.
    """
    rng = np.random.default_rng([seed, epoch, 0, 0, SHARDS])
    stream = np.concatenate([shards[shard] for shard in rng.permutation(len(shards))])
    held = stream[:buffer].tolist()
    slots = rng.integers(len(held), size=len(stream) - len(held)).tolist()
    order = []
    for slot, coming in zip(slots, stream[len(held) :].tolist(), strict=True):
        order.append(held[slot])
        held[slot] = coming
    return np.array([*order, *(held[i] for i in rng.permutation(len(held)))], dtype=np.int64)
