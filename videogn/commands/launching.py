"""Starting one process per GPU on this machine, passing signals on, and keeping exit codes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from videogn.distributed import launched
from videogn.errors import RunError
from videogn.ranks import LAUNCHER
from videogn.stopping import EXIT_CODE, stop_request

STOP_SECONDS = 120.0
"""How long ranks may take to finish a step and save after a signal."""
FAILURE_SECONDS = 30.0
"""How long the other ranks may take when one has failed: the first may be saving."""
POLL_SECONDS = 0.1
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def must_launch(num_processes: int | None) -> bool:
    """Whether this process has to start the ranks instead of being one.

    Raises:
        RunError: there are fewer GPUs than asked for, or a launcher is at work already.
    """
    if num_processes is None or (num_processes == 1 and not launched()):
        return False
    if num_processes < 1:
        raise RunError(f"--gpus {num_processes} makes no sense; give 1 or more")
    if launched():
        raise RunError(
            f"--gpus {num_processes} was given under a launcher; leave --gpus out, "
            "the launcher decides"
        )
    if torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        raise RunError(f"--gpus {num_processes}: this machine has {torch.cuda.device_count()} GPUs")
    if not torch.cuda.is_available():
        print(f"no GPU here: starting {num_processes} processes on the CPU", flush=True)
    return True


@dataclass
class _Ranks:
    """The processes of a job on this machine.

    Attributes:
        processes: by rank.
        codes: rank -> exit code, negative for a signal, in the order in which they ended.
        signals: what this process has received and has yet to pass on.
        stopped_by: the first signal received.
        killed: whether this process has ended ranks that would not end.
    """

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)
    signals: list[int] = field(default_factory=list)
    stopped_by: int | None = None
    killed: bool = False

    def send(self, number: int) -> None:
        """Send a signal to every rank that runs."""
        for process in self.processes:
            # A process group of its own: data workers are children of their rank and end with it.
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """End every rank and whatever it has started."""
        for process in self.processes:
            if process.poll() is None:
                self.killed = True
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def collect(self) -> bool:
        """Note which ranks have ended; whether some still run."""
        for rank, process in enumerate(self.processes):
            code = process.poll()
            if code is not None and rank not in self.codes:
                self.codes[rank] = code
        return len(self.codes) < len(self.processes)

    @property
    def failed(self) -> bool:
        """Whether a rank has ended otherwise than done or saved."""
        return any(code not in (0, EXIT_CODE) for code in self.codes.values())


def launch(num_processes: int, words: Sequence[str]) -> int:
    """Run ``videogn WORDS`` in ``num_processes`` ranks and return the job's exit code.

    That is 75 where the first rank, which saves, ended with 75; otherwise the first failure's.
    SIGTERM, SIGINT, SIGUSR1 and SIGHUP are passed on, and the ranks have STOP_SECONDS to end. A
    failing rank ends the others. Ranks notice by themselves when this process is killed.
    """
    # Held here, for ranks come and go; the port is free because the system chooses it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = _Ranks()
    with _received(ranks):
        try:
            for rank in range(num_processes):
                ranks.processes.append(_start(rank, num_processes, store.port, words))
            _watch(ranks)
        finally:
            ranks.kill()
    return _verdict(ranks)


def _start(rank: int, size: int, port: int, words: Sequence[str]) -> subprocess.Popen[bytes]:
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        LAUNCHER: os.getpid(),
    }
    environment = os.environ | {name: str(value) for name, value in places.items()}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _usable_cores() // size)))
    # In a session of its own a rank hears Ctrl-C once, from here, and not from the terminal too.
    return subprocess.Popen(
        [sys.executable, "-m", "videogn", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


@contextmanager
def _received(ranks: _Ranks) -> Iterator[None]:
    """Note the signals that arrive, for :func:`_watch` to pass on."""

    def note(number: int, frame: FrameType | None) -> None:
        ranks.signals.append(number)
        # Ranks may be done before they hear of it; whoever has more to start is to know.
        stop_request.heard(number)

    # A signal that is ignored, as nohup does with SIGHUP, stays so, here and in the ranks.
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(ranks: _Ranks) -> None:
    """Wait for the ranks, pass signals on, and end those that outstay a signal or a failure."""
    deadline, failed = float("inf"), False
    while ranks.collect():
        while ranks.signals:
            number = ranks.signals.pop(0)
            ranks.send(number)
            if ranks.stopped_by is None:
                ranks.stopped_by = number
                deadline = min(deadline, time.monotonic() + STOP_SECONDS)
        if ranks.failed and not failed:
            failed = True
            ranks.send(signal.SIGTERM)
            deadline = min(deadline, time.monotonic() + FAILURE_SECONDS)
        if EXIT_CODE in ranks.codes.values() and deadline == float("inf"):
            deadline = time.monotonic() + STOP_SECONDS
        if time.monotonic() > deadline:
            ranks.kill()
        time.sleep(POLL_SECONDS)


def _verdict(ranks: _Ranks) -> int:
    """The exit code of the job; says what ranks that were killed could not say."""
    if ranks.codes.get(0) == EXIT_CODE:
        return EXIT_CODE
    failures = {rank: code for rank, code in ranks.codes.items() if code != 0}
    if not failures:
        return 0
    rank, code = next(iter(failures.items()))
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    if ranks.stopped_by is None:
        cause = "; is the machine out of memory?" if code == -signal.SIGKILL else ""
        _say_error(f"rank {rank} was ended by {name}{cause}")
        return 128 - code
    received = signal.Signals(ranks.stopped_by).name
    late = f"; rank {rank} had not ended after {STOP_SECONDS:.0f} s" if ranks.killed else ""
    print(f"videogn: stopped by {received}{late}", file=sys.stderr, flush=True)
    return 128 + ranks.stopped_by


def _say_error(message: str) -> None:
    print(f"videogn: error: {message}", file=sys.stderr, flush=True)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
