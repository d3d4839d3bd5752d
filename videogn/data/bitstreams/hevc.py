"""Pictures of HEVC."""

from itertools import pairwise

from videogn.data.bitstreams.bits import Bits, Count, sized_units, unescaped, units_of
from videogn.data.bitstreams.pictures import PERIOD, Picture, UncertainError


class Hevc:
    """HEVC of one layer in mp4 or Matroska, parameter sets in the headers alone."""

    SLICES, LEADING, SKIPPED, SETS = range(32), range(6, 10), (8, 9), (32, 33, 34)
    IDR, CRA, KEYS = (19, 20), 21, range(16, 24)
    SEQUENCE, PICTURE, ENDS = 33, 34, (36, 37)
    HEAD_BYTES = 24

    def __init__(self, extradata: bytes) -> None:
        if len(extradata) < 23 or extradata[0] != 1:
            raise UncertainError("its HEVC units are divided by start codes")
        self._length_bytes = (extradata[21] & 3) + 1
        self._sets = _hevc_sets(extradata)
        sequences, pictures = (
            [unit for unit in self._sets if unit[0] >> 1 == kind]
            for kind in (self.SEQUENCE, self.PICTURE)
        )
        if len(sequences) != 1 or len(pictures) != 1:
            raise UncertainError("it has several headers")
        self._count = Count(_hevc_order_bits(sequences[0]))
        self._extra_bits = _hevc_extra_bits(pictures[0])
        self._orders: list[int] = []

    def __call__(self, content: bytes) -> Picture:
        """What becomes of a packet."""
        picture: Picture | None = None
        for unit in units_of(content, self._length_bytes):
            kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
            if layer:
                raise UncertainError("it has several layers")
            if kind in self.SLICES:
                begins = bool(unit[2] >> 7)
                if begins == (picture is not None):
                    raise UncertainError("its packets are not one picture each")
                picture = picture or self._begun(unit, kind)
            elif (kind in self.SETS and unit not in self._sets) or kind in self.ENDS:
                raise UncertainError("its headers change")
        if picture is None:
            raise UncertainError("a packet has no picture")
        self._orders.append(picture.order)
        return picture

    def _begun(self, unit: bytes, kind: int) -> Picture:
        """What the first slice of a picture tells (H.265, 7.3.6.1)."""
        bits = Bits(unescaped(unit[2 : self.HEAD_BYTES]))
        bits.read(1)
        if kind in self.KEYS and kind not in (*self.IDR, self.CRA):
            raise UncertainError("it was cut at key frames")
        throws_away = bits.read(1) if kind in self.KEYS else 0
        if kind in self.IDR:
            if throws_away:
                raise UncertainError("its key frames throw others away")
            return Picture(shown=True, start=True, order=self._count.restart())
        bits.golomb()
        bits.read(self._extra_bits)
        bits.golomb()
        # Only pictures that others of the lowest layer in time may refer to carry the count on.
        is_anchor = unit[1] & 7 == 1 and kind not in self.LEADING and (kind > 14 or kind % 2 == 1)
        return Picture(
            shown=True,
            start=kind == self.CRA,
            after_start=kind in self.SKIPPED,
            order=self._count.of(bits.read(self._count.bits), is_anchor=is_anchor),
        )

    def keeps_all(self, reordered: int, *, holds_back: bool) -> bool:
        """FFmpeg drops frames that refer to one that is missing, however late the others come."""
        steps = {after - before for before, after in pairwise(sorted(self._orders))}
        return all(step == 1 or step > PERIOD // 2 for step in steps)


def _hevc_order_bits(unit: bytes) -> int:
    """Bits of a picture's place in the order they are shown (H.265, 7.3.2.2.1)."""
    bits = Bits(unescaped(unit[2:]))
    bits.read(4)
    num_sublayers = bits.read(3)
    bits.read(1 + 96)
    about = [(bits.read(1), bits.read(1)) for _ in range(num_sublayers)]
    bits.read(2 * (8 - num_sublayers) if num_sublayers else 0)
    for has_profile, has_level in about:
        bits.read(88 * has_profile + 8 * has_level)
    bits.golomb()
    if bits.golomb() == 3 and bits.read(1):
        raise UncertainError("its colours are coded by themselves")
    bits.golomb()
    bits.golomb()
    for _ in range(4 if bits.read(1) else 0):
        bits.golomb()
    bits.golomb()
    bits.golomb()
    return bits.golomb() + 4


def _hevc_extra_bits(unit: bytes) -> int:
    """Bits before a slice's type that are left to later versions (H.265, 7.3.2.3.1)."""
    bits = Bits(unescaped(unit[2:]))
    bits.golomb()
    bits.golomb()
    bits.read(1)
    if bits.read(1):
        raise UncertainError("its headers allow hidden pictures")
    return bits.read(3)


def _hevc_sets(extradata: bytes) -> list[bytes]:
    """The parameter sets of an hvcC record (ISO 14496-15, 8.3.3.1)."""
    units, place = list[bytes](), 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[place + 1 : place + 3], "big")
        found, place = sized_units(extradata, place + 3, count)
        units += found
    return units
