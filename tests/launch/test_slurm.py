"""launch/slurm.sh on a real Slurm of two nodes: ranks, exit codes, preemption, going on."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing_programs, start, stop

from videogn.cli import main
from videogn.engine.runs import read_log

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "launch" / "slurm.sh"

pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if missing := missing_programs():
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    # Not under tmp_path: munge trusts no socket that others cannot reach.
    folder = Path(tempfile.mkdtemp(prefix="videogn-slurm-"))
    programs = folder / "bin"
    programs.mkdir()
    program = programs / "videogn"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m videogn "$@"\n')
    program.chmod(0o755)
    try:
        yield start(
            folder,
            {
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(REPOSITORY),
                "OMP_NUM_THREADS": "1",
            },
        )
    finally:
        stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def submit(cluster: Cluster, output: Path, *words: object, options: tuple[str, ...] = ()) -> str:
    nodes = ("-N2", "--ntasks-per-node=1", f"--output={output}")
    return cluster.submit(*nodes, *options, str(SCRIPT), *map(str, words))


def wait_for_line(output: Path, start_of_line: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    while not output.exists() or f"\n{start_of_line}" not in output.read_text():
        assert time.monotonic() < end, output.read_text()[-2000:] if output.exists() else "nothing"
        time.sleep(0.5)


def test_two_nodes_train_as_one_job(cluster: Cluster, tiny) -> None:
    output, run = tiny.folder / "output", tiny.folder / "a run"
    job = submit(cluster, output, tiny.config, f"out={run}", "train.clips_per_gpu=2")
    state = cluster.wait(job, ("COMPLETED", "FAILED", "CANCELLED"), timeout=180)
    assert state == "COMPLETED", output.read_text()
    assert "2 clips per GPU x 2 GPUs" in output.read_text()
    assert [e["iteration"] for e in read_log(run / "log.jsonl") if e["kind"] == "val"] == [3, 6]


def test_two_nodes_test_as_one_process(cluster: Cluster, tiny) -> None:
    run, output = tiny.folder / "run", tiny.folder / "output"
    assert main(["train", str(tiny.config), f"out={run}", "train.iterations=1"]) == 0
    # Outside of the run's folder, where a test would be the run's own.
    weights = shutil.copy(run / "checkpoints" / "last.safetensors", tiny.folder / "w.safetensors")
    words = ["test", str(tiny.config), "--checkpoint", str(weights), "test.views_per_pass=1"]
    assert main([*words, f"out={tiny.folder / 'alone'}"]) == 0
    line = shlex.join(["srun", "videogn", *words, f"out={tiny.folder / 'together'}"])
    job = cluster.submit("-N2", "--ntasks-per-node=1", f"--output={output}", f"--wrap={line}")
    state = cluster.wait(job, ("COMPLETED", "FAILED", "CANCELLED"), timeout=180)
    assert state == "COMPLETED", output.read_text()
    outs = [tiny.folder / f"{name}_test" for name in ("alone", "together")]
    results = [json.loads((out / "results.json").read_text()) for out in outs]
    assert [one.pop("world_size") for one in results] == [1, 2]
    for one in results:
        one["config"].pop("out")
    assert results[0] == results[1]
    scores = [(out / "scores.npz").read_bytes() for out in outs]
    assert scores[0] == scores[1]


def test_what_both_ranks_find_is_said_once_and_the_code_kept(cluster: Cluster, tiny) -> None:
    output = tiny.folder / "output"
    job = submit(cluster, output, tiny.config, "model.nrom=gn", f"out={tiny.folder / 'run'}")
    assert cluster.wait(job, ("COMPLETED", "FAILED"), timeout=120) == "FAILED"
    assert output.read_text().count("videogn: error:") == 1
    assert "did you mean model.norm?" in output.read_text()
    assert cluster.field(job, "ExitCode") == "2:0"


def start_again_now(cluster: Cluster, job: str) -> None:
    """Shorten the two minutes for which Slurm holds a requeued job back, until it runs again."""
    words = ["scontrol", "update", f"jobid={job}", "starttime=now"]
    end = time.monotonic() + 300
    while cluster.field(job, "Restarts") == "0":
        assert time.monotonic() < end, cluster.call("scontrol", "show", "job", job)
        time.sleep(0.5)
    # A node tells a job that was ended from the one that is to start by the second alone.
    time.sleep(2)
    # Refused while the first try is still being cleared away.
    while (state := cluster.field(job, "JobState")) == "PENDING":
        assert time.monotonic() < end, cluster.call("scontrol", "show", "job", job)
        subprocess.run(
            words, env=cluster.environment, capture_output=True, timeout=150, check=False
        )
        time.sleep(2)
    assert state != "FAILED", cluster.call("scontrol", "show", "job", job)


def test_a_preempted_job_goes_on_by_itself(cluster: Cluster, tiny) -> None:
    output, run = tiny.folder / "output", tiny.folder / "run"
    words = (f"out={run}", "train.clips_per_gpu=2", "train.iterations=250", "data.val=''")
    job = submit(cluster, output, tiny.config, *words, "train.log_interval=1")
    wait_for_line(output, "iter ", 240)
    urgent = cluster.submit("-phigh", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    cluster.wait(urgent, ("COMPLETED",), timeout=90)
    start_again_now(cluster, job)
    state = cluster.wait(job, ("COMPLETED", "FAILED", "CANCELLED"), timeout=300)
    assert state == "COMPLETED", output.read_text()
    assert cluster.field(job, "Restarts") == "1"
    assert "goes on     from iteration" in output.read_text()
    iterations = [e["iteration"] for e in read_log(run / "log.jsonl") if e["kind"] == "train"]
    assert iterations == list(range(1, 251))


def test_a_job_warned_by_usr1_goes_on_by_itself_until_it_is_cancelled(
    cluster: Cluster, tiny
) -> None:
    output, run = tiny.folder / "output", tiny.folder / "run"
    words = (f"out={run}", "train.clips_per_gpu=2", "train.iterations=1000000", "data.val=''")
    words += ("train.log_interval=5",)
    job = submit(cluster, output, tiny.config, *words)
    wait_for_line(output, "iter ", 240)
    # What Slurm does before the time limit, without waiting for it.
    cluster.call("scancel", "--signal=USR1", job)
    cluster.wait(job, ("COMPLETING", "PENDING", "FAILED", "TIMEOUT"), timeout=300)
    start_again_now(cluster, job)
    wait_for_line(output, "goes on     from iteration", 360)
    assert cluster.field(job, "Restarts") == "1"
    # What its user cancels saves and is not put into the queue again.
    cluster.call("scancel", job)
    cluster.wait(job, ("CANCELLED",), timeout=120)
    end = time.monotonic() + 120
    while cluster.call("squeue", "--noheader", f"--jobs={job}", timeout=20).strip():
        assert time.monotonic() < end, cluster.call("squeue")
        time.sleep(0.5)
    assert cluster.field(job, "JobState") == "CANCELLED"
    assert cluster.field(job, "Restarts") == "1"
