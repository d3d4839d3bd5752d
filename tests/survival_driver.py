"""Starts training jobs by forking a process that has imported everything, and kills them.

It reads orders, lines of JSON: a job's words, its ranks, and how it is to be harmed; or a program
to be begun, or awaited.
A job is told ``out=OUT``; it is at work once it writes into files OUT + ``marker``, a pattern.
Forked children start in milliseconds, so dozens of kills fit in a test.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytorchvideo.models.resnet  # noqa: F401  (needed by every job: imported once, before it forks)
import torch

import videogn.commands.test
import videogn.commands.train  # noqa: F401
from videogn import cli
from videogn.engine.checkpoint import Checkpoints
from videogn.stopping import stop_request

JOB_SECONDS = 120.0
PEER_SECONDS = 20.0
"""As launchers do: when a rank has ended, the others may take so long."""


def free_port() -> int:
    """A port that is free just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(words: list[str], ranks: int, output: Path) -> list[int]:
    """Fork the ranks of a job and return their process ids."""
    port, pids = free_port(), []
    for rank in range(ranks):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        # The orders are not for the ranks.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if ranks > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank}
            place |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ |= {name: str(value) for name, value in place.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        stop_request.install()
        try:
            code = cli.main(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return pids


def ended(pids: list[int], seconds: float) -> list[int]:
    """Wait for all and return their exit codes, negative for signals.

    Raises:
        TimeoutError: one goes on; all are killed then.
    """
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    alone: float | None = None
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if codes and alone is None:
            alone = time.monotonic()
        if alone is not None and time.monotonic() > alone + PEER_SECONDS:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise TimeoutError(f"{len(pids) - len(codes)} of {len(pids)} ranks never ended")
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def main() -> None:
    """Answer each order, a line of JSON, by a line: what happened, or ``error``."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "program" in order:
                told: dict[str, Any] = {"pid": begin(order)}
            elif "awaited" in order:
                told = {"code": end_of(order["awaited"], order["seconds"])}
            else:
                told = carry_out(order)
        except (TimeoutError, RuntimeError) as error:
            told = {"error": str(error)}
        print(json.dumps(told), flush=True)


def begin(order: dict[str, Any]) -> int:
    """Fork a process in a session of its own that runs Python code as ``python -c`` does."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, order["stdout"]), (2, order["stderr"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ |= order["environment"]
    sys.argv = ["-c", *order["words"]]
    torch.set_num_threads(1)
    # Processes that it starts look for what is to be imported first in there.
    main_module = sys.modules["__main__"] = ModuleType("__main__")
    code = 0
    try:
        exec(compile(order["program"], "<program>", "exec"), main_module.__dict__)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_of(pid: int, seconds: float) -> int | None:
    """The exit code of a process of :func:`begin`, negative for a signal; None where it goes on."""
    deadline = time.monotonic() + seconds
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(found[1])


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Harm a job so many times, letting it come to its end whenever it does, or ``once``.

    A job that ``fails`` is to fail by itself: its exit codes are told.

    Raises:
        RuntimeError: a job failed by itself.
        TimeoutError: one never ended.
    """
    words, ranks, signals = order["words"], order["ranks"], order.get("signals", [])
    rng, done, rounds, told = random.Random(order["seed"]), 0, 0, []
    marker, output = order.get("marker", "/log.jsonl"), Path(order["out"]) / "output.txt"
    while rounds == 0 or done < order["times"]:
        out = Path(order["out"]) / order.get("folder", str(rounds))
        rounds += 1
        complete = False
        while not complete:
            before = written(out, marker)
            pids = start([*words, f"out={out}"], ranks, output)
            begun = time.monotonic()
            if done < order["times"]:
                while written(out, marker) <= before and time.monotonic() < begun + JOB_SECONDS:
                    time.sleep(0.002)
                harm(pids, rng, rng.choice(signals), order["seconds"])
            codes = ended(pids, JOB_SECONDS)
            if order.get("fails", False):
                return {"codes": codes}
            if 2 in codes or (1 in codes and ranks == 1):
                raise RuntimeError(f"a run failed by itself: {codes}; see {output}")
            complete = set(codes) == {0} or order.get("once", False)
            if set(codes) != {0}:
                done += 1
                state = Checkpoints(out / "checkpoints").peek()
                told.append([codes, state.iteration if state else 0, time.monotonic() - begun])
    return {"rounds": rounds, "kills": told}


def written(out: Path, marker: str) -> int:
    """Bytes in the files by which a job tells that it is at work."""
    return sum(path.stat().st_size for path in out.parent.glob(out.name + marker))


def harm(pids: list[int], rng: random.Random, name: str, seconds: float) -> None:
    """Send a signal to a random rank, or to all, at a random moment of its work."""
    time.sleep(rng.random() * seconds)
    victims = pids if rng.random() < 0.5 else [rng.choice(pids)]
    for pid in victims:
        os.kill(pid, getattr(signal, name))


if __name__ == "__main__":
    main()
