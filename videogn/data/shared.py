"""Memory that processes share: what data workers write there, nobody has to copy or send."""

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from videogn.data.list_checks import VideoRecord

TEXT_ERRORS = "surrogateescape"
"""Names of files may be any bytes."""


class SharedBytes:
    """Bytes seen by the process that makes them and by those it is passed to as they start.

    Pages that were never written take no memory. Unlike ``/dev/shm``, which containers keep small,
    it is limited by the machine's memory alone.

    Attributes:
        array: (size,) uint8, zeros at first.
    """

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        self._size = size
        self._descriptor = _anonymous_file(size) if descriptor is None else descriptor
        weakref.finalize(self, os.close, self._descriptor)
        # An empty mapping is refused.
        self._map = mmap.mmap(self._descriptor, max(size, 1))
        self.array = np.frombuffer(self._map, np.uint8, size)

    def __reduce__(self) -> tuple[Callable[..., "SharedBytes"], tuple[Any, ...]]:
        return _attach, (self._size, DupFd(self._descriptor))


def _attach(size: int, descriptor: Any) -> SharedBytes:
    return SharedBytes(size, descriptor.detach())


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("videogn")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, max(size, 1))
    return descriptor


class Ring:
    """Slots that batches go through, one after the other.

    Args:
        num_slots: as many as batches are on their way or in use.
        slot_bytes: memory of each.
    """

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        self.num_slots = num_slots
        self.slot_bytes = slot_bytes
        self._bytes = SharedBytes(num_slots * slot_bytes)

    def slot(self, number: int) -> np.ndarray:
        """(slot_bytes,) uint8 of slot ``number`` modulo their number."""
        start = number % self.num_slots * self.slot_bytes
        return self._bytes.array[start : start + self.slot_bytes]

    def pin(self) -> None:
        """Lock its pages, so that a GPU fetches from them while the process goes on.

        Raises:
            RuntimeError: the driver refuses.
        """
        array = self._bytes.array
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address = array.ctypes.data
        torch.cuda.check_error(runtime.cudaHostRegister(address, array.nbytes, 0))
        weakref.finalize(self._bytes, runtime.cudaHostUnregister, address)


class SharedRecords(Sequence[VideoRecord]):
    """A list of videos that all processes share: 100,000 cost a worker as much as ten."""

    def __init__(self, records: Iterable[VideoRecord]) -> None:
        records = list(records)
        texts = [
            text.encode(errors=TEXT_ERRORS) for one in records for text in (one.path, one.name)
        ]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        labels = np.array([record.label for record in records], dtype=np.int64)
        content = ends.tobytes() + labels.tobytes() + b"".join(texts)
        self._length = len(records)
        self._bytes = SharedBytes(len(content))
        self._bytes.array[:] = np.frombuffer(content, np.uint8)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(self._length)[index]]
        place = range(self._length)[index]
        numbers = self._bytes.array[: 24 * self._length].view(np.int64)
        texts = self._bytes.array[24 * self._length :]
        start = 0 if place == 0 else int(numbers[2 * place - 1])
        middle, end = (int(number) for number in numbers[2 * place : 2 * place + 2])
        path, name = (
            part.tobytes().decode(errors=TEXT_ERRORS)
            for part in (texts[start:middle], texts[middle:end])
        )
        return VideoRecord(path, int(numbers[2 * self._length + place]), name)
