import os
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from driving import forked
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from videogn.engine import memory
from videogn.engine.arithmetic import PRECISIONS
from videogn.engine.memory import (
    Moments,
    predict_memory,
    state_bytes,
    step_memory,
)
from videogn.models.build import build_network
from videogn.models.i3d import i3d
from videogn.models.spec import ARCHITECTURES, NetworkSpec

GIB = 2**30
REAL = (32, 224, 224)
SMALL = (8, 48, 48)
STAGES = (2, 1, 1, 1)
"""Every stage of the real network, without the repetitions of its blocks."""


def spec(arch="i3d_r50", *, norm="gn", layout="nonlocal", width=None, depths=None, num_groups=32):
    own = ARCHITECTURES[arch]
    return NetworkSpec(
        arch, norm, num_groups, None, layout, 400, width or own.width, depths or own.depths, 0.5
    )


def small(norm):
    return i3d(norm=norm, width=8, num_groups=4, depths=(1, 2), num_classes=5)


def on_meta(build):
    with torch.device("meta"):
        return build()


def moments(*lines):
    return Moments(tuple(lines))


# --- The lines -----------------------------------------------------------------------------------

lines = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1, max_size=6)


@given(lines, st.integers(0, 10**9))
def test_largest_batch_fits_and_one_more_does_not(pairs, room):
    found = moments(*pairs)
    most = found.largest_batch(room)
    if found.peak(0) <= room:
        assert found.peak(most) <= room < found.peak(most + 1)
    else:
        assert most == 0


@given(st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, 1000)), min_size=1))
def test_lines_that_are_left_out_are_never_highest(pairs):
    few = Moments(memory._highest(pairs))
    assert all(few.peak(n) == max(a + n * b for a, b in pairs) for n in range(40))


@pytest.mark.parametrize("norm", ["bn", "gn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lines_hold_at_batches_that_were_not_traced(norm, dtype):
    network = on_meta(lambda: small(norm))
    predicted = step_memory(network, SMALL, dtype)
    for batch in (4, 11):
        trace = memory._trace(network, (batch, *SMALL), dtype, "cuda", torch.contiguous_format)
        update = 2 * 4 * sum(p.numel() for p in network.parameters())
        assert predicted.allocated.peak(batch) == max(*trace.allocated, update)
        assert predicted.with_workspace.peak(batch) == max(*trace.with_workspace, update)
        assert predicted.kept.peak(batch) == trace.kept


class OneConvolution(torch.nn.Module):
    """(B, 3, T, H, W) to (B, 2)."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 2, 1, bias=False)

    def forward(self, clips):
        return self.conv(clips).mean((2, 3, 4))


def test_a_step_of_one_convolution_is_as_counted_by_hand():
    step = step_memory(on_meta(OneConvolution), (4, 6, 5), torch.float32)
    places, weight = 4 * 6 * 5, 3 * 2 * 4
    clip, output = 3 * places * 4, 2 * places * 4
    labels = logits = 8  # one int64; two float32, as log-probabilities and gradients have
    assert step.state_bytes == 3 * weight
    # The loss and the sum of its weights are 4 bytes each, of any batch.
    assert step.kept.lines == ((8, clip + labels + logits + logits),)
    # When the mean's gradient is spread over the places, the logits' is still there.
    assert step.allocated.lines[0] == (8, clip + labels + logits + output + logits)
    # The gradient of the weight is new, with the loss and its gradient there, and its kernel
    # may copy the clips, their outputs' gradients, the weight and its gradient.
    living, copies = clip + labels + logits + output, clip + output
    assert step.with_workspace.lines == ((8 + weight + 2 * weight, living + copies),)
    assert step.peak(10) == 3 * weight + 8 + 3 * weight + 10 * (living + copies)


# --- What is kept, against counts by other means -------------------------------------------------


@contextmanager
def cuda_autocast(dtype):
    """CUDA's autocast where torch.autocast would refuse for want of a GPU."""
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def saved_bytes(build, batch, dtype):
    """Bytes that autograd saves of a forward pass on fake tensors of a GPU, but for parameters."""
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode(), torch.device("cuda"):
        network = build().train()
        parameters = {p.untyped_storage()._cdata for p in network.parameters()}
        clips = torch.empty(batch[0], 3, *batch[1:])
        labels = torch.zeros(batch[0], dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            with cuda_autocast(dtype):
                logits = network(clips)
            loss = F.cross_entropy(logits.float(), labels)
        del loss
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")  # pytorchvideo's Swish
@pytest.mark.parametrize(
    ("wanted", "clip", "dtype"),
    [
        (spec(norm="bn", depths=STAGES), REAL, torch.bfloat16),
        (spec(norm="gn"), REAL, torch.float32),
        (spec(norm="gn", depths=STAGES), REAL, torch.float16),
        (spec(norm="frozen_bn", layout="zoo", depths=STAGES), (8, 224, 224), torch.bfloat16),
        (spec("x3d_m", norm="bn"), (16, 224, 224), torch.bfloat16),
        (spec("r2plus1d_r50", norm="gn"), (16, 224, 224), torch.bfloat16),
        (spec("vgg16", norm="gn"), (1, 224, 224), torch.bfloat16),
    ],
    ids=lambda value: getattr(value, "arch", None),
)
def test_kept_memory_is_what_autograd_saves_under_autocast_of_cuda(wanted, clip, dtype):
    def build():
        return build_network(wanted)

    kept = predict_memory(wanted, clip, {v: k for k, v in PRECISIONS.items()}[dtype]).kept
    # Besides what is saved, the clips in float32 are still there under autocast.
    clips = 4 * 3 * clip[0] * clip[1] * clip[2] if dtype != torch.float32 else 0
    for batch in (2, 8):
        saved = saved_bytes(build, (batch, *clip), dtype)
        assert kept.peak(batch) - batch * clips == pytest.approx(saved, rel=0.01)


@pytest.mark.parametrize(
    ("norm", "layout", "megabytes"),
    [("bn", "zoo", 1174), ("bn", "nonlocal", 326), ("gn", "zoo", 2594), ("gn", "nonlocal", 720)],
)
def test_kept_memory_is_near_counts_by_hand(norm, layout, megabytes):
    # Counts of saved activations in bf16 layer by layer, without the clips themselves.
    ((_, per_clip),) = predict_memory(spec(norm=norm, layout=layout), REAL, "bf16").kept.lines
    clip = 4 * 3 * 32 * 224 * 224
    assert (per_clip - clip) / 1e6 == pytest.approx(megabytes, rel=0.06)


def test_state_is_weights_gradients_momentum_and_average():
    trained, frozen = (on_meta(lambda n=n: small(n)) for n in ("bn", "frozen_bn"))
    weights = sum(p.numel() for p in trained.parameters())
    norms = sum(p.numel() for p in frozen.parameters() if not p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in trained.buffers())
    assert state_bytes(trained) == 3 * 4 * weights + buffers
    assert state_bytes(trained, averaged=True) == 4 * 4 * weights + 2 * buffers
    kept = sum(b.numel() * b.element_size() for b in frozen.buffers())
    assert state_bytes(frozen) == 3 * 4 * weights - 2 * 4 * norms + kept


# --- The peak, against other measures of it ------------------------------------------------------


def train_steps(network, batch, dtype, around):
    """Two steps as training has them; ``around`` is entered for the second."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )

    def step():
        pixels = torch.zeros(batch[0], 3, *batch[1:], dtype=torch.uint8)
        clips = pixels.float().mul_(2.0).sub_(1.0)
        del pixels
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = network(clips)
        labels = torch.zeros(batch[0], dtype=torch.long)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step()
    with around(network, optimizer):
        step()


def tracked_peak(build, batch, dtype):
    """Peak of a step by torch's own memory tracker, on fake tensors."""
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()

    @contextmanager
    def around(network, optimizer):
        tracker.track_external(network, optimizer)
        with tracker:
            yield

    with FakeTensorMode():
        train_steps(build().train(), batch, dtype, around)
        (found,) = tracker.get_tracker_snapshot("peak").values()
    return found["Total"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "batch", "dtype"),
    [
        (lambda: small("bn"), (4, *SMALL), torch.float32),
        (lambda: small("gn"), (4, *SMALL), torch.bfloat16),
        (lambda: i3d(norm="gn", depths=STAGES), (8, *REAL), torch.float32),
        (lambda: i3d(norm="bn", depths=STAGES), (8, *REAL), torch.bfloat16),
    ],
    ids=["small bn fp32", "small gn bf16", "i3d gn fp32", "i3d bn bf16"],
)
def test_peak_is_that_of_torchs_tracker(build, batch, dtype):
    predicted = step_memory(on_meta(build), batch[1:], dtype, device="cpu")
    assert predicted.least(batch[0]) == pytest.approx(tracked_peak(build, batch, dtype), rel=0.002)


def test_peak_is_near_that_of_the_real_allocator():
    """What torch's allocator hands out in a real step on the CPU, temporaries of kernels too."""
    batch, profiles = (8, 8, 64, 64), []

    @contextmanager
    def around(network, optimizer):
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile:
            yield
        profiles.append(profile)

    train_steps(small("gn").train(), batch, torch.float32, around)
    now = peak = 0
    for event in profiles[0].profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    predicted = step_memory(on_meta(lambda: small("gn")), batch[1:], torch.float32, device="cpu")
    assert peak == pytest.approx(predicted.allocated.peak(8), rel=0.15)


RESIDENT = """
import ctypes, torch, torch.nn.functional as F
from pathlib import Path
from videogn.models.i3d import i3d

def high_water():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

network = i3d(norm="gn", width=16, num_groups=4, num_classes=5).train()
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)

def step(batch):
    clips = torch.zeros(batch, 3, 8, 112, 112, dtype=torch.uint8).float()
    F.cross_entropy(network(clips), torch.zeros(batch, dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)

# Nothing but large blocks of their own, which are given back; and the high water from here on.
assert ctypes.CDLL(None).mallopt(-3, 65536) == 1  # M_MMAP_THRESHOLD
Path("/proc/self/clear_refs").write_text("5")
for batch in (4, 16):
    step(batch)
    print(high_water())
"""


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells it there")  # noqa: PTH110
def test_more_clips_take_the_resident_memory_that_was_predicted(tmp_path):
    # By the differences, for Python and torch themselves take some.
    with forked(RESIDENT, tmp_path) as process:
        assert process.ended(120) == 0, process.stderr.read_text()
    few, many = map(int, process.stdout.read_text().split())
    network = on_meta(lambda: i3d(norm="gn", width=16, num_groups=4, num_classes=5))
    predicted = step_memory(network, (8, 112, 112), torch.float32, device="cpu")
    assert many - few == pytest.approx(predicted.least(16) - predicted.least(4), rel=0.2)
