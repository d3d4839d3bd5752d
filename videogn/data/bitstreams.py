"""What a packet holds, told from its first bits without decoding it.

A frame's place in a full decode can only be told from packets if each gives the one picture it
is taken for. Where the bits leave that open, the answer is :class:`UncertainError`: whoever asks
decodes the whole file instead.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol


class UncertainError(Exception):
    """Which frames a file gives cannot be told without decoding it; the text says why."""


class Picture(NamedTuple):
    """What becomes of a packet.

    Attributes:
        shown: whether a frame comes out of it.
        start: whether decoding may start at it: no picture shown behind it needs one before it.
        reference: whether other pictures may need it.
        after_start: whether it comes out only where decoding did not start at the ``start`` before.
        order: shown pictures come out in the order of it; 0 where that is the order of packets.
    """

    shown: bool
    start: bool
    reference: bool = True
    after_start: bool = False
    order: int = 0


PERIOD = 1 << 40
"""Added to ``order`` by every picture at which the codec's count begins again."""


class Inspector(Protocol):
    """Looks at the packets of one stream, in the order they are decoded."""

    def __call__(self, content: bytes) -> Picture:
        """What becomes of a packet.

        Raises:
            UncertainError: that cannot be told.
        """
        ...

    def keeps_all(self, reordered: int, *, holds_back: bool) -> bool:
        """Whether no frame is lost on its way out; asked behind the last packet.

        Args:
            reordered: pictures decoded before another and shown after it, at most.
            holds_back: whether the decoder knows from the beginning to hold back one.
        """
        ...


def inspector(codec: str, extradata: bytes) -> Inspector:
    """What looks at the packets of a stream.

    Args:
        codec: FFmpeg's name of the decoder.
        extradata: the stream's headers.

    Raises:
        UncertainError: there is none for this codec, or the headers leave too much open.
    """
    if codec not in INSPECTORS:
        raise UncertainError(f"{codec} packets are not looked into")
    with_headers = INSPECTORS[codec]
    try:
        return with_headers(extradata)
    except (IndexError, ValueError) as error:
        raise UncertainError(f"its headers cannot be read: {error}") from error


class _Bits:
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


def _unescaped(unit: bytes) -> bytes:
    return unit.replace(b"\0\0\3", b"\0\0")


def _units(content: bytes, length_bytes: int) -> list[bytes]:
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


class _Count:
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


class _H264:
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
        self._count = _Count(self._sequence.order_bits)
        self._last_number = self._pictures = 0

    def __call__(self, content: bytes) -> Picture:
        picture: Picture | None = None
        for unit in _units(content, self._length_bytes):
            kind = unit[0] & 31
            if kind in self.SLICES:
                bits = _Bits(_unescaped(unit[1 : self.HEAD_BYTES]))
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

    def _begun(self, head: int, bits: _Bits) -> Picture:
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
    units, place = [], 5
    for mask in (31, 255):
        count = extradata[place] & mask
        place += 1
        for _ in range(count):
            size = int.from_bytes(extradata[place : place + 2], "big")
            units.append(extradata[place + 2 : place + 2 + size])
            place += 2 + size
    if place > len(extradata) or not all(units):
        raise ValueError("they end early")
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
    bits = _Bits(_unescaped(unit[1:]))
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


def _vui_reorder(bits: _Bits) -> int | None:
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


def _skip_buffering(bits: _Bits) -> bool:
    count = bits.golomb() + 1
    bits.read(8)
    for _ in range(count):
        bits.golomb()
        bits.golomb()
        bits.read(1)
    bits.read(20)
    return True


class _Hevc:
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
        self._count = _Count(_hevc_order_bits(sequences[0]))
        self._extra_bits = _hevc_extra_bits(pictures[0])
        self._orders: list[int] = []

    def __call__(self, content: bytes) -> Picture:
        picture: Picture | None = None
        for unit in _units(content, self._length_bytes):
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
        bits = _Bits(_unescaped(unit[2 : self.HEAD_BYTES]))
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
    bits = _Bits(_unescaped(unit[2:]))
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
    bits = _Bits(_unescaped(unit[2:]))
    bits.golomb()
    bits.golomb()
    bits.read(1)
    if bits.read(1):
        raise UncertainError("its headers allow hidden pictures")
    return bits.read(3)


def _hevc_sets(extradata: bytes) -> list[bytes]:
    """The parameter sets of an hvcC record (ISO 14496-15, 8.3.3.1)."""
    units, place = [], 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[place + 1 : place + 3], "big")
        place += 3
        for _ in range(count):
            size = int.from_bytes(extradata[place : place + 2], "big")
            units.append(extradata[place + 2 : place + 2 + size])
            place += 2 + size
    if place > len(extradata) or not all(units):
        raise ValueError("they end early")
    return units


class _InOrder:
    """A codec whose packets are shown as they are decoded.

    Args:
        look: what becomes of a packet.
    """

    def __init__(self, look: Callable[[bytes], Picture]) -> None:
        self._look = look

    def __call__(self, content: bytes) -> Picture:
        try:
            return self._look(content)
        except (IndexError, ValueError) as error:
            raise UncertainError(f"a packet cannot be read: {error}") from error

    def keeps_all(self, reordered: int, *, holds_back: bool) -> bool:
        """There is no order but that of decoding."""
        return reordered == 0


def _vp8(content: bytes) -> Picture:
    """RFC 6386, 9.1: a bit for frames that are not key frames, and one for those shown."""
    return Picture(shown=bool(content[0] >> 4 & 1), start=not content[0] & 1)


def _vp9(content: bytes) -> Picture:
    """VP9, 6.2 and annex B: a packet may hold hidden frames before the one that is shown."""
    headers = [_vp9_header(part) for part in _vp9_frames(content)]
    shown = sum(is_shown for is_shown, _ in headers)
    if shown > 1:
        raise UncertainError(f"a packet has {shown} pictures")
    return Picture(shown=bool(shown), start=headers[0][1])


def _vp9_frames(content: bytes) -> list[bytes]:
    last = content[-1]
    count, width = (last & 7) + 1, (last >> 3 & 3) + 1
    if last >> 5 != 6 or content[-2 - count * width] != last:
        return [content]
    place, table, frames = 0, content[-1 - count * width : -1], []
    for number in range(count):
        size = int.from_bytes(table[number * width : (number + 1) * width], "little")
        frames.append(content[place : place + size])
        place += size
    return frames


def _vp9_header(frame: bytes) -> tuple[bool, bool]:
    """Whether a frame is shown, and whether it is a key frame."""
    bits = _Bits(frame[:2])
    if bits.read(2) != 2:
        raise ValueError("no frame of VP9")
    profile = bits.read(1) | bits.read(1) << 1
    bits.read(1 if profile == 3 else 0)
    if bits.read(1):
        return True, False
    is_key = not bits.read(1)
    return bool(bits.read(1)), is_key


def _av1(content: bytes) -> Picture:
    """AV1, 5.3 and 5.9: a packet may hold hidden frames before the one that is shown."""
    shown, start, has_sequence, first = 0, False, False, True
    for kind, body in _av1_units(content):
        if kind == AV1_SEQUENCE:
            has_sequence = True
            if body[0] >> 3 & 1:
                raise UncertainError("it is made of still pictures")
        elif kind in AV1_FRAMES:
            bits = _Bits(body[:1])
            existing, frame_type, show = bits.read(1), bits.read(2), bits.read(1)
            shown += existing or show
            start = start or bool(first and has_sequence and show and not existing | frame_type)
            first = False
    if shown != 1:
        raise UncertainError(f"a packet has {shown} pictures")
    return Picture(shown=True, start=start)


AV1_SEQUENCE, AV1_FRAMES = 1, (3, 6)


def _av1_units(content: bytes) -> list[tuple[int, bytes]]:
    place, units = 0, []
    while place < len(content):
        head = content[place]
        place += 1
        if head >> 2 & 1:
            raise UncertainError("it has several layers")
        size = len(content) - place
        if head >> 1 & 1:
            size = shift = 0
            while True:
                byte = content[place]
                place += 1
                size |= (byte & 127) << shift
                shift += 7
                if not byte >> 7:
                    break
        units.append((head >> 3 & 15, content[place : place + size]))
        place += size
    return units


class _Mpeg4(_InOrder):
    """MPEG-4 part 2 without B-frames: AVI tells no order of frames, and packs two in a packet."""

    PICTURE, TIME_CODE = b"\0\0\1\xb6", b"\0\0\1\xb3"
    CODING = ("I", "P", "B", "S")

    def __init__(self, extradata: bytes) -> None:
        super().__init__(self._picture)
        self._extradata = extradata
        self._first: bytes | None = None
        self._time_bits = 0

    def _picture(self, content: bytes) -> Picture:
        head, *pictures = content.split(self.PICTURE)
        head = head.split(self.TIME_CODE)[0]
        if len(pictures) != 1:
            raise UncertainError(f"a packet has {len(pictures)} pictures")
        if self._first is None:
            self._first = head
            self._time_bits = _mpeg4_time_bits(self._extradata + head)
        if head not in (b"", self._first):
            raise UncertainError("its headers change")
        bits = _Bits(pictures[0][:24])
        coding = self.CODING[bits.read(2)]
        while bits.read(1):
            pass
        bits.read(1 + self._time_bits + 1)
        if not bits.read(1):
            raise UncertainError("it has pictures without content")
        if coding in ("B", "S"):
            raise UncertainError(f"it has pictures of type {coding}")
        # Decoders keep what the first headers say about the encoder and its faults.
        return Picture(shown=True, start=coding == "I" and self._knows_headers(head))

    def _knows_headers(self, head: bytes) -> bool:
        return head == self._first or (self._first or b"") in self._extradata


def _mpeg4_time_bits(headers: bytes) -> int:
    """Bits of a picture's time (ISO 14496-2, 6.2.3)."""
    places = [headers.find(bytes([0, 0, 1, 0x20 + number])) for number in range(16)]
    bits = _Bits(headers[min(place for place in places if place >= 0) + 4 :][:32])
    bits.read(9)
    bits.read(7 if bits.read(1) else 0)
    bits.read(16 if bits.read(4) == 15 else 0)
    if bits.read(1):
        bits.read(3)
        bits.read(79 if bits.read(1) else 0)
    if bits.read(2):
        raise UncertainError("its pictures have shapes")
    bits.read(1)
    return max(1, (bits.read(16) - 1).bit_length())


INSPECTORS: dict[str, Callable[[bytes], Inspector]] = {
    "h264": _H264,
    "hevc": _Hevc,
    "vp8": lambda _: _InOrder(_vp8),
    "vp9": lambda _: _InOrder(_vp9),
    "libdav1d": lambda _: _InOrder(_av1),
    "mpeg4": _Mpeg4,
}
"""FFmpeg's name of a decoder -> what looks at its packets."""
