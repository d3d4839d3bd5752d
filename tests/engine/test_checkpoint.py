from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from videogn.engine.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from videogn.engine.optim import build_optimizer
from videogn.errors import WeightError
from videogn.models.build import build_network
from videogn.models.spec import NetworkSpec, WeightInfo
from videogn.models.weights import load_model, write_weights


def info_of(**changes: object) -> WeightInfo:
    values = {
        "arch": "i3d_r50",
        "norm": "bn",
        "num_groups": 32,
        "channels_per_group": None,
        "layout": "nonlocal",
        "num_classes": 3,
        "width": 4,
        "depths": (1, 1),
        "dropout": 0.0,
    }
    spec = NetworkSpec(**{**values, **changes})
    return WeightInfo(spec, None, (0.4,) * 3, (0.2,) * 3, None, None, None)


def optimizer_of(network: torch.nn.Module) -> torch.optim.SGD:
    return build_optimizer(
        network, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, norm_weight_decay=0.0
    )


def step(network: torch.nn.Module, optimizer: torch.optim.SGD, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randn(2, 3, 8, 16, 16, generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(network(clips), torch.tensor([0, 2])).backward()
    optimizer.step()


def test_going_on_equals_never_having_stopped(tmp_path: Path) -> None:
    info, path = info_of(), tmp_path / "last.safetensors"
    state = TrainingState(1, 2, 12.5, {"a.mp4": "no such file"})
    network = build_network(info.spec)
    optimizer = optimizer_of(network)
    step(network, optimizer, 0)
    save_checkpoint(path, network, info, state, optimizer)
    resumed = build_network(info.spec)
    resumed_optimizer = optimizer_of(resumed)
    assert load_checkpoint(path, resumed, info, resumed_optimizer) == state
    for seed in (1, 2):
        step(network, optimizer, seed)
        step(resumed, resumed_optimizer, seed)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_checkpoint_is_a_weight_file(tmp_path: Path) -> None:
    info, path = info_of(), tmp_path / "last.safetensors"
    network = build_network(info.spec)
    optimizer = optimizer_of(network)
    step(network, optimizer, 0)
    save_checkpoint(path, network, info, TrainingState(1, 2, 0.0, {}), optimizer)
    clips = torch.randn(1, 3, 8, 16, 16)
    assert torch.equal(load_model(path)(clips), network.eval()(clips))


def test_weights_alone_cannot_be_gone_on_from(tmp_path: Path) -> None:
    info, path = info_of(), tmp_path / "inflated.safetensors"
    network = build_network(info.spec)
    write_weights(path, network.state_dict(), info)
    with pytest.raises(WeightError, match="no training state"):
        load_checkpoint(path, network, info, optimizer_of(network))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"norm": "gn", "num_groups": 2}, "norm"), ({"num_classes": 4}, "num_classes")],
)
def test_another_network_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    path = tmp_path / "last.safetensors"
    network = build_network(info_of().spec)
    save_checkpoint(path, network, info_of(), TrainingState(1, 2, 0.0, {}), optimizer_of(network))
    other = info_of(**change)
    model = build_network(other.spec)
    with pytest.raises(WeightError, match=named):
        load_checkpoint(path, model, other, optimizer_of(model))
