"""Whether something works on this machine, found out by doing it."""

import logging
from collections.abc import Callable

from videogn.errors import first_line

logger = logging.getLogger("videogn")


def works(trial: Callable[[], bool], otherwise: str) -> bool:
    """Whether kernels do what they should; a warning says why not.

    Triton compiles with the machine's C compiler, which may be missing or broken in many ways, so
    whatever a trial raises counts.

    Args:
        trial: runs them, and tells whether the result is right.
        otherwise: what is done where they fail, for the warning.
    """
    try:
        if not trial():
            raise RuntimeError("a kernel's result is wrong")
    except Exception as error:
        logger.warning("%s: %s", otherwise, first_line(error))
        return False
    return True
