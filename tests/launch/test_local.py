"""launch/local.sh and launch/slurm.sh before they start anything, with programs that note words."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
NOTE = '#!/bin/sh\npwd\nprintf "%s\\n" "$@"\nexit 75\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the scripts beside an environment whose programs only tell their arguments."""
    root = tmp_path / "the repository"
    shutil.copytree(LAUNCH, root / "launch")
    (root / ".venv" / "bin").mkdir(parents=True)
    write_program(root / ".venv" / "bin" / "videogn", NOTE)
    return root


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run(words: list[object], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("num_gpus", "words", "passed"),
    [
        (0, ["a b.yaml", "out=x  y"], ["train", "a b.yaml", "out=x  y"]),
        (1, ["c.yaml"], ["train", "c.yaml"]),
        (8, ["c.yaml", "k=*"], ["train", "--gpus", "8", "c.yaml", "k=*"]),
        (8, ["c.yaml", "--gpus", "2"], ["train", "c.yaml", "--gpus", "2"]),
        (8, ["c.yaml", "--gpus=2"], ["train", "c.yaml", "--gpus=2"]),
        (1, ["pretrain", "c.yaml"], ["pretrain", "c.yaml"]),
        (8, ["pretrain", "c.yaml", "a=b"], ["pretrain", "--gpus", "8", "c.yaml", "a=b"]),
        (8, ["train", "c.yaml", "--gpus=2"], ["train", "c.yaml", "--gpus=2"]),
    ],
)
def test_local_starts_a_process_per_gpu_where_the_user_is(
    repository: Path, tmp_path: Path, num_gpus: int, words: list[str], passed: list[str]
) -> None:
    write_program(repository / ".venv" / "bin" / "python", f"#!/bin/sh\necho {num_gpus}\n")
    done = run(["bash", repository / "launch" / "local.sh", *words], tmp_path)
    assert done.stdout.splitlines() == [str(tmp_path), *passed]
    assert done.returncode == 75


@pytest.mark.parametrize(
    ("script", "command"), [("local.sh", ["train"]), ("quickstart.sh", ["quickstart"])]
)
def test_arguments_are_no_extras_of_what_is_installed_first(
    repository: Path, tmp_path: Path, script: str, command: list[str]
) -> None:
    programs, installed = repository / ".venv" / "bin", tmp_path / "installed"
    (programs / "videogn").rename(programs / "later")
    (repository / "requirements.lock").write_text("uv==1.0\n")
    write_program(programs / "python", "#!/bin/sh\necho 0\n")
    version = 'if [ "$1" = --version ]; then echo "uv 1.0"; exit; fi'
    install = f'echo "$@" >"{installed}"\ncp "{programs}/later" "{programs}/videogn"'
    write_program(programs / "uv", f"#!/bin/sh\n{version}\n{install}\n")
    done = run(["bash", repository / "launch" / script, "[test]", "a=b"], tmp_path)
    assert done.stdout.splitlines()[1:] == [*command, "[test]", "a=b"]
    assert installed.read_text().endswith(" -e .\n")


def test_slurm_script_names_what_it_lacks(repository: Path, tmp_path: Path) -> None:
    script = repository / "launch" / "slurm.sh"
    outside = run(["bash", script, "c.yaml"], repository)
    assert outside.returncode == 2
    assert "is for sbatch" in outside.stderr
    path = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    absent = run(["bash", script, "c.yaml"], tmp_path, **path)
    assert absent.returncode == 2
    assert f"no {tmp_path}/.venv/bin/videogn" in absent.stderr
    odd = {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "1"}
    unequal = run(["bash", script, "c.yaml"], repository, **path, **odd)
    assert unequal.returncode == 2
    assert "8 GPUs and 1 tasks per node; every GPU needs a task" in unequal.stderr


@pytest.mark.parametrize("command", ["train", "pretrain"])
@pytest.mark.parametrize(
    ("code", "state", "again"),
    [
        (0, "RUNNING", False),
        (2, "RUNNING", False),
        (75, "RUNNING", True),
        (75, "COMPLETING", False),
        (137, "RUNNING", False),
    ],
)
def test_slurm_script_keeps_codes_and_requeues_what_has_saved(
    repository: Path, code: int, state: str, again: bool, command: str
) -> None:
    programs = repository / "programs"
    programs.mkdir()
    write_program(programs / "srun", f'#!/bin/sh\nprintf "%s|" "$@"\nexit {code}\n')
    write_program(programs / "scontrol", '#!/bin/sh\necho "$@"\n')
    write_program(programs / "squeue", f"#!/bin/sh\necho {state}\n")
    write_program(programs / "sleep", "#!/bin/sh\n")
    first = [] if command == "train" else [command]
    done = run(
        ["bash", repository / "launch" / "slurm.sh", *first, "c.yaml", "out=a b"],
        repository,
        PATH=f"{programs}:/usr/bin:/bin",
        SLURM_JOB_ID="7",
        SLURM_NTASKS_PER_NODE="1",
    )
    assert done.returncode == code
    assert f"{repository}/.venv/bin/videogn|{command}|c.yaml|out=a b|" in done.stdout
    assert ("requeue 7" in done.stdout) == again


@pytest.mark.parametrize(("refusals", "again"), [(2, True), (99, False)])
@pytest.mark.parametrize("busy", ["squeue", "scontrol"])
def test_slurm_script_asks_a_busy_controller_again(
    repository: Path, busy: str, refusals: int, again: bool
) -> None:
    programs, calls = repository / "programs", repository / "calls"
    programs.mkdir()
    refuse = f'echo >>"{calls}"; [ $(wc -l <"{calls}") -gt {refusals} ] || exit 1\n'
    for name, answer in (("squeue", "echo RUNNING"), ("scontrol", 'echo "$@"')):
        write_program(programs / name, f"#!/bin/sh\n{refuse if name == busy else ''}{answer}\n")
    write_program(programs / "srun", "#!/bin/sh\nexit 75\n")
    write_program(programs / "sleep", "#!/bin/sh\n")
    done = run(
        ["bash", repository / "launch" / "slurm.sh", "c.yaml"],
        repository,
        PATH=f"{programs}:/usr/bin:/bin",
        SLURM_JOB_ID="7",
        SLURM_NTASKS_PER_NODE="1",
    )
    assert done.returncode == 75
    assert ("requeue 7" in done.stdout) == again
    assert ("not put into the queue again" in done.stderr) != again
    assert len(calls.read_text().splitlines()) == (3 if again else 4)
