"""Who opens a file or an address on this machine, seen from outside of the code under test."""

import contextlib
import ctypes
import os
import random
import select
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

IN_ACCESS, IN_OPEN = 0x1, 0x20
EVENT = struct.Struct("iIII")


def can_watch() -> bool:
    """Whether this system tells who opens files."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "inotify_init1")


def _listener() -> socket.socket:
    # Below the ports that systems hand out, of which anybody may be using one for UDP.
    for port in random.sample(range(20000, 32000), 50):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port), backlog=100)
    raise AssertionError("no port is free")


class Watch:
    """Watches all files of a folder, and TCP and UDP at one port of this machine.

    Attributes:
        port: the port.
    """

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK)
        added = libc.inotify_add_watch(self._inotify, os.fsencode(folder), IN_OPEN | IN_ACCESS)
        assert self._inotify >= 0
        assert added >= 0, os.strerror(ctypes.get_errno())
        self._listener = _listener()
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._bound = False

    def close(self) -> None:
        """Stop watching."""
        os.close(self._inotify)
        self._listener.close()

    def glance(self) -> None:
        """Note whether the UDP port is bound just now; call it often while others work."""
        mark = f":{self.port:04X} "
        for table in ("/proc/net/udp", "/proc/net/udp6"):
            with contextlib.suppress(OSError):
                self._bound = self._bound or mark in Path(table).read_text()

    def seen(self) -> set[str]:
        """What was opened since the last call: "open NAME", "read NAME", "connect", "bind"."""
        self.glance()
        found = {*self._opened(), *self._connected()}
        if self._bound:
            found.add("bind")
        self._bound = False
        return found

    def _opened(self) -> Iterator[str]:
        while select.select([self._inotify], [], [], 0)[0]:
            events, place = os.read(self._inotify, 1 << 16), 0
            while place < len(events):
                _, mask, _, length = EVENT.unpack_from(events, place)
                place += EVENT.size
                name = os.fsdecode(events[place : place + length].rstrip(b"\0"))
                place += length
                # Listing the folder itself is no harm.
                if name:
                    yield f"{'open' if mask & IN_OPEN else 'read'} {name}"

    def _connected(self) -> Iterator[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
                yield "connect"
