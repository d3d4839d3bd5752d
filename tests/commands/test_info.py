import json
import re

import pytest
import torch

from videogn.cli import main
from videogn.commands import info as info_command
from videogn.engine.compute import A_GPU
from videogn.errors import RunError
from videogn.models.norm import NORMS

CONFIG = "configs/kinetics400/i3d_r50_gn_32x2_b8.yaml"
THIN = ["model.width=8", "model.depths=[1]", "model.num_groups=4"]
SMALL = [
    *THIN,
    "clip.num_frames=8",
    "clip.crop_size=48",
]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def info(capsys, *words):
    assert main(["info", CONFIG, *words]) == 0
    return capsys.readouterr().out


def test_totals_are_the_published_ones(capsys):
    out = info(capsys)
    assert "parameters  28,043,472" in out
    assert "32.83 GFLOPs in convolutions and linear layers, 33.18 with norms" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["blocks.0.pool", "MaxPool3d", "2x3x3", "2x2x2", "64x8x55x55", "0"] in lines
    assert sum(words[1:2] == ["Conv3d"] for words in lines) == 53


def test_json_has_the_same_numbers(capsys):
    found = json.loads(info(capsys, "--json", "test.num_crops=3", "clip.num_frames=64"))
    assert found["parameters"] == 28_043_472
    assert round(found["clip_gflops_with_norms"], 2) == 66.36
    assert found["view"] == [64, 256, 256]
    assert round(found["view_gflops"], 1) == 85.9
    assert found["num_views"] == 30
    assert found["video_gflops_with_norms"] == pytest.approx(30 * found["view_gflops_with_norms"])
    state, kept = found["training_state_bytes"], found["training_kept_bytes"]
    assert state == 3 * 4 * 28_043_472
    assert state + kept < found["training_bytes"] < 1.02 * (state + kept)


@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")  # pytorchvideo's Swish
@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (["model.arch=vgg16", "clip.num_frames=1", "model.num_classes=1000"], 138_365_992),
        (["model.arch=resnet101", "clip.num_frames=1", "model.num_classes=1000"], 44_549_160),
        (["model.arch=x3d_m", "model.num_groups=6"], 3_794_274),
        (["model.arch=c2d_r101", "model.norm=bn"], 43_319_760),
    ],
)
def test_other_networks(capsys, words, parameters):
    # The first two are torchvision's documented counts, of vgg16_bn and resnet101.
    found = json.loads(info(capsys, "--json", *words))
    assert found["parameters"] == parameters
    assert found["layers"]


@pytest.mark.parametrize(
    ("protocol", "views", "size"),
    [
        ("paper", 10, [32, 256, 341]),
        ("center", 10, [32, 224, 224]),
        ("nonlocal", 30, [32, 256, 256]),
        ("pytorchvideo", 30, [32, 256, 256]),
    ],
)
def test_views_are_those_of_the_protocol(capsys, protocol, views, size):
    found = json.loads(info(capsys, "--json", f"test.protocol={protocol}", *THIN))
    assert (found["num_views"], found["view"]) == (views, size)


def test_center_protocol_counts_its_crop(capsys):
    found = json.loads(info(capsys, "--json", "test.protocol=center", *THIN))
    assert found["view"] == [32, 224, 224]
    assert found["view_gflops"] == found["clip_gflops"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.num_groups=7"], "64 channels out to 7 groups"),
        (["clip.num_frames=2"], "too small"),
        (["model.arch=slow_r50", "clip.num_frames=4"], "last pool takes"),
        (["model.arch=csn_r101", "model.width=8"], "leave model.width"),
        (["model.arch=i3d_r5"], "did you mean 'i3d_r50'"),
    ],
)
def test_wrong_configs_end_in_a_message(capsys, words, message):
    assert main(["info", CONFIG, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


def table_of(out):
    """(norm, precision) -> (peaks in GiB, most clips of each card)."""
    rows = {}
    for line in out.splitlines():
        if "|" in line and not line.startswith("norm "):
            left, right = line.split("|")
            norm, *rest = left.replace(", ", ",").split()
            rows[norm, rest[0]] = (list(map(float, rest[1:])), list(map(int, right.split())))
    return rows


def test_memory_table_has_every_norm_precision_and_batch(capsys):
    words = ["--memory", "train.clips_per_gpu=6"]
    out = info(capsys, *words, *SMALL)
    rows = table_of(out)
    assert set(rows) == {(norm, kind) for norm in NORMS for kind in ("fp32", "bf16,fp16")}
    (header,) = (line for line in out.splitlines() if line.startswith("norm "))
    assert header.split("|")[0].split()[2:] == ["1", "2", "4", "6", "8", "16", "32"]
    found = json.loads(info(capsys, *words, "--json", *SMALL))
    assert len(found) == 3 * len(NORMS)
    for row in found:
        kind = "fp32" if row["precision"] == "fp32" else "bf16,fp16"
        peaks, most = rows[row["norm"], kind]
        assert peaks == [round(value / 2**30, 2) for value in row["peak_bytes"].values()]
        assert most == list(row["largest_batch"].values())
        assert list(row["largest_batch"]) == ["16", "24", "40", "80", "141"]


@pytest.fixture
def only_gn(monkeypatch):
    """A table of two rows, which is all that some tests need."""
    monkeypatch.setattr(info_command, "NORMS", ("gn",))


def test_memory_of_the_config_itself_is_spelt_out(capsys, only_gn):
    # One stage of the full width, which takes gibibytes.
    out = info(capsys, "--memory", "train.precision=bf16", "model.depths=[1]")
    (line,) = (line for line in out.splitlines() if line.startswith("this config"))
    assert line.startswith("this config gn, bf16, 8 clips: ")
    peak, *parts = (float(part) for part in re.findall(r"([\d.]+) GiB", line))
    assert sum(parts) == pytest.approx(peak, abs=0.02)
    peaks, _ = table_of(out)["gn", "bf16,fp16"]
    assert peak == peaks[3]


def test_an_average_of_the_weights_counts(capsys, only_gn):
    plain, averaged = (
        json.loads(info(capsys, "--memory", "--json", *words, *SMALL))
        for words in ([], ["--averaged"])
    )
    weights = json.loads(info(capsys, "--json", *SMALL))["testing_weight_bytes"]
    for before, after in zip(plain, averaged, strict=True):
        assert after["state_bytes"] - before["state_bytes"] == weights
        assert after["peak_bytes"]["8"] - before["peak_bytes"]["8"] == weights


def test_norms_that_the_network_does_not_take_are_left_out(capsys):
    # 24 channels cannot be shared out to 32 groups.
    words = [
        "model.norm=bn",
        "model.num_groups=32",
        "model.width=12",
        "model.depths=[1]",
        *SMALL[3:],
    ]
    norms = {row["norm"] for row in json.loads(info(capsys, "--memory", "--json", *words))}
    assert norms == set(NORMS) - {"gn"}


def test_memory_of_a_wrong_config_ends_in_a_message(capsys):
    assert main(["info", CONFIG, "--memory", "model.num_groups=7"]) == 2
    captured = capsys.readouterr()
    assert "64 channels out to 7 groups" in captured.err
    assert not captured.out


def pretend_gpu(monkeypatch, measured):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card")
    monkeypatch.setattr(info_command, "measure_step", measured)
    monkeypatch.setattr(info_command.Machine, "of", staticmethod(lambda device: A_GPU))


def test_measured_memory_stands_beside_the_predicted(capsys, monkeypatch, only_gn):
    predicted = json.loads(info(capsys, "--json", *SMALL))["training_bytes"]
    asked = []

    def measured(spec, clip, **rest):
        asked.append((spec.norm, clip, rest["clips_per_gpu"], rest["precision"]))
        return predicted * 3 // 2

    pretend_gpu(monkeypatch, measured)
    out = info(capsys, "--memory", *SMALL)
    assert "GiB in two steps on Card: 150% of the prediction" in out
    assert asked == [("gn", (8, 48, 48), 8, "fp32")]


def test_a_measurement_out_of_memory_is_told_and_the_table_kept(capsys, monkeypatch, only_gn):
    def measured(*_, **__):
        raise RunError("a step ran out of memory")

    pretend_gpu(monkeypatch, measured)
    out = info(capsys, "--memory", *SMALL)
    assert "measured    on Card: a step ran out of memory" in out
    assert table_of(out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_measured_on_a_gpu(capsys):
    assert "of the prediction" in info(capsys, "--memory", "train.clips_per_gpu=2")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_computed_again_needs_no_room(capsys, precision):
    """The plan is of the form that a GPU would train in, its stem and its order in memory too."""
    bytes_of = []
    for recompute in ("none", "act", "act+conv_c", "block"):
        words = [*SMALL, f"train.precision={precision}", f"compute.recompute={recompute}"]
        bytes_of.append(json.loads(info(capsys, "--json", *words))["training_kept_bytes"])
    assert bytes_of == sorted(set(bytes_of), reverse=True)
