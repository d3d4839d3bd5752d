import io
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from videogn.errors import WeightError
from videogn.models.build import build_network
from videogn.models.resnet2d import resnet50
from videogn.models.sources import IMAGENET_MEAN, IMAGENET_STD, read_source
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import write_weights

SPEC = NetworkSpec("resnet50", "gn", 4, None, "nonlocal", 3, 8, (1, 2), 0.0)


def small_state(norm="gn", **options):
    options = {"norm": norm, "num_groups": 8, "num_classes": 3, "width": 8, **options}
    return resnet50(**{"depths": (1, 1, 1, 1), **options}).state_dict()


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(WeightError) as error:
        read_source(path)
    assert str(path) in str(error.value)
    return str(error.value)


def equal(source, state):
    return set(source.state) == set(state) and all(
        torch.equal(source.state[name], tensor) for name, tensor in state.items()
    )


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        (lambda: torchvision.models.resnet50(), "bn"),
        (lambda: timm.create_model("resnet50"), "bn"),
        (lambda: timm.create_model("resnet50_gn"), "gn"),
    ],
    ids=["torchvision", "timm", "timm_gn"],
)
@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
def test_libraries_files_are_read_whatever_their_name(tmp_path, make, norm, kind):
    state = make().state_dict()
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    source = read_source(path)
    assert equal(source, state)
    assert (source.norm, source.depths, source.width) == (norm, (3, 4, 6, 3), 64)
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


def test_our_own_video_file_is_refused(tmp_path):
    spec = replace(SPEC, arch="i3d_r50")
    info = WeightInfo(spec, None, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None, None, None)
    write_weights(tmp_path / "a", build_network(spec).state_dict(), info)
    assert "a video network already" in refusal(tmp_path / "a")


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
        (lambda: {}, "no conv1.weight and layer1 .* nothing"),
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
