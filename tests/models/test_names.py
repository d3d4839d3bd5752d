import re
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from videogn.models import names
from videogn.models.i3d import i3d
from videogn.models.names import (
    CAFFE2,
    DETECTRON2,
    MMACTION2,
    MMDET,
    MMPRETRAIN,
    PLAIN,
    PYTORCHVIDEO,
    SLOWFAST,
    TENSORPACK,
)

# The published rules, as regular expressions of their own: Caffe2 blob -> torchvision's name.
CAFFE2_RULES = [
    (r"^conv1_w$", r"conv1.weight"),
    (r"^(?:res_)?conv1_(?:bn|gn)_(s|b|rm|riv)$", r"bn1.\1"),
    (r"^res(\d)_(\d+)_branch2([abc])_w$", r"layer<\1>.\2.conv<\3>.weight"),
    (r"^res(\d)_(\d+)_branch2([abc])_(?:bn|gn)_(s|b|rm|riv)$", r"layer<\1>.\2.bn<\3>.\4"),
    (r"^res(\d)_(\d+)_branch1_w$", r"layer<\1>.\2.downsample.0.weight"),
    (r"^res(\d)_(\d+)_branch1_(?:bn|gn)_(s|b|rm|riv)$", r"layer<\1>.\2.downsample.1.\3"),
    (r"^pred_(w|b)$", r"fc.\1"),
]
SUFFIXES = {"s": "weight", "w": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}


def blob_to_torchvision(blob: str) -> str:
    (name,) = [re.sub(rule, to, blob) for rule, to in CAFFE2_RULES if re.match(rule, blob)]
    name = re.sub(r"<(\d)>", lambda m: str(int(m[1]) - 1), name)
    name = re.sub(r"<([abc])>", lambda m: str(" abc".index(m[1])), name)
    head, _, suffix = name.rpartition(".")
    return f"{head}.{SUFFIXES.get(suffix, suffix)}"


def torchvision_keys(norm: str) -> set[str]:
    layer = nn.BatchNorm2d if norm == "bn" else partial(nn.GroupNorm, 32)
    with torch.device("meta"):
        keys = set(torchvision.models.resnet50(norm_layer=layer).state_dict())
    return {key for key in keys if "num_batches" not in key}


@pytest.mark.parametrize(("norm", "count"), [("gn", 161), ("bn", 267)])
def test_caffe2_names_follow_the_published_rules_one_to_one(norm, count):
    plain = torchvision_keys(norm)
    blobs = {CAFFE2.to_file(key, batch_norm=norm == "bn"): key for key in plain}
    assert len(blobs) == len(plain) == count
    assert {blob: blob_to_torchvision(blob) for blob in blobs} == blobs
    assert {blob: CAFFE2.to_plain(blob) for blob in blobs} == blobs
    # The stem's norm is named in two ways.
    assert {blob for blob in blobs if "conv1_" in blob} == (
        {"conv1_w", "conv1_gn_s", "conv1_gn_b"}
        if norm == "gn"
        else {"conv1_w", *(f"res_conv1_bn_{part}" for part in ("s", "b", "rm", "riv"))}
    )


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    "table",
    [
        CAFFE2,
        DETECTRON2,
        MMACTION2,
        MMDET,
        MMPRETRAIN,
        PLAIN,
        PYTORCHVIDEO,
        SLOWFAST,
        TENSORPACK,
    ],
)
def test_every_table_is_one_to_one_both_ways(table, batch_norm):
    plain = torchvision_keys("bn" if batch_norm else "gn")
    files = {table.to_file(key, batch_norm=batch_norm): key for key in plain}
    assert len(files) == len(plain)
    assert {name: table.to_plain(name) for name in files} == files


@pytest.mark.parametrize(
    ("table", "name", "plain"),
    [
        (CAFFE2, "res4_11_branch2c_bn_riv", "layer3.11.bn3.running_var"),
        (CAFFE2, "fc1000_w", "fc.weight"),
        (DETECTRON2, "res3.0.shortcut.norm.bias", "layer2.0.downsample.1.bias"),
        (DETECTRON2, "stem.fc.bias", "fc.bias"),
        (TENSORPACK, "group2/block5/conv3/bn/variance/EMA", "layer3.5.bn3.running_var"),
        (TENSORPACK, "linear/W", "fc.weight"),
        (MMDET, "layer1.0.gn2.weight", "layer1.0.bn2.weight"),
        (MMDET, "backbone.gn1.bias", "bn1.bias"),
        (MMPRETRAIN, "head.fc.weight", "fc.weight"),
        (MMPRETRAIN, "conv1.weight", None),
        (MMACTION2, "backbone.layer4.2.conv1.bn.running_mean", "layer4.2.bn1.running_mean"),
        (SLOWFAST, "s5.pathway0_res2.branch2.c_bn.weight", "layer4.2.bn3.weight"),
        (SLOWFAST, "s5.pathway1_res2.branch2.c_bn.weight", None),
        (PYTORCHVIDEO, "blocks.5.res_blocks.2.branch2.norm_c.weight", "layer4.2.bn3.weight"),
        (PYTORCHVIDEO, "blocks.2.res_blocks.0.branch2.conv_a.weight", None),
        (PLAIN, "conv1.running_mean", None),
        (PLAIN, "layer5.0.conv1.weight", None),
        (PLAIN, "layer1.0.conv1.weight.", None),
    ],
)
def test_single_names(table, name, plain):
    assert table.to_plain(name) == plain


def test_real_state_dicts_have_these_names():
    with torch.device("meta"):
        timm_keys = set(timm.create_model("resnet50_gn").state_dict())
        video_keys = set(i3d(norm="bn").state_dict())
    assert {PLAIN.to_plain(key) for key in timm_keys} == timm_keys == torchvision_keys("gn")
    plain = {PYTORCHVIDEO.to_plain(key) for key in video_keys}
    assert len(plain) == len(video_keys)
    assert {key for key in plain if "num_batches" not in key} == torchvision_keys("bn")


def test_pytorchvideos_own_network_has_these_names():
    from pytorchvideo.models.hub import i3d_r50

    keys = set(i3d_r50(pretrained=False).state_dict())
    assert len({names.PYTORCHVIDEO.to_plain(key) for key in keys} - {None}) == len(keys) == 320


@pytest.mark.parametrize("plain", ["layer1.0.conv1", "conv1.running_mean", "head.weight", ""])
def test_what_is_no_plain_name_has_none_in_a_file(plain):
    with pytest.raises(ValueError, match="no name for"):
        CAFFE2.to_file(plain, batch_norm=True)
