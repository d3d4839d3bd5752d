import pytest
import torch

from videogn.errors import WeightError
from videogn.models.formats import FORMATS, detect_format, to_plain

KERNEL_2D, KERNEL_3D = torch.zeros(4, 3, 7, 7), torch.zeros(4, 3, 5, 7, 7)

CAFFE2 = {"conv1_w": KERNEL_2D, "res2_0_branch2a_w": torch.zeros(4, 4, 1, 1)}
SLOWFAST = "s1.pathway0_stem.conv.weight"

CASES = {
    "torchvision": {"conv1.weight": KERNEL_2D, "layer1.0.conv1.weight": KERNEL_2D},
    "detectron": CAFFE2 | {"conv1_gn_s": torch.zeros(4)},
    "detectron-msra": CAFFE2 | {"res_conv1_bn_s": torch.zeros(4)},
    "nonlocal": CAFFE2 | {"conv1_w": KERNEL_3D, "res_conv1_bn_s": torch.zeros(4)},
    "detectron2": {"backbone.bottom_up.stem.conv1.weight": KERNEL_2D}
    | {"backbone.bottom_up.res2.0.conv1.weight": KERNEL_2D},
    "tensorpack": {"conv0/W:0": KERNEL_2D, "group0/block0/conv1/W:0": KERNEL_2D},
    "mmdet": {"backbone.gn1.weight": torch.zeros(4), "backbone.layer1.0.conv1.weight": KERNEL_2D},
    "mmpretrain": {"backbone.bn1.weight": torch.zeros(4)}
    | {"backbone.layer1.0.conv1.weight": KERNEL_2D},
    "slowfast": {SLOWFAST: KERNEL_3D},
    "slowfast-in1k": {SLOWFAST: torch.zeros(4, 3, 1, 7, 7)}
    | {"head.projection.weight": torch.zeros(1000, 8)},
    "pytorchvideo": {"blocks.0.conv.weight": KERNEL_3D}
    | {"blocks.1.res_blocks.0.branch2.conv_a.weight": KERNEL_3D},
    "mmaction2": {"backbone.conv1.conv.weight": KERNEL_3D},
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_is_told_from_all_others(name):
    assert detect_format("a file", CASES[name]) == name


def test_caffe2_images_with_statistics_are_detectrons_unless_the_user_says_otherwise():
    statistics = {"res_conv1_bn_s": torch.zeros(4), "res_conv1_bn_riv": torch.zeros(4)}
    assert detect_format("a file", CAFFE2 | statistics) == "detectron"
    assert "--from nonlocal-in1k" in FORMATS["detectron"].note


def test_every_kind_is_detected_but_where_the_names_do_not_tell():
    named = {"videogn", "nonlocal-in1k", "detectron2-torchvision"}
    assert set(CASES) | named == set(FORMATS)
    found = detect_format("a file", CASES["detectron2"], author="torchvision")
    assert found == "detectron2-torchvision"


def test_pyslowfasts_c2d_of_kinetics_is_no_imagenet_network():
    state = CASES["slowfast-in1k"] | {"head.projection.weight": torch.zeros(400, 8)}
    assert detect_format("a file", state) == "slowfast"


def test_no_match_lists_names_and_kinds():
    with pytest.raises(WeightError) as error:
        detect_format("a file", {f"features.{i}.weight": KERNEL_2D for i in range(9)})
    message = str(error.value)
    assert message.startswith("a file: holds no ResNet")
    assert "features.0.weight" in message
    assert "and 4 more" in message
    assert all(name in message for name in FORMATS)


def test_a_tie_is_refused_with_both_kinds():
    with pytest.raises(
        WeightError, match=r"of detectron and of pytorchvideo.*say which with --from"
    ):
        detect_format("a file", CASES["detectron"] | CASES["pytorchvideo"])


def test_tensors_are_renamed_turned_dropped_and_kept_apart():
    kernel, weight = torch.rand(7, 7, 3, 4), torch.rand(8, 5)
    tensors = {
        "conv0/W:0": kernel,
        "linear/W": weight,
        "linear/b": torch.zeros(5),
        "learning_rate:0": torch.zeros(()),
        "conv0/W/Momentum": kernel,
        "se/W": weight,
    }
    plain = to_plain("a file", tensors, FORMATS["tensorpack"])
    assert set(plain.state) == {"conv1.weight", "fc.weight", "fc.bias"}
    for out in range(4):
        for channel in range(3):
            expected = kernel[:, :, channel, out]
            assert torch.equal(plain.state["conv1.weight"][out, channel], expected)
    assert torch.equal(plain.state["fc.weight"], weight.T)
    assert plain.called["conv1.weight"] == "conv0/W:0"
    assert plain.dropped == ("learning_rate:0", "conv0/W/Momentum")
    assert set(plain.unexpected) == {"se/W"}


def test_the_parts_of_a_detector_are_dropped():
    tensors = {
        "backbone.bottom_up.stem.conv1.weight": KERNEL_2D,
        "backbone.fpn_lateral2.weight": KERNEL_2D,
        "proposal_generator.rpn_head.conv.weight": KERNEL_2D,
        "pixel_mean": torch.zeros(3),
    }
    plain = to_plain("a file", tensors, FORMATS["detectron2"])
    assert set(plain.state) == {"conv1.weight"}
    assert len(plain.dropped) == 3


def test_two_tensors_of_one_place_are_refused():
    tensors = {"pred_w": torch.zeros(2, 2), "fc1000_w": torch.zeros(2, 2)}
    with pytest.raises(WeightError, match=r"pred_w and fc1000_w are both fc\.weight"):
        to_plain("a file", tensors, FORMATS["detectron"])
