"""Pictures of H.264."""

from typing import NamedTuple

from videogn.data.bitstreams.bits import Bits, Count, sized_units, unescaped, units_of
from videogn.data.bitstreams.pictures import Picture, UncertainError


class H264:
    """Frame-coded H.264 in mp4 or Matroska, parameter sets in the headers alone."""

    SLICES, IDR, SPS, PPS = (1, 5), 5, 7, 8
    SPLIT_SLICE, END_OF_SEQUENCE, END_OF_STREAM = 2, 10, 11
    HEAD_BYTES = 24

    def __init__(self, extradata: bytes) -> None:
        if len(extradata) < 7 or extradata[0] != 1:
            raise UncertainError("its H.264 units are divided by start codes")
        self._length_bytes = (extradata[4] & 3) + 1
        self._sets = _parameter_sets(extradata)
        heads = [unit for unit in self._sets if unit[0] & 31 == self.SPS]
        if len(heads) != 1:
            raise UncertainError("it has several sequence headers")
        self._sequence = _h264_sequence(heads[0])
        self._count = Count(self._sequence.order_bits)
        self._last_number = self._pictures = 0

    def __call__(self, content: bytes) -> Picture:
        """What becomes of a packet."""
        picture: Picture | None = None
        for unit in units_of(content, self._length_bytes):
            kind = unit[0] & 31
            if kind in self.SLICES:
                bits = Bits(unescaped(unit[1 : self.HEAD_BYTES]))
                begins = bits.golomb() == 0  # with the picture's first block
                if begins == (picture is not None):
                    raise UncertainError("its packets are not one picture each")
                picture = picture or self._begun(unit[0], bits)
            elif kind in (self.SPS, self.PPS) and unit not in self._sets:
                raise UncertainError("its headers change")
            elif kind in (self.SPLIT_SLICE, self.END_OF_SEQUENCE, self.END_OF_STREAM):
                raise UncertainError(f"it has units of type {kind}")
        if picture is None:
            raise UncertainError("a packet has no picture")
        return picture

    def _begun(self, head: int, bits: Bits) -> Picture:
        """What the first slice of a picture tells (H.264, 7.3.3), read up to its type."""
        bits.golomb()
        sequence, is_idr, reference = self._sequence, head & 31 == self.IDR, bool(head >> 5 & 3)
        bits.golomb()
        bits.read(2 if sequence.separate_planes else 0)
        number = bits.read(sequence.number_bits)
        # Decoders make up for pictures that are missing, by whatever they decoded before.
        if not is_idr and number != (self._last_number + 1) % (1 << sequence.number_bits):
            raise UncertainError("pictures are missing between its packets")
        if reference:
            self._last_number = number
        if is_idr:
            bits.golomb()
        self._pictures += 1
        if sequence.order_bits == 0:
            return Picture(True, is_idr, reference, order=self._pictures)
        if is_idr:
            self._count.restart()
        order = self._count.of(bits.read(sequence.order_bits), is_anchor=reference)
        return Picture(True, is_idr, reference, order=order)

    def keeps_all(self, reordered: int, *, holds_back: bool) -> bool:
        """FFmpeg drops a frame that comes later than it was told or had seen until then."""
        if self._sequence.reorder is not None:
            return reordered <= self._sequence.reorder
        return reordered == 0 or (reordered == 1 and holds_back)


def _parameter_sets(extradata: bytes) -> list[bytes]:
    """The sequence and picture headers of an avcC record (ISO 14496-15, 5.3.3.1)."""
    units, place = list[bytes](), 5
    for mask in (31, 255):
        found, place = sized_units(extradata, place + 1, extradata[place] & mask)
        units += found
    return units


HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


class _Sequence(NamedTuple):
    """What a sequence header tells.

    Attributes:
        number_bits: of a picture's number, which rises with every reference picture.
        order_bits: of its place in the order they are shown; 0 where that is of decoding.
        separate_planes: whether each colour is coded by itself.
        reorder: ``max_num_reorder_frames``; None where not said.
    """

    number_bits: int
    order_bits: int
    separate_planes: bool
    reorder: int | None


def _h264_sequence(unit: bytes) -> _Sequence:
    """A sequence header (H.264, 7.3.2.1.1).

    Raises:
        UncertainError: it allows fields, or pictures that are missing.
    """
    bits = Bits(unescaped(unit[1:]))
    profile = bits.read(8)
    bits.read(16)
    bits.golomb()
    separate_planes = False
    if profile in HIGH_PROFILES:
        separate_planes = bits.golomb() == 3 and bool(bits.read(1))
        bits.golomb()
        bits.golomb()
        bits.read(1)
        if bits.read(1):
            raise UncertainError("it has scaling matrices of its own")
    number_bits = bits.golomb() + 4
    order_type = bits.golomb()
    order_bits = bits.golomb() + 4 if order_type == 0 else 0
    if order_type == 1:
        raise UncertainError("its pictures are numbered in cycles")
    bits.golomb()
    if bits.read(1):
        raise UncertainError("its headers allow missing pictures")
    bits.golomb()
    bits.golomb()
    if not bits.read(1):
        raise UncertainError("its headers allow fields")
    bits.read(1)
    for _ in range(4 if bits.read(1) else 0):
        bits.golomb()
    reorder = 0 if order_type == 2 else _vui_reorder(bits)
    return _Sequence(number_bits, order_bits, separate_planes, reorder)


def _vui_reorder(bits: Bits) -> int | None:
    """``max_num_reorder_frames`` out of a sequence header's end (H.264, E.1.1), if it is there."""
    if not bits.read(1):
        return None
    if bits.read(1) and bits.read(8) == 255:  # shape of pixels
        bits.read(32)
    bits.read(1 if bits.read(1) else 0)  # overscan
    if bits.read(1):  # colours
        bits.read(4)
        bits.read(24 if bits.read(1) else 0)
    for _ in range(2 if bits.read(1) else 0):  # where chroma samples lie
        bits.golomb()
    bits.read(65 if bits.read(1) else 0)  # rate
    buffered = [_skip_buffering(bits) for _ in range(2) if bits.read(1)]
    bits.read(1 if buffered else 0)
    bits.read(1)
    if not bits.read(1):
        return None
    bits.read(1)
    for _ in range(4):
        bits.golomb()
    return bits.golomb()


def _skip_buffering(bits: Bits) -> bool:
    count = bits.golomb() + 1
    bits.read(8)
    for _ in range(count):
        bits.golomb()
        bits.golomb()
        bits.read(1)
    bits.read(20)
    return True
