import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videogn.engine import memory_plan
from videogn.engine.device_memory import is_out_of_memory
from videogn.engine.memory import (
    SLACK,
    Moments,
    StepMemory,
    predict_memory,
)
from videogn.engine.memory_plan import MemoryPlan, check_memory, measure_step
from videogn.errors import RunError
from videogn.models.build import build_network
from videogn.models.execution import EAGER
from videogn.models.spec import ARCHITECTURES, NetworkSpec

GIB = 2**30
REAL = (32, 224, 224)
SMALL = (8, 48, 48)


def spec(arch="i3d_r50", *, norm="gn", layout="nonlocal", width=None, depths=None, num_groups=32):
    own = ARCHITECTURES[arch]
    return NetworkSpec(
        arch, norm, num_groups, None, layout, 400, width or own.width, depths or own.depths, 0.5
    )


def step_of(state, kept, allocated):
    return StepMemory(state, *(Moments(((0, size),)) for size in (kept, allocated, allocated)))


def test_refusal_names_the_largest_batch_that_should_fit():
    # 1 GiB of state leaves 5 GiB for clips that take 1 GiB and a tenth for slack each.
    plan = MemoryPlan(step_of(GIB, GIB // 2, GIB), clips_per_gpu=8, available_bytes=6 * GIB)
    with pytest.raises(RunError, match=r"needs about 9\.00 GiB and 6\.00 GiB are free; at most 4 "):
        plan.check()
    with pytest.raises(RunError, match=r"set train\.clips_per_gpu=4$"):
        plan.check()
    MemoryPlan(step_of(GIB, GIB, GIB), 8, 9 * GIB).check()


def test_a_plan_that_may_just_fit_is_called_tight_and_goes_on():
    plan = MemoryPlan(step_of(GIB, GIB // 2, GIB), clips_per_gpu=5, available_bytes=6 * GIB)
    plan.check()
    assert plan.line() == (
        "memory      1.00 GiB for weights, gradients and momentum + 2.50 GiB kept of 5 clips + "
        "2.50 GiB in passing = 6.00 GiB of 6.00 GiB free; tight: 4 clips should fit"
    )


def test_where_not_one_clip_fits_the_remedy_is_another():
    with pytest.raises(RunError, match=r"not one clip fits: set a smaller clip\.num_frames"):
        MemoryPlan(step_of(2 * GIB, GIB, GIB), 1, GIB).check()


@given(st.integers(0, 10**10), st.integers(1, 10**9), st.integers(1, 64), st.integers(0, 10**11))
def test_a_refused_plan_is_told_a_batch_that_is_not_refused(state, per_clip, clips, free):
    step = step_of(state, per_clip, per_clip)
    try:
        MemoryPlan(step, clips, free).check()
    except RunError as error:
        found = re.search(r"clips_per_gpu=(\d+)$", str(error))
        if found:
            fitting = int(found[1])
            assert fitting < clips
            MemoryPlan(step, fitting, free).check()
            # Not needlessly few: one more would leave less than the slack.
            assert state + SLACK * (fitting + 1) * per_clip > free - 2
    else:
        assert state + clips * per_clip <= free


def test_memory_of_a_cpu_is_shared_by_its_ranks(monkeypatch):
    monkeypatch.setattr(memory_plan, "available_bytes", lambda device: 40 * GIB)
    wanted = spec(width=8, depths=(1, 1), num_groups=4)

    def plan(ranks, clips):
        return check_memory(
            wanted,
            SMALL,
            clips_per_gpu=clips,
            precision="fp32",
            device=torch.device("cpu"),
            local_ranks=ranks,
        )

    alone, four = plan(1, 8), plan(4, 8)
    assert four.available_bytes == alone.available_bytes // 4 == 10 * GIB
    with pytest.raises(RunError, match=rf"at most {four.largest_batch} clips should fit"):
        plan(4, 2 * four.largest_batch)
    plan(1, 2 * four.largest_batch)


# --- A real step ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "precision"), [("gn", "fp32"), ("bn", "bf16")])
def test_the_steps_that_are_measured_train(norm, precision, monkeypatch):
    built = []

    def build(wanted):
        network = build_network(wanted)
        built.append((network, [p.detach().clone() for p in network.parameters()]))
        return network

    monkeypatch.setattr(memory_plan, "build_network", build)
    wanted = spec(norm=norm, width=8, depths=(1, 1), num_groups=4)
    memory_plan._two_steps(wanted, (2, *SMALL), precision, torch.device("cpu"), EAGER)
    ((network, before),) = built
    assert any(
        not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)
    )


@pytest.fixture
def pretended_gpu(monkeypatch):
    """As much of a GPU's bookkeeping as the measurement asks for."""
    for name in ("reset_peak_memory_stats", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5 * GIB)
    monkeypatch.setattr(memory_plan, "available_bytes", lambda _: GIB)


def measure(monkeypatch, two_steps):
    monkeypatch.setattr(memory_plan, "_two_steps", two_steps)
    return measure_step(
        spec(),
        REAL,
        clips_per_gpu=8,
        precision="fp32",
        device=torch.device("cuda", 0),
    )


def test_measurement_leaves_out_what_was_there_before(pretended_gpu, monkeypatch):
    assert measure(monkeypatch, lambda *_: None) == 2 * GIB


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_step_out_of_memory_names_the_clips_that_fit(pretended_gpu, monkeypatch, error):
    def fail(*_):
        raise error

    assert is_out_of_memory(error)
    # 1 GiB less 0.31 of state, over 1.1, at 0.56 GiB a clip.
    message = r"clips_per_gpu=8: a step ran out of memory, of which 1\.00 GiB were free; by "
    with pytest.raises(RunError, match=message + r"prediction at most 1 clip should fit"):
        measure(monkeypatch, fail)


def test_other_errors_of_a_step_stay_what_they_are(pretended_gpu, monkeypatch):
    def fail(*_):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        measure(monkeypatch, fail)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prediction_is_near_the_peak_on_a_gpu(norm, precision):
    device = torch.device("cuda", torch.cuda.current_device())
    peak = measure_step(spec(norm=norm), REAL, clips_per_gpu=4, precision=precision, device=device)
    predicted = predict_memory(spec(norm=norm), REAL, precision)
    assert predicted.least(4) * 0.9 < peak < predicted.peak(4) * 1.25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_too_many_clips_for_a_gpu_end_in_a_message_and_leave_it_empty():
    device = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.memory_allocated(device)
    clips = 2 * predict_memory(spec(), REAL, "fp32").largest_batch(
        torch.cuda.get_device_properties(device).total_memory
    )
    with pytest.raises(RunError, match="ran out of memory"):
        measure_step(spec(), REAL, clips_per_gpu=clips, precision="fp32", device=device)
    assert torch.cuda.memory_allocated(device) == before
