import argparse
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from videogn.commands.inflate import add_arguments, run
from videogn.errors import AnnotationError, RunError, UserError, WeightError
from videogn.files import sha256_of
from videogn.models import load_model, read_info, read_weights, resnet50, write_weights
from videogn.models.spec import NetworkSpec, WeightInfo

SMALL = "--width 8 --num-groups 8 --depths 1,1,1,1"


def inflate(words: str | list[str]) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words.split() if isinstance(words, str) else words))


def small_state(**options):
    options = {"num_groups": 8, "num_classes": 3, "width": 8, **options}
    torch.manual_seed(0)
    network = resnet50(**{"depths": (1, 1, 1, 1), **options})
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and "mean" not in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return network.state_dict()


def caffe2_blobs(state):
    """The arrays of a GN network of one block a stage under Detectron's names."""
    blobs = {}
    for name, tensor in state.items():
        name = re.sub(
            r"layer(\d)\.0\.(conv|bn)(\d)\.",
            lambda m: f"res{int(m[1]) + 1}_0_branch2{' abc'[int(m[3])]}_{m[2]}.",
            name,
        )
        name = re.sub(
            r"layer(\d)\.0\.downsample\.(\d)\.",
            lambda m: f"res{int(m[1]) + 1}_0_branch1_{('conv', 'bn')[int(m[2])]}.",
            name,
        )
        for theirs, ours in (
            ("_conv.weight", "_w"),
            ("_bn.weight", "_gn_s"),
            ("_bn.bias", "_gn_b"),
            ("bn1.weight", "conv1_gn_s"),
            ("bn1.bias", "conv1_gn_b"),
            ("conv1.weight", "conv1_w"),
            ("fc.weight", "pred_w"),
            ("fc.bias", "pred_b"),
        ):
            if name.endswith(theirs):
                name = name.removesuffix(theirs) + ours
        blobs[name] = tensor.numpy()
    return blobs


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with small 2D weights of each norm."""
    monkeypatch.chdir(tmp_path)
    torch.save(small_state(), "gn.pth")
    save_file(small_state(norm="bn"), "bn.safetensors")
    return tmp_path


def test_the_written_file_loads_and_says_where_it_comes_from(folder, capsys):
    assert inflate(f"gn.pth -o out.st --norm gn --temporal-init center {SMALL}") == 0
    info = read_info("out.st")
    assert info == WeightInfo(
        spec=NetworkSpec("i3d_r50", "gn", 8, None, "nonlocal", 400, 8, (1, 1, 1, 1), 0.5),
        class_names=None,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        source="gn.pth",
        source_sha256=sha256_of("gn.pth"),
        temporal_init="center",
    )
    network = load_model("out.st")
    assert network(torch.zeros(1, 3, 8, 32, 32)).shape == (1, 400)
    assert sha256_of("out.st") in capsys.readouterr().out


def test_the_report_is_aligned_and_complete(folder, capsys):
    inflate(f"bn.safetensors -o out.st --norm bn {SMALL}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "bn.safetensors: torchvision and timm, norm batch (bn or sync_bn or frozen_bn), width 8, "
        "depths 1,1,1,1, 3 classes"
    )
    rows = {line.split()[0]: line for line in lines[1:7]}
    counts = {kind: int(line[11:15]) for kind, line in rows.items()}
    # 17 convolutions with 17 norms of 5 tensors: 4 kernels are inflated (the stem, one each in
    # res2, res3 and res4), and the classifier of 3 classes is replaced.
    assert counts == {
        "loaded": 17 + 17 * 5 - 4,
        "inflated": 4,
        "skipped": 2,
        "fresh": 2,
        "missing": 0,
        "unexpected": 0,
    }
    assert rows["inflated"].endswith("and 2 more (mean)")
    assert "fc.weight, fc.bias" in rows["skipped"] or "fc.bias, fc.weight" in rows["skipped"]
    assert rows["fresh"].endswith("(400 classes)")
    assert lines[-1].startswith("wrote       out.st (")


@pytest.mark.parametrize(
    ("norm", "source"), [("gn", "gn.pth"), ("bn", "bn.safetensors")], ids=["gn", "bn"]
)
@pytest.mark.parametrize("layout", ["nonlocal", "nonlocal_paper", "zoo"])
def test_verify_prints_an_exact_centre_row(folder, capsys, norm, source, layout):
    inflate(f"{source} -o out.st --norm {norm} --layout {layout} --classes 3 --verify {SMALL}")
    lines = capsys.readouterr().out.splitlines()
    exact = "unpadded stem pool" if layout == "nonlocal" else "as published"
    (row,) = [line for line in lines if line.startswith("center") and exact in line]
    assert max(float(word) for word in row.split()[-2:]) < 1e-5
    assert any("mean differs by design" in line for line in lines)
    assert read_info("out.st").spec.layout == layout


def test_mean_inflation_is_the_default(folder):
    inflate(f"gn.pth -o out.st {SMALL}")
    kernel = read_weights("out.st").state["blocks.0.conv.weight"]
    assert torch.equal(kernel[:, :, 2], small_state()["conv1.weight"] / 5)
    assert read_info("out.st").temporal_init == "mean"


def test_class_names_are_kept_with_the_weights(folder):
    Path("names.txt").write_text("ä b\nc\n d \n", encoding="utf-8")
    inflate(f"gn.pth -o out.st --class-names names.txt {SMALL}")
    info = read_info("out.st")
    assert info.class_names == ("ä b", "c", "d")
    assert info.spec.num_classes == 3
    kept = read_weights("out.st").state["blocks.6.proj.weight"]
    assert torch.equal(kept, small_state()["fc.weight"])


def test_our_own_2d_weights_hand_on_their_scale_and_classes(folder):
    spec = NetworkSpec("resnet50", "gn", 8, None, "nonlocal", 3, 8, (1, 1, 1, 1), 0.0)
    info = WeightInfo(spec, ("a", "b", "c"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None, None, None)
    write_weights("own", small_state(), info)
    inflate(f"own -o out.st --classes 3 {SMALL}")
    out = read_info("out.st")
    assert (out.class_names, out.mean, out.std) == (info.class_names, info.mean, info.std)
    inflate(f"own -o out.st --mean 0 0 0 --std 1 1 1 {SMALL}")
    out = read_info("out.st")
    assert (out.class_names, out.mean, out.std) == (None, (0, 0, 0), (1, 1, 1))


def test_detectrons_weights_are_inflated_and_tell_their_scale(folder, capsys):
    Path("R-50-GN.pkl").write_bytes(pickle.dumps({"blobs": caffe2_blobs(small_state())}, 2))
    inflate(f"R-50-GN.pkl -o out.st --classes 3 --verify {SMALL}")
    printed = capsys.readouterr().out
    assert "R-50-GN.pkl: Detectron (Caffe2), norm group (gn or ln or in)" in printed
    assert "conv1: BGR to RGB; 0..255 to [0, 1] over the std" in printed
    info = read_info("out.st")
    assert info.mean == (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
    assert info.std == (0.229, 0.224, 0.225)
    theirs = small_state()["conv1.weight"]
    state = read_weights("out.st").state
    for place, (channel, std) in enumerate(((2, 0.229), (1, 0.224), (0, 0.225))):
        found = state["blocks.0.conv.weight"][:, place].sum(1)
        torch.testing.assert_close(found, theirs[:, channel] * 255 * std)
    assert torch.equal(state["blocks.6.proj.weight"], small_state()["fc.weight"])


def test_the_std_alone_may_be_chosen_where_the_kernel_holds_it(folder):
    Path("a.pkl").write_bytes(pickle.dumps(caffe2_blobs(small_state()), 2))
    inflate(f"a.pkl -o out.st --std 0.225 0.225 0.225 --temporal-init center {SMALL}")
    info = read_info("out.st")
    assert info.mean == (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
    assert info.std == (0.225, 0.225, 0.225)
    found = read_weights("out.st").state["blocks.0.conv.weight"][:, :, 2]
    torch.testing.assert_close(found, small_state()["conv1.weight"].flip(1) * 57.375)


def test_depths_are_those_of_the_architecture(folder):
    state = small_state(depths=(3, 4, 23, 3))
    torch.save(state, "r101.pth")
    inflate("r101.pth -o out.st --arch c2d_r101 --layout zoo --width 8 --num-groups 8")
    spec = read_info("out.st").spec
    assert (spec.arch, spec.depths) == ("c2d_r101", (3, 4, 23, 3))
    assert load_model("out.st")(torch.zeros(1, 3, 8, 32, 32)).shape == (1, 400)


def test_group_size_reaches_the_file(folder):
    inflate(f"gn.pth -o out.st --channels-per-group 4 {SMALL}")
    assert read_info("out.st").spec.channels_per_group == 4
    assert load_model("out.st").blocks[0].norm.num_groups == 2


@pytest.mark.parametrize("name", ["out.pth", "out.PKL"])
def test_a_name_of_another_kind_of_file_is_refused(folder, name):
    with pytest.raises(WeightError, match=rf"{name}: would hold safetensors.*out\.safetensors"):
        inflate(f"gn.pth -o {name} {SMALL}")
    assert not Path(name).exists()


def test_the_same_command_writes_the_same_bytes_over_the_earlier_file(folder):
    Path("out.st").write_text("an earlier file")
    hashes = set()
    for _ in range(2):
        inflate(f"gn.pth -o out.st {SMALL}")
        hashes.add(sha256_of("out.st"))
    assert len(hashes) == 1


def test_timms_full_network_is_inflated_and_verified(tmp_path, capsys):
    source, out = tmp_path / "resnet50_gn.pth", tmp_path / "out.safetensors"
    torch.save(timm.create_model("resnet50_gn").state_dict(), source)
    assert inflate([str(source), "-o", str(out), "--layout", "nonlocal_paper"]) == 0
    printed = capsys.readouterr().out
    assert "loaded      149" in printed
    assert "inflated     10" in printed
    assert "groups      not told by the weights, taken as 32 groups" in printed
    assert sum(t.numel() for t in read_weights(out).state.values()) == 28_043_472


REFUSALS = [
    ("none.pth", "", "none.pth: no such file"),
    (".", "", r"\.: a folder without checkpoints"),
    ("cut.pth", "", "cut.pth: is damaged, cut off or no torch weight file .*copy it again"),
    ("cut.st", "", "cut.st: is damaged or cut off .*copy it again"),
    ("text.pth", "", "text.pth: is neither a safetensors nor a torch weight file"),
    ("evil.pth", "", "evil.pth: refused, for it asks to load posix.system"),
    ("list.pth", "", "list.pth: holds a list, not a state dict"),
    ("values.pth", "", r"values.pth: is not a state dict of named tensors: 'lr' \(float\)"),
    ("other.pth", "", "other.pth: holds no ResNet under names of a known kind, but patch_embed"),
    ("nan.pth", "", "nan.pth: NaN or infinite values in bn1.weight"),
    ("missing.pth", "", "missing.pth: .*1 missing: layer2.0.bn2.bias"),
    ("extra.pth", "", "extra.pth: .*1 unexpected: layer1.0.se.weight"),
    ("evil.pkl", "", "evil.pkl: refused, for it asks to load posix.system"),
    ("cut.pkl", "", "cut.pkl: is damaged, cut off or no pickle of numpy arrays .*copy it again"),
    ("cut.npz", "", "cut.npz: is damaged, cut off or no .*copy it again"),
    ("shape.pth", "", r"conv2.weight is \(32, 32, 1, 1\) and \(32, 32, 3, 3\) is wanted"),
    ("R-50.pkl", "--norm frozen_bn", "stride on the first 1x1 kernel .*--from detectron-msra"),
    ("R-50.pkl", "--norm gn --from detectron", "has weights of frozen_bn and --norm gn is wanted"),
    ("gn.pth", "--from detectron", "no stem and first stage of a ResNet by the names of its kind"),
    ("gn.pth", "--arch i3d_r101 --depths 3,4,23,3", "has depths 1,1,1,1 and 3,4,23,3 is wanted"),
    ("gn.pth", "--norm bn", "gn.pth: has weights of gn or ln or in and --norm bn is wanted"),
    ("bn.safetensors", "--norm gn", "ImageNet BN weights cannot be reused for a net of norm gn"),
    ("gn.pth", "--depths 3,4,6,3", "has depths 1,1,1,1 .*give --depths 1,1,1,1"),
    ("gn.pth", "--width 16", "has width 8 .*give --width 8"),
]


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(("source", "options", "message"), REFUSALS)
def test_refusals_name_the_file_and_the_remedy_and_write_nothing(folder, source, options, message):
    state = small_state()
    torch.save(state, "cut.pth")
    save_file(state, "cut.st")
    for cut in ("cut.pth", "cut.st"):
        Path(cut).write_bytes(Path(cut).read_bytes()[:-2000])
    Path("text.pth").write_text("a text that is long enough to be a header")
    torch.save([1, 2], "list.pth")
    torch.save({"state_dict": state, "x": Evil()}, "evil.pth")
    torch.save({**state, "lr": 0.1}, "values.pth")
    torch.save({"patch_embed.weight": torch.zeros(1)}, "other.pth")
    torch.save({**state, "bn1.weight": torch.full((8,), float("nan"))}, "nan.pth")
    torch.save({k: v for k, v in state.items() if k != "layer2.0.bn2.bias"}, "missing.pth")
    torch.save({**state, "layer1.0.se.weight": torch.zeros(1)}, "extra.pth")
    torch.save({**state, "layer3.0.conv2.weight": torch.zeros(32, 32, 1, 1)}, "shape.pth")
    Path("evil.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": Evil()}}, 2))
    blobs = caffe2_blobs(state)
    Path("cut.pkl").write_bytes(pickle.dumps(blobs, 2)[:-2000])
    np.savez("cut.npz", **blobs)
    Path("cut.npz").write_bytes(Path("cut.npz").read_bytes()[:-2000])
    folded = {name.replace("_gn_", "_bn_"): array for name, array in blobs.items()}
    folded |= {f"res_conv1_bn_{part}": blobs[f"conv1_gn_{part}"] for part in "sb"}
    del folded["conv1_bn_s"], folded["conv1_bn_b"]
    Path("R-50.pkl").write_bytes(pickle.dumps(folded, 2))
    before = set(folder.iterdir())
    with pytest.raises(WeightError, match=message):
        inflate(f"{source} -o out.st {SMALL} {options}")
    assert set(folder.iterdir()) == before


def test_the_source_is_never_overwritten(folder):
    before = sha256_of("gn.pth")
    Path("link.pth").symlink_to("gn.pth")
    for out in ("gn.pth", "./gn.pth", "link.pth"):
        with pytest.raises(WeightError, match="is the source itself"):
            inflate(f"gn.pth -o {out} {SMALL}")
    assert sha256_of("gn.pth") == before


def test_an_unwritable_place_is_a_run_error(folder):
    Path("file").write_text("")
    with pytest.raises(RunError, match=r"out.st: cannot be written"):
        inflate(f"gn.pth -o file/out.st {SMALL}")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("--mean 0.5 0.5 0.5", UserError, "--mean and --std belong together"),
        ("--mean 123 116 103 --std 58 57 57", UserError, "divide values for 0 to 255 by 255"),
        ("--mean 0.5 0.5 nan --std 1 1 1", UserError, "must lie in"),
        ("--mean 0.5 0.5 0.5 --std 0 1 1", UserError, "std above 0"),
        ("--class-names none.txt", AnnotationError, "none.txt: cannot read the class names: No"),
        ("--class-names binary.txt", AnnotationError, "binary.txt: .*not UTF-8"),
        ("--class-names empty.txt", AnnotationError, "empty.txt: no class names"),
        ("--class-names twice.txt", AnnotationError, "twice.txt:2: empty\ntwice.txt:3: 'a' stands"),
        ("--class-names two.txt --classes 3", UserError, "two.txt: has 2 names and --classes is 3"),
        (
            "--num-groups 3",
            UserError,
            "8 channels out to 3 groups; set --channels-per-group 4 or --num-groups 1",
        ),
    ],
)
def test_wrong_options_are_refused(folder, options, error, message):
    Path("binary.txt").write_bytes(b"\xff\xfe")
    Path("empty.txt").write_text("")
    Path("twice.txt").write_text("a\n\na\n")
    Path("two.txt").write_text("a\nb\n")
    with pytest.raises(error, match=message):
        inflate(f"gn.pth -o out.st {SMALL} {options}")
    assert not Path("out.st").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--norm gnn",
        "--layout slow",
        "--temporal-init sum",
        "--arch resnet50",
        "--from keras",
        "--classes 0",
        "--classes x",
        "--depths 3,,3",
        "--depths 1,1,1,1,1",
        "--width -8",
    ],
)
def test_words_that_are_no_options_values_end_with_code_2(folder, capsys, options):
    with pytest.raises(SystemExit) as ended:
        inflate(f"gn.pth -o out.st {options}")
    assert ended.value.code == 2
    assert options.split()[0] in capsys.readouterr().err


def test_a_pre_trainings_folder_stands_for_its_last_checkpoint(folder):
    spec = NetworkSpec("resnet50", "gn", 8, None, "nonlocal", 3, 8, (1, 1, 1, 1), 0.0)
    info = WeightInfo(spec, ("a", "b", "c"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), None, None, None)
    Path("run/checkpoints").mkdir(parents=True)
    write_weights("run/checkpoints/last.safetensors", small_state(), info)
    inflate(f"run -o out.st --classes 3 {SMALL}")
    assert read_info("out.st").class_names == ("a", "b", "c")
