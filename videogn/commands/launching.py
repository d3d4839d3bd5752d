"""Starting one process per GPU on this machine, with torchrun's own launcher."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

import torch

from videogn.distributed import launched
from videogn.errors import RunError


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


def launch(num_processes: int, words: Sequence[str]) -> int:
    """Run ``videogn WORDS`` in ``num_processes`` ranks and return the first failure's exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The ranks print what went wrong; the launcher's own report would bury it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _usable_cores() // num_processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "videogn", *words)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        print(f"videogn: stopped by {error.sigval.name}", file=sys.stderr, flush=True)
        return 128 + error.sigval
    return 0


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
