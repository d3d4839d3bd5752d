"""Pictures of MPEG-4 part 2."""

from videogn.data.bitstreams.bits import Bits
from videogn.data.bitstreams.in_order import InOrder
from videogn.data.bitstreams.pictures import Picture, UncertainError


class Mpeg4(InOrder):
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
        bits = Bits(pictures[0][:24])
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
    bits = Bits(headers[min(place for place in places if place >= 0) + 4 :][:32])
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
