"""Places of processes, read from variables as torchrun and a real Slurm 22.05 set them."""

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
    assert meeting_point(STEP | {"MASTER_ADDR": "a", "MASTER_PORT": "1234"}) == ("a", 1234)


def test_what_is_missing_to_meet_is_named(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(ranks, "_resolves", lambda name: False)
    for environment, said in (
        ({}, "neither MASTER_ADDR nor SLURM_STEP_NODELIST"),
        ({"MASTER_ADDR": "a"}, "neither MASTER_PORT nor SLURM_JOB_ID"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT='70000', not a port"),
        (STEP, "first node 'n1' has no address here; set MASTER_ADDR"),
    ):
        with pytest.raises(RunError) as error:
            meeting_point(environment)
        assert said in str(error.value)
