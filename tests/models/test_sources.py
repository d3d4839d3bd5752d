import io
import json
import os
import pickle
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from videogn.errors import WeightError
from videogn.models.build import build_network
from videogn.models.formats import FORMATS, IMAGENET_MEAN, IMAGENET_STD
from videogn.models.resnet2d import resnet50
from videogn.models.sources import as_2d, read_source
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import write_weights

SPEC = NetworkSpec("resnet50", "gn", 4, None, "nonlocal", 3, 8, (1, 2), 0.0)
VIDEO = (0.45,) * 3, (0.225,) * 3
IMAGENET = IMAGENET_MEAN, IMAGENET_STD


def small_state(norm="gn", **options):
    options = {"norm": norm, "num_groups": 8, "num_classes": 3, "width": 8, **options}
    return resnet50(**{"depths": (1, 1, 1, 1), **options}).state_dict()


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(WeightError) as error:
        read_source(path, **options)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def equal(source, state):
    return set(source.state) == set(state) and all(
        torch.equal(source.state[name], tensor) for name, tensor in state.items()
    )


# Renaming as written out here, from torchvision's names, independent of the name tables.


def parts(name: str) -> tuple[str, str, str, str]:
    """Stage, block, layer and parameter of a torchvision name in a residual block."""
    found = re.fullmatch(r"layer(\d)\.(\d+)\.(conv\d|bn\d|downsample\.\d)\.(\w+)", name)
    return found.groups()


def to_caffe2(name: str, norm: str) -> str:
    suffix = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    head, _, parameter = name.rpartition(".")
    if head == "conv1":
        return "conv1_w"
    if head == "bn1":
        return ("res_conv1_bn_" if norm == "bn" else "conv1_gn_") + suffix[parameter]
    if head == "fc":
        return f"pred_{parameter[0]}"
    stage, block, layer, _ = parts(name)
    branch = "branch1" if "down" in layer else f"branch2{'_abc'[int(layer[-1])]}"
    blob = f"res{int(stage) + 1}_{block}_{branch}"
    is_kernel = "conv" in layer or layer == "downsample.0"
    return f"{blob}_w" if is_kernel else f"{blob}_{norm}_{suffix[parameter]}"


def to_detectron2(name: str, norm: str) -> str:
    if not name.startswith("layer"):
        return "stem." + name.replace("bn1", "conv1.norm")
    stage, block, layer, parameter = parts(name)
    layer = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(layer, layer)
    layer = re.sub(r"bn(\d)", r"conv\1.norm", layer)
    return f"res{int(stage) + 1}.{block}.{layer}.{parameter}"


def to_tensorpack(name: str, norm: str) -> str:
    norms = {"weight": "gamma", "bias": "beta"}
    norms |= {"running_mean": "mean/EMA", "running_var": "variance/EMA"}
    head, _, parameter = name.rpartition(".")
    if head in ("conv1", "bn1"):
        return "conv0/W" if head == "conv1" else f"conv0/{norm}/{norms[parameter]}"
    if head == "fc":
        return {"weight": "linear/W", "bias": "linear/b"}[parameter]
    stage, block, layer, _ = parts(name)
    place = "convshortcut" if "down" in layer else f"conv{layer[-1]}"
    is_kernel = "conv" in layer or layer == "downsample.0"
    last = "W" if is_kernel else f"{norm}/{norms[parameter]}"
    return f"group{int(stage) - 1}/block{block}/{place}/{last}"


def to_mmdet(name: str, norm: str) -> str:
    return re.sub(r"\bbn(\d)", rf"{norm}\1", name)


def to_mmpretrain(name: str, norm: str) -> str:
    return f"head.{name}" if name.startswith("fc") else f"backbone.{name}"


def to_slowfast(name: str, norm: str) -> str:
    head, _, parameter = name.rpartition(".")
    if head in ("conv1", "bn1"):
        return f"s1.pathway0_stem.{head[:-1]}.{parameter}"
    if head == "fc":
        return f"head.projection.{parameter}"
    stage, block, layer, _ = parts(name)
    if "down" in layer:
        place = "branch1" if layer[-1] == "0" else "branch1_bn"
    else:
        place = f"branch2.{'_abc'[int(layer[-1])]}{'_bn' if 'bn' in layer else ''}"
    return f"s{int(stage) + 1}.pathway0_res{block}.{place}.{parameter}"


def to_mmaction2(name: str, norm: str) -> str:
    head, _, parameter = name.rpartition(".")
    if head in ("conv1", "bn1"):
        return f"backbone.conv1.{'conv' if head == 'conv1' else norm}.{parameter}"
    if head == "fc":
        return f"cls_head.fc_cls.{parameter}"
    stage, block, layer, _ = parts(name)
    is_kernel = "conv" in layer or layer == "downsample.0"
    place = "downsample" if "down" in layer else f"conv{layer[-1]}"
    return f"backbone.layer{stage}.{block}.{place}.{'conv' if is_kernel else norm}.{parameter}"


def to_pytorchvideo(name: str, norm: str) -> str:
    head, _, parameter = name.rpartition(".")
    if head in ("conv1", "bn1"):
        return f"blocks.0.{'conv' if head == 'conv1' else 'norm'}.{parameter}"
    if head == "fc":
        return f"blocks.6.proj.{parameter}"
    stage, block, layer, _ = parts(name)
    kind = "conv" if "conv" in layer or layer == "downsample.0" else "norm"
    place = "branch1" if "down" in layer else "branch2."
    last = "" if "down" in layer else f"_{'_abc'[int(layer[-1])]}"
    place = f"{place}{'_' if 'down' in layer else ''}{kind}{last}"
    return f"blocks.{[0, 1, 3, 4, 5][int(stage)]}.res_blocks.{block}.{place}.{parameter}"


def to_torchvision(name: str, norm: str) -> str:
    return name


def renamed(state, rename, norm, counters=False):
    return {
        rename(name, norm): tensor
        for name, tensor in state.items()
        if counters or "num_batches" not in name
    }


def as_arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def tensorflow_order(array):
    if array.ndim == 4:
        return np.ascontiguousarray(np.moveaxis(array, (0, 1), (3, 2)))
    return array.T if array.ndim == 2 else array


def with_time(state, stem=5, first=3):
    """A video network's state of random kernels: the stem and the blocks' first kernels longer."""
    generator = torch.Generator().manual_seed(1)
    video = dict(state)
    for name, tensor in state.items():
        if tensor.ndim == 4:
            steps = stem if name == "conv1.weight" else 1
            if re.fullmatch(r"layer[123]\.0\.conv1\.weight", name):
                steps = first
            shape = (*tensor.shape[:2], steps, *tensor.shape[2:])
            video[name] = torch.randn(shape, generator=generator)
    return video


def pickled(content, path):
    path.write_bytes(pickle.dumps(content, 2))


def zipped(content, path):
    with path.open("wb") as file:
        np.savez(file, **content)


RENAMED = {
    # name: (renaming, norm, is video, writer, mean and std)
    "torchvision": (to_torchvision, "gn", False, torch.save, IMAGENET),
    "detectron": (to_caffe2, "gn", False, pickled, None),
    "nonlocal-in1k": (to_caffe2, "bn", False, pickled, VIDEO),
    "detectron2": (to_detectron2, "gn", False, torch.save, None),
    "tensorpack": (to_tensorpack, "bn", False, zipped, IMAGENET),
    "mmdet": (to_mmdet, "gn", False, torch.save, None),
    "mmpretrain": (to_mmpretrain, "bn", False, torch.save, IMAGENET),
    "slowfast": (to_slowfast, "bn", True, torch.save, VIDEO),
    "pytorchvideo": (to_pytorchvideo, "gn", True, torch.save, VIDEO),
    "mmaction2": (to_mmaction2, "bn", True, torch.save, IMAGENET),
    "nonlocal": (to_caffe2, "bn", True, pickled, VIDEO),
}
LAYOUTS = {"slowfast": "zoo", "pytorchvideo": "zoo", "mmaction2": "mmaction2"}
WRAPPED = {
    "detectron": lambda tensors: {"blobs": tensors, "cfg": "a"},
    "nonlocal": lambda tensors: {"blobs": {**tensors, "lr": np.float32(0.1), "model_iter": 5}},
    "slowfast": lambda tensors: {"model_state": tensors, "optimizer_state": {}, "cfg": "A: 1"},
    "mmaction2": lambda tensors: {"state_dict": tensors, "meta": {"CLASSES": ["x", "y", "z"]}},
}


def randomised(state):
    generator = torch.Generator().manual_seed(2)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            low = 0.5 if "var" in name else -1
            tensor.uniform_(low, 1.5, generator=generator)
    return state


def foreign(path, name, state):
    """Write a plain state as another program does, its kernels as they are."""
    rename, norm, _, write, _ = RENAMED[name]
    counters = write is torch.save
    tensors = renamed(state, rename, norm, counters)
    if not counters:
        tensors = as_arrays(tensors)
    if name == "tensorpack":
        tensors = {f"{key}:0": tensorflow_order(array) for key, array in tensors.items()}
    write(WRAPPED.get(name, lambda tensors: tensors)(tensors), path)
    return path


@pytest.mark.parametrize("name", RENAMED)
@pytest.mark.parametrize("depths", [(1, 1, 1, 1), (3, 4, 6, 3)])
def test_every_kind_of_file_gives_the_same_plain_tensors_bit_by_bit(tmp_path, name, depths):
    _, norm, is_video, write, scale = RENAMED[name]
    state = randomised(small_state(norm, depths=depths))
    if is_video:
        state = with_time(state)
    # Its names are Detectron's.
    asked = name if name == "nonlocal-in1k" else None
    source = read_source(foreign(tmp_path / "weights", name, state), source_format=asked)
    if write is not torch.save:
        state = {key: tensor for key, tensor in state.items() if "num_batches" not in key}
    assert source.format == name
    assert set(source.state) == set(state)
    changed = [key for key in state if not torch.equal(source.state[key], state[key])]
    assert changed == (["conv1.weight"] if FORMATS[name].scale.bgr else [])
    assert (source.depths, source.width, source.num_classes) == (depths, 8, 3)
    assert source.norm_family == {"gn": "group", "bn": "batch"}[norm]
    assert source.dims == (3 if is_video else 2)
    assert source.layout == (LAYOUTS.get(name, "nonlocal") if is_video else None)
    if scale is not None:
        assert (source.mean, source.std) == scale
    assert source.class_names == (("x", "y", "z") if name == "mmaction2" else None)
    assert source.path == tmp_path / "weights"


@pytest.mark.parametrize(
    ("name", "means", "std"),
    [
        # Blue, green, red in 0 to 255, as each program's own config has them.
        ("detectron", (102.9801, 115.9465, 122.7717), (1, 1, 1)),
        ("detectron2", (103.530, 116.280, 123.675), (1, 1, 1)),
        ("mmdet", (103.530, 116.280, 123.675), (1, 1, 1)),
        ("tensorpack", (0.406 * 255, 0.456 * 255, 0.485 * 255), (57.375, 57.12, 58.395)),
    ],
)
@pytest.mark.parametrize("wanted", [None, (0.225, 0.225, 0.225)])
def test_the_first_kernel_gives_the_same_on_an_rgb_image(tmp_path, name, means, std, wanted):
    _, norm, *_ = RENAMED[name]
    state = randomised(small_state(norm))
    source = read_source(foreign(tmp_path / "a", name, state), std=wanted)
    if name != "tensorpack":
        assert source.std == (wanted or IMAGENET_STD)
    image = torch.rand(
        1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    column = partial(torch.tensor, dtype=torch.float64)
    theirs = (image.flip(1) * 255 - column(means).view(3, 1, 1)) / column(std).view(3, 1, 1)
    ours = (image - column(source.mean).view(3, 1, 1)) / column(source.std).view(3, 1, 1)
    conv = partial(nn.functional.conv2d, stride=2, padding=3)
    expected = conv(theirs, state["conv1.weight"].double())
    found = conv(ours, source.state["conv1.weight"].double())
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    # The order matters: without reversing it the outputs are others.
    wrong = conv(ours.flip(1), source.state["conv1.weight"].double())
    assert (wrong - expected).abs().max() > 1e-2 * expected.abs().max()
    assert any("BGR to RGB" in note for note in source.notes)


def caffe2_affine(path, video=False):
    state = randomised(small_state("bn"))
    state = with_time(state) if video else state
    kept = {name: t for name, t in state.items() if "running" not in name}
    blobs = as_arrays(renamed(kept, to_caffe2, "bn"))
    pickled(blobs | {"conv1_b": np.zeros(8, np.float32)}, path)
    return state


def test_folded_batch_norms_become_frozen_ones_of_the_same_function(tmp_path):
    state = caffe2_affine(tmp_path / "a.pkl", video=True)
    source = read_source(tmp_path / "a.pkl")
    assert (source.format, source.norm_family, source.norms) == (
        "nonlocal",
        "affine",
        ("frozen_bn",),
    )
    assert "conv1_b" in source.dropped
    spec = replace(SPEC, arch="i3d_r50", norm="frozen_bn", depths=(1, 1, 1, 1))
    frozen = build_network(spec).blocks[0].norm.eval()
    layer = {
        part: source.state[f"bn1.{part}"]
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    frozen.load_state_dict(layer)
    values = torch.randn(2, 8, 3, 4, 4) * 100
    scale, shift = (state[f"bn1.{part}"].double().view(8, 1, 1, 1) for part in ("weight", "bias"))
    expected = scale * values.double() + shift
    assert (frozen(values) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_msra_weights_are_refused_unless_asked_for_by_name(tmp_path):
    path = tmp_path / "R-50.pkl"
    caffe2_affine(path)
    message = refusal(path)
    assert "stride on the first 1x1 kernel" in message
    assert "--from detectron-msra" in message
    forced = read_source(path, source_format="detectron-msra")
    assert forced.stride_on_1x1
    assert any("warning: trained with the stride on the 1x1" in note for note in forced.notes)
    trusted = read_source(path, source_format="detectron")
    assert not trusted.stride_on_1x1
    assert not any("warning" in note for note in trusted.notes)
    assert trusted.norms == forced.norms == ("frozen_bn",)


def test_convolutions_with_real_biases_are_refused(tmp_path):
    blobs = as_arrays(renamed(small_state(), to_caffe2, "gn"))
    pickled(blobs | {"conv1_b": np.ones(8, np.float32)}, tmp_path / "a.pkl")
    assert "biases other than 0: conv1_b" in refusal(tmp_path / "a.pkl")


def test_batch_norms_by_name_without_statistics_are_refused_where_nothing_folds_them(tmp_path):
    kept = {name: t for name, t in small_state("bn").items() if "running" not in name}
    save(renamed(kept, to_mmaction2, "bn"), tmp_path / "a.pth")
    assert "named as batch norms (backbone.conv1.bn.weight)" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("lacking", ["running_mean", "running_var"])
def test_half_of_the_running_statistics_are_refused(tmp_path, lacking):
    state = {name: t for name, t in small_state("bn").items() if lacking not in name}
    message = refusal(save(state, tmp_path / "a.pth"))
    assert f"17 missing: bn1.{lacking}" in message


def test_networks_without_norms_are_read(tmp_path):
    state = {name: t for name, t in small_state().items() if "bn" not in name}
    state = {name: t for name, t in state.items() if "downsample.1" not in name}
    source = read_source(save(state, tmp_path / "a.pth"))
    assert (source.norm_family, source.norms) == ("none", ("none",))
    assert equal(source, state)


def test_pyslowfasts_imagenet_weights_are_a_2d_network(tmp_path):
    state = small_state("bn", num_classes=1000)
    flat = {name: t.unsqueeze(2) if t.ndim == 4 else t for name, t in state.items()}
    save({"model_state": renamed(flat, to_slowfast, "bn", True)}, tmp_path / "R50_IN1K.pyth")
    source = read_source(tmp_path / "R50_IN1K.pyth")
    assert (source.format, source.dims, source.inflation) == ("slowfast-in1k", 3, "none")
    assert (source.mean, source.std) == IMAGENET
    assert set(source.temporal_sizes.values()) == {1}
    view = as_2d(source)
    assert view.dims == 2
    assert equal(view, state)
    assert as_2d(view) is view


def test_a_video_network_is_no_2d_network(tmp_path):
    source = read_source(foreign(tmp_path / "a", "slowfast", with_time(small_state("bn"))))
    assert source.inflation == "3x1x1"
    assert source.temporal_sizes["conv1.weight"] == 5
    with pytest.raises(WeightError, match=r"a: is a video network already \(4 kernels of several"):
        as_2d(source)


@pytest.mark.parametrize(
    ("stem", "first", "last", "inflation", "layout"),
    [
        (5, 3, 3, "3x1x1_all", "mmaction2_heavy"),
        (5, 3, 1, "3x1x1", "mmaction2"),
        (1, 1, 1, "none", "mmaction2"),
        (3, 3, 1, None, "mmaction2"),
    ],
)
def test_temporal_sizes_tell_the_inflation(tmp_path, stem, first, last, inflation, layout):
    state = with_time(small_state("bn"), stem, first)
    kernel = state["layer4.0.conv1.weight"]
    state["layer4.0.conv1.weight"] = kernel.expand(-1, -1, last, -1, -1).clone()
    source = read_source(foreign(tmp_path / "a", "mmaction2", state))
    assert (source.inflation, source.layout) == (inflation, layout)


def described(state, rename, info, **changes):
    tree = info.to_json() | changes
    return {"state_dict": renamed(state, rename, "gn"), "videogn": json.dumps(tree)}


INFO = WeightInfo(
    replace(SPEC, arch="i3d_r50", norm="ln", depths=(1, 1, 1, 1), layout="zoo"),
    ("a", "b", "c"),
    (0.1, 0.2, 0.3),
    (0.4, 0.5, 0.6),
    "source.pth",
    None,
    "mean",
)


@pytest.mark.parametrize("writer", ["pth", "pkl", "npz"])
def test_what_this_program_says_beside_foreign_names_comes_back(tmp_path, writer):
    state = with_time(small_state())
    content = described(state, to_caffe2, INFO)
    if writer == "pth":
        save(content, tmp_path / "a")
    elif writer == "pkl":
        pickled(content | {"state_dict": as_arrays(content["state_dict"])}, tmp_path / "a")
    else:
        arrays = as_arrays(content["state_dict"])
        zipped(arrays | {"videogn": np.array(content["videogn"])}, tmp_path / "a")
    source = read_source(tmp_path / "a")
    assert (source.format, source.info) == ("nonlocal", INFO)
    assert (source.class_names, source.layout) == (("a", "b", "c"), "zoo")
    assert (source.mean, source.std) == (INFO.mean, INFO.std)
    assert equal(source, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16}, "width 16 but has 8"),
        ({"depths": [1, 1, 1, 2]}, r"depths \(1, 1, 1, 2\) but has \(1, 1, 1, 1\)"),
        (
            {"num_classes": 4, "class_names": None, "class_names_sha256": None},
            "classes 4 but has 3",
        ),
        ({"norm": "bn"}, "norm bn but has tensors of gn or ln or in"),
        ({"architecture": "c2d_r50"}, "c2d_r50 but has temporal kernels of 3x1x1"),
        ({"architecture": "vgg99"}, "vgg99 but has"),
        ({"class_names": ["a"]}, "1 class names for a network of 3 classes"),
        ({"std": [0, 1, 1]}, "description of the network is wrong: std"),
        ({"extra": 1}, "description of the network is wrong.*extra"),
        ({"format_version": 99}, "format version 99"),
    ],
)
def test_a_description_that_contradicts_the_tensors_is_refused(tmp_path, changes, message):
    path = save(described(with_time(small_state()), to_caffe2, INFO, **changes), tmp_path / "a.pth")
    with pytest.raises(WeightError, match=message):
        read_source(path)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "null"])
def test_a_description_that_is_no_json_object_is_refused(tmp_path, text):
    content = described(with_time(small_state()), to_caffe2, INFO) | {"videogn": text}
    assert "its description is not" in refusal(save(content, tmp_path / "a.pth"))


def test_class_names_of_another_number_than_the_classes_are_refused(tmp_path):
    content = {
        "state_dict": renamed(with_time(small_state("bn")), to_mmaction2, "bn"),
        "meta": {"CLASSES": ["x", "y"]},
    }
    message = refusal(save(content, tmp_path / "a.pth"))
    assert "has 2 class names and a classifier of 3 classes" in message


def test_the_kind_can_be_given(tmp_path):
    path = save(small_state(), tmp_path / "a.pth")
    assert read_source(path, source_format="torchvision").format == "torchvision"
    assert "no stem and first stage of a ResNet" in refusal(path, source_format="slowfast")
    with pytest.raises(
        WeightError, match="format 'keras' is unknown; choose from torchvision, det"
    ):
        read_source(path, source_format="keras")


@pytest.mark.parametrize(
    ("make", "family"),
    [
        (lambda: torchvision.models.resnet50(), "batch"),
        (lambda: timm.create_model("resnet50"), "batch"),
        (lambda: timm.create_model("resnet50_gn"), "group"),
    ],
    ids=["torchvision", "timm", "timm_gn"],
)
@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
def test_libraries_files_are_read_whatever_their_name(tmp_path, make, family, kind):
    state = make().state_dict()
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    source = read_source(path)
    assert equal(source, state)
    assert (source.norm_family, source.depths, source.width) == (family, (3, 4, 6, 3), 64)
    assert source.num_classes == 1000
    assert (source.mean, source.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert source.class_names is source.spec is None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "arch": "resnet50"},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}},
        lambda state: {f"module.{name}": t for name, t in state.items()},
    ],
)
def test_wrapped_state_dicts_are_unwrapped(tmp_path, wrap):
    state = small_state()
    assert equal(read_source(save(wrap(state), tmp_path / "a.pth")), state)


def test_half_precision_becomes_float32(tmp_path):
    state = {name: tensor.half() for name, tensor in small_state().items()}
    source = read_source(save(state, tmp_path / "a.pth"))
    assert {tensor.dtype for tensor in source.state.values()} == {torch.float32}


def test_our_own_2d_file_brings_its_description(tmp_path):
    info = WeightInfo(SPEC, ("a", "b", "c"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None, None, None)
    state = build_network(SPEC).state_dict()
    momentum = {"optimizer/conv1.weight/momentum_buffer": torch.zeros(8, 3, 7, 7)}
    write_weights(tmp_path / "a", state | momentum, info, {"iteration": 3})
    source = read_source(tmp_path / "a")
    assert equal(source, state)
    assert source.class_names == ("a", "b", "c")
    assert (source.mean, source.std, source.spec) == (info.mean, info.std, SPEC)
    assert (source.depths, source.width, source.num_classes) == ((1, 2), 8, 3)


def test_our_own_video_file_is_read_and_is_no_2d_network(tmp_path):
    spec = replace(SPEC, arch="i3d_3x3x3_r50", layout="zoo")
    info = WeightInfo(spec, None, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None, None, None)
    state = build_network(spec).state_dict()
    write_weights(tmp_path / "a", state, info)
    source = read_source(tmp_path / "a")
    assert (source.format, source.dims, source.layout) == ("videogn", 3, "zoo")
    assert source.inflation == "3x3x3"
    assert torch.equal(source.state["conv1.weight"], state["blocks.0.conv.weight"])
    with pytest.raises(WeightError, match="is of i3d_3x3x3_r50, a video network already"):
        as_2d(source)
    assert "leave out --from slowfast" in refusal(tmp_path / "a", source_format="slowfast")


@pytest.mark.parametrize("arch", ["i3d_r50", "i3d_heavy_r50", "c2d_r50"])
def test_our_own_shallow_networks_fit_what_they_say(tmp_path, arch):
    # Of one block a stage, several inflations have the same kernels.
    spec = replace(SPEC, arch=arch, depths=(1, 1))
    info = WeightInfo(spec, None, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None, None, None)
    write_weights(tmp_path / "a", build_network(spec).state_dict(), info)
    assert read_source(tmp_path / "a").spec == spec


def test_pytorchvideos_own_network_is_read(tmp_path):
    from pytorchvideo.models.hub import i3d_r50

    state = i3d_r50(pretrained=False).state_dict()
    source = read_source(save({"model_state": state}, tmp_path / "I3D_8x8_R50.pyth"))
    assert (source.format, source.inflation, source.layout) == ("pytorchvideo", "3x1x1", "zoo")
    assert {to_pytorchvideo(name, "bn") for name in source.state} == set(state)
    for name, tensor in source.state.items():
        assert torch.equal(tensor, state[to_pytorchvideo(name, "bn")])


def test_every_file_is_hashed_once(tmp_path, monkeypatch):
    hashed = []
    for module in ("sources", "weights"):
        monkeypatch.setattr(
            f"videogn.models.{module}.sha256_of", lambda path: hashed.append(path) or "0"
        )
    info = WeightInfo(SPEC, None, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None, None, None)
    write_weights(tmp_path / "own", build_network(SPEC).state_dict(), info)
    save(small_state(), tmp_path / "a.pth")
    for name in ("own", "a.pth"):
        read_source(tmp_path / name)
    assert hashed == [tmp_path / "own", tmp_path / "a.pth"]


def test_nothing_is_half_loaded(tmp_path):
    state = small_state()
    del state["layer2.0.conv2.weight"]
    del state["bn1.bias"]
    state["layer1.0.se.fc1.weight"] = torch.zeros(1)
    message = refusal(save(state, tmp_path / "a.pth"))
    assert "2 missing: bn1.bias, layer2.0.conv2.weight" in message
    assert "1 unexpected: layer1.0.se.fc1.weight" in message
    assert "nothing was loaded" in message


def test_faults_are_told_in_the_files_own_names(tmp_path):
    state = as_arrays(renamed(small_state(), to_caffe2, "gn"))
    pickled({"blobs": {**state, "conv1_gn_s": np.full(8, np.nan)}}, tmp_path / "a.pkl")
    assert "NaN or infinite values in conv1_gn_s" in refusal(tmp_path / "a.pkl")
    pickled(
        {name: t for name, t in state.items() if name != "res3_0_branch1_w"}, tmp_path / "a.pkl"
    )
    assert "1 missing: res3_0_branch1_w" in refusal(tmp_path / "a.pkl")
    pickled(state | {"res2_0_branch2b_w": np.zeros((8, 8, 1, 1))}, tmp_path / "a.pkl")
    message = "res2_0_branch2b_w is (8, 8, 1, 1) and (8, 8, 3, 3) is wanted"
    assert message in refusal(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("layer3.0.conv2.weight", (32, 32, 1, 1), "(32, 32, 3, 3)"),
        ("layer2.0.downsample.0.weight", (64, 16, 1, 1), "(64, 32, 1, 1)"),
        ("layer2.0.conv1.weight", (16, 32, 1, 1, 1), "(16, 32, 1, 1)"),
        ("bn1.weight", (7,), "(8,)"),
        ("bn1.bias", (8, 1), "(8,)"),
        ("fc.bias", (4,), "(3,)"),
        ("fc.weight", (3, 9), "(3, 256)"),
    ],
)
def test_a_misshapen_tensor_is_refused_with_both_shapes(tmp_path, name, shape, wanted):
    state = {**small_state(), name: torch.zeros(shape)}
    message = refusal(save(state, tmp_path / "a.pth"))
    assert f"{name} is {shape} and {wanted} is wanted" in message


def test_a_classifier_saved_as_a_convolution_is_read(tmp_path):
    state = small_state()
    state["fc.weight"] = state["fc.weight"][:, :, None, None]
    source = read_source(save(state, tmp_path / "a.pth"))
    assert torch.equal(source.state["fc.weight"], state["fc.weight"].flatten(1))


def test_damaged_statistics_are_refused(tmp_path):
    state = small_state("bn")
    path = save({**state, "bn1.running_var": -torch.ones(8)}, tmp_path / "a.pth")
    assert "negative variances in bn1.running_var" in refusal(path)
    path = save({**state, "bn1.num_batches_tracked": torch.zeros(3)}, tmp_path / "a.pth")
    assert "counters that are no whole number: bn1.num_batches_tracked" in refusal(path)


def test_missing_file_folder_and_pipe_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pth")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("writer", ["torch", "torch legacy", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not(tmp_path, writer):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    content = {"state_dict": small_state(), "extra": Malicious(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    message = refusal(path)
    assert "posix.system" in message or writer == "pickle"
    assert "torch.save(model.state_dict(), PATH)" in message
    assert not marker.exists()


def test_a_whole_saved_model_is_refused_by_its_class(tmp_path):
    message = refusal(save(torch.nn.Linear(2, 2), tmp_path / "a.pth"))
    assert "torch.nn.modules.linear.Linear" in message


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.98])
@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, kind, share):
    path = tmp_path / "a"
    if kind == "safetensors":
        save_file(small_state(), path)
    else:
        torch.save(small_state(), path, _use_new_zipfile_serialization=kind == "pth")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    message = refusal(path)
    assert "copy it again" in message


@pytest.mark.parametrize("content", [b"some text", b"\x80\x02garbage", bytes(1000)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "a.pth")


def test_a_script_module_is_refused(tmp_path):
    archive = io.BytesIO()
    with pytest.warns(Warning, match="deprecated"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), archive)
    (tmp_path / "a.pt").write_bytes(archive.getvalue())
    assert "torch weight file" in refusal(tmp_path / "a.pt")


def changed(**tensors):
    return {**small_state(), **tensors}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [1, 2], "holds a list, not a state dict"),
        (lambda: torch.zeros(3), "holds a Tensor, not a state dict"),
        (lambda: {"model": {"lr": 0.1, "b": "c"}}, r"\['model'\]: .*'lr' \(float\), 'b' \(str\)"),
        (lambda: {1: torch.zeros(1)}, r"1 \(Tensor\)"),
        (lambda: changed(step=3), r"'step' \(int\)"),
        pytest.param(
            lambda: {"a": torch.zeros(2).to_sparse()},
            r"'a' \(Tensor\)",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse"),
        ),
        (lambda: {"a": torch.zeros(2, device="meta")}, r"'a' \(Tensor\)"),
        (lambda: {}, "no ResNet under names of a known kind, but nothing"),
        (lambda: {"features.0.weight": torch.zeros(1)}, "but features.0.weight;"),
        (lambda: torchvision.models.resnet18().state_dict(), r"basic blocks.*2,2,2,2"),
        (lambda: torchvision.models.resnet34().state_dict(), r"basic blocks.*3,4,6,3"),
        (lambda: timm.create_model("resnet26d").state_dict(), "deep stem"),
        (
            lambda: torchvision.models.resnext50_32x4d().state_dict(),
            r"grouped convolutions, as ResNeXt has \(layer1.0.conv2.weight \(128, 4, 3, 3\)\)",
        ),
        (
            lambda: torchvision.models.wide_resnet50_2().state_dict(),
            "128 inner channels behind a stem of 64, as Wide ResNet has",
        ),
        (lambda: {**small_state(), "conv1.weight": torch.zeros(8, 1, 7, 7)}, "conv1.weight is"),
        (lambda: {**small_state(), "fc.weight": torch.zeros(3, 8, 1)}, "fc.weight is"),
        (
            lambda: {**small_state(), "bn1.bias": torch.tensor([0.0, float("nan")])},
            "NaN or infinite values in bn1.bias",
        ),
        (lambda: {**small_state(), "bn1.bias": torch.zeros(8).int()}, r"bn1.bias \(torch.int32\)"),
    ],
)
def test_what_is_no_plain_bottleneck_resnet_is_refused_saying_what_it_is(tmp_path, make, message):
    path = save(make(), tmp_path / "a.pth")
    with pytest.raises(WeightError, match=message):
        read_source(path)


def test_depths_are_found(tmp_path):
    state = small_state(depths=(3, 4, 11, 3))
    assert read_source(save(state, tmp_path / "a.pth")).depths == (3, 4, 11, 3)


SMALL = {norm: small_state(norm) for norm in ("bn", "gn")}
SHAPES = st.lists(st.integers(0, 9), max_size=6).map(tuple)
TYPES = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tensors_of_any_shape_and_type_never_end_in_another_error(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(sorted(RENAMED)))
    rename, norm, *_ = RENAMED[kind]
    counters = RENAMED[kind][3] is torch.save
    state = renamed(SMALL[norm], rename, norm, counters)
    names = st.sampled_from(sorted(state))
    for name in data.draw(st.lists(names, min_size=1, max_size=3)):
        state[name] = torch.ones(data.draw(SHAPES), dtype=data.draw(TYPES))
    for name in data.draw(st.lists(names, max_size=2)):
        state.pop(name, None)
    path = save(state, tmp_path_factory.getbasetemp() / "any.pth")
    message = str(path)
    try:
        read_source(path, source_format=data.draw(st.sampled_from([None, kind])))
    except WeightError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
