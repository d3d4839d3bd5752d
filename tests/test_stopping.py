import os
import signal
import subprocess
import sys

import pytest

from videogn import stopping
from videogn.stopping import SIGNALS, StopRequest


@pytest.fixture
def request_made():
    """A request that has taken over the signals of this process, which get them back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    made = StopRequest()
    made.install()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_its_copies_do_no_harm(request_made, number: signal.Signals) -> None:
    assert not request_made.made
    for _ in range(3):
        os.kill(os.getpid(), number)
    assert request_made.signal is number


def test_the_first_signal_is_the_reason(request_made) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert request_made.signal is signal.SIGUSR1


def test_asked_again_from_the_keyboard_it_ends_at_once(request_made, monkeypatch) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(stopping, "COPIES_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_nohup_is_respected() -> None:
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from videogn.stopping import StopRequest\n"
        "made = StopRequest(); made.install(); os.kill(os.getpid(), signal.SIGHUP)\n"
        "import sys; print(made.made, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False False\n"
