import json

import pytest

from videogn.cli import main

CONFIG = "configs/kinetics400/i3d_r50_gn_32x2_b8.yaml"


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
    assert found["training_bytes"] == (
        found["training_state_bytes"] + 8 * found["training_clip_bytes"]
    )
    assert found["training_state_bytes"] == 3 * 4 * 28_043_472


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


def test_center_protocol_counts_its_crop(capsys):
    found = json.loads(info(capsys, "--json", "test.protocol=center"))
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
