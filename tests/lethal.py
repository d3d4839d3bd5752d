"""What opens videos and ends its process over one of them; data workers import it from here."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any


def never_done(path: str, **options: Any) -> None:
    """Work on a file that takes for ever."""
    del path, options
    while True:
        time.sleep(60)


class Lethal:
    """Opens videos as ``open_video`` does, but the end of ``path`` is a deed of its own.

    Args:
        deed: a signal that this process sends itself; an exit code where negative; or "sleep".
    """

    def __init__(self, open_video: Callable[[str], Any], path: str, deed: int | str) -> None:
        self._open_video = open_video
        self._path = path
        self._deed = deed

    def __call__(self, path: str) -> Any:
        if path.endswith(self._path):
            self._act()
        return self._open_video(path)

    def _act(self) -> None:
        if self._deed == "sleep":
            never_done(self._path)
        deed = int(self._deed)
        if deed < 0:
            os._exit(-deed)
        if deed == signal.SIGSEGV:
            # As a crash of a decoder: no core file in whatever folder this is.
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), deed)
