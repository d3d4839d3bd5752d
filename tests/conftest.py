import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

from videogn.data.forms import Coding, encode, numbers_in
from videogn.data.opening import CHECKS
from videogn.errors import UserError
from videogn.stopping import stop_request

FOOTAGE = Path(os.environ.get("VIDEOGN_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

# A shell's background jobs ignore it, and what tests start would do so as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And this one where nohup has started the tests.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Modules that test files share lie beside this file.
sys.path.append(str(Path(__file__).parent))

# Time limits of single examples fail on a busy machine, whatever the code does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """What torch says of Python 3.13.0 alone, whenever it compiles, is no fault."""
    slower = "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"
    config.addinivalue_line("filterwarnings", slower)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests first: the last file is not to keep one process busy alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """Handlers that a test leaves, or that the code under test sets for good, end with it.

    So does what they have noted.
    """
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    stop_request.signal = None
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def footage() -> Path:
    """Folder of real camera footage; the repository holds none."""
    if not FOOTAGE.is_dir():
        pytest.skip(f"no real footage in {FOOTAGE}; name its folder in VIDEOGN_TEST_DATA")
    return FOOTAGE


@dataclass(frozen=True)
class VideoMaker:
    """Encodes videos whose frames carry their numbers."""

    folder: Path

    def __call__(
        self,
        name: str = "video.mp4",
        num_frames: int = 20,
        *,
        size: tuple[int, int] = (64, 96),
        codec: str = "libx264",
        container_options: dict[str, str] | None = None,
        **codec_options: str,
    ) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coding = Coding(codec, codec_options, container_options or {}, num_frames, size)
        return encode(path, coding)

    numbers_in = staticmethod(numbers_in)


@pytest.fixture
def make_video(tmp_path: Path) -> VideoMaker:
    return VideoMaker(tmp_path)


def _need_reader(reader: str) -> None:
    if reader in CHECKS:
        try:
            CHECKS[reader]()
        except UserError as error:
            pytest.skip(str(error))


@pytest.fixture
def need_reader() -> Callable[[str], None]:
    """Skips the test where a value of ``data.reader`` cannot run."""
    return _need_reader


def _randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw gammas, betas and running statistics, which a fresh network has at 0 and 1.

    Without it a block's last gamma of 0 hides the block from every comparison of outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim != 1:
                continue
            if name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    return _randomise
