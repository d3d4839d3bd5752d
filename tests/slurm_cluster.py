"""A Slurm of two nodes on this machine, in a folder of its own."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
SBIN = "/usr/sbin:/sbin"

# On a busy machine an answer takes longer than the usual ten seconds. Numbers of jobs, from which
# ports follow, differ from those of another such cluster on the machine.
CONFIG = """\
ClusterName=videogn
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
MessageTimeout=60
FirstJobId={first_job}
OverTimeLimit=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 RealMemory=1000
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=60 MaxTime=60
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
"""


def missing_programs() -> list[str]:
    """What has to be installed first (Debian: slurm-wlm, munge)."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ['PATH']}:{SBIN}"


def _free_ports(count: int) -> list[int]:
    """A row of ports that nobody listens to, below those that the system hands out."""
    # Clusters that start at the same time look at different ports first.
    starts = list(range(18_000, 19_000, count))
    own = os.getpid() % len(starts)
    for first in starts[own:] + starts[:own]:
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
            return list(range(first, first + count))
    raise RuntimeError("no free ports")


@dataclass(frozen=True)
class Cluster:
    """A running Slurm.

    Attributes:
        environment: with which its commands are called.
    """

    folder: Path
    environment: dict[str, str]

    def call(self, *words: str, timeout: float = 150) -> str:
        """The standard output of one of Slurm's commands."""
        return subprocess.run(
            words,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        ).stdout

    def submit(self, *words: str) -> str:
        """The number of a new batch job."""
        return self.call("sbatch", "--parsable", *words).strip()

    def field(self, job: str, name: str) -> str:
        """One of the values that Slurm knows of a job: JobState, ExitCode, Restarts."""
        shown = self.call("scontrol", "show", "job", "--oneliner", job)
        return next(w.partition("=")[2] for w in shown.split() if w.startswith(f"{name}="))

    def wait(self, job: str, states: tuple[str, ...], timeout: float) -> str:
        """The first of some states that a job comes to."""
        end = time.monotonic() + timeout
        while (state := self.field(job, "JobState")) not in states:
            assert time.monotonic() < end, f"job {job} is {state}, not {states}"
            time.sleep(0.5)
        return state


def start(folder: Path, more_environment: dict[str, str]) -> Cluster:
    """Start a cluster; :func:`stop` has to be called whatever becomes of it."""
    folder.chmod(0o755)
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    port, first, last = _free_ports(3)
    config = folder / "slurm.conf"
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    config.write_text(
        CONFIG.format(
            folder=folder,
            host=host,
            user=user,
            port=port,
            first=first,
            last=last,
            first_job=port * 10,
        )
    )
    cluster = Cluster(
        folder,
        {
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
            "SLURM_CONF": str(config),
            **more_environment,
            "PATH": f"{more_environment.get('PATH', os.environ['PATH'])}:{SBIN}",
        },
    )
    files = {name: folder / f"munge{name}" for name in (".key", ".sock", "d.pid", ".log", ".seed")}
    cluster.call("mungekey", "-c", "-k", str(files[".key"]))
    _daemon(
        cluster,
        "munged",
        f"--key-file={files['.key']}",
        f"--socket={files['.sock']}",
        f"--pid-file={files['d.pid']}",
        f"--log-file={files['.log']}",
        f"--seed-file={files['.seed']}",
    )
    _daemon(cluster, "slurmctld", "-c")
    for node in ("n1", "n2"):
        _daemon(cluster, "slurmd", "-N", node)
    end = time.monotonic() + 120
    while cluster.call("sinfo", "-N", "--noheader", "-plow", "-o%t").split() != ["idle"] * 2:
        assert time.monotonic() < end, cluster.call("sinfo")
        time.sleep(0.5)
    return cluster


def _daemon(cluster: Cluster, *words: str) -> None:
    """Start what goes to the background by itself; it would hold a pipe open."""
    with (cluster.folder / "daemons.log").open("a") as log:
        subprocess.run(
            words, env=cluster.environment, stdout=log, stderr=log, timeout=120, check=True
        )


def stop(folder: Path) -> None:
    """End every daemon by its process id, and the jobs before."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    with suppress(OSError, subprocess.SubprocessError):
        cancel = ["scancel", "--full", "--signal=KILL", "--user", getpass.getuser()]
        subprocess.run(cancel, env=environment, capture_output=True, timeout=20, check=False)
        time.sleep(2)
    for name in ("n1.pid", "n2.pid", "slurmctld.pid", "munged.pid"):
        with suppress(OSError, ValueError):
            process = int((folder / name).read_text())
            os.kill(process, signal.SIGTERM)
            _await_end(process)


def _await_end(process: int) -> None:
    for _ in range(50):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
