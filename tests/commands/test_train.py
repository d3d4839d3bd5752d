import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from driving import drive, forked
from safetensors import safe_open
from torch import Tensor

from videogn.cli import main
from videogn.commands import train as train_command
from videogn.engine import compute, trainer
from videogn.engine.compute import A_GPU, Machine
from videogn.engine.runs import RunFolder, read_log
from videogn.models.weights import read_info, read_weights
from videogn.stopping import EXIT_CODE

CPU = Machine(cuda=False, kernels=False, cudnn=None)
OLD_CUDNN = Machine(cuda=True, kernels=True, cudnn=91002)
TIMINGS = ("clips_per_second", "data_wait", "eta_seconds", "seconds")


def tensors_of(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        # Copies: what is read stays in the file's memory.
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def assert_same_tensors(first: Path, second: Path) -> None:
    ours, theirs = tensors_of(first), tensors_of(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def entries_of(folder: Path, *kinds: str) -> list[dict]:
    entries = read_log(RunFolder(folder).log)
    return [
        {key: value for key, value in entry.items() if key not in TIMINGS}
        for entry in entries
        if entry["kind"] in kinds
    ]


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_a_run_leaves_what_it_promises(tiny, norm: str, capsys) -> None:
    out = tiny.folder / "run"
    assert main(["train", str(tiny.config), f"out={out}", f"model.norm={norm}"]) == 0
    folder = RunFolder(out)
    assert yaml.safe_load(folder.config.read_text())["model"]["norm"] == norm
    steps = entries_of(out, "train")
    assert [entry["iteration"] for entry in steps] == [2, 3, 4, 6]
    assert [entry["iteration"] for entry in entries_of(out, "val")] == [3, 6]
    assert all(entry["num_videos"] == 7 for entry in entries_of(out, "val"))
    assert read_info(folder.best).spec.norm == norm
    assert read_weights(folder.last).training["iteration"] == 6
    printed = capsys.readouterr().out
    for part in ("4 clips per GPU x 1 GPU = 4 clips", "epochs of 12 videos", "eta", "clips/s"):
        assert part in printed


def test_learning_follows_the_logged_schedule(tiny) -> None:
    out = tiny.folder / "run"
    assert main(["train", str(tiny.config), f"out={out}", "train.log_interval=1"]) == 0
    rates = [entry["lr"] for entry in entries_of(out, "train")]
    # Milestones at 0.375 and 0.75 of 6 iterations: after 2 and after 4 (2.25 and 4.5 rounded).
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_a_broken_run_goes_on_bit_for_bit(tiny, norm: str, monkeypatch) -> None:
    words = ["train", str(tiny.config), f"model.norm={norm}"]
    unbroken, broken = tiny.folder / "unbroken", tiny.folder / "broken"
    assert main([*words, f"out={unbroken}"]) == 0

    real_step = trainer.train_step

    def dying_step(run: object, batch: object, iteration: int, *rest: object) -> object:
        if iteration == 5:
            raise KeyboardInterrupt
        return real_step(run, batch, iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", dying_step)
        assert main([*words, f"out={broken}"]) == 130
    assert read_weights(RunFolder(broken).last).training["iteration"] == 4
    assert main([*words, f"out={broken}", "data.num_workers=1"]) == 0
    for name in ("last", "best"):
        assert_same_tensors(getattr(RunFolder(unbroken), name), getattr(RunFolder(broken), name))
    assert entries_of(broken, "train", "val") == entries_of(unbroken, "train", "val")


def test_complete_run_is_left_alone(tiny, capsys) -> None:
    words = ["train", str(tiny.config), f"out={tiny.folder / 'run'}"]
    assert main(words) == 0
    before = RunFolder(tiny.folder / "run").last.read_bytes()
    assert main(words) == 0
    assert "is complete" in capsys.readouterr().out
    assert RunFolder(tiny.folder / "run").last.read_bytes() == before


def test_dry_run_checks_everything_and_writes_nothing(tiny, capsys) -> None:
    out = tiny.folder / "run"
    assert main(["train", str(tiny.config), "--dry-run", f"out={out}"]) == 0
    assert not out.exists()
    printed = capsys.readouterr().out
    for part in ("lr ", "iterations", "19 videos decode", "memory", "eta", "dry run"):
        assert part in printed


def test_dry_run_names_the_video_that_cannot_be_read(tiny, capsys) -> None:
    listed = tiny.folder / "bad.txt"
    broken = tiny.folder / "broken.mp4"
    broken.write_bytes(b"not a video")
    listed.write_text(f"{broken} 1\n")
    message = error_of(capsys, "train", tiny.config, "--dry-run", f"data.train={listed}")
    assert "broken.mp4" in message


def test_dry_run_tells_which_reader_reads_what(tiny, capsys) -> None:
    words = ["data.reader=decord", f"out={tiny.folder / 'run'}"]
    assert main(["train", str(tiny.config), "--dry-run", *words]) == 0
    assert "reader      decord for 12 of 12 sampled videos\n" in capsys.readouterr().out


def test_reader_that_is_not_installed_is_told_before_anything_is_built(
    tiny, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("videogn.data.decord_reader.importlib.util.find_spec", lambda name: None)
    message = error_of(
        capsys, "train", tiny.config, "data.reader=decord", f"out={tiny.folder / 'run'}"
    )
    assert "pip install 'videogn[decord]'" in message
    assert not (tiny.folder / "run").exists()


def test_bad_video_in_training_is_replaced_and_told(tiny, capsys) -> None:
    lines = tiny.train_list.read_text().splitlines()
    listed = tiny.folder / "list.txt"
    listed.write_text("\n".join([*lines, "train/absent.mp4 2"]))
    out = tiny.folder / "run"
    words = [f"data.train={listed}", f"data.root={tiny.train_list.parent}", f"out={out}"]
    assert main(["train", str(tiny.config), *words, "train.iterations=12"]) == 0
    [failure] = entries_of(out, "failed_video")
    assert failure["path"].endswith("absent.mp4")
    assert capsys.readouterr().out.count("warning: replaced") == 1


def test_too_many_bad_videos_stop_the_run_with_their_names(tiny, capsys) -> None:
    lines = tiny.train_list.read_text().splitlines()
    listed = tiny.folder / "list.txt"
    listed.write_text("\n".join([*lines, "a/absent.mp4 2", "b/absent.mp4 2", "c/absent.mp4 1"]))
    words = [f"data.train={listed}", f"data.root={tiny.train_list.parent}", "train.iterations=12"]
    message = error_of(capsys, "train", tiny.config, *words, f"out={tiny.folder / 'run'}")
    assert "max_failed_fraction" in message
    assert "absent.mp4" in message


def test_bad_validation_video_counts_as_wrong(tiny) -> None:
    lines = tiny.val_list.read_text().splitlines()
    listed = tiny.folder / "val.txt"
    listed.write_text("\n".join([*lines, "val/absent.mp4 0"]))
    out = tiny.folder / "run"
    (tiny.folder / "val").symlink_to(tiny.val_list.parent / "val")
    words = [f"data.val={listed}", "data.allow_outside_root=true", f"out={out}"]
    assert main(["train", str(tiny.config), *words]) == 0
    assert entries_of(out, "val")[-1]["num_videos"] == 8
    assert entries_of(out, "failed_val_video")[0]["path"].endswith("val/absent.mp4")


def test_validation_list_that_cannot_be_read_stops_the_run(tiny, capsys) -> None:
    listed = tiny.folder / "val.txt"
    listed.write_text("absent.mp4 0\ngone.mp4 1\n")
    words = [f"data.val={listed}", f"out={tiny.folder / 'run'}"]
    message = error_of(capsys, "train", tiny.config, *words)
    assert "not one of the 2 validation videos" in message
    assert "absent.mp4" in message


def test_failed_start_leaves_the_folder_free(tiny, capsys, monkeypatch) -> None:
    """What is wrong with the network is found before the folder is claimed."""
    out = tiny.folder / "run"
    for word in ("model.channels_per_group=3", "clip.num_frames=2"):
        error_of(capsys, "train", tiny.config, f"out={out}", word)
        assert not out.exists()
    # And a run that breaks before its first checkpoint may be started with better values.
    words = [f"out={out}", "train.checkpoint_interval=50", "data.val="]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", lambda *_: 1 / 0)
        assert main(["train", str(tiny.config), *words, "train.base_lr=1"]) == 1
    assert main(["train", str(tiny.config), *words]) == 0


def test_dry_run_samples_the_whole_list() -> None:
    for length in (1, 19, 20, 21, 39, 1000):
        chosen = train_command.spread(list(range(length)), 20)
        assert len(chosen) == min(20, length)
        assert chosen[0] == 0
        assert chosen[-1] >= length - length / 20 - 1


def test_exploding_loss_stops_before_it_is_saved(tiny, capsys) -> None:
    out = tiny.folder / "run"
    message = error_of(
        capsys, "train", tiny.config, f"out={out}", "train.base_lr=1e30", "train.iterations=50"
    )
    assert "not finite" in message
    last = RunFolder(out).last
    assert not last.exists() or read_weights(last).info


def test_wrong_inputs_are_one_message_each(tiny, capsys, tmp_path: Path) -> None:
    run = ("train", tiny.config, f"out={tmp_path / 'run'}")
    listed = tmp_path / "list.txt"
    listed.write_text("a.mp4 9\n")
    assert "list.txt:1" in error_of(capsys, *run, f"data.train={listed}")
    listed.write_text("")
    assert "list.txt" in error_of(capsys, *run, f"data.train={listed}")
    listed.write_text("a.mp4 1\na.mp4 2\n")
    assert "list.txt:2" in error_of(capsys, *run, f"data.train={listed}")
    assert "absent.txt" in error_of(capsys, *run, "data.train=absent.txt")
    assert "data.train is not set" in error_of(capsys, *run, "data.train=")
    assert "absent.safetensors" in error_of(capsys, *run, "model.weights=absent.safetensors")
    assert not (tmp_path / "run").exists()


def test_output_folder_of_another_run_is_refused(tiny, capsys) -> None:
    out = tiny.folder / "run"
    assert main(["train", str(tiny.config), f"out={out}"]) == 0
    before = RunFolder(out).last.read_bytes()
    message = error_of(capsys, "train", tiny.config, f"out={out}", "train.base_lr=0.1")
    assert "train.base_lr: 0.05 there, 0.1 now" in message
    assert "resume=auto" in error_of(capsys, "train", tiny.config, f"out={out}", "resume=never")
    assert RunFolder(out).last.read_bytes() == before


def test_damaged_checkpoint_is_told_and_the_one_before_is_gone_on_from(tiny, capsys) -> None:
    out, words = tiny.folder / "run", ["train", str(tiny.config), f"out={tiny.folder / 'run'}"]
    assert main(words) == 0
    folder = RunFolder(out)
    before, log = tensors_of(folder.last), entries_of(out, "train", "val")
    newest = folder.checkpoints.path_of(6)
    newest.write_bytes(newest.read_bytes()[:-1000])
    capsys.readouterr()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "warning: " + str(newest) in printed
    assert f"goes on     from iteration 4 in {folder.checkpoints.path_of(4)}" in printed
    assert newest.with_name(newest.name + ".damaged").exists()
    after = tensors_of(folder.last)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert entries_of(out, "train", "val") == log


def test_all_checkpoints_damaged_is_one_message(tiny, capsys) -> None:
    out = tiny.folder / "run"
    assert main(["train", str(tiny.config), f"out={out}"]) == 0
    for path in RunFolder(out).checkpoints.newest_first():
        path.write_bytes(path.read_bytes()[:-1000])
    message = error_of(capsys, "train", tiny.config, f"out={out}")
    assert all(f"iter_0000000{number}" in message for number in (3, 4, 6))


def test_starts_from_a_weight_file_and_takes_its_input_scale(tiny, capsys) -> None:
    first, second = tiny.folder / "first", tiny.folder / "second"
    scale = ["data.mean=[0.1,0.2,0.3]", "data.std=[0.4,0.5,0.6]"]
    assert main(["train", str(tiny.config), f"out={first}", *scale]) == 0
    weights = f"model.weights={RunFolder(first).best}"
    assert main(["train", str(tiny.config), f"out={second}", weights]) == 0
    assert read_info(RunFolder(second).last).mean == (0.1, 0.2, 0.3)
    message = error_of(
        capsys, "train", tiny.config, f"out={tiny.folder / 'x'}", weights, "model.norm=bn"
    )
    assert "norm" in message


def test_inherited_input_scale_may_not_contradict_the_weights(tiny, capsys) -> None:
    first = tiny.folder / "first"
    assert main(["train", str(tiny.config), f"out={first}"]) == 0
    child = tiny.folder / "child.yaml"
    base = yaml.safe_load(tiny.config.read_text())
    base["data"] |= {"mean": [0.1, 0.1, 0.1], "std": [0.2, 0.2, 0.2]}
    (tiny.folder / "base.yaml").write_text(yaml.safe_dump(base))
    child.write_text("_BASE_: base.yaml\n")
    words = [f"model.weights={RunFolder(first).last}", f"out={tiny.folder / 'second'}"]
    message = error_of(capsys, "train", child, *words)
    assert "data.mean=[0.1, 0.1, 0.1] contradicts [0.45, 0.45, 0.45]" in message
    insisting = [*words, "data.mean=[0.1,0.1,0.1]", "data.std=[0.2,0.2,0.2]"]
    assert main(["train", str(child), *insisting]) == 0
    assert read_info(RunFolder(tiny.folder / "second").last).mean == (0.1, 0.1, 0.1)


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_see_the_same_samples_and_learn_the_same(tiny) -> None:
    """GN without dropout: gradients of 2 x 2 clips are those of 4 up to the order of sums."""
    words = ["train", str(tiny.config), "model.dropout=0.0"]
    assert main([*words, f"out={tiny.folder / 'one'}"]) == 0
    drive([*words, "train.clips_per_gpu=2"], 2, tiny.folder, folder="two")
    one, two = (tensors_of(RunFolder(tiny.folder / out).last) for out in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(
        entries_of(tiny.folder / "one", "train", "val"),
        entries_of(tiny.folder / "two", "train", "val"),
        strict=True,
    ):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.dist
@pytest.mark.slow
def test_a_failing_rank_ends_the_job_with_one_message(tiny) -> None:
    words = ["train", str(tiny.config), "train.base_lr=1e30", "train.iterations=50"]
    told = drive(words, 2, tiny.folder, folder="run", fails=True)
    printed = (tiny.folder / "output.txt").read_text()
    assert 2 in told["codes"]
    assert "not finite" in printed
    assert printed.count("videogn: error:") == 1
    assert "Traceback" not in printed


def test_more_gpus_than_there_are_is_refused(tiny, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "has 1 GPUs" in error_of(capsys, "train", tiny.config, "--gpus", 2)


def test_shipped_kinetics_config_names_its_missing_files(capsys, monkeypatch, tmp_path) -> None:
    configs = Path(train_command.__file__).parents[2] / "configs"
    monkeypatch.chdir(tmp_path)
    message = error_of(capsys, "train", configs / "kinetics400" / "i3d_r50_gn_32x2_b8.yaml")
    assert "weights/i3d_r50_gn.safetensors" in message


@pytest.mark.dist
@pytest.mark.slow
def test_a_job_of_two_ranks_that_is_told_to_stop_saves_once_and_leaves_no_orphan(tiny) -> None:
    words = ["train", str(tiny.config), "--gpus", "2", f"out={tiny.folder / 'run'}"]
    program, end = "from videogn.cli import entry; entry()", time.monotonic() + 120
    with forked(program, tiny.folder, *words, "train.iterations=100000") as job:
        while "\niter " not in job.stdout.read_text():
            assert time.monotonic() < end, job.stderr.read_text()
            time.sleep(0.1)
        os.kill(job.pid, signal.SIGTERM)
        assert job.ended(60) == EXIT_CODE
    printed, error = job.stdout.read_text(), job.stderr.read_text()
    assert printed.count("stopped by SIGTERM: iteration ") == 1
    assert "error" not in error
    folder = RunFolder(tiny.folder / "run")
    marker = json.loads(folder.preempted.read_text())
    assert marker["signal"] == "SIGTERM"
    assert marker["iteration"] == read_weights(folder.last).training["iteration"]
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(tiny.config) in (process.info["cmdline"] or ())
    ]
    assert left == []


@pytest.mark.parametrize(
    ("norm", "note"),
    [
        ("sync_bn", "statistics over 4 clips of all GPUs"),
        ("frozen_bn", "stored statistics, gamma and beta fixed"),
        ("ln", "one group of all channels"),
        ("in", "one channel per group"),
        ("none", "no norm layers"),
    ],
)
def test_every_norm_trains_and_tests(tiny, capsys, norm: str, note: str) -> None:
    out = tiny.folder / "run"
    words = [f"out={out}", "train.iterations=2", f"model.norm={norm}"]
    assert main(["train", str(tiny.config), *words]) == 0
    assert f"i3d_r50 {norm}, {note}, layout" in capsys.readouterr().out
    assert main(["test", str(out / "config.yaml"), "--checkpoint", str(out)]) == 0


@pytest.mark.dist
def test_two_processes_with_synchronised_norms_train_as_one(tiny) -> None:
    common = ["train.iterations=2", "model.norm=sync_bn", "model.dropout=0"]
    for size in (1, 2):
        words = ["train", str(tiny.config), f"train.clips_per_gpu={4 // size}", *common]
        drive(words, size, tiny.folder, folder=f"of {size}")
    one, two = (read_weights(RunFolder(tiny.folder / f"of {size}").last) for size in (1, 2))
    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.dist
def test_an_index_changes_no_bit_of_a_run_and_may_change_when_it_goes_on(tiny) -> None:
    index = tiny.folder / "index"
    assert main(["data", "index", str(tiny.train_list), "--out", str(index), "--workers", "1"]) == 0
    plain, indexed = tiny.folder / "plain", tiny.folder / "indexed"
    words = ["train", str(tiny.config), "data.val=''", "train.iterations=4"]
    assert main([*words, f"out={plain}", "data.index=never"]) == 0
    assert main([*words, f"out={indexed}", f"data.index={index}"]) == 0
    one, two = (tensors_of(RunFolder(out).last) for out in (plain, indexed))
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items())
    assert main([*words, f"out={indexed}", "data.index=never"]) == 0


@pytest.mark.slow
def test_the_forms_of_a_gpu_train_what_the_plain_form_trains(tiny, monkeypatch) -> None:
    """Kernels by Triton's interpreter; what a GPU has beyond that is tested there."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sizes = ["train.iterations=1", "train.val_interval=1", "train.clips_per_gpu=2"]
    forms = {
        "plain": [],
        "fused": [
            "train.memory_format=channels_last_3d",
            "compute.norms=fused",
            "compute.convolutions=2d",
            "compute.recompute=act+conv_c",
        ],
    }
    losses = {}
    for name, words in forms.items():
        out = tiny.folder / name
        assert main(["train", str(tiny.config), f"out={out}", *sizes, *words]) == 0
        losses[name] = [entry["loss"] for entry in entries_of(out, "train", "val")]
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-4)
    # Weights know nothing of it, and neither does a test on a machine without such kernels.
    monkeypatch.delenv("TRITON_INTERPRET")
    fused = tiny.folder / "fused"
    assert main(["test", str(fused / "config.yaml"), "--checkpoint", str(fused)]) == 0


@pytest.mark.parametrize(
    ("machine", "words", "remedy"),
    [
        (CPU, ["compute.norms=fused"], "set compute.norms=auto"),
        (CPU, ["compute.graphs=on"], "set compute.graphs=auto"),
        (A_GPU, ["compute.graphs=on", "train.accumulation=2"], "set compute.graphs=auto"),
        (A_GPU, ["compute.recompute=act", "train.compile=true"], "set one of them"),
        (OLD_CUDNN, ["compute.convolutions=3d", "train.precision=bf16"], "compute.convolutions=2d"),
    ],
)
def test_what_a_machine_cannot_compute_is_said_once_before_ranks_start(
    tiny, capsys, monkeypatch, machine: Machine, words: list[str], remedy: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("computed, or started ranks")

    monkeypatch.setattr(train_command, "launch", never)
    monkeypatch.setattr(compute, "_kernels_run", never)
    monkeypatch.setattr(Machine, "untried", staticmethod(lambda device: machine))
    out = f"out={tiny.folder / 'run'}"
    message = error_of(capsys, "train", tiny.config, "--gpus", 2, out, *words)
    assert remedy in message
    assert message.count("\n") == 1
    assert not (tiny.folder / "run").exists()
