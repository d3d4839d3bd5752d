"""Which process of a job this is, read from the variables of torchrun, ``--gpus`` or Slurm.

Imports nothing heavy: the command line asks before torch is there.
"""

import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from videogn.errors import RunError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = (
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_TASKS_PER_NODE",
)
LAUNCHER = "VIDEOGN_LAUNCHER"
"""Set by ``--gpus``: the process id of the launcher, which holds the job's store."""

SLURM_SECONDS = 60.0
"""So long Slurm is asked again. Its controller may be busy, or be restarted, when a job starts; its
own commands give up after 10 seconds."""
SLURM_CALL_SECONDS = 30.0
"""A call without an answer is ended then: Slurm's commands never end while munge hangs."""
SLURM_PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """Where a process stands in its job.

    Attributes:
        rank: 0 … size - 1.
        local_rank: 0 … local_size - 1, among the processes of this machine.
        hosts_store: whether rank 0 holds the job's store; otherwise the launcher does.
        is_step: whether ``srun`` started the ranks.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    hosts_store: bool = True
    is_step: bool = False


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process in its job; None where nothing has started several processes.

    torchrun's variables win over Slurm's, for torchrun may itself be started by ``srun``.

    Raises:
        RunError: the variables are half set, no numbers, or contradict each other.
    """
    if any(name in environment for name in TORCHRUN):
        return _place_of_torchrun(environment)
    # A batch script has SLURM_PROCID too, and SLURM_NTASKS is the whole job's: only a step has
    # this one.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    return _place_of_step(environment)


def speaking_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The rank, for messages and for nothing else; None where there is none to be found."""
    try:
        place = find_place(environment)
    except RunError:
        # The variables themselves are at fault, which one process has to say.
        text = environment.get("RANK", environment.get("SLURM_PROCID", ""))
        return int(text) if text.isdecimal() else None
    return place.rank if place else None


def meeting_point(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of the job's store.

    MASTER_ADDR and MASTER_PORT where set; under ``srun`` otherwise the step's first node, and a
    port that follows from the numbers of job and step. May take a minute or two where the node's
    name means nothing here and Slurm does not answer.

    Raises:
        RunError: they are neither set nor to be had from Slurm.
    """
    address = environment.get("MASTER_ADDR") or _first_node(environment)
    port = environment.get("MASTER_PORT") or _port_of_step(environment)
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise RunError(f"the environment has MASTER_PORT={port!r}, not a port; set 1 to 65535")
    return address, int(port)


def _place_of_torchrun(environment: Mapping[str, str]) -> Place:
    numbers = _numbers(TORCHRUN, environment, "start with torchrun, or unset them")
    rank, size, local_rank = (numbers[name] for name in TORCHRUN)
    local_size = size
    if "LOCAL_WORLD_SIZE" in environment:
        local_size = _number("LOCAL_WORLD_SIZE", environment)
    _check_below("RANK", rank, "WORLD_SIZE", size)
    _check_below("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)
    with_launcher = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(rank, size, local_rank, local_size, not (with_launcher or LAUNCHER in environment))


def _place_of_step(environment: Mapping[str, str]) -> Place:
    remedy = "start the ranks with srun, or unset them to run one process"
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE", "0")
    numbers = _numbers(SLURM[:-1], environment, remedy, also=SLURM[-1:])
    rank, size, local_rank, node = (numbers[name] for name in SLURM[:-1])
    per_node = tasks_per_node(counts)
    if sum(per_node) != size or node >= len(per_node):
        raise RunError(
            f"the environment has SLURM_STEP_TASKS_PER_NODE={counts!r}, which contradicts "
            f"SLURM_STEP_NUM_TASKS={size} and SLURM_NODEID={node}; {remedy}"
        )
    _check_below("SLURM_PROCID", rank, "SLURM_STEP_NUM_TASKS", size)
    _check_below("SLURM_LOCALID", local_rank, "SLURM_STEP_TASKS_PER_NODE", per_node[node])
    return Place(rank, size, local_rank, per_node[node], is_step=True)


def _numbers(
    names: tuple[str, ...],
    environment: Mapping[str, str],
    remedy: str,
    also: tuple[str, ...] = (),
) -> dict[str, int]:
    present = [name for name in names + also if name in environment]
    absent = [name for name in names + also if name not in environment]
    if absent:
        raise RunError(
            f"the environment sets {', '.join(present)} but not {', '.join(absent)}; {remedy}"
        )
    return {name: _number(name, environment) for name in names}


def _number(name: str, environment: Mapping[str, str]) -> int:
    text = environment[name]
    if not re.fullmatch("[0-9]+", text):
        raise RunError(f"the environment has {name}={text!r}, not a number")
    return int(text)


def _check_below(name: str, value: int, of: str, size: int) -> None:
    if value >= size:
        raise RunError(
            f"the environment has {name}={value}, which must be below {of}={size}; "
            "unset both, or start with torchrun or srun"
        )


def tasks_per_node(text: str) -> list[int]:
    """The counts that Slurm writes as ``2(x3),1``; empty where ``text`` is no such list."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if match is None:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first of a list of nodes: ``n[03-7,9],m1`` -> ``n03``."""
    # Commas between brackets separate numbers, the others nodes.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")


def _first_node(environment: Mapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST")
    if not nodes:
        raise RunError(
            "the environment sets neither MASTER_ADDR nor SLURM_STEP_NODELIST; set MASTER_ADDR to "
            "the host of rank 0"
        )
    if environment.get("SLURM_STEP_NUM_NODES") == "1" or environment.get("SLURM_NODEID") == "0":
        # The store listens to every address of its host, where rank 0 is.
        return "127.0.0.1"
    name = first_host(nodes)
    if _resolves(name):
        return name
    address, reason = _address_from_slurm(name)
    if not address:
        raise RunError(
            f"the step's first node {name!r} has no address here, and none from scontrol: "
            f"{reason}; set MASTER_ADDR to the host of rank 0"
        )
    return address


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


@cache
def _address_from_slurm(name: str) -> tuple[str, str]:
    """The address under which Slurm itself reaches a node whose name means nothing to others.

    Asked once for each process, which comes here again for every connection.

    SLURM_LAUNCH_NODE_IPADDR is no substitute: it is the host of ``srun``, which need not be the
    step's first node.

    Returns:
        The address, empty where there is none; and in that case why.
    """
    end = time.monotonic() + SLURM_SECONDS
    while True:
        try:
            address, reason = _ask_slurm(name)
        except OSError as error:
            return "", f"{error.strerror}: {error.filename}"
        if address or time.monotonic() >= end:
            return address, reason
        time.sleep(SLURM_PAUSE_SECONDS)


def _ask_slurm(name: str) -> tuple[str, str]:
    """As :func:`_address_from_slurm`, in one try; OSError where there is no scontrol."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "node", "--oneliner", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SLURM_CALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer in {SLURM_CALL_SECONDS:g} s"
    for word in done.stdout.split():
        key, _, address = word.partition("=")
        if key == "NodeAddr" and address not in ("", "(null)"):
            return address, ""
    said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
    return "", said[:300] or f"it ended with code {done.returncode} and said nothing"


def _port_of_step(environment: Mapping[str, str]) -> str:
    job, step = (environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if not job.isdecimal():
        raise RunError(
            "the environment sets neither MASTER_PORT nor SLURM_JOB_ID; set MASTER_PORT to a port "
            "that is free on the host of rank 0"
        )
    # Below the ports that systems hand out themselves. Neighbouring jobs and steps of one host
    # differ.
    offset = int(job) * 16 + (int(step) % 16 if step.isdecimal() else 0)
    return str(20_000 + offset % 12_000)
