"""Numbers, units and order counts, as H.264 and its relatives write them."""

from videogn.data.bitstreams.pictures import PERIOD, UncertainError


class Bits:
    """Reads numbers of bits, as H.264 (9.1) and its relatives write them."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """The next bits as a number.

        Raises:
            ValueError: there are not so many.
        """
        if count > self._left:
            raise ValueError("too few bits")
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """An Exp-Golomb number; of a signed one, only the place behind it is right."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def unescaped(unit: bytes) -> bytes:
    """A unit without the bytes that keep start codes out of it (H.264, 7.4.1)."""
    return unit.replace(b"\0\0\3", b"\0\0")


def units_of(content: bytes, length_bytes: int) -> list[bytes]:
    """The units of a packet that has each one's length before it.

    Raises:
        UncertainError: the lengths do not fit.
    """
    place, units = 0, []
    while place < len(content):
        size = int.from_bytes(content[place : place + length_bytes], "big")
        place += length_bytes
        unit = content[place : place + size]
        if not unit or len(unit) != size:
            raise UncertainError("its packets are not made of whole units")
        units.append(unit)
        place += size
    return units


def sized_units(record: bytes, place: int, count: int) -> tuple[list[bytes], int]:
    """Units of a stream's headers, two bytes of size before each, and the place behind them.

    Raises:
        ValueError: the record ends before them.
    """
    units = []
    for _ in range(count):
        size = int.from_bytes(record[place : place + 2], "big")
        units.append(record[place + 2 : place + 2 + size])
        place += 2 + size
    if place > len(record) or not all(units):
        raise ValueError("they end early")
    return units, place


class Count:
    """The order count of pictures, of which packets hold the low bits (H.264, 8.2.1.1)."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._cycle = 1 << bits
        self._period = self._anchor = 0

    def restart(self) -> int:
        """The count 0 of a picture at which it begins again."""
        self._period += PERIOD
        self._anchor = 0
        return self._period

    def of(self, low: int, *, is_anchor: bool) -> int:
        """The count of a picture; later ones lie within half a cycle of the last anchor's."""
        half = self._cycle // 2
        count = self._anchor + (low - self._anchor + half) % self._cycle - half
        if is_anchor:
            self._anchor = count
        return self._period + count
