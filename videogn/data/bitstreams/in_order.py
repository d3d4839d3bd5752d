"""Pictures of codecs that show them as they are decoded: VP8, VP9, AV1."""

from collections.abc import Callable

from videogn.data.bitstreams.bits import Bits
from videogn.data.bitstreams.pictures import Picture, UncertainError


class InOrder:
    """A codec whose packets are shown as they are decoded.

    Args:
        look: what becomes of a packet.
    """

    def __init__(self, look: Callable[[bytes], Picture]) -> None:
        self._look = look

    def __call__(self, content: bytes) -> Picture:
        """What becomes of a packet."""
        try:
            return self._look(content)
        except (IndexError, ValueError) as error:
            raise UncertainError(f"a packet cannot be read: {error}") from error

    def keeps_all(self, reordered: int, *, holds_back: bool) -> bool:
        """There is no order but that of decoding."""
        return reordered == 0


def vp8(content: bytes) -> Picture:
    """RFC 6386, 9.1: a bit for frames that are not key frames, and one for those shown."""
    return Picture(shown=bool(content[0] >> 4 & 1), start=not content[0] & 1)


def vp9(content: bytes) -> Picture:
    """VP9, 6.2 and annex B: a packet may hold hidden frames before the one that is shown."""
    headers = [_vp9_header(part) for part in vp9_frames(content)]
    shown = sum(is_shown for is_shown, _ in headers)
    if shown > 1:
        raise UncertainError(f"a packet has {shown} pictures")
    return Picture(shown=bool(shown), start=headers[0][1])


def vp9_frames(content: bytes) -> list[bytes]:
    """The frames of a packet (VP9, annex B)."""
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
    bits = Bits(frame[:2])
    if bits.read(2) != 2:
        raise ValueError("no frame of VP9")
    profile = bits.read(1) | bits.read(1) << 1
    bits.read(1 if profile == 3 else 0)
    if bits.read(1):
        return True, False
    is_key = not bits.read(1)
    return bool(bits.read(1)), is_key


def av1(content: bytes) -> Picture:
    """AV1, 5.3 and 5.9: a packet may hold hidden frames before the one that is shown."""
    shown, start, has_sequence, first = 0, False, False, True
    for kind, body in _av1_units(content):
        if kind == AV1_SEQUENCE:
            has_sequence = True
            if body[0] >> 3 & 1:
                raise UncertainError("it is made of still pictures")
        elif kind in AV1_FRAMES:
            bits = Bits(body[:1])
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
