"""What a packet holds, told from its first bits without decoding it.

A frame's place in a full decode can only be told from packets if each gives the one picture it
is taken for. Where the bits leave that open, the answer is :class:`UncertainError`: whoever asks
decodes the whole file instead.
"""

from collections.abc import Callable

from videogn.data.bitstreams.h264 import H264
from videogn.data.bitstreams.hevc import Hevc
from videogn.data.bitstreams.in_order import InOrder, av1, vp8, vp9
from videogn.data.bitstreams.mpeg4 import Mpeg4
from videogn.data.bitstreams.pictures import Inspector, Picture, UncertainError

__all__ = ["INSPECTORS", "Inspector", "Picture", "UncertainError", "inspector"]


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


INSPECTORS: dict[str, Callable[[bytes], Inspector]] = {
    "h264": H264,
    "hevc": Hevc,
    "vp8": lambda _: InOrder(vp8),
    "vp9": lambda _: InOrder(vp9),
    "libdav1d": lambda _: InOrder(av1),
    "mpeg4": Mpeg4,
}
"""FFmpeg's name of a decoder -> what looks at its packets."""
