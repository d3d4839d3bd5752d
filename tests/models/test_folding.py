import copy

import pytest
import torch
from torch import nn

from videogn.models.build import build_network
from videogn.models.folding import fold_batch_norms
from videogn.models.norm import BATCH_NORMS, is_norm
from videogn.models.spec import ARCHITECTURES, NetworkSpec

CLIPS = {
    "i3d_r50": (16, 64, 64),
    "resnet50": (1, 64, 64),
    "vgg16": (1, 64, 64),
    "x3d_xs": (4, 160, 160),
}


def spec_of(arch: str, norm: str, depths: tuple[int, ...] | None = None) -> NetworkSpec:
    known = ARCHITECTURES[arch]
    return NetworkSpec(
        arch=arch,
        norm=norm,
        num_groups=32,
        channels_per_group=4,
        layout="nonlocal",
        num_classes=7,
        width=known.width if arch.startswith("x3d") else 8,
        depths=depths or known.depths,
        dropout=0.5,
    )


def with_statistics(network: nn.Module) -> nn.Module:
    """Random gammas, betas, means and variances, as training leaves them."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if is_norm(module):
                shape = module.weight.shape
                module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(shape, generator=generator) / 4)
                module.running_mean.copy_(torch.randn(shape, generator=generator))
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.2)
    return network.eval()


@pytest.mark.parametrize("norm", BATCH_NORMS)
@pytest.mark.parametrize("arch", CLIPS)
def test_a_folded_network_computes_the_same(arch: str, norm: str) -> None:
    torch.manual_seed(0)
    network = with_statistics(build_network(spec_of(arch, norm)))
    folded = copy.deepcopy(network)
    norms = sum(map(is_norm, network.modules()))
    assert fold_batch_norms(folded, CLIPS[arch]) == norms
    assert not any(map(is_norm, folded.modules()))
    clips = torch.randn(2, 3, *CLIPS[arch])
    with torch.inference_mode():
        expected, found = network.double()(clips.double()), folded(clips)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_a_norm_behind_something_else_stays() -> None:
    network = nn.Sequential(
        nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.BatchNorm3d(4), nn.Conv3d(4, 5, 1)
    )
    with_statistics(network)
    clips = torch.randn(2, 3, 2, 4, 4)
    expected = network(clips)
    assert fold_batch_norms(network, (2, 4, 4)) == 1
    assert isinstance(network[3], nn.BatchNorm3d)
    torch.testing.assert_close(network(clips), expected)


@pytest.mark.parametrize("norm", ["gn", "ln", "in", "none"])
def test_other_norms_are_left_alone(norm: str) -> None:
    network = build_network(spec_of("i3d_r50", norm, (1, 1, 1, 1))).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert fold_batch_norms(network, (8, 64, 64)) == 0
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
