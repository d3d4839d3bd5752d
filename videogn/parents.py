"""Ends a rank whose launcher is gone: a killed launcher cannot end its ranks itself.

Imports nothing heavy, for it starts before torch is imported, which takes seconds.
"""

import os
import threading
import time
from collections.abc import Mapping

from videogn.ranks import LAUNCHER, speaking_rank

POLL_SECONDS = 2.0


def end_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """End this process within seconds of the end of the launcher that started it.

    Only ``--gpus`` and torchrun are known to wait for their ranks. Any other parent, such as a
    shell that is left by nohup or disown, may go as it likes; ``srun`` looks after its own.
    """
    if LAUNCHER in environment:
        launcher = int(environment[LAUNCHER])
    elif "TORCHELASTIC_RUN_ID" in environment:
        launcher = os.getppid()
    else:
        return
    threading.Thread(
        target=_await_end, args=(launcher, speaking_rank(environment)), daemon=True
    ).start()


def end_with_parent(parent: int) -> None:
    """End this process, without a word, within seconds of the end of the one that started it."""
    threading.Thread(target=_await_parent, args=(parent,), daemon=True).start()


def _await_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _await_end(launcher: int, rank: int | None) -> None:
    while os.getppid() == launcher:
        time.sleep(POLL_SECONDS)
    message = f"videogn: error: [rank {rank}] the launcher, process {launcher}, is gone: ending\n"
    try:
        os.write(2, message.encode())
    finally:
        # From a thread, and whatever the main thread waits for.
        os._exit(1)
