import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import drive
from tiny_run import tiny_setup

from videogn.cli import main
from videogn.commands import scoring_job, test_parts
from videogn.data.decode import PyAVReader
from videogn.files import sha256_of
from videogn.models.weights import load_model, read_info


@pytest.fixture(scope="module")
def trained_once(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    setup, out = tiny_setup(folder, tiny_data), folder / "run"
    assert main(["train", str(setup.config), f"out={out}", "train.iterations=4"]) == 0
    return out


@pytest.fixture
def trained(tiny, trained_once: Path) -> Path:
    """A training run of one's own."""
    return Path(shutil.copytree(trained_once, tiny.folder / "run"))


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def results_of(folder: Path) -> tuple[dict, dict]:
    with np.load(folder / "scores.npz") as scores:
        return json.loads((folder / "results.json").read_text()), dict(scores)


def test_results_hold_the_promised_keys_in_list_order(tiny, trained: Path, capsys) -> None:
    assert main(["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]) == 0
    results, scores = results_of(trained / "test")
    listed = [line.split() for line in tiny.val_list.read_text().splitlines()]
    assert scores["video"].tolist() == [name for name, _ in listed]
    assert scores["label"].tolist() == [int(label) for _, label in listed]
    assert scores["ok"].dtype == bool
    assert scores["ok"].all()
    assert scores["clip_probs"].shape == scores["clip_logits"].shape == (7, 3, 4)
    np.testing.assert_array_equal(scores["probs"], scores["clip_probs"].mean(1))
    np.testing.assert_allclose(scores["clip_probs"].sum(2), 1, atol=1e-5)
    right = scores["probs"].argmax(1) == scores["label"]
    assert results["top1"] == pytest.approx(100 * right.mean())
    assert results["top5"] == 100
    assert (results["num_videos"], results["num_failed"], results["failed"]) == (7, 0, [])
    last = trained / "checkpoints" / "last.safetensors"
    assert results["checkpoint_sha256"] == sha256_of(last)
    assert (results["weights"], results["protocol"], results["world_size"]) == ("last", "paper", 1)
    assert f"top-1 {results['top1']:.2f} %" in capsys.readouterr().out


def test_scores_equal_a_recomputation_by_hand(tiny, trained: Path) -> None:
    """Frames, positions, scaling, normalisation, network and averages, without the loader."""
    assert main(["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]) == 0
    _, scores = results_of(trained / "test")
    path = trained / "checkpoints" / "last.safetensors"
    network, info = load_model(path), read_info(path)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (info.mean, info.std))
    video = PyAVReader(str(tiny.val_list.parent / str(scores["video"][3])))
    span = (8 - 1) * 1 + 1
    for clip in range(3):
        start = round(clip * (video.num_frames - span) / 2)
        frames = torch.from_numpy(video.frames(range(start, start + 8))).permute(3, 0, 1, 2)
        scaled = torch.nn.functional.interpolate(
            frames.transpose(0, 1).float(), size=(32, 32), mode="bilinear"
        ).round()
        clips = ((scaled.transpose(0, 1) / 255 - mean) / std)[None]
        with torch.inference_mode():
            located = network.forward_locations(clips)[0].flatten(1)
        # Scaling is done in 8 bits there and in floats here: half a level apart at most.
        np.testing.assert_allclose(
            scores["clip_probs"][3, clip], located.softmax(0).mean(1), atol=2e-3
        )


@pytest.mark.parametrize(
    "words", [["test.views_per_pass=1"], ["data.num_workers=2"], ["test.views_per_pass=2"]]
)
def test_batches_and_workers_do_not_matter(tiny, trained: Path, words: list[str]) -> None:
    command = ["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]
    assert main([*command, "--out", str(tiny.folder / "a")]) == 0
    assert main([*command, "--out", str(tiny.folder / "b"), *words]) == 0
    first, second = results_of(tiny.folder / "a")[1], results_of(tiny.folder / "b")[1]
    np.testing.assert_allclose(first["clip_logits"], second["clip_logits"], atol=1e-5)


def test_failed_videos_are_listed_wrong_and_nan(tiny, trained: Path, capsys) -> None:
    root = tiny.val_list.parent
    lines = tiny.val_list.read_text().splitlines()
    truncated = tiny.folder / "cut.mp4"
    truncated.write_bytes((root / lines[0].split()[0]).read_bytes()[:900])
    listed = tiny.folder / "list.txt"
    listed.write_text("\n".join([lines[0], "absent file.mp4 1", f"{truncated} 2", lines[1]]))
    command = ["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]
    command += [f"data.test={listed}", f"data.root={root}"]
    assert main(command) == 2
    assert "data.allow_outside_root=true" in capsys.readouterr().err
    assert main([*command, "data.allow_outside_root=true"]) == 0
    results, scores = results_of(trained / "test")
    assert scores["ok"].tolist() == [True, False, False, True]
    for key in ("probs", "clip_probs", "clip_logits"):
        assert np.isnan(scores[key][1:3]).all()
        assert np.isfinite(scores[key][[0, 3]]).all()
    assert results["num_failed"] == 2
    assert [failure["path"] for failure in results["failed"]] == ["absent file.mp4", str(truncated)]
    assert all(failure["reason"] for failure in results["failed"])
    right = scores["probs"][[0, 3]].argmax(1) == scores["label"][[0, 3]]
    assert results["top1"] == 100 * right.sum() / 4
    assert "warning: 2 of 4 videos" in capsys.readouterr().out


def test_list_of_failures_only_is_an_error(tiny, trained: Path, capsys) -> None:
    listed = tiny.folder / "list.txt"
    listed.write_text("absent.mp4 1\n")
    words = ["test", trained / "config.yaml", "--checkpoint", trained, f"data.test={listed}"]
    message = error_of(capsys, *words)
    assert "none of its 1 videos could be read, such as absent.mp4: " in message
    assert results_of(trained / "test")[0]["num_failed"] == 1
    # Once the disk is there again, the same command reads them.
    first = tiny.val_list.read_text().split()[0]
    (tiny.folder / "absent.mp4").write_bytes((tiny.val_list.parent / first).read_bytes())
    assert main([str(word) for word in words]) == 0
    assert results_of(trained / "test")[0]["num_failed"] == 0


def test_a_gpu_that_emulates_bf16_computes_in_fp32(tiny, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for major, expected in ((7, "fp32"), (8, "bf16")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: (
                including_emulation or major >= 8  # noqa: B023
            ),
        )
        assert test_parts._precision("auto") == expected
    assert test_parts._precision("fp16") == "fp16"


def test_a_cpu_computes_in_bf16_where_it_has_it(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has_bf16, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(test_parts, "cpu_has_bf16", lambda has_bf16=has_bf16: has_bf16)
        assert test_parts._precision("auto") == expected
    assert test_parts._precision("bf16") == "bf16"


def test_auto_on_a_cpu_with_bf16_is_near_fp32(tiny, trained: Path, monkeypatch) -> None:
    """The whole command, emulated where the CPU has no bf16."""
    monkeypatch.setattr(test_parts, "cpu_has_bf16", lambda: True)
    command = ["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]
    found = {}
    for precision in ("auto", "fp32"):
        out = tiny.folder / precision
        assert main([*command, "--out", str(out), f"test.precision={precision}"]) == 0
        found[precision] = results_of(out)
    assert found["auto"][0]["precision"] == "bf16"
    assert found["fp32"][0]["precision"] == "fp32"
    halves, full = (found[name][1]["clip_probs"] for name in ("auto", "fp32"))
    assert 0 < abs(halves - full).max() < 2e-2


def test_hosts_of_different_kinds_are_refused(tiny, trained: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(scoring_job, "gather_over_ranks", lambda mine: [mine, "bf16, compiled"])
    words = ["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]
    assert main([*words, "test.precision=fp32", "test.recipe=views"]) == 2
    error = capsys.readouterr().err
    assert "differently (bf16, compiled and fp32, views); set test.precision" in error


def test_crops_and_centre(tiny, trained: Path) -> None:
    command = ["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]
    assert main([*command, "--out", str(tiny.folder / "a"), "test.num_crops=3"]) == 0
    assert results_of(tiny.folder / "a")[1]["clip_probs"].shape == (7, 3, 4)
    words = ["test.protocol=center", "clip.crop_size=24"]
    assert main([*command, "--out", str(tiny.folder / "b"), *words]) == 0
    assert results_of(tiny.folder / "b")[0]["crop_size"] == 24


def test_short_forms_name_the_protocol_and_its_views(tiny, trained: Path) -> None:
    command = ["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]
    # The config has three clips; crops are the protocol's own where nothing is said.
    asked = {
        ("nonlocal", 2, 3): ["--protocol", "nonlocal", "--clips", "2", "--crops", "3"],
        ("slowfast", 3, 3): ["--protocol", "slowfast", "test.protocol=slowfast"],
        ("pytorchvideo", 10, 1): ["--protocol=pytorchvideo", "--crops=1", "test.num_clips=null"],
    }
    for number, (expected, words) in enumerate(asked.items()):
        out = tiny.folder / str(number)
        assert main([*command, "--out", str(out), *words]) == 0
        results, scores = results_of(out)
        assert (results["protocol"], results["num_clips"], results["num_crops"]) == expected
        assert results["num_failed"] == 0
        assert scores["clip_probs"].shape == (7, expected[1], 4)
        np.testing.assert_allclose(scores["probs"], scores["clip_probs"].mean(1), atol=1e-6)
        assert results["crop_size"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--protocol", "slofast"], "did you mean 'slowfast'?"),
        (["--clips", "0"], "test.num_clips: must be greater than 0, got 0"),
        (["--crops", "2"], "test.num_crops: must be 1 or 3, got 2"),
        (
            ["--clips", "10", "test.num_clips=3"],
            "--clips 10 and test.num_clips=3 contradict each other; give one of them",
        ),
        (
            ["--protocol", "paper", "test.protocol=center"],
            "--protocol paper and test.protocol=center contradict each other; give one of them",
        ),
        (["--protocol", "slowfast", "clip.fps=30"], "set clip.fps=null for this test"),
        (["--protocol", "center", "--crops", "3"], "test.protocol=center has one crop"),
    ],
)
def test_wrong_short_forms_are_one_readable_error(tiny, capsys, words, expected: str) -> None:
    message = error_of(capsys, "test", tiny.config, "--checkpoint", "absent", *words)
    assert expected in message
    assert len(message.strip().splitlines()) == 1


def test_short_forms_reach_the_processes_that_are_started(tiny, monkeypatch, trained) -> None:
    started = []
    monkeypatch.setattr(scoring_job, "must_launch", lambda gpus: True)
    monkeypatch.setattr(scoring_job, "launch", lambda gpus, words: started.append(words) or 0)
    words = ["--gpus", "2", "--protocol", "mmaction2", "--clips", "4", "test.views_per_pass=2"]
    assert main(["test", str(tiny.config), "--checkpoint", str(trained), *words]) == 0
    overrides = {"test.protocol=mmaction2", "test.num_clips=4", "test.views_per_pass=2"}
    assert overrides <= set(started[0])


def test_checkpoint_of_another_network_is_refused(tiny, trained: Path, capsys) -> None:
    words = ["test", trained / "config.yaml", "--checkpoint", trained]
    for change, named in (("model.norm=bn", "norm"), ("model.num_classes=5", "num_classes")):
        message = error_of(capsys, *words, change)
        assert named in message
        assert "last.safetensors" in message
    assert not (trained / "test").exists()


def test_wrong_checkpoints_and_folders_are_one_message(tiny, trained: Path, capsys) -> None:
    words = ["test", trained / "config.yaml", "--checkpoint"]
    text = tiny.folder / "text.pth"
    text.write_text("no weights")
    assert "text.pth" in error_of(capsys, *words, text)
    assert "absent.pth" in error_of(capsys, *words, tiny.folder / "absent.pth")
    assert "checkpoints/last.safetensors" in error_of(capsys, *words, tiny.folder)
    assert "training run" in error_of(capsys, *words, trained, "--out", trained)


def test_test_folder_of_other_weights_or_list_is_kept(tiny, trained: Path, capsys) -> None:
    command = ["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]
    out = ["--out", str(tiny.folder / "results")]
    assert main([*command, *out]) == 0
    assert main([*command, *out]) == 0  # the same test may be run again
    before = (tiny.folder / "results" / "scores.npz").read_bytes()
    assert "list_sha256" in error_of(capsys, *command, *out, f"data.test={tiny.train_list}")
    assert "pixels: cpu there, device now" in error_of(capsys, *command, *out, "data.pixels=device")
    assert "num_crops: 1 there, 3 now" in error_of(capsys, *command, *out, "test.num_crops=3")
    best = trained / "checkpoints" / "best.safetensors"
    other = [*command[:-1], best, *out]
    assert "checkpoint_sha256" in error_of(capsys, *other)
    assert (tiny.folder / "results" / "scores.npz").read_bytes() == before


def test_another_test_that_ended_while_the_lock_was_waited_for_is_kept(
    tiny, trained: Path, capsys, monkeypatch
) -> None:
    """Jobs of one Slurm job wait for each other."""
    out = tiny.folder / "results"

    @contextmanager
    def waited(path: Path) -> Iterator[None]:
        out.mkdir()
        (out / "results.json").write_text('{"protocol": "center"}')
        yield

    monkeypatch.setattr(scoring_job, "run_lock", waited)
    words = ["test", trained / "config.yaml", "--checkpoint", trained, "--out", out]
    assert "protocol: center there, paper now" in error_of(capsys, *words)
    assert [path.name for path in out.iterdir()] == ["results.json"]


def test_default_folder_does_not_depend_on_where_one_stands(tiny, trained, monkeypatch) -> None:
    monkeypatch.chdir(trained / "checkpoints")
    assert main(["test", "../config.yaml", "--checkpoint", "best.safetensors"]) == 0
    assert (trained / "test_best" / "results.json").exists()


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_write_the_same_scores(tiny, trained: Path) -> None:
    """Seven videos on two ranks: uneven shards, every video once, bit-equal scores."""
    command = ["test", str(trained / "config.yaml"), "--checkpoint", str(trained)]
    for ranks, name in ((1, "one"), (2, "two")):
        drive([*command, "--out", str(tiny.folder / name)], ranks, tiny.folder, folder="run")
    (one, ours), (two, theirs) = (results_of(tiny.folder / name) for name in ("one", "two"))
    assert two["world_size"] == 2
    assert {**one, "world_size": 2} == two
    for key, values in ours.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, theirs[key], atol=1e-6)
        else:
            assert (values == theirs[key]).all()


def names_file(folder: Path, names: list[str]) -> Path:
    path = folder / "names.txt"
    path.write_text("\n".join(names))
    return path


@pytest.fixture
def trained_with_names(tiny) -> Path:
    names = names_file(tiny.folder, list("abcd"))
    out = tiny.folder / "run"
    words = [f"out={out}", "train.iterations=2", f"data.class_names={names}"]
    assert main(["train", str(tiny.config), *words]) == 0
    return out


def test_class_names_and_their_hash_travel_to_the_results(trained_with_names: Path) -> None:
    run = trained_with_names
    info = read_info(run / "checkpoints" / "last.safetensors")
    assert info.class_names == tuple("abcd")
    assert main(["test", str(run / "config.yaml"), "--checkpoint", str(run)]) == 0
    results, _ = results_of(run / "test")
    expected = hashlib.sha256(b"a\nb\nc\nd").hexdigest()
    assert results["class_names_sha256"] == expected == info.to_json()["class_names_sha256"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abdc", "contradicts .*last.safetensors: label 2 is 'c' there and 'd' here; label 3"),
        ("abc", "has 3 names and model.num_classes is 4"),
        ("abce", "label 3 is 'd' there and 'e' here"),
    ],
)
def test_names_in_another_order_are_refused(
    tiny, trained_with_names: Path, capsys, names: str, message: str
) -> None:
    run = trained_with_names
    path = tiny.folder / "other.txt"
    path.write_text("\n".join(names))
    words = ["test", run / "config.yaml", "--checkpoint", run, f"data.class_names={path}"]
    assert re.search(message, error_of(capsys, *words))


def test_a_list_whose_folders_contradict_its_labels_is_refused(
    tiny, trained_with_names: Path, capsys
) -> None:
    run = trained_with_names
    listed = [line.split() for line in tiny.val_list.read_text().splitlines()]
    folder = tiny.folder / "videos"
    lists = {"right": [], "wrong": []}
    for place, (name, label) in enumerate(listed):
        home = folder / "abcd"[int(label)]
        home.mkdir(parents=True, exist_ok=True)
        video = home / f"{place}.mp4"
        video.symlink_to(tiny.val_list.parent / name)
        lists["right"].append(f"{video.relative_to(folder)} {label}")
        lists["wrong"].append(f"{video.relative_to(folder)} {(int(label) + 1) % 4}")
    for key, lines in lists.items():
        (folder / f"{key}.txt").write_text("\n".join(lines))
    config = run / "config.yaml"
    common = ["test", str(config), "--checkpoint", str(run), "data.allow_outside_root=true"]
    wrong = error_of(capsys, *common, f"data.test={folder / 'wrong.txt'}")
    assert "its labels are in another order: " in wrong
    assert "in " + str(tiny.folder / "names.txt") in wrong
    right = [*common, f"data.test={folder / 'right.txt'}"]
    assert main([*right, "--out", str(tiny.folder / "tested")]) == 0
