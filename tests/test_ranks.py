"""Places of processes, read from variables as torchrun and a real Slurm 22.05 set them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from videogn import ranks
from videogn.errors import RunError
from videogn.ranks import (
    Place,
    find_place,
    first_host,
    meeting_point,
    speaking_rank,
    tasks_per_node,
)

BATCH = {
    "SLURM_JOB_ID": "71",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "3",
    "SLURM_NPROCS": "3",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_JOB_NODELIST": "n[1-2]",
}
STEP = {
    **BATCH,
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "n[1-2]",
}
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.9.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def test_a_step_of_several_tasks_is_a_job_and_a_batch_script_is_not() -> None:
    assert find_place(STEP) == Place(2, 3, 0, 1, hosts_store=True, is_step=True)
    first = STEP | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    assert find_place(first) == Place(1, 3, 1, 2, is_step=True)
    assert find_place(BATCH) is None
    assert find_place({}) is None


def test_one_task_is_no_job() -> None:
    """An interactive shell of ``srun --pty`` keeps the job's SLURM_NTASKS."""
    one = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NTASKS": "8"}
    assert find_place(STEP | one) is None


def test_torchrun_wins_over_the_step_that_started_it() -> None:
    assert find_place(STEP | TORCHRUN) == Place(5, 8, 1, 4, hosts_store=False)
    assert meeting_point(STEP | TORCHRUN) == ("10.9.0.1", 29500)


def test_without_an_agents_store_the_first_rank_holds_one() -> None:
    bare = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    assert find_place(bare) == Place(5, 8, 1, 8, hosts_store=True)
    assert find_place(bare | {"VIDEOGN_LAUNCHER": "77"}) == Place(5, 8, 1, 8, hosts_store=False)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0"}, "sets RANK but not WORLD_SIZE, LOCAL_RANK; start with torchrun"),
        (TORCHRUN | {"RANK": "8"}, "RANK=8, which must be below WORLD_SIZE=8"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4, which must be below LOCAL_WORLD_SIZE=4"),
        (TORCHRUN | {"WORLD_SIZE": "²"}, "WORLD_SIZE='²', not a number"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "but not SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID, SLU"),
        (STEP | {"SLURM_PROCID": "3"}, "SLURM_PROCID=3, which must be below SLURM_STEP_NUM_TASKS"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "4"}, "'2,1', which contradicts SLURM_STEP_NUM_TASKS=4"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2;1"}, "'2;1', which contradicts"),
        (STEP | {"SLURM_NODEID": "2"}, "contradicts SLURM_STEP_NUM_TASKS=3 and SLURM_NODEID=2"),
    ],
)
def test_half_set_and_contradictory_variables_are_named(environment, said: str) -> None:
    with pytest.raises(RunError) as error:
        find_place(environment)
    assert said in str(error.value)
    speaking_rank(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-3,7]", "n1"),
        ("n[007-010],m1", "n007"),
        ("gpu-a,gpu-b[2-3]", "gpu-a"),
        ("r[2-3]n[11,15-16]", "r2n11"),
        ("n[4,6]-ib", "n4-ib"),
    ],
)
def test_first_host_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_per_node() -> None:
    assert tasks_per_node("2(x3),1,4(x2)") == [2, 2, 2, 1, 4, 4]
    assert tasks_per_node("8") == [8]
    assert tasks_per_node("8(x") == []


def test_a_step_meets_on_its_first_node(monkeypatch) -> None:
    monkeypatch.setattr(ranks, "_resolves", lambda name: True)
    host, port = meeting_point(STEP)
    assert host == "n1"
    assert 20_000 <= port < 32_000
    others = ({"SLURM_JOB_ID": "72"}, {"SLURM_STEP_ID": "1"})
    assert port not in [meeting_point(STEP | other)[1] for other in others]
    assert meeting_point(STEP | {"SLURM_STEP_NUM_NODES": "1"})[0] == "127.0.0.1"
    assert meeting_point(STEP | {"SLURM_NODEID": "0"}) == ("127.0.0.1", port)
    assert meeting_point(STEP | {"MASTER_ADDR": "a", "MASTER_PORT": "1234"}) == ("a", 1234)


def test_what_is_missing_to_meet_is_named(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(ranks, "_resolves", lambda name: False)
    ranks._address_from_slurm.cache_clear()
    for environment, said in (
        ({}, "neither MASTER_ADDR nor SLURM_STEP_NODELIST"),
        ({"MASTER_ADDR": "a"}, "neither MASTER_PORT nor SLURM_JOB_ID"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT='70000', not a port"),
        (
            STEP,
            "first node 'n1' has no address here, and none from scontrol: "
            "No such file or directory: scontrol; set MASTER_ADDR",
        ),
    ):
        with pytest.raises(RunError) as error:
            meeting_point(environment)
        assert said in str(error.value)


Slurm = Callable[..., Path]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Puts a scontrol of some lines in front; it counts its calls in the file returned."""

    def put(*lines: str) -> Path:
        calls = tmp_path / "calls"
        program = tmp_path / "scontrol"
        program.write_text("\n".join(["#!/bin/sh", f"echo \"$@\" >>'{calls}'", *lines, ""]))
        program.chmod(0o755)
        return calls

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(ranks, "_resolves", lambda name: False)
    monkeypatch.setattr(ranks, "SLURM_PAUSE_SECONDS", 0.01)
    ranks._address_from_slurm.cache_clear()
    return put


# What Slurm 22.05 prints while its controller is stopped, has ended, or knows no such node.
SILENT = "slurm_load_node error: Socket timed out on send/recv operation"
DOWN = "slurm_load_node error: Unable to contact slurm controller (connect failure)"
UNKNOWN = "Node n1 not found"
FOUND = "NodeName=n1 Arch=x86_64 ActiveFeatures=(null) NodeAddr=10.9.0.7 NodeHostName=vm Port=17001"


def test_slurm_is_asked_until_it_answers_and_then_no_more(slurm: Slurm, tmp_path: Path) -> None:
    calls = slurm(
        f"if [ $(wc -l <'{tmp_path}/calls') -lt 3 ]; then echo '{SILENT}' >&2; exit 1; fi",
        f"echo '{FOUND}'",
    )
    # Every connection to the store asks for its address.
    assert [meeting_point(STEP)[0] for _ in range(3)] == ["10.9.0.7"] * 3
    assert calls.read_text().splitlines() == ["show node --oneliner n1"] * 3


def reason_given() -> str:
    with pytest.raises(RunError) as error:
        meeting_point(STEP)
    before, _, after = str(error.value).partition(" from scontrol: ")
    assert before == "the step's first node 'n1' has no address here, and none"
    reason, _, remedy = after.rpartition("; ")
    assert remedy == "set MASTER_ADDR to the host of rank 0"
    return reason


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"echo '{DOWN}' >&2; exit 1", DOWN),
        (f"echo '{UNKNOWN}'; exit 1", UNKNOWN),
        ("exit 3", "it ended with code 3 and said nothing"),
        ("echo NodeAddr='(null)' NodeHostName=vm", "NodeAddr=(null) NodeHostName=vm"),
    ],
)
def test_slurms_own_words_tell_why_there_is_no_address(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.setattr(ranks, "SLURM_SECONDS", 0.1)
    calls = slurm(line)
    assert reason_given() == said
    asked = calls.read_text()
    # A rank that has failed so looks for the store again, to say it once for all.
    assert reason_given() == said
    assert calls.read_text() == asked


def test_a_scontrol_that_hangs_is_ended(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SLURM_SECONDS", 0.1)
    monkeypatch.setattr(ranks, "SLURM_CALL_SECONDS", 0.1)
    slurm("exec sleep 60")
    assert reason_given() == "no answer in 0.1 s"
