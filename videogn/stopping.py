"""Signals that ask a training job to save and end; nothing here imports torch.

Schedulers send SIGTERM or SIGUSR1 some time before they kill, terminals SIGINT and, when they are
closed, SIGHUP. A handler only
notes the request; the job finishes its step, saves and ends with :data:`EXIT_CODE`, by which a
scheduler knows that the same command goes on from there.
"""

import signal
import time
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped by a signal, everything saved; start again to go on."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
COPIES_SECONDS = 2.0
"""Launchers and terminals may each deliver the same signal; a copy within this time is one."""


class StopRequest:
    """Whether a signal has asked this process to stop.

    Attributes:
        signal: the first one that came; None before.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0

    @property
    def made(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def install(self) -> None:
        """Take over the signals, from the main thread; those that nohup ignores stay ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def heard(self, number: int) -> None:
        """Note a signal that came to another handler of this process."""
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is None:
            self.heard(number)
        elif number == signal.SIGINT and time.monotonic() - self._since > COPIES_SECONDS:
            # Somebody at a terminal does not want to wait for the step.
            raise KeyboardInterrupt


stop_request = StopRequest()
"""The one of this process."""
