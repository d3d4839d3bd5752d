"""Convolutions as 2D convolutions against torch's 3D convolution in double precision."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from videogn.engine.allocations import Allocations
from videogn.errors import UserError
from videogn.models import i3d
from videogn.models.build import build_network
from videogn.models.cudnn import conv3d_fault
from videogn.models.spec import ARCHITECTURES, NetworkSpec
from videogn.models.views import (
    LAST,
    STEMS,
    FramesConv3d,
    RowsConv3d,
    StemConv3d,
    StepsConv3d,
    use_views,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

FORMS = {
    # arguments of nn.Conv3d -> the class that takes its place
    "1x1x1": ({"kernel_size": 1}, RowsConv3d),
    "1x1x1 of half the places": ({"kernel_size": 1, "stride": (1, 2, 2)}, FramesConv3d),
    "1x1x1 of some steps and places": ({"kernel_size": 1, "stride": (3, 2, 1)}, FramesConv3d),
    "1x1x1 in groups": ({"kernel_size": 1, "groups": 4}, FramesConv3d),
    "1x1x1 padded": ({"kernel_size": 1, "padding": (0, 1, 0)}, FramesConv3d),
    "1x3x3": ({"kernel_size": (1, 3, 3), "padding": (0, 1, 1)}, FramesConv3d),
    "1x3x3 strided": (
        {"kernel_size": (1, 3, 3), "stride": (2, 2, 2), "padding": (0, 1, 1)},
        FramesConv3d,
    ),
    "1x3x3 dilated": (
        {"kernel_size": (1, 3, 3), "padding": (0, 2, 1), "dilation": (1, 2, 1)},
        FramesConv3d,
    ),
    "1x3x3 depthwise": ({"kernel_size": (1, 3, 3), "groups": 8, "bias": False}, FramesConv3d),
    "3x1x1": ({"kernel_size": (3, 1, 1), "padding": (1, 0, 0)}, StepsConv3d),
    "3x1x1 strided": (
        {"kernel_size": (3, 1, 1), "stride": (2, 1, 2), "padding": (1, 0, 0)},
        StepsConv3d,
    ),
    "5x1x1 depthwise": ({"kernel_size": (5, 1, 1), "padding": (2, 0, 0), "groups": 8}, StepsConv3d),
    "3x1x1 dilated": ({"kernel_size": (3, 1, 1), "dilation": (2, 1, 1)}, StepsConv3d),
    "3x3x3": ({"kernel_size": 3, "padding": 1}, nn.Conv3d),
    "as a string": ({"kernel_size": (1, 3, 3), "padding": "same"}, nn.Conv3d),
    "mirrored": ({"kernel_size": (1, 3, 3), "padding": 1, "padding_mode": "reflect"}, nn.Conv3d),
}
SIZES = {"usual": (2, 8, 6, 7, 5), "one clip": (1, 8, 6, 4, 4), "one place": (2, 8, 6, 3, 3)}
STEM_SHAPES = {
    "I3D": ((2, 3, 8, 12, 10), (5, 7, 7), (2, 2, 2), (2, 3, 3)),
    "8x8, odd sides": ((2, 3, 5, 11, 13), (5, 7, 7), (1, 2, 2), (2, 3, 3)),
    "C2D": ((1, 3, 4, 12, 10), (1, 7, 7), (2, 2, 2), (0, 3, 3)),
    "even kernel, other padding": ((2, 3, 4, 9, 12), (2, 4, 3), (1, 2, 2), (0, 2, 0)),
    "one colour": ((1, 1, 4, 8, 8), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
}


def replaced(convolution: nn.Conv3d, stem: str = "native") -> nn.Module:
    """The form of a copy of a convolution."""
    holder = nn.Sequential(copy.deepcopy(convolution))
    use_views(holder, stem)
    return holder[0]


def check_same(convolution: nn.Conv3d, form: nn.Module, video: Tensor) -> None:
    """Outputs and the gradients of video, kernel and bias; in double precision."""
    convolution.zero_grad()
    expected_in, found_in = video.clone().requires_grad_(), video.clone().requires_grad_()
    expected, found = convolution(expected_in), form(found_in)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert found_in.grad is not None
    torch.testing.assert_close(found_in.grad, expected_in.grad, rtol=1e-11, atol=1e-11)
    for mine, theirs in zip(form.parameters(), convolution.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "contiguous"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_3d_convolution(form: str, size: str, last: bool) -> None:
    torch.manual_seed(0)
    arguments, kind = FORMS[form]
    convolution = nn.Conv3d(8, 12 if "groups" not in arguments else 16, **arguments).double()
    video = torch.randn(SIZES[size], dtype=torch.double)
    if last:
        convolution.to(memory_format=LAST)
        video = video.contiguous(memory_format=LAST)
    made = replaced(convolution)
    assert type(made) is kind
    check_same(convolution, made, video)
    if kind is not nn.Conv3d:
        assert made(video).is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", STEM_SHAPES)
def test_each_stem_is_the_3d_convolution(name: str, stem: str) -> None:
    torch.manual_seed(0)
    shape, kernel, stride, padding = STEM_SHAPES[name]
    convolution = nn.Conv3d(shape[1], 6, kernel, stride, padding).double()
    made = replaced(convolution, stem)
    assert isinstance(made, StemConv3d) == (stem != "native")
    check_same(convolution, made, torch.randn(shape, dtype=torch.double))
    last = torch.randn(shape, dtype=torch.double).contiguous(memory_format=LAST)
    check_same(convolution.to(memory_format=LAST), replaced(convolution, stem), last)


def test_a_map_of_one_place_and_one_step_keeps_its_channels_last() -> None:
    for arguments, _ in (FORMS["1x1x1"], FORMS["1x3x3"], FORMS["3x1x1"]):
        made = replaced(nn.Conv3d(8, 12, **arguments))
        for batch in (1, 2):
            out = made(torch.randn(batch, 8, 1, 1, 1))
            assert out.stride() == (12, 1, 12, 12, 12)


class Copies(TorchDispatchMode):
    """Counts the operations that move a tensor's numbers."""

    NAMES = ("clone", "copy_", "_to_copy", "contiguous", "cat", "constant_pad_nd")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.__name__.partition(".")[0]
        if name in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_copied_on_the_way(device: str) -> None:
    network = i3d(norm="bn", width=32, depths=(2, 1), num_classes=3, dropout=0.0)
    network = network.to(device, memory_format=LAST)
    assert use_views(network) == 4 + 3 + 4  # all but the stem
    clips = torch.randn(1, 3, 8, 32, 32, device=device).contiguous(memory_format=LAST)
    formats = []
    for module in network.modules():
        if isinstance(module, RowsConv3d | FramesConv3d | StepsConv3d):
            module.register_forward_hook(
                lambda _module, _inputs, out: formats.append(out.is_contiguous(memory_format=LAST))
            )
    with Copies() as copies, torch.no_grad():
        network.features(clips)
    assert copies.found == []
    assert len(formats) == 11
    assert all(formats)


def test_the_memory_plan_is_that_of_the_3d_convolutions() -> None:
    """On the meta device, whose 3D convolutions and pools have their channels first."""
    network = i3d(norm="bn", width=32, depths=(2, 1), num_classes=3).to("meta").eval()
    network.to(memory_format=LAST)
    live = []
    for _ in range(2):
        clips = torch.empty(1, 3, 8, 64, 64, device="meta").contiguous(memory_format=LAST)
        with Allocations([]) as allocations, torch.inference_mode():
            network.features(clips)
        live.append(max(allocations.allocated))
        use_views(network)
    assert live[0] == live[1]


@pytest.mark.parametrize(
    ("inflation", "layout", "stem"),
    [
        ("3x1x1", LAST, "native"),
        ("3x1x1", LAST, "space_padded"),
        ("3x1x1", torch.contiguous_format, "time"),
        ("none", LAST, "time_padded"),
        ("none", torch.contiguous_format, "space"),
    ],
)
def test_parameters_are_shared_and_gradients_have_their_strides(
    inflation: str, layout: torch.memory_format, stem: str
) -> None:
    """DDP warns once, and copies, where a gradient's strides are not those of its parameter."""
    network = i3d(inflation=inflation, norm="bn", width=32, depths=(1, 1), num_classes=3)
    network.to(memory_format=layout)
    state = network.state_dict(keep_vars=True)
    use_views(network, stem)
    now = network.state_dict(keep_vars=True)
    assert list(now) == list(state)
    assert all(now[name] is state[name] for name in state)
    network(torch.randn(2, 3, 8, 32, 32).contiguous(memory_format=LAST)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name


def test_x3d_computes_the_same() -> None:
    torch.manual_seed(0)
    known = ARCHITECTURES["x3d_xs"]
    network = build_network(
        NetworkSpec(
            arch="x3d_xs",
            norm="bn",
            num_groups=32,
            channels_per_group=4,
            layout="nonlocal",
            num_classes=7,
            width=known.width,
            depths=known.depths,
            dropout=0.0,
        )
    ).eval()
    other = copy.deepcopy(network).to(memory_format=LAST)
    # Its stem, and two pointwise kernels, two of squeezing and one shortcut of most blocks.
    assert use_views(other) > 60
    clips = torch.randn(1, 3, 4, 160, 160)
    with torch.inference_mode():
        expected, found = network(clips), other(clips.contiguous(memory_format=LAST))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stem", STEMS)
def test_autocast(stem: str, device: str) -> None:
    network, other, clips = pair_of_networks(stem, device)
    with torch.no_grad():
        expected = network(clips)
        torch.testing.assert_close(other(clips), expected, rtol=1e-3, atol=1e-4)
        with torch.autocast(device, torch.bfloat16):
            found = other(clips)
    assert found.dtype == torch.bfloat16
    # Of one rounding to 8 bits per layer; logits of this network are about 1.
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stem", ["native", "space_padded"])
def test_full_graph_compiling(stem: str, device: str) -> None:
    network, other, clips = pair_of_networks(stem, device)
    torch.compiler.reset()  # of the other networks of this test
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(clips), network(clips), rtol=1e-3, atol=1e-4)
        with torch.autocast(device, torch.bfloat16):
            torch.testing.assert_close(compiled(clips), other(clips), rtol=0.05, atol=0.05)


def pair_of_networks(stem: str, device: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network, the same with views, and clips for both."""
    torch.manual_seed(0)
    network = i3d(norm="bn", width=8, depths=(1, 1), num_classes=3, dropout=0.0).eval()
    network.to(device, memory_format=LAST)
    other = copy.deepcopy(network)
    use_views(other, stem)
    clips = torch.randn(2, 3, 8, 32, 32, device=device).contiguous(memory_format=LAST)
    return network, other, clips


def test_there_is_no_such_stem() -> None:
    with pytest.raises(UserError, match="stem='fast': there is none of that name; choose from nat"):
        use_views(nn.Sequential(), "fast")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_forms_on_a_gpu(form: str, dtype: torch.dtype) -> None:
    """Against double precision; the tolerance is that of one rounding of the result."""
    torch.manual_seed(0)
    arguments, kind = FORMS[form]
    if kind is nn.Conv3d:
        pytest.skip("stays a 3D convolution")
    convolution = nn.Conv3d(8, 16, **arguments).cuda().to(dtype).to(memory_format=LAST)
    video = torch.randn(2, 8, 6, 7, 5, device="cuda", dtype=dtype).contiguous(memory_format=LAST)
    made = replaced(convolution)
    exact = copy.deepcopy(convolution).double()(video.double())
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = made(video)
    assert found.is_contiguous(memory_format=LAST)
    precision = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=precision, atol=precision)
    F.mse_loss(found.float(), torch.zeros_like(found, dtype=torch.float32)).backward()
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


def test_faults_of_cudnn_are_told_with_their_remedy() -> None:
    for version in (90800, 91002, 91300, 91400, 91499):
        for dtype in (torch.bfloat16, torch.float16):
            reason = conv3d_fault(dtype, version)
            assert reason is not None
            assert "163539" in reason
            assert ">= 9.15" in reason
            assert "\n" not in reason
        assert conv3d_fault(torch.float32, version) is None
    assert "cuDNN 9.10.2 are wrong" in str(conv3d_fault(torch.bfloat16, 91002))
    for version in (None, 8902, 90701, 91500, 92000):
        assert conv3d_fault(torch.bfloat16, version) is None
        assert conv3d_fault(torch.float16, version) is None
    assert "167024" in str(conv3d_fault(torch.float32, 91002, tf32=True))
    assert conv3d_fault(torch.float32, 90800, tf32=True) is None


@pytest.mark.dist
def test_ddp_does_not_warn_of_strides(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import torch.distributed as dist

    network = i3d(norm="bn", width=32, depths=(1, 1), num_classes=3).to(memory_format=LAST)
    use_views(network, "time_padded")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*strides.*")
            for _ in range(2):
                clips = torch.randn(2, 3, 8, 32, 32).contiguous(memory_format=LAST)
                wrapped(clips).sum().backward()
    finally:
        dist.destroy_process_group()
