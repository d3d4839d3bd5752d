import json
import shlex
import signal
from pathlib import Path

import pytest
import torch
from driving import drive
from picture_files import image_tree
from tiny_run import TinySetup

from videogn.cli import main
from videogn.commands.pretrain import inflate_options
from videogn.engine import trainer
from videogn.engine.runs import RunFolder, read_log
from videogn.models.spec import NetworkSpec
from videogn.models.weights import read_info, read_weights
from videogn.stopping import EXIT_CODE, stop_request

CONFIGS = Path(__file__).parents[2] / "configs"

# The recipe as it is shipped, at a small size.
STILLS = """
_BASE_: BASE
data: {train: TRAIN, val: VAL, num_workers: 0}
model: {norm: gn, channels_per_group: 2, num_classes: 3, width: 4, depths: [1, 1]}
clip: {short_side_min: 36, crop_size: 32}
train: {clips_per_gpu: 6, base_batch: 6, epochs: 6, log_interval: 2}
"""


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    """Pre-training of seconds: 12 images, 2 batches of 6 an epoch, 6 to validate on."""
    train = image_tree(tmp_path / "train", 3, 4, lambda number: (40 + number, 60))
    val = image_tree(tmp_path / "val", 3, 2, lambda number: (60, 40 + number))
    path = tmp_path / "stills.yaml"
    text = STILLS.replace("BASE_: BASE", f"BASE_: {CONFIGS / 'imagenet' / 'base.yaml'}")
    path.write_text(text.replace("TRAIN", str(train)).replace("VAL", str(val)))
    return path


def outcome(run: Path) -> dict:
    return json.loads((run / "pretrain.json").read_text())


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_it_trains_tells_its_error_and_its_weights_inflate_as_it_says(
    stills: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(stills.parent)
    assert main(["pretrain", str(stills), "out=a run"]) == 0
    printed, run = capsys.readouterr().out, Path("a run")
    told = outcome(run)
    validations = [e for e in read_log(RunFolder(run).log) if e["kind"] == "val"]
    errors = [100 - entry["top1"] for entry in validations]
    assert [each["iteration"] for each in told["validations"]] == [2, 4, 6, 8, 10, 12]
    assert [each["top1_error"] for each in told["validations"]] == pytest.approx(errors)
    assert told["median"]["top1_error"] == pytest.approx(sorted(errors[1:])[2])
    assert told["median"]["iterations"] == [4, 6, 8, 10, 12]
    assert told["best"]["top1_error"] == pytest.approx(min(errors))
    assert told["num_images"] == 6
    assert f"top-1 error {errors[-1]:.2f} % (top-5 0.00 %) of 6 images after iter" in printed
    assert f"median      {sorted(errors[1:])[2]:.2f} % of the last 5 validations\n" in printed

    # The line that it ends with is the next command, with nothing to add.
    line = printed.splitlines()[-1].removeprefix("inflate     ")
    program, *words = shlex.split(line)
    assert program == "videogn"
    assert main(words) == 0
    inflated = read_weights(Path("weights/i3d_r50_gn_c2.safetensors"))
    spec = inflated.info.spec
    assert (spec.arch, spec.norm, spec.channels_per_group) == ("i3d_r50", "gn", 2)
    assert (spec.width, spec.depths, spec.num_classes) == (4, (1, 1), 400)
    still = read_weights(RunFolder(run).last)
    # Mean inflation over the five frames of the stem.
    kernel = still.state["conv1.weight"][:, :, None].expand(-1, -1, 5, -1, -1) / 5
    torch.testing.assert_close(inflated.state["blocks.0.conv.weight"], kernel)


def test_a_broken_and_a_stopped_run_go_on_to_the_same_outcome(
    stills: Path, capsys, monkeypatch
) -> None:
    words = ["pretrain", str(stills), "model.norm=bn", "train.epochs=3"]
    unbroken, broken = stills.parent / "unbroken", stills.parent / "broken"
    assert main([*words, f"out={unbroken}"]) == 0
    assert "of the last 3 validations; the paper's median is over 5" in capsys.readouterr().out
    real_step = trainer.train_step

    def unlucky_step(run: object, batch: object, iteration: int, *rest: object) -> object:
        if iteration == 3:
            stop_request.signal = signal.SIGTERM
        if iteration == 5:
            raise KeyboardInterrupt
        return real_step(run, batch, iteration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", unlucky_step)
        for code in (EXIT_CODE, 130):
            patch.setattr(stop_request, "signal", None)
            assert main([*words, f"out={broken}"]) == code
            assert not (broken / "pretrain.json").exists()
    assert main([*words, f"out={broken}"]) == 0
    first = (unbroken / "pretrain.json").read_bytes()
    assert (broken / "pretrain.json").read_bytes() == first

    # Complete, it tells once more what came of it.
    (broken / "pretrain.json").unlink()
    capsys.readouterr()
    assert main([*words, f"out={broken}"]) == 0
    printed = capsys.readouterr().out
    assert "is complete" in printed
    assert "top-1 error" in printed
    assert (broken / "pretrain.json").read_bytes() == first
    RunFolder(broken).log.unlink()
    assert "holds no validation" in error_of(capsys, *words, f"out={broken}")


def test_a_dry_run_writes_nothing(stills: Path, capsys) -> None:
    out = stills.parent / "run"
    assert main(["pretrain", str(stills), "--dry-run", f"out={out}"]) == 0
    assert not out.exists()
    printed = capsys.readouterr().out
    assert "dry run: everything is in order" in printed
    assert "top-1 error" not in printed


def test_what_is_no_pre_training_is_refused(tiny: TinySetup, stills: Path, capsys) -> None:
    message = error_of(capsys, "pretrain", tiny.config, f"out={tiny.folder / 'run'}")
    assert f"{tiny.config}: model.arch=i3d_r50 is no 2D network" in message
    assert f"videogn train {tiny.config}" in message
    message = error_of(capsys, "pretrain", stills, "data.val=''", f"out={tiny.folder / 'run'}")
    assert "data.val is not set" in message
    assert not (tiny.folder / "run").exists()


@pytest.mark.dist
def test_two_ranks_tell_it_once_and_go_on_as_one(stills: Path, capsys) -> None:
    words = ["pretrain", str(stills), "train.epochs=2"]
    alone, together = stills.parent / "alone", stills.parent / "together"
    assert main([*words, f"out={alone}"]) == 0
    drive([*words, "train.clips_per_gpu=3"], 2, stills.parent, folder="together")
    printed = (stills.parent / "output.txt").read_text()
    assert printed.count("top-1 error") == 1
    assert printed.count("\ninflate ") == 1
    # GN: gradients of 2 x 3 images are those of 6, up to the order of sums.
    one, two = (read_weights(RunFolder(out).last).state for out in (alone, together))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    assert [each["iteration"] for each in outcome(together)["validations"]] == [2, 4]
    first = (together / "pretrain.json").read_bytes()
    # Started again on one, which accumulates.
    assert main([*words, "train.clips_per_gpu=3", f"out={together}"]) == 0
    assert (together / "pretrain.json").read_bytes() == first


def test_validations_that_are_no_epoch_apart_are_told(stills: Path, capsys) -> None:
    words = ["train.epochs=1", "train.val_epochs=null", "train.val_interval=1"]
    assert main(["pretrain", str(stills), f"out={stills.parent / 'run'}", *words]) == 0
    printed = capsys.readouterr().out
    assert "they are not an epoch apart, as the paper's 5 are: train.val_epochs=1" in printed


def test_vgg_has_nothing_to_inflate_to(stills: Path, capsys) -> None:
    words = ["model.arch=vgg16", "model.norm=none", "train.epochs=1"]
    assert main(["pretrain", str(stills), f"out={stills.parent / 'run'}", *words]) == 0
    assert "vgg16 has no video network" in capsys.readouterr().out
    assert read_info(RunFolder(stills.parent / "run").last).spec.arch == "vgg16"


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ({}, "--norm gn"),
        ({"norm": "bn"}, "--norm bn"),
        ({"num_groups": 16}, "--norm gn --num-groups 16"),
        ({"channels_per_group": 16}, "--norm gn --channels-per-group 16"),
        ({"arch": "resnet101", "depths": R101}, "--arch i3d_r101 --norm gn"),
        ({"width": 16, "depths": (1, 2)}, "--norm gn --width 16 --depths 1,2"),
        # The depths of the one are an option of the other.
        ({"arch": "resnet101"}, "--arch i3d_r101 --norm gn --depths 3,4,6,3"),
    ],
)
def test_options_of_inflation(network: dict, options: str) -> None:
    plain = {
        "arch": "resnet50",
        "norm": "gn",
        "num_groups": 32,
        "channels_per_group": None,
        "layout": "nonlocal",
        "num_classes": 1000,
        "width": 64,
        "depths": R50,
        "dropout": 0.0,
    }
    assert " ".join(inflate_options(NetworkSpec(**{**plain, **network}))) == options
