from dataclasses import replace

import pytest
import torch

from videogn.errors import UserError
from videogn.models.build import ARCHITECTURES, build_network
from videogn.models.i3d import I3D, i3d
from videogn.models.resnet2d import ResNet2d, resnet50
from videogn.models.spec import NetworkSpec

SPEC = NetworkSpec("i3d_r50", "gn", 4, None, "zoo", 5, 8, (1, 2, 1, 1), 0.25)


def built_by_hand(arch):
    options = {"norm": "gn", "num_groups": 4, "num_classes": 5, "width": 8, "dropout": 0.25}
    options["depths"] = (1, 2, 1, 1)
    torch.manual_seed(0)
    return (i3d(layout="zoo", **options) if arch == "i3d_r50" else resnet50(**options)).state_dict()


@pytest.mark.parametrize(("arch", "kind"), [("i3d_r50", I3D), ("resnet50", ResNet2d)])
def test_every_field_of_the_spec_reaches_the_network(arch, kind):
    torch.manual_seed(0)
    network = build_network(replace(SPEC, arch=arch))
    assert isinstance(network, kind)
    expected = built_by_hand(arch)
    state = network.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.25 for m in network.modules())
    grouped = build_network(replace(SPEC, arch=arch, channels_per_group=8))
    counts = {m.num_groups for m in grouped.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert counts == {1, 2, 4, 8, 16, 32}


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(UserError, match=f"'c2d'.*{', '.join(ARCHITECTURES)}"):
        build_network(replace(SPEC, arch="c2d"))
    with pytest.raises(UserError, match=r"'slow'.*nonlocal, nonlocal_paper, zoo"):
        build_network(replace(SPEC, layout="slow"))
    with pytest.raises(UserError, match=r"'gnn'.*bn, frozen_bn, sync_bn, gn"):
        build_network(replace(SPEC, norm="gnn"))
