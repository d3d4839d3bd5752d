import torch
from torch import nn

from videogn.distributed import World
from videogn.engine.precise_bn import Buffers, update_statistics

ALONE = World(0, 1, torch.device("cpu"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1))


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 2, 5, 5, generator=generator) * (n + 1) for n in range(count)]


def test_statistics_are_those_of_all_clips_together() -> None:
    model, clips = network().train(), batches(3)
    mean, var = model[1].running_mean, model[1].running_var
    assert update_statistics(model, clips, 3, ALONE, lambda: False)
    with torch.no_grad():
        features = model[0](torch.cat(clips)).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(model[1].running_mean.double(), features.mean(1))
    torch.testing.assert_close(model[1].running_var.double(), features.var(1, correction=0))
    # The tensors stay the ones that others may hold, and training goes on as before.
    assert model[1].running_mean is mean
    assert model[1].running_var is var
    assert model[1].momentum == 0.1
    assert model[1].num_batches_tracked == 0


def test_stopped_halfway_nothing_has_changed() -> None:
    model, asked = network().train(), iter([False, True])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not update_statistics(model, batches(3), 3, ALONE, lambda: next(asked))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model[1].momentum == 0.1


def test_frozen_layers_keep_theirs() -> None:
    model = network().eval()
    before = model[1].running_mean.clone()
    assert update_statistics(model, batches(1), 0, ALONE, lambda: False)
    assert torch.equal(model[1].running_mean, before)


def test_buffers_are_put_back() -> None:
    model = network().train()
    buffers = Buffers(model)
    model(batches(1)[0])
    buffers.keep()
    kept = model[1].running_mean.clone()
    model(torch.full((2, 3, 2, 5, 5), torch.nan))
    assert model[1].running_mean.isnan().all()
    buffers.restore()
    assert torch.equal(model[1].running_mean, kept)
    assert model[1].num_batches_tracked == 1
