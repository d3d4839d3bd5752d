from functools import cache
from importlib import import_module
from itertools import product

import pytest
import torch

from videogn.errors import UserError
from videogn.models.build import build_network
from videogn.models.norm import NORMS
from videogn.models.spec import ARCHITECTURES, NetworkSpec
from videogn.models.zoo import BUILDERS, zoo_network

# Frames and pixels of pytorchvideo's own settings, and its published parameters in millions.
SETTINGS = {
    "slow_r50": ("resnet", 8, 224, "32.45"),
    "r2plus1d_r50": ("r2plus1d", 16, 224, "28.11"),
    "csn_r101": ("csn", 32, 224, "22.21"),
    "x3d_xs": ("x3d", 4, 160, "3.79"),
    "x3d_s": ("x3d", 13, 160, "3.79"),
    "x3d_m": ("x3d", 16, 224, "3.79"),
    "x3d_l": ("x3d", 16, 312, "6.15"),
}


def hub_builder(arch):
    return getattr(import_module(f"pytorchvideo.models.hub.{SETTINGS[arch][0]}"), arch)


def hub_options(arch):
    return {"head_activation": None} if arch.startswith("x3d") else {}


def spec_of(arch, **changes):
    own = ARCHITECTURES[arch]
    values = {"norm": "bn", "num_groups": 2, "width": own.width, "depths": own.depths, **changes}
    return NetworkSpec(
        arch=arch,
        channels_per_group=None,
        layout="nonlocal",
        num_classes=400,
        dropout=0.5,
        **values,
    )


def test_every_builder_is_an_architecture():
    assert {a for a, own in ARCHITECTURES.items() if own.family == "zoo"} == set(BUILDERS)
    assert set(SETTINGS) == set(BUILDERS)


@pytest.mark.parametrize("arch", SETTINGS)
def test_names_and_parameters_are_pytorchvideos(arch):
    with torch.device("meta"):
        ours = zoo_network(arch).state_dict()
        peer = hub_builder(arch)(pretrained=False).state_dict()
        parameters = zoo_network(arch).parameters()
    assert [(n, t.shape) for n, t in ours.items()] == [(n, t.shape) for n, t in peer.items()]
    assert f"{sum(p.numel() for p in parameters) / 1e6:.2f}" == SETTINGS[arch][3]


@pytest.mark.parametrize("arch", ["x3d_xs", pytest.param("slow_r50", marks=pytest.mark.slow)])
def test_logits_are_pytorchvideos(arch, randomise):
    _, num_frames, size, _ = SETTINGS[arch]
    peer = randomise(hub_builder(arch)(pretrained=False, model_num_class=5, **hub_options(arch)))
    ours = zoo_network(arch, num_classes=5).eval()
    ours.load_state_dict(peer.state_dict())
    clip = torch.randn(
        1, 3, num_frames, size, size + 64, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        expected = peer(clip)
        assert expected.std() > 1e-6
        torch.testing.assert_close(ours(clip), expected, rtol=1e-4, atol=1e-5)
        assert ours.forward_locations(clip).shape[3] > 1


@cache
def names_with_bn(arch):
    with torch.device("meta"):
        return {name for name, _ in build_network(spec_of(arch)).named_parameters()}


# One network, for clips of three sizes.
SAME = {("x3d_xs", norm) for norm in NORMS} | {("x3d_s", norm) for norm in NORMS}
SAME -= {("x3d_xs", "bn"), ("x3d_s", "bn")}


@pytest.mark.parametrize(
    ("arch", "norm"), [pair for pair in product(SETTINGS, NORMS) if pair not in SAME]
)
def test_every_norm_can_be_built_and_run(arch, norm):
    _, num_frames, size, _ = SETTINGS[arch]
    with torch.device("meta"):
        network = build_network(spec_of(arch, norm=norm))
        logits = network(torch.empty(2, 3, num_frames, size, size))
    assert logits.shape == (2, 400)
    names, peer = {name for name, _ in network.named_parameters()}, names_with_bn(arch)
    assert names == peer if norm != "none" else names < peer


@pytest.mark.parametrize("arch", SETTINGS)
@pytest.mark.parametrize("num_groups", [32, 6, 4])
def test_group_norm_says_which_groups_fit(arch, num_groups):
    fits = num_groups == 6 if arch.startswith("x3d") else num_groups != 6
    with torch.device("meta"):
        if fits:
            zoo_network(arch, norm="gn", num_groups=num_groups)
            return
        with pytest.raises(UserError, match="GN cannot share") as refusal:
            zoo_network(arch, norm="gn", num_groups=num_groups)
    if arch.startswith("x3d"):
        assert "one of 6, 3, 2, 1" in str(refusal.value)


def test_every_branch_starts_as_nothing():
    for norm, layer in (("gn", "norm_c"), ("none", "conv_c")):
        network = zoo_network("x3d_xs", norm=norm, num_groups=2)
        last = [getattr(m, layer) for m in network.modules() if hasattr(m, "conv_c")]
        assert len(last) == 3 + 5 + 11 + 7
        assert not any(module.weight.any() for module in last)


def test_another_width_or_depth_is_refused():
    with pytest.raises(UserError, match=r"leave model\.width and model.depths out"):
        build_network(spec_of("csn_r101", width=32))


def test_clips_too_small_for_the_last_pool_are_refused():
    with torch.device("meta"):
        network = zoo_network("slow_r50")
        with pytest.raises(UserError, match=r"map of \(4, 7, 7\).*pool takes \(8, 7, 7\)"):
            network(torch.empty(1, 3, 4, 224, 224))
        with pytest.raises(UserError, match="clips must be"):
            network(torch.empty(1, 3, 224, 224))
