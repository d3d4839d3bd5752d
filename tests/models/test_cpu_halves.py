"""bf16 convolutions of tiny clips on a CPU, in memory that holds garbage before.

On CPUs without bf16 instructions torch's own code is right, and these tests cannot fail.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from videogn.models import i3d
from videogn.models.cpu_halves import SoundConv3d, SoundFramesConv3d, make_sound
from videogn.models.views import use_views

CASES = """
import torch
import torch.nn.functional as F
from torch import nn
from videogn.models.cpu_halves import make_sound
from videogn.models.views import use_views

torch.set_num_threads(1)
CASES = [
    ((3, 1, 1), (1, 1, 1), (2, 7, 7)),
    ((5, 7, 7), (2, 2, 2), (4, 14, 14)),
    ((3, 3, 3), (1, 1, 1), (2, 7, 7)),
    ((1, 3, 3), (1, 2, 2), (8, 1, 1)),
    ((1, 3, 3), (1, 2, 2), (2, 4, 2)),
    ((1, 3, 3), (1, 1, 1), (3, 7, 7)),
]
for kernel, stride, size in CASES:
    for channels, outputs in ((3, 16), (4, 4), (64, 64)):
        for views in (False, True):
            torch.manual_seed(0)
            padding = tuple(k // 2 for k in kernel)
            conv = nn.Conv3d(channels, outputs, kernel, stride, padding, bias=False)
            x = torch.randn(2, channels, *size).bfloat16()
            weight = conv.weight.detach().bfloat16().double().requires_grad_()
            exact = F.conv3d(x.double(), weight, None, stride, padding)
            grad = torch.randn(exact.shape).bfloat16()
            exact.backward(grad.double())
            network = nn.Sequential(conv)
            if views:
                use_views(network)
            make_sound(network)
            with torch.autocast("cpu", torch.bfloat16):
                found = network(x.contiguous(memory_format=torch.channels_last_3d))
            assert found.dtype == torch.bfloat16
            found.backward(grad)
            for one, two in ((found, exact), (conv.weight.grad, weight.grad)):
                error = float((one.double() - two).abs().max() / two.abs().max())
                assert error < 2e-2, (kernel, size, channels, views, error)
for size in ((1, 1), (2, 2), (7, 2)):
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
    x = torch.randn(4, 64, *size).bfloat16()
    weight = conv.weight.detach().bfloat16().double().requires_grad_()
    exact = F.conv2d(x.double(), weight, None, 2, 1)
    grad = torch.randn(exact.shape).bfloat16()
    exact.backward(grad.double())
    network = make_sound(nn.Sequential(conv))
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    found.backward(grad)
    for one, two in ((found, exact), (network[0].weight.grad, weight.grad)):
        error = float((one.double() - two).abs().max() / two.abs().max())
        assert error < 2e-2, (size, error)
print("right")
"""


def test_outputs_and_gradients_are_right_whatever_lay_in_memory() -> None:
    """glibc fills memory with bytes of 0x7f: huge numbers in bf16."""
    done = subprocess.run(
        [sys.executable, "-c", CASES],
        env=os.environ | {"MALLOC_PERTURB_": "128"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "right", done.stderr


def conv(kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)) -> SoundConv3d:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv3d(4, 4, kernel, stride, tuple(k // 2 for k in kernel)))
    (found,) = make_sound(made)
    assert isinstance(found, SoundConv3d)
    return found


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "whole"),
    [
        ((3, 1, 1), (1, 1, 1), (2, 7, 7), True),
        ((3, 1, 1), (1, 1, 1), (3, 7, 7), False),
        ((1, 3, 3), (1, 2, 2), (4, 4, 2), True),
        ((1, 3, 3), (1, 2, 2), (4, 4, 3), False),
        ((1, 1, 1), (1, 2, 2), (4, 4, 2), True),
        ((1, 1, 1), (1, 1, 1), (4, 1, 1), False),
    ],
)
def test_what_is_computed_in_float32(
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    size: tuple[int, int, int],
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    types: list[torch.dtype] = []
    original = nn.Conv3d._conv_forward

    def noted(self: nn.Conv3d, x: Tensor, *rest: Tensor | None) -> Tensor:
        types.append(x.dtype)
        return original(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.Conv3d, "_conv_forward", noted)
    layer, x = conv(kernel, stride), torch.randn(1, 4, *size)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert types == [torch.float32 if whole else torch.bfloat16]
    assert torch.equal(layer(x), original(layer, x, layer.weight, layer.bias))


def test_every_convolution_is_exchanged_and_its_weights_stay() -> None:
    network = i3d(width=4, depths=(1, 1), channels_per_group=2, num_classes=3)
    before = dict(network.named_parameters())
    plain = [m for m in network.modules() if type(m) is nn.Conv3d]
    make_sound(network)
    kinds = [type(m) for m in network.modules()]
    assert kinds.count(SoundConv3d) == len(plain)
    assert nn.Conv3d not in kinds
    assert all(p is before[name] for name, p in network.named_parameters())
    other = i3d(width=4, depths=(1, 1), channels_per_group=2, num_classes=3)
    use_views(other)
    make_sound(other)
    assert SoundFramesConv3d in [type(m) for m in other.modules()]
