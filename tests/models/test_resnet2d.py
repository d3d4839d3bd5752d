from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from videogn.errors import UserError
from videogn.models.resnet2d import resnet50

PEER_NORMS = {"bn": nn.BatchNorm2d, "gn": partial(nn.GroupNorm, 32)}


@pytest.mark.parametrize("norm", PEER_NORMS)
def test_full_size_network_is_torchvisions(norm, randomise):
    peer = randomise(torchvision.models.resnet50(norm_layer=PEER_NORMS[norm]))
    ours = resnet50(norm=norm).eval()
    assert list(ours.state_dict()) == list(peer.state_dict())
    ours.load_state_dict(peer.state_dict())
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = peer(images)
        assert expected.std() > 1e-2
        assert torch.equal(ours(images), expected)
        assert torch.equal(ours(images.unsqueeze(2)), expected)
        assert torch.equal(ours.forward_locations(images)[:, :, 0, 0], expected)
        located = ours.forward_locations(images)
        assert located.shape == (2, 1000, 1, 1)
        assert ours.features(images).shape == (2, 2048, 3, 2)


def test_parameters_number_torchvisions():
    with torch.device("meta"):
        network = resnet50()
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032


@pytest.mark.parametrize("norm", PEER_NORMS)
def test_initial_weights(norm):
    torch.manual_seed(0)
    network = resnet50(norm=norm, width=32)
    last = [m.bn3 for m in network.modules() if hasattr(m, "bn3")]
    assert len(last) == 16
    assert all(not layer.weight.any() for layer in last)
    others = {m for m in network.modules() if hasattr(m, "eps")} - set(last)
    assert all((layer.weight == 1).all() for layer in others)
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network.fc.bias.any()
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        fan_out = conv.out_channels * torch.tensor(conv.kernel_size).prod().item()
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_unpadded_stem_pool_loses_one_pixel():
    sizes = []
    for padding in (1, 0):
        network = resnet50(width=8, num_groups=8, depths=(1,), stem_pool_padding=padding)
        sizes.append(network.features(torch.zeros(1, 3, 224, 224)).shape[2:])
    assert sizes == [(56, 56), (55, 55)]


def test_dropout_acts_in_training_alone():
    network = resnet50(width=8, num_groups=8, depths=(1, 1), dropout=0.5)
    images = torch.randn(1, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("shape", [(1, 3, 2, 32, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match=r"\(B, 3, 1, H, W\).*clip.num_frames=1"):
        resnet50(width=8, num_groups=8, depths=(1,))(torch.zeros(shape))
