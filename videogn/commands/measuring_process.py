"""How a process that measures begins; apart from what it measures, whose import it precedes."""

import signal
import warnings

from videogn.parents import end_with_parent


def begin(parent: int) -> None:
    """Prepare a process that was started to measure steps.

    Args:
        parent: the process that started it.
    """
    # As in the command line's own process: pytorchvideo compiles as it is imported there too.
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    # Ctrl-C reaches both processes, and the other one has the words.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A parent that is killed cannot end it, and a GPU's memory would stay taken.
    end_with_parent(parent)
