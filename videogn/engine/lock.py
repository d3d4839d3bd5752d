"""One run per folder: a lock that ends with its owner, however that ends."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from videogn.errors import RunError

TAKEOVER_SECONDS = 60.0
"""A job that was requeued waits so long for what is left of itself to end."""


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    The kernel lets go of it when its owner ends or is killed; file systems of clusters do so too.

    Raises:
        RunError: another process holds it, which the message names by host, process and job; or
            the folder cannot be written.
    """
    with _opened(path) as descriptor:
        _take(path, descriptor)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        # The name stays: another process may be waiting for this very file.
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(
            f"{path.parent}: cannot be written: {error.strerror}; choose another output folder"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(path: Path, descriptor: int) -> None:
    deadline = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            owner = _owner(descriptor)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be locked: {error.strerror}; choose an output folder on a file "
                "system that has locks"
            ) from error
        if deadline is None:
            deadline = time.monotonic() + (TAKEOVER_SECONDS if _is_mine(owner) else 0)
        if time.monotonic() >= deadline:
            raise RunError(
                f"{path.parent}: another run is at work here: {_description(owner)}; wait for it, "
                "stop it, or choose another output folder"
            )
        time.sleep(0.2)


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_mine(owner: dict[str, Any]) -> bool:
    """Whether the owner is this very job before it was requeued."""
    return owner.get("job") is not None and owner.get("job") == os.environ.get("SLURM_JOB_ID")


def _description(owner: dict[str, Any]) -> str:
    if not owner:
        return "one that has just begun"
    job = f", job {owner['job']}" if owner.get("job") else ""
    return f"process {owner.get('pid')} on {owner.get('host')}{job}, since {owner.get('since')}"
