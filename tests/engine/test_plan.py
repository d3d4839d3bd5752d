import pytest
import torch
from torch import nn

from videogn.config import TrainConfig
from videogn.engine.plan import MemoryPlan, kept_bytes, make_plan, probe_memory, state_bytes
from videogn.errors import RunError
from videogn.models.i3d import i3d


def test_kinetics_numbers_of_the_released_recipe() -> None:
    plan = make_plan(TrainConfig(), num_videos=234_643, world_size=8)
    assert plan.global_batch == 64
    assert plan.schedule.learning_rate == 0.01
    assert plan.schedule.milestones == (150_000, 300_000)
    assert round(plan.epochs) == 109
    assert not any("note" in line for line in plan.lines())


def test_fewer_gpus_scale_the_rate_and_say_what_happens_to_the_epochs() -> None:
    plan = make_plan(TrainConfig(), num_videos=234_643, world_size=1)
    assert plan.schedule.learning_rate == pytest.approx(0.01 / 8)
    text = "\n".join(plan.lines())
    assert "train.iterations=3200000" in text
    assert "8 clips per GPU x 1 process = 8 clips" in text


def test_memory_refusal_names_the_largest_batch_that_fits() -> None:
    plan = MemoryPlan(
        state_bytes=2**30, clip_bytes=2**30, available_bytes=6 * 2**30, clips_per_gpu=8
    )
    with pytest.raises(RunError, match="at most 5 clips fit"):
        plan.check()
    MemoryPlan(2**30, 2**30, 9 * 2**30, 8).check()


def test_probe_counts_what_the_backward_pass_needs() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    plan = probe_memory(model, torch.zeros(1, 10), clips_per_gpu=3, processes_on_device=1)
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert plan.state_bytes == 3 * weights
    # The input (10), the output of the ReLU (20) and log-probabilities (5), with a few scalars.
    assert (10 + 20 + 5) * 4 <= plan.clip_bytes <= (10 + 20 + 5) * 4 + 64
    assert plan.clips_per_gpu == 3


@pytest.mark.parametrize("norm", ["bn", "gn", "frozen_bn", "none"])
def test_memory_from_shapes_is_that_of_a_real_step(norm):
    def network():
        return i3d(norm=norm, width=8, num_groups=4, depths=(1, 2), num_classes=5)

    real = kept_bytes(network(), torch.zeros(2, 3, 8, 48, 48))
    with torch.device("meta"):
        planned = kept_bytes(network(), torch.zeros(2, 3, 8, 48, 48))
    # Real kernels keep a little besides, such as the masks and sums of some norms.
    assert real == pytest.approx(planned, rel=0.02)


def test_frozen_parameters_have_no_gradient_and_no_momentum():
    trained, frozen = (
        i3d(norm=n, width=8, depths=(1,), num_classes=5) for n in ("bn", "frozen_bn")
    )
    norms = sum(p.numel() for p in frozen.parameters() if not p.requires_grad)
    assert state_bytes(trained) - state_bytes(frozen) == 2 * 4 * norms
