"""The command line: finds the command, and turns what goes wrong into one message and a code.

Exit codes: 0 done; 1 the machine or the program failed, or a check found faults; 2 the user gave
something that cannot be used; 75 training or a test was stopped by a signal and is saved: the same
command goes on; 130 interrupted.
"""

import argparse
import importlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

from videogn.allocator import let_pages_be_large, let_segments_grow
from videogn.errors import UserError
from videogn.parents import end_with_launcher
from videogn.ranks import speaking_rank
from videogn.stopping import stop_request

COMMANDS = {
    "train": "train a network from a config, on one or many GPUs",
    "pretrain": "train a 2D network on images and tell its error, as on ImageNet in the paper",
    "test": "run the multi-clip test from a checkpoint",
    "rescore": "tell a finished test's accuracy with fewer clips or another average",
    "compare": "tell whether one finished test is better than another, and where",
    "predict": "name what videos without labels show",
    "features": "keep the features of every video of a list",
    "report": "show tests beside the paper's Table 8 and Figure 7 in one HTML file",
    "reproduce": "train, test and show the cells of the paper's tables, or a sweep over batches",
    "inflate": "turn 2D weights into weights of the video network",
    "convert": "turn a weight file into one of another program and prove it, or export it",
    "info": "show a network's layers, parameters, operations and memory",
    "data index": "make the packet index by which a data set is read faster",
    "data check": "decode every video of a list whole and tell which are faulty",
    "data stats": "tell what a data set holds and how fast it is read",
    "data show": "draw the clips that training sees",
    "data shards": "pack a data set into tar shards for cluster file systems",
    "data prepare": "re-encode a data set so that its clips are read faster still",
    "quickstart": "make a small data set, pre-train, inflate, train and test BN and GN",
}
"""Name -> what it does; each is the module ``videogn.commands.<name>``, imported when called. A
name of two words has an underscore there."""


def entry() -> NoReturn:
    """Run the command line of this process and end the process with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The name of a file may be no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.argv[1:2] in (["train"], ["pretrain"], ["test"], ["predict"], ["features"]):
        # Before torch is imported, which takes seconds.
        stop_request.install()
    let_segments_grow()
    if sys.argv[1:2] in (["test"], ["predict"], ["features"]):
        let_pages_be_large()
    end_with_launcher()
    code = main()
    if speaking_rank() is not None:
        # A rank of a finished job may abort while the interpreter takes torch's process group
        # apart ("terminate called without an active exception"), which would fail the job.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # What every rank finds is said by the first.
    level = logging.ERROR if speaking_rank() else logging.WARNING
    logging.basicConfig(level=level, format="videogn: %(levelname)s: %(message)s")
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"videogn {version('videogn')}")
        return 0
    length = 2 if " ".join(words[:2]) in COMMANDS else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        return _fail(f"no command {name!r}; the commands are {', '.join(COMMANDS)}", 2)
    return _run(name, words[length:])


def _run(name: str, words: Sequence[str]) -> int:
    # pytorchvideo compiles an activation as it is imported, which no user can do anything about.
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    try:
        command = importlib.import_module(f"videogn.commands.{name.replace(' ', '_')}")
        parser = argparse.ArgumentParser(prog=f"videogn {name}", description=command.__doc__)
        command.add_arguments(parser)
        # Intermixed: options may stand before, between and after key=value words.
        return int(command.run(parser.parse_intermixed_args(words)))
    except UserError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say, and the exit must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last resort: a message, and the traceback where asked for
        if os.environ.get("VIDEOGN_TRACEBACK"):
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        return _fail(f"{reason}\n(set VIDEOGN_TRACEBACK=1 to see where)", 1, may_follow=True)


def _fail(message: str, code: int, *, may_follow: bool = False) -> int:
    """Say what went wrong, once for all ranks that fail alike, and return the exit code.

    Args:
        may_follow: the failure may come from another rank's, as a lost connection does.
    """
    rank = speaking_rank()
    if rank is None:
        _say_error(message)
        return code
    from videogn.distributed import another_failed_first, first_rank_said, note_failure

    follows = may_follow and another_failed_first()
    if rank == 0:
        if not follows:
            _say_error(message)
        note_failure("" if follows else message)
    elif not follows and not first_rank_said(message):
        _say_error(f"[rank {rank}] {message}")
    return code


def _say_error(message: str) -> None:
    print(f"videogn: error: {message}", file=sys.stderr, flush=True)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "videogn: video classification with Group Normalization\n\n"
        f"usage: videogn COMMAND …\n\n{lines}\n\nvideogn COMMAND --help tells the rest"
    )
