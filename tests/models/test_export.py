import importlib
import json
from pathlib import Path

import pytest
import torch

from videogn.errors import UserError, WeightError
from videogn.models import export
from videogn.models.build import build_network
from videogn.models.export import _share_of_windows, export_onnx, export_torch
from videogn.models.norm import make_norm
from videogn.models.spec import NetworkSpec, WeightInfo

EXPORTERS = {"onnx": export_onnx, "torch": export_torch}


def small(randomise, arch="i3d_r50", norm="gn", depths=(1, 1), **changes):
    values = {"layout": "nonlocal", "num_classes": 3, "width": 8, "dropout": 0.5, **changes}
    spec = NetworkSpec(
        arch=arch, norm=norm, num_groups=4, channels_per_group=None, depths=depths, **values
    )
    torch.manual_seed(0)
    info = WeightInfo(spec, ("a", "b", "ö"), (0.45,) * 3, (0.225,) * 3, None, None, None)
    return randomise(build_network(spec)), info


class Mean(torch.nn.Module):
    """The smallest network: for what does not depend on which one is exported."""

    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(3, 3)

    def forward(self, clips):
        return self.proj(clips.mean((2, 3, 4)))


class OneNorm(Mean):
    """What is special about a network of one norm rather than another."""

    def __init__(self, norm):
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 8, 3, padding=1, bias=False)
        self.norm = make_norm(norm, 4)(8)
        self.proj = torch.nn.Linear(8, 3)

    def forward(self, clips):
        return super().forward(self.norm(self.conv(clips)).relu())


def run_onnx(path: Path, clips):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"clips": clips.numpy()})
    return torch.from_numpy(logits)


def run_torch(path: Path, clips):
    with path.open("rb") as file:
        return torch.export.load(file).module()(clips)


@pytest.mark.parametrize(
    ("norm", "layout", "kind"),
    [("gn", "nonlocal", "onnx"), ("gn", "nonlocal", "torch"), ("bn", "mmaction2", "onnx")],
)
def test_every_axis_is_dynamic_and_the_logits_are_the_networks(
    tmp_path, randomise, kind, norm, layout
):
    network, info = small(randomise, norm=norm, layout=layout)
    path = tmp_path / "net"
    proof = EXPORTERS[kind](network, info, path, num_frames=16, size=112)
    assert list(proof.dynamic) == ["batch", "frames", "height", "width"]
    assert not proof.static
    assert len(proof.shapes) == 3
    assert proof.error <= 1e-5
    # Shapes that the proof did not look at.
    for shape in ((1, 3, 32, 128, 120), (5, 3, 24, 96, 160)):
        clips = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = network(clips)
        found = (run_onnx if kind == "onnx" else run_torch)(path, clips)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", EXPORTERS)
@pytest.mark.parametrize("arch", ["resnet50", "vgg16"])
def test_networks_of_still_images(tmp_path, randomise, kind, arch):
    network, info = small(randomise, arch, "bn", depths=(1, 1))
    proof = EXPORTERS[kind](network, info, tmp_path / "net", num_frames=32, size=64)
    # ONNX has no pool that divides any map into 7 x 7, as VGG needs: its size is fixed.
    fixed = ["height", "width"] if (arch, kind) == ("vgg16", "onnx") else []
    assert list(proof.static) == ["frames", *fixed]
    assert proof.static["frames"] == (1, "a network of still images")


@pytest.mark.parametrize("norm", ["frozen_bn", "sync_bn", "in"])
def test_every_norm_goes_into_onnx(tmp_path, randomise, norm):
    network, info = randomise(OneNorm(norm)), small(randomise, norm=norm, depths=(1,))[1]
    proof = export_onnx(network, info, tmp_path / "net", num_frames=8, size=64)
    assert not proof.static
    assert proof.error <= 1e-5


def test_the_description_travels_along(tmp_path, randomise):
    import onnx

    network, info = Mean(), small(randomise, depths=(1,))[1]
    export_onnx(network, info, tmp_path / "a", num_frames=8, size=64)
    export_torch(network, info, tmp_path / "b", num_frames=8, size=64)
    [entry] = onnx.load(tmp_path / "a").metadata_props
    assert (entry.key, json.loads(entry.value)) == ("videogn", info.to_json())
    extra = {"videogn.json": ""}
    with (tmp_path / "b").open("rb") as file:
        torch.export.load(file, extra_files=extra)
    assert json.loads(extra["videogn.json"]) == info.to_json()


def test_what_cannot_be_dynamic_is_told_with_the_reason(tmp_path, randomise):
    # Two frames leave one time step, which exporters take for a fixed size.
    network, info = small(randomise, depths=(1,), layout="zoo")
    proof = export_torch(network, info, tmp_path / "net", num_frames=2, size=64)
    assert "batch" in proof.dynamic
    assert "frames" in proof.static
    text = "\n".join(proof.lines())
    assert "fixed       frames 2: " in text
    assert "dynamic: batch from 1" in text


def test_other_logits_are_refused_and_nothing_is_written(tmp_path, randomise, monkeypatch):
    network, info = Mean(), small(randomise, depths=(1,))[1]
    monkeypatch.setattr(export, "_onnx_run", lambda path: lambda clips: network(clips) + 1e-3)
    with pytest.raises(WeightError, match=r"logits differ by 1\.0e-03.*nothing was written"):
        export_onnx(network, info, tmp_path / "net", num_frames=8, size=64)
    assert not (tmp_path / "net").exists()


def test_a_missing_library_is_named(tmp_path, randomise, monkeypatch):
    def absent(name):
        raise ImportError(name)

    network, info = small(randomise, depths=(1,))
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs onnx: pip install 'videogn\[export\]'"):
        export_onnx(network, info, tmp_path / "net", num_frames=8, size=64)


@pytest.mark.parametrize(("size", "window"), [(1, 7), (7, 7), (8, 7), (5, 2), (20, 7), (9, None)])
def test_share_of_windows_is_the_mean_of_a_sliding_average(size, window):
    values = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(0))
    reach = size if window is None else min(window, size)
    expected = torch.nn.functional.avg_pool1d(values, reach, 1).mean()
    torch.testing.assert_close((values * _share_of_windows(size, window)).sum(), expected)
