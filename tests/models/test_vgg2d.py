import pytest
import torch
import torchvision
from torch import nn

from videogn.errors import UserError
from videogn.models.norm import NORMS
from videogn.models.vgg2d import vgg16


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.fixture(scope="module")
def peer(randomise):
    """Of 134 M parameters, which take seconds to draw."""
    return randomise(torchvision.models.vgg16_bn(num_classes=7))


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "sync_bn"])
def test_batch_norm_networks_are_torchvisions(norm, peer):
    with torch.device("meta"):
        ours = vgg16(norm=norm, num_classes=7).eval()
    ours.load_state_dict(peer.state_dict(), assign=True)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer(images)
        assert expected.std() > 1e-3
        assert torch.equal(ours(images), expected)
        assert torch.equal(ours(images.unsqueeze(2)), expected)
        assert torch.equal(ours.forward_locations(images)[:, :, 0, 0], expected)


def test_without_a_norm_it_is_torchvisions_under_the_other_names(randomise):
    peer = randomise(torchvision.models.vgg16(num_classes=7))
    with torch.device("meta"):
        ours = vgg16(norm="none", num_classes=7).eval()
    names = [name for name, _ in ours.named_parameters()]
    ours.load_state_dict(dict(zip(names, peer.parameters(), strict=True)), assign=True)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(images), peer(images))


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_has_the_same_names(norm):
    with torch.device("meta"):
        ours = dict(vgg16(norm=norm, num_classes=1000).named_parameters())
        peer = dict(torchvision.models.vgg16_bn().named_parameters())
    if norm == "none":
        peer = {name: p for name, p in peer.items() if p.ndim > 1 or "classifier" in name}
        ours = {name: p for name, p in ours.items() if p.ndim > 1 or "classifier" in name}
    assert {name: p.shape for name, p in ours.items()} == {n: p.shape for n, p in peer.items()}


def test_initial_weights():
    torch.manual_seed(0)
    network = vgg16(width=32, num_groups=8, num_classes=10)
    for conv in convolutions(network):
        fan_out = conv.out_channels * 9
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.08)
        assert not conv.bias.any()
    assert network.classifier[-1].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_width_and_depths_scale_the_network():
    network = vgg16(width=8, num_groups=4, depths=(1, 1), num_classes=3)
    assert [conv.out_channels for conv in convolutions(network)] == [8, 16]
    assert network(torch.zeros(2, 3, 1, 16, 16)).shape == (2, 3)


def test_small_images_are_refused():
    network = vgg16(width=8, num_groups=4, depths=(1, 1))
    with pytest.raises(UserError, match="3x8 pixels are too small: VGG takes at least 4x4"):
        network(torch.zeros(1, 3, 3, 8))
