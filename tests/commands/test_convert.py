import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from videogn.cli import main
from videogn.commands import convert
from videogn.models.build import build_network
from videogn.models.i3d import LAYOUTS
from videogn.models.norm import NORMS
from videogn.models.spec import NetworkSpec, WeightInfo, class_names_sha256
from videogn.models.targets import TARGETS
from videogn.models.weights import load_model, read_info, read_weights, write_weights

SPEC = NetworkSpec("i3d_r50", "gn", 4, None, "zoo", 3, 8, (1, 1, 1, 1), 0.5)
R50 = replace(SPEC, depths=(3, 4, 6, 3))
NAMES = ("run", "jump", "größte")


@pytest.fixture
def make_file(tmp_path, randomise):
    def make(spec=SPEC, class_names=NAMES, name="own.safetensors", **changes) -> Path:
        torch.manual_seed(0)
        network = randomise(build_network(replace(spec, **changes)))
        info = WeightInfo(
            replace(spec, **changes),
            class_names,
            (0.4, 0.5, 0.6),
            (0.2, 0.3, 0.25),
            "a",
            "b",
            "mean",
        )
        write_weights(tmp_path / name, network.state_dict(), info)
        return tmp_path / name

    return make


def converted(capsys, source, to, *words, out=None):
    out = out or Path(source).parent / f"to_{to}"
    assert main(["convert", str(source), "--to", to, "-o", str(out), *words]) == 0
    return out, capsys.readouterr().out


def refusal(capsys, *words):
    assert main(["convert", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("to", TARGETS)
def test_weights_go_there_and_come_back_bit_by_bit(make_file, capsys, to, norm):
    source = make_file(norm=norm)
    there, out = converted(capsys, source, to)
    assert "read back bit-equal" in out
    assert f"sha256 {class_names_sha256(NAMES)[:16]}" in out
    back, _ = converted(capsys, there, "videogn", out=source.parent / "back")
    first, second = read_weights(source), read_weights(back)
    assert second.info == first.info
    for name, tensor in first.state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(second.state[name], tensor)
    assert list(second.state) == list(first.state)


def expected_key(to, block, layer, parameter):
    """Names as each program's own files have them, for the first norm of a block of res3."""
    letter = "abc"[layer]
    return {
        "pytorchvideo": f"blocks.3.res_blocks.{block}.branch2.norm_{letter}.{parameter}",
        "slowfast": f"s3.pathway0_res{block}.branch2.{letter}_bn.{parameter}",
        "mmaction2": f"backbone.layer2.{block}.conv{layer + 1}.bn.{parameter}",
        "nonlocal": f"res3_{block}_branch2{letter}_bn_"
        + {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}[parameter],
    }[to]


@pytest.mark.parametrize("to", TARGETS)
def test_files_are_those_that_the_programs_read(make_file, capsys, to):
    source = make_file(R50, norm="bn")
    there, _ = converted(capsys, source, to)
    if to == "nonlocal":
        # Made here alone, so it may be loaded: Python 2 reads protocol 2.
        content = pickle.loads(there.read_bytes())
        tensors = content["blobs"]
        assert all(isinstance(array, np.ndarray) for array in tensors.values())
        assert "res_conv1_bn_riv" in tensors
        assert "pred_w" in tensors
        assert len(tensors) == 267
    else:
        content = torch.load(there, weights_only=True)
        tensors = content["state_dict" if to == "mmaction2" else "model_state"]
        assert len(tensors) == 267 + 53
    assert json.loads(content["videogn"])["class_names"] == list(NAMES)
    if to == "mmaction2":
        assert content["meta"]["dataset_meta"]["classes"] == list(NAMES)
        assert "cls_head.fc_cls.weight" in tensors
    state = read_weights(source).state
    for block, layer in ((0, 0), (3, 2), (1, 1)):
        for parameter in ("weight", "bias", "running_mean", "running_var"):
            ours = state[f"blocks.3.res_blocks.{block}.branch2.norm_{'abc'[layer]}.{parameter}"]
            theirs = torch.as_tensor(tensors[expected_key(to, block, layer, parameter)])
            assert torch.equal(theirs, ours)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_pytorchvideos_own_network_gives_the_same_logits(make_file, capsys, layout, norm):
    source = make_file(R50, norm=norm, layout=layout)
    _, out = converted(capsys, source, "pytorchvideo")
    assert "logits      of pytorchvideo's own network" in out
    assert "at most 1e-05" in out
    assert ("usual network is zoo" in out) == (layout != "zoo")
    assert ("stem whose pool is padded by (0,0,0)" in out) == layout.startswith("nonlocal") * (
        layout != "nonlocal_paper"
    )


@pytest.mark.parametrize("arch", ["c2d_r50", "i3d_heavy_r50"])
def test_other_inflations_are_pytorchvideos_too(make_file, capsys, arch):
    _, out = converted(capsys, make_file(R50, arch=arch), "slowfast")
    assert "of pytorchvideo's own network on a random clip" in out
    assert "PySlowFast's own network not compared" in out


def test_what_cannot_be_compared_is_told(make_file, capsys):
    _, out = converted(capsys, make_file(R50, arch="i3d_3x3x3_r50"), "pytorchvideo")
    assert "not compared: pytorchvideo's create_resnet has one 3x3 kernel size" in out
    _, out = converted(capsys, make_file(), "mmaction2")
    assert "mmaction2's own network not compared" in out
    assert "not mmaction2's usual scale" in out.replace("which is ", "")


def test_norms_that_a_program_cannot_build_are_told(make_file, capsys):
    _, out = converted(capsys, make_file(), "slowfast")
    assert "warning: PySlowFast builds bn, sync_bn, frozen_bn, not gn" in out
    _, out = converted(capsys, make_file(norm="bn"), "slowfast")
    assert "warning" not in out


def test_a_foreign_video_file_tells_what_was_taken(make_file, capsys, tmp_path):
    there, _ = converted(capsys, make_file(R50, norm="bn"), "slowfast")
    content = torch.load(there, weights_only=True)
    del content["videogn"]
    torch.save(content, tmp_path / "I3D.pyth")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES), encoding="utf-8")
    back, out = converted(
        capsys, tmp_path / "I3D.pyth", "videogn", "--class-names", str(names), out=tmp_path / "back"
    )
    assert "layout      not told by the weights, taken as zoo (--layout)" in out
    assert "320 tensors back under PySlowFast's names bit-equal" in out
    assert "of pytorchvideo's own network" in out
    info = read_info(back)
    assert (info.spec.arch, info.spec.norm, info.spec.layout) == ("i3d_r50", "bn", "zoo")
    assert (info.class_names, info.mean) == (NAMES, (0.45,) * 3)
    frozen, _ = converted(
        capsys, tmp_path / "I3D.pyth", "videogn", "--norm", "frozen_bn", out=tmp_path / "frozen"
    )
    assert read_info(frozen).spec.norm == "frozen_bn"


def test_a_2d_file_becomes_a_2d_file(capsys, tmp_path):
    import torchvision

    torch.save(torchvision.models.resnet50(num_classes=3).state_dict(), tmp_path / "r50.pth")
    out, printed = converted(capsys, tmp_path / "r50.pth", "videogn")
    assert "torchvision and timm, resnet50, norm bn" in printed
    assert read_info(out).spec.arch == "resnet50"
    message = refusal(capsys, tmp_path / "r50.pth", "--to", "slowfast", "-o", tmp_path / "x")
    assert "inflate it first" in message
    assert not (tmp_path / "x").exists()


def test_a_run_folder_stands_for_its_last_checkpoint(tiny, capsys):
    run = tiny.folder / "run"
    assert main(["train", str(tiny.config), f"out={run}", "train.iterations=2"]) == 0
    capsys.readouterr()
    out, printed = converted(capsys, run, "videogn", out=tiny.folder / "net.safetensors")
    assert "tensors that are not the network's" in printed
    assert read_weights(out).training is None
    assert not read_weights(out).optimizer
    message = refusal(capsys, run, "--to", "slowfast", "-o", tiny.folder / "x")
    assert "2 stages cannot be written as PySlowFast's" in message


def test_pytorchvideos_other_networks_keep_its_names(capsys, tmp_path, randomise):
    spec = NetworkSpec("x3d_xs", "gn", 2, None, "nonlocal", 3, 24, (3, 5, 11, 7), 0.5)
    network = randomise(build_network(spec))
    info = WeightInfo(spec, None, (0.45,) * 3, (0.225,) * 3, None, None, None)
    write_weights(tmp_path / "x3d", network.state_dict(), info)
    out, printed = converted(capsys, tmp_path / "x3d", "pytorchvideo")
    assert "read back bit-equal" in printed
    state = torch.load(out, weights_only=True)["model_state"]
    assert torch.equal(state["blocks.5.proj.weight"], network.blocks[5].proj.weight)
    message = refusal(capsys, tmp_path / "x3d", "--to", "mmaction2", "-o", tmp_path / "x")
    assert "mmaction2 has no names for" in message


def test_a_wrong_writer_is_caught_and_nothing_kept(make_file, capsys, tmp_path, monkeypatch):
    def swapping(target, plain, norm):
        a, b = "layer1.0.bn1.weight", "layer1.0.bn1.bias"
        return original(target, {**plain, a: plain[b], b: plain[a]}, norm)

    original = convert.to_target
    monkeypatch.setattr(convert, "to_target", swapping)
    message = refusal(capsys, make_file(), "--to", "slowfast", "-o", tmp_path / "x")
    assert "proof failed: read back, 2 tensors are not what was written" in message
    assert not (tmp_path / "x").exists()


def test_another_function_is_caught_and_nothing_kept(make_file, capsys, tmp_path, monkeypatch):
    class Shifted(nn.Module):
        def forward(self, clips):
            return torch.ones(1, 3)

        def load_state_dict(self, state):
            pass

    monkeypatch.setattr(convert, "pytorchvideo_network", lambda spec: (Shifted(), "a call"))
    message = refusal(capsys, make_file(), "--to", "pytorchvideo", "-o", tmp_path / "x")
    assert "proof failed: the logits of pytorchvideo's own network differ by" in message
    assert not (tmp_path / "x").exists()


def test_wrong_inputs_end_in_one_message(make_file, capsys, tmp_path):
    own = make_file()
    out = tmp_path / "x"
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(own.read_bytes()[:-100])
    cases = [
        ([tmp_path / "none", "--to", "videogn", "-o", out], "no such file"),
        ([tmp_path, "--to", "videogn", "-o", out], "name a run folder"),
        ([own, "--to", "videogn", "-o", own], "is the source itself"),
        ([own, "--to", "videogn", "-o", tmp_path], "is a folder"),
        ([own, "--to", "videogn", "-o", tmp_path / "x.pth"], "name it x.safetensors"),
        ([cut, "--to", "videogn", "-o", out], "damaged or cut off"),
        ([own, "--to", "videogn", "-o", out, "--norm", "bn"], "its norm is gn; leave out --norm"),
        ([own, "--to", "videogn", "-o", out, "--layout", "nonlocal"], "its layout is zoo"),
        ([own, "--to", "slowfast", "-o", out, "--frames", "8"], "are of onnx and torch-export"),
        ([own, "--to", "videogn", "-o", out, "--from", "slowfast"], "leave out --from"),
    ]
    for words, message in cases:
        assert message in refusal(capsys, *words)
        assert not out.exists()


def test_changed_class_names_are_found(make_file, capsys, tmp_path):
    there, _ = converted(capsys, make_file(), "pytorchvideo")
    content = torch.load(there, weights_only=True)
    tree = json.loads(content["videogn"])
    tree["class_names"] = list(reversed(tree["class_names"]))
    torch.save({**content, "videogn": json.dumps(tree)}, there)
    message = refusal(capsys, there, "--to", "videogn", "-o", tmp_path / "x")
    assert "class names are not those it was written with" in message


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_pytorchvideos_other_networks_are_read(capsys, tmp_path, randomise, norm):
    from pytorchvideo.models.hub.x3d import x3d_xs

    layers = {"bn": nn.BatchNorm3d, "gn": lambda num_features, **_: nn.GroupNorm(6, num_features)}
    peer = randomise(x3d_xs(pretrained=False, model_num_class=5, norm=layers[norm]))
    torch.save({"model_state": peer.state_dict()}, tmp_path / "X3D_XS.pyth")
    words = ["--num-groups", "6"] if norm == "gn" else []
    out, printed = converted(capsys, tmp_path / "X3D_XS.pyth", "videogn", *words)
    assert f"pytorchvideo, x3d_xs, norm {norm}" in printed
    network = load_model(out)
    clip = torch.randn(1, 3, 4, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(clip).softmax(1), peer(clip), rtol=1e-4, atol=1e-6)
    there, _ = converted(capsys, out, "pytorchvideo")
    back, _ = converted(capsys, there, "videogn", out=tmp_path / "back")
    assert read_info(back) == read_info(out)

    state = peer.state_dict()
    state["blocks.0.conv.conv_t.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan")
    message = refusal(capsys, tmp_path / "nan", "--to", "videogn", "-o", tmp_path / "x", *words)
    assert "NaN or infinite values" in message
