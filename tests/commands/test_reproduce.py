import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import image_tree
from report_folders import CELLS, config_tree, make_probs, write_test, write_training
from tiny_run import TinySetup

from videogn.cli import main
from videogn.commands import reproduce_parts
from videogn.commands.step_time import Asked, Found, _found
from videogn.engine.experiments import Recipe, batch_sweep
from videogn.engine.runs import RunFolder
from videogn.errors import ConfigError

TINY = [
    "model.num_classes=4",
    "model.width=4",
    "model.depths=[1,1]",
    "model.channels_per_group=2",
    "model.weights=null",
    "clip.short_side_min=32",
    "clip.short_side_max=40",
    "clip.crop_size=32",
    "data.num_workers=0",
    "train.iterations=2",
    "train.precise_bn_batches=1",
    "test.num_clips=2",
]
SHORT = [*TINY, "train.base_batch=4"]
"""Makes the paper's cells small; they keep their frames, strides and clips per GPU."""
HEAD = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def kinetics(tmp_path: Path, tiny_data: Path) -> Path:
    """A folder as Kinetics comes: csv files beside the videos, named after their ids."""
    folder = tmp_path / "k400"
    for split in ("train", "val"):
        rows = []
        for number, line in enumerate((tiny_data / f"motion_{split}.txt").read_text().split("\n")):
            if not line:
                continue
            name, label = line.rsplit(maxsplit=1)
            target = folder / split / f"{split}id{number:05d}_000010_000020.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_data / name, target)
            rows.append(f"class {label},{split}id{number:05d},10,20,{split}\n")
        (folder / f"{split}.csv").write_text(HEAD + "".join(rows))
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Everything runs in the test's own process; the commands that ran."""
    ran: list[list[str]] = []

    def look_ahead(asked: list[Asked], world_size: int) -> list[Found]:
        # A step of one kind shows how steps are measured.
        return [
            _found(one._replace(timed=one.timed and "gn_32x2_b4" in str(one)), world_size)
            for one in asked
        ]

    def launch(num_processes: int, words: list[str]) -> int:
        assert num_processes == 1
        ran.append(words)
        return main(words)

    monkeypatch.setattr(reproduce_parts, "look_ahead", look_ahead)
    monkeypatch.setattr(reproduce_parts, "launch", launch)
    return ran


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def message(*words: str) -> str:
        assert main(["reproduce", *words]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        return printed

    return message


def test_dry_run_plans_the_six_cells_of_a_kinetics_folder(kinetics, tmp_path, here, capsys) -> None:
    words = ["--data", str(kinetics), "--out", str(tmp_path / "out"), "--gpus", "1", "--dry-run"]
    assert main(["reproduce", "table8", *words, *TINY]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if line.split()[:1]}
    assert set(CELLS) <= set(rows)
    # 0.01 at 64 clips: 8 x 1 and 4 x 1 clips are an eighth and a sixteenth.
    assert " 0.00125 " in rows["gn_32x2_b8"]
    assert " 0.000625 " in rows["bn_64x1_b4"]
    assert all(rows[name].endswith("missing") for name in CELLS)
    place = rows["cell"].index("s/step")
    assert float(rows["gn_32x2_b4"][place:].split()[0]) > 0
    assert " hours of training are left (" in printed
    assert f"videogn train {Path('x').absolute().anchor}" in printed
    assert "kinetics400/i3d_r50_bn_64x1_b4.yaml" in printed
    assert here == []
    assert not (tmp_path / "out").exists()


def test_iterations_follow_the_gpus(kinetics, tmp_path, here, capsys) -> None:
    words = ["--data", str(kinetics), "--out", str(tmp_path / "out"), "--gpus", "2", "--dry-run"]
    left = [word for word in TINY if not word.startswith("train.iterations")]
    words += ["--only", "bn_32x2_b4", *left, "train.warmup_iterations=10"]
    assert main(["reproduce", "table8", *words]) == 0
    printed = capsys.readouterr().out
    # Recipe: 800,000 iterations of 32 clips; here a batch has 8.
    assert "3,200,000" in printed
    assert "train.iterations=3200000" in printed
    assert "train.warmup_iterations=40" in printed
    assert "--gpus 2" in printed
    assert "gn_" not in printed


def test_cells_are_trained_tested_and_shown_once(kinetics, tmp_path, here, capsys) -> None:
    out = tmp_path / "out"
    words = ["reproduce", "table8", "--data", str(kinetics), "--out", str(out), "--gpus", "1"]
    words += ["--only", "bn_32x2_b4,gn_32x2_b4", *SHORT]
    assert main(words) == 0
    assert [command[0] for command in here] == ["train", "test", "train", "test"]
    printed = capsys.readouterr().out
    assert "72.1 / 90.0" in printed
    assert "4 classes, not the 400 of Kinetics-400" in printed
    assert "Table 8" in (out / "report.html").read_text()
    cells = {
        (cell["row"], cell["column"]): cell
        for cell in json.loads((out / "table8.json").read_text())["cells"]
    }
    for norm in ("bn", "gn"):
        results = json.loads((out / f"{norm}_32x2_b4" / "test" / "results.json").read_text())
        cell = cells[norm.upper(), "32 x 2, 4"]
        assert cell["mean"]["top1"] == pytest.approx(results["top1"], abs=1e-3)
        assert cells[norm.upper(), "32 x 2, 8"]["runs"] == []
    assert "| BN | paper |" in (out / "table8.md").read_text()
    here.clear()
    assert main(words) == 0
    assert here == []
    assert capsys.readouterr().out.count("finished") == 2
    # Another list is told, for it may be the same videos at another place.
    other = kinetics / "train.csv"
    assert main([*words, "--dry-run", f"data.test={other}"]) == 0
    assert f"finished, tested on {kinetics / 'val.csv'}" in capsys.readouterr().out
    # What is trained is only tested.
    shutil.rmtree(out / "gn_32x2_b4" / "test")
    words[words.index("--only") + 1] = "gn_32x2_b4"
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "trained, not tested" in printed
    assert "is complete: 2 iterations are done" in printed
    # The run keeps its batch, and with it its iterations, on any number of GPUs.
    here.clear()
    assert main([*words, "--gpus", "2"]) == 0
    assert here == []
    assert "finished" in capsys.readouterr().out
    # More iterations: the test is of a network that is not the last one.
    assert main([*words, "train.iterations=3"]) == 2
    printed = capsys.readouterr()
    assert "holds another test" in printed.err
    assert "not shown: gn_32x2_b4" in printed.out


def test_a_test_in_the_middle_of_a_training_is_no_outcome(
    tiny: TinySetup, tmp_path, here, capsys
) -> None:
    words = ["reproduce", "batch-sweep", "--configs", str(tiny.config), "--batches", "4"]
    words += ["--out", str(tmp_path / "out"), "--gpus", "1", "test.num_clips=1"]

    def iterations(count: int) -> list[str]:
        return [f"train.iterations={count}", "train.val_interval=6"]

    assert main([*words, *iterations(2)]) == 0
    assert (tmp_path / "out" / "batch-sweep.json").is_file()
    capsys.readouterr()
    # As if four had been asked for, and a signal had stopped it after two.
    run = tmp_path / "out" / "gn_b4"
    for name in ("log.jsonl", "config.yaml"):
        text = (run / name).read_text()
        longer = text.replace('"iterations": 2,', '"iterations": 4,')
        (run / name).write_text(longer.replace("iterations: 2\n", "iterations: 4\n"))
    assert main([*words, *iterations(4), "--dry-run"]) == 0
    assert "2 done" in capsys.readouterr().out


def test_several_gpus_may_not_make_a_cell_another(
    tiny: TinySetup, tmp_path, here, capsys, fails
) -> None:
    words = ["batch-sweep", "--configs", str(tiny.config), "--batches", "4"]
    words += ["--out", str(tmp_path / "out"), "test.num_clips=1", "train.val_interval=6"]
    assert main(["reproduce", *words, "--gpus", "1", "train.iterations=2"]) == 0
    capsys.readouterr()
    told = fails(*words, "--gpus", "2", "train.iterations=3")
    assert "4 clips per iteration, 4 on each GPU, and 2 GPUs cannot" in told
    assert "--gpus 1\n" in told


def test_one_cell_that_fails_does_not_keep_the_others(
    kinetics, tmp_path, here, capsys, monkeypatch
) -> None:
    def launch(num_processes: int, words: list[str]) -> int:
        here.append(words)
        return 3 if any("bn_32x2_b4" in word for word in words) else 0

    monkeypatch.setattr(reproduce_parts, "launch", launch)
    words = ["reproduce", "table8", "--data", str(kinetics), "--out", str(tmp_path / "out")]
    assert main([*words, "--gpus", "1", "--only", "bn_32x2_b4,gn_32x2_b4", *SHORT]) == 3
    assert [command[0] for command in here] == ["train", "train", "test"]
    assert "failed: bn_32x2_b4 (exit code 3)" in capsys.readouterr().out


@pytest.mark.parametrize("code", [75, 130, 143])
def test_a_signal_stops_all(kinetics, tmp_path, here, monkeypatch, code) -> None:
    def launch(num_processes: int, words: list[str]) -> int:
        here.append(words)
        return code

    monkeypatch.setattr(reproduce_parts, "launch", launch)
    words = ["reproduce", "table8", "--data", str(kinetics), "--out", str(tmp_path / "o")]
    assert main([*words, "--gpus", "1", "--only", "bn_32x2_b4,gn_32x2_b4", *SHORT]) == code
    assert len(here) == 1


def test_a_signal_that_came_too_late_for_a_command_stops_the_next(
    kinetics, tmp_path, here, monkeypatch
) -> None:
    def launch(num_processes: int, words: list[str]) -> int:
        here.append(words)
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(reproduce_parts, "launch", launch)
    words = ["reproduce", "table8", "--data", str(kinetics), "--out", str(tmp_path / "o")]
    assert main([*words, "--gpus", "1", "--only", "bn_32x2_b4,gn_32x2_b4", *SHORT]) == 75
    assert [command[0] for command in here] == ["train"]


def test_a_sweep_trains_a_pair_of_configs_at_every_batch(
    tiny: TinySetup, tmp_path, here, capsys
) -> None:
    other = tiny.config.with_name("bn.yaml")
    other.write_text(tiny.config.read_text().replace("norm: gn", "norm: bn"))
    out = tmp_path / "out"
    words = ["reproduce", "batch-sweep", "--configs", str(other), str(tiny.config)]
    words += ["--batches", "4,2", "--seeds", "1", "--out", str(out), "--gpus", "1"]
    small = ["train.precise_bn_batches=1", "test.num_clips=1", "train.val_interval=6"]
    # As many clips at each: 3 iterations of 4 clips.
    assert main([*words, *small, "train.iterations=3"]) == 0
    assert len(here) == 2 * 4
    logs = {
        name: json.loads((out / name / "log.jsonl").read_text().splitlines()[0])
        for name in ("bn_b4_s1", "gn_b2_s1")
    }
    assert logs["bn_b4_s1"]["iterations"] == 3
    assert logs["gn_b2_s1"]["iterations"] == 6
    assert logs["gn_b2_s1"]["learning_rate"] == pytest.approx(0.025)
    assert (out / "batch-sweep.png").read_bytes().startswith(b"\x89PNG")
    cells = json.loads((out / "batch-sweep.json").read_text())["cells"]
    assert [[run["cell"] for run in cell["runs"]] for cell in cells] == [
        ["bn_b4_s1"],
        ["bn_b2_s1"],
        ["gn_b4_s1"],
        ["gn_b2_s1"],
    ]
    assert cells[3]["runs"][0]["log"]["iterations"] == 6
    printed = capsys.readouterr().out
    assert "GN - BN" in printed
    assert "- train.precise_bn_batches is 1; the cell's config has 200 (all)" in printed
    assert "clips_per_gpu is" not in printed


STILL = [
    "model.num_classes=3",
    "model.width=4",
    "model.depths=[1,1]",
    "clip.short_side_min=36",
    "clip.crop_size=32",
    "train.epochs=1",
    "data.num_workers=0",
]


def test_what_is_not_the_papers_or_not_whole_is_told(tmp_path, here, capsys, monkeypatch) -> None:
    data, out = tmp_path / "images", tmp_path / "out"
    image_tree(data / "train", 3, 11, lambda number: (40 + number, 60))
    image_tree(data / "val", 3, 2, lambda number: (60, 40 + number))
    words = ["reproduce", "table1", "--data", str(data), "--out", str(out), "--gpus", "1"]
    words += ["--only", "r50_bn", *STILL]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "model.num_classes is 3; the cell's config has 1000 (all)" in printed
    assert "6 images to validate on; ImageNet has 50,000" in printed
    assert "- model.num_classes is 3" in (out / "table1.md").read_text()
    # A longer training that fails leaves the errors of the shorter one.
    monkeypatch.setattr(reproduce_parts, "launch", lambda *_: 1)
    capsys.readouterr()
    assert main([*words, "train.epochs=2"]) == 1
    printed = capsys.readouterr().out
    assert "not shown: r50_bn_b32: its numbers are of another length" in printed
    assert "val error" not in printed


def test_image_cells_are_pre_trained_and_shown_by_their_median_error(
    tmp_path, here, capsys
) -> None:
    data, out = tmp_path / "images", tmp_path / "out"
    image_tree(data / "train", 3, 4, lambda number: (40 + number, 60))
    image_tree(data / "val", 3, 2, lambda number: (60, 40 + number))
    words = ["reproduce", "table2", "--data", str(data), "--out", str(out), "--gpus", "1"]
    words += ["--only", "r50_bn_b4,r50_bn_b8", "train.percentile_layer=conv1", *STILL]
    assert main(words) == 0
    assert [command[0] for command in here] == ["pretrain", "pretrain"]
    assert "34.7" in capsys.readouterr().out
    cells = {
        (cell["row"], cell["column"]): cell
        for cell in json.loads((out / "table2.json").read_text())["cells"]
    }
    for batch in (4, 8):
        told = json.loads((out / f"r50_bn_b{batch}" / "pretrain.json").read_text())
        median = told["median"]["top1_error"]
        assert cells["BN", str(batch)]["mean"]["top1"] == pytest.approx(median, abs=1e-3)
    assert (out / "table2.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "table2_percentiles.png").read_bytes().startswith(b"\x89PNG")
    here.clear()
    assert main(words) == 0
    assert here == []
    # One epoch more: what is there is gone on with.
    assert main([*words[:-1], "data.num_workers=0", "train.epochs=2"]) == 0
    assert len(here) == 2
    told = json.loads((out / "r50_bn_b4" / "pretrain.json").read_text())
    assert told["last"]["iteration"] == 6
    capsys.readouterr()
    # Elsewhere the same runs find their places by their configs.
    runs = [str(out / f"r50_bn_b{batch}") for batch in (4, 8)]
    assert main(["reproduce", "table2", "--out", str(tmp_path / "c"), "--collect", *runs]) == 0
    collected = json.loads((tmp_path / "c" / "table2.json").read_text())["cells"]
    assert [len(cell["runs"]) for cell in collected[:5]] == [0, 0, 1, 1, 0]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collected")
    labels = np.arange(400).repeat(2)
    for seed, (name, (norm, frames, stride, clips, percent)) in enumerate(CELLS.items()):
        config = config_tree(norm, frames, stride, clips)
        write_training(folder / name, config, {200_000: 50.0, 400_000: 40.0})
        probs = make_probs(labels, 400, percent, seed)
        write_test(folder / name / "test", probs, labels, config=config)
    return folder


def test_runs_made_elsewhere_are_collected(collected, tmp_path, here, capsys) -> None:
    runs = [str(collected / name) for name in ("gn_64x1_b4", "bn_64x1_b4")]
    out = tmp_path / "out"
    assert main(["reproduce", "table8", "--out", str(out), "--collect", *runs]) == 0
    printed = capsys.readouterr().out
    assert printed.count("GN - BN") == 1
    assert "the released validation list has 19,761" in printed
    cells = json.loads((out / "table8.json").read_text())["cells"]
    assert [len(cell["runs"]) for cell in cells] == [0, 0, 1, 0, 0, 1]
    page = (out / "report.html").read_text()
    assert "Figure 7" in page
    assert here == []


def test_collected_runs_are_whole_and_named_once(collected, tmp_path, fails) -> None:
    run = tmp_path / "half"
    shutil.copytree(collected / "gn_32x2_b8", run)
    words = ["table8", "--out", str(tmp_path / "out"), "--collect"]
    assert "a run is named twice" in fails(*words, str(run), f"{run}/../half")
    log = run / "log.jsonl"
    log.write_text(log.read_text().replace('"iteration": 0,', '"iteration": 0, "iterations": 8,'))
    assert "of iteration 400000, and the training has 8" in fails(*words, str(run))


@pytest.mark.slow
def test_the_driver_runs_its_cells_in_processes_of_their_own(kinetics, tmp_path, capfd) -> None:
    out = tmp_path / "out"
    words = ["reproduce", "table8", "--data", str(kinetics), "--out", str(out), "--gpus", "1"]
    assert main([*words, "--only", "gn_32x2_b4", *SHORT]) == 0
    printed, said = capfd.readouterr()
    assert "Warning" not in said
    assert "$ videogn train" in printed
    assert "iter 2/2" in printed
    assert RunFolder(out / "gn_32x2_b4").last.exists()
    assert (out / "gn_32x2_b4" / "test" / "results.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table8", "--only", "xx"], "--only xx: no cell's name begins so; they are bn_32x2_b8"),
        (["table8", "--batches", "8"], "--batches is for batch-sweep"),
        (["table8", "train.clips_per_gpu=2"], "train.clips_per_gpu is what the cells"),
        (["table8", "out=x"], "out is what the cells"),
        (["table8", "train.no_such=1"], "no such key"),
        (["table8", "--data", "/no/such"], "--data /no/such: no such folder"),
        (["table8", "--gpus", "0"], "--gpus 0 makes no sense"),
        (["batch-sweep", "--batches", "8,0"], "--batches 0: must be 1 or more"),
        (["batch-sweep", "--configs", "no.yaml"], "no.yaml: no such config"),
        (["table8", "--collect", "/no/such"], "/no/such: no such folder"),
        (["table8", "--collect", "x", "--dry-run"], "--collect shows runs and trains none"),
        (["table8"], "data/kinetics400/train.csv: no such list of videos"),
    ],
)
def test_wrong_words_get_one_message(words, message, tmp_path, here, fails) -> None:
    small = [] if "--collect" in words else ["model.weights=null"]
    assert message in fails(*words, "--out", str(tmp_path / "out"), *small)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("bn_b1", ["bn_b1"]),
        ("bn_b16", ["bn_b16"]),
        ("bn", ["bn_b16", "bn_b1"]),
        ("bn_", ["bn_b16", "bn_b1"]),
    ],
)
def test_a_number_of_only_is_meant_whole(word, names) -> None:
    experiment = batch_sweep([Recipe("BN", "a", "bn"), Recipe("GN", "b", "gn")], [16, 1])
    assert [cell.name for cell in reproduce_parts.chosen(experiment, [word])] == names
    with pytest.raises(ConfigError, match="begins so"):
        reproduce_parts.chosen(experiment, ["bn", ""])


@pytest.mark.parametrize("word", ["8,x", "8,8"])
def test_lists_of_numbers_are_checked(word, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["reproduce", "batch-sweep", "--out", "x", "--batches", word])
    assert f"'{word}'" in capsys.readouterr().err


def test_a_launcher_may_not_start_it(tmp_path, monkeypatch, fails) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29999")
    assert "starts its ranks by itself" in fails("table8", "--out", str(tmp_path))
