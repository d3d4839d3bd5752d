"""Stacked clips beside torch's own paddings and slices of them, bit for bit."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from videogn.models import views
from videogn.models.i3d import i3d
from videogn.models.kernels import stack as stacking
from videogn.models.views import LAST, STEMS, StemConv3d, use_views


def stem_of(convolution: nn.Conv3d, stem: str, *, kernels: bool) -> StemConv3d:
    holder = nn.Sequential(convolution)
    use_views(holder, stem, kernels=kernels)
    made = holder[0]
    assert isinstance(made, StemConv3d)
    return made


@st.composite
def stems(draw: st.DrawFn) -> tuple[nn.Conv3d, tuple[int, ...]]:
    """A convolution, and the shape of clips that it takes."""
    colours, num_clips = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(2, 5)) for _ in range(3))
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    sides = [draw(st.integers(size, size + 5)) for size in kernel]
    stride = (draw(st.integers(1, 3)), 2, 2)
    convolution = nn.Conv3d(colours, 2, kernel, stride, padding)
    return convolution, (num_clips, colours, *sides)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    drawn=stems(),
    stem=st.sampled_from([stem for stem in STEMS if stem != "native"]),
    last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_images_are_those_of_torch(
    device: torch.device,
    drawn: tuple[nn.Conv3d, tuple[int, ...]],
    stem: str,
    last: bool,
    dtype: torch.dtype,
) -> None:
    convolution, shape = drawn
    # No value twice, and none is 0, which stands for padding.
    video = torch.arange(1, torch.Size(shape).numel() + 1).view(shape).to(device, dtype)
    video = video.contiguous(memory_format=LAST) if last else video
    found = stem_of(convolution, stem, kernels=True)._images(video)
    expected = stem_of(convolution, stem, kernels=False)._images(video)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


def test_outputs_and_gradients_of_a_network_are_those_without(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = i3d(norm="gn", num_groups=4, width=8, depths=(1,), num_classes=3, dropout=0.0)
    clips = torch.randn(2, 3, 8, 20, 24).to(device).contiguous(memory_format=LAST)
    calls, ours = [], stacking.stack
    monkeypatch.setattr(views, "stack", lambda *given: calls.append(given) or ours(*given))
    found = []
    for kernels in (False, True):
        network = i3d(norm="gn", num_groups=4, width=8, depths=(1,), num_classes=3, dropout=0.0)
        network.load_state_dict(plain.state_dict())
        use_views(network, "space_padded", kernels=kernels)
        network.to(device, memory_format=LAST)
        logits = network(clips)
        logits.square().sum().backward()
        found.append([logits, *(weight.grad for weight in network.parameters())])
    assert len(calls) == 2  # and again for the gradient
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_clips_with_a_gradient_are_stacked_by_torch(device: torch.device) -> None:
    stem = stem_of(nn.Conv3d(3, 2, (3, 4, 4), (1, 2, 2), 1).to(device), "space", kernels=True)
    clips = torch.randn(1, 3, 4, 8, 8, device=device, requires_grad=True)
    stem(clips).sum().backward()
    assert clips.grad is not None


def test_a_cpu_without_the_interpreter_stacks_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    stem = stem_of(nn.Conv3d(3, 2, (3, 4, 4), (1, 2, 2), 1), "space_padded", kernels=True)
    clips = torch.randn(1, 3, 4, 8, 8)
    images: Tensor = stem._images(clips)
    assert images.shape[-1] == 40


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["zoo", "nonlocal"])
def test_stems_of_the_layouts_on_a_gpu(layout: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    video = torch.randn(2, 3, 32, 224, 224, device="cuda", dtype=torch.bfloat16)
    video = video.contiguous(memory_format=LAST)
    found = []
    for kernels in (False, True):
        network = i3d(norm="gn", layout=layout, num_classes=3)
        use_views(network, "space_padded", kernels=kernels)
        [stem] = [part for part in network.modules() if isinstance(part, StemConv3d)]
        found.append(stem._images(video))
    assert torch.equal(*found)
