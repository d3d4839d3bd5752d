"""What is told of a packet, and by what."""

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
