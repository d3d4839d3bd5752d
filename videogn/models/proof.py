"""Proofs that a conversion has kept the weights and the function of a network."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videogn.errors import WeightError
from videogn.models.i3d import (
    FLAT,
    INFLATIONS,
    LAYOUTS,
    POOL_SIZE,
    STEM_SIZE,
    temporal_kernels,
    with_pytorchvideo_arguments,
    without_scripting_warning,
)
from videogn.models.norm import make_norm
from videogn.models.plain_resnet import COUNTER
from videogn.models.spec import ARCHITECTURES, R50, R101, NetworkSpec

TOLERANCE = 1e-5
"""Largest difference of two logits, relative to the largest of all, or to 1 where that is more:
float32 sums in another order differ by about 1e-6."""

LIBRARY_DEPTHS: dict[tuple[int, ...], int] = {R50: 50, R101: 101}
"""Blocks of each stage -> the number of layers by which libraries call such networks."""

CLIP_SIZE = 224
SHORT_LAYOUTS = ("zoo", "nonlocal_8x8", "mmaction2_heavy")
"""Layouts of the 8-frame networks, whose maps keep twice the time steps."""


def check_same_tensors(
    where: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, counters: bool
) -> str:
    """A line that says the tensors are the same bit by bit.

    Args:
        counters: whether BN's counts of batches were to be kept.

    Raises:
        WeightError: naming the first tensors that differ.
    """
    expected = {n: t for n, t in wanted.items() if counters or not n.endswith(COUNTER)}
    wrong = [name for name in expected if name not in found]
    wrong += [name for name in found if name not in expected]
    wrong += [n for n, t in expected.items() if n in found and not _same_bits(t, found[n])]
    if wrong:
        raise WeightError(
            f"{where}: proof failed: read back, {len(wrong)} tensors are not what was written, "
            f"{wrong[0]} among them; nothing was kept"
        )
    left_out = len(wanted) - len(expected)
    without = f"; {left_out} counts of batches, which it has no names for, left out"
    return f"round trip  {len(expected)} tensors read back bit-equal{without if left_out else ''}"


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits; -0 and 0 are not the same."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def check_same_logits(
    where: str, what: str, ours: nn.Module, theirs: nn.Module, spec: NetworkSpec
) -> str:
    """A line that says how near the logits of two networks are on a fixed random clip.

    Raises:
        WeightError: they differ by more than :data:`TOLERANCE`.
    """
    clip = fixed_clip(spec)
    with torch.no_grad():
        expected, found = ours.eval()(clip), theirs.eval()(clip)
    error = relative_error(found, expected)
    if not error <= TOLERANCE:
        raise WeightError(
            f"{where}: proof failed: the logits of {what} differ by {error:.1e} (relative), above "
            f"{TOLERANCE:.0e}; nothing was kept"
        )
    frames, size = clip.shape[2], clip.shape[3]
    return (
        f"logits      of {what} on a random clip of {frames}x{size}x{size}: "
        f"difference {error:.1e} of the largest, at most {TOLERANCE:.0e}"
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value, or to 1 where that is more."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def fixed_clip(spec: NetworkSpec) -> Tensor:
    """The random clip (1, 3, T, H, W) that proofs run on."""
    num_frames = 8 if spec.layout in SHORT_LAYOUTS else 16
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, num_frames, CLIP_SIZE, CLIP_SIZE, generator=generator)


def pytorchvideo_network(spec: NetworkSpec) -> tuple[nn.Module | None, str]:
    """pytorchvideo's own network of a spec, for :func:`fixed_clip`, and how its builder is called.

    None where ``create_resnet`` has no such network; the text says why.
    """
    inflation = INFLATIONS[ARCHITECTURES[spec.arch].inflation or "none"]
    depth = LIBRARY_DEPTHS.get(spec.depths)
    if depth is None:
        return None, "pytorchvideo's create_resnet builds depths of 50, 101 and 152 layers only"
    if any(len(set(sizes)) > 1 for sizes in inflation.middle):
        return None, "pytorchvideo's create_resnet has one 3x3 kernel size for a whole stage"
    layout = LAYOUTS[spec.layout]
    steps = fixed_clip(spec).shape[2] // (layout.conv1_stride[0] * layout.pool1_stride[0] * 2)
    options: dict[str, Any] = {
        "model_depth": depth,
        "stem_conv_kernel_size": (inflation.stem, STEM_SIZE, STEM_SIZE),
        "stem_conv_stride": layout.conv1_stride,
        "stem_pool_kernel_size": layout.pool1_kernel,
        "stem_pool_stride": layout.pool1_stride,
        "stage_conv_a_kernel_size": tuple(
            [(first, 1, 1) for first, _ in temporal_kernels(inflation, stage, blocks)]
            for stage, blocks in enumerate(spec.depths)
        ),
        "stage_conv_b_kernel_size": tuple((sizes[0], 3, 3) for sizes in inflation.middle),
        "head_pool_kernel_size": (steps, POOL_SIZE, POOL_SIZE),
    }
    call = ", ".join(f"{key}={_told(value)}" for key, value in options.items())
    network = _call_create_resnet(spec, options)
    return network, f"create_resnet({call}{_rest_of_call(spec)})"


def _call_create_resnet(spec: NetworkSpec, options: dict[str, Any]) -> nn.Module:
    layout = LAYOUTS[spec.layout]
    with without_scripting_warning():
        from pytorchvideo.models.resnet import create_res_basic_stem, create_resnet

    def stem(**arguments: Any) -> nn.Module:
        # The builder pads every pool by half its kernel.
        made: nn.Module = create_res_basic_stem(
            **{**arguments, "pool_padding": layout.pool1_padding}
        )
        return made

    def pool2(**_: Any) -> nn.Module:
        # It strides by its kernel and pads nothing.
        return nn.MaxPool3d(layout.pool2_kernel, layout.pool2_stride, layout.pool2_padding)

    network: nn.Module = create_resnet(
        stem=stem,
        stage1_pool=pool2,
        stem_dim_out=spec.width,
        model_num_class=spec.num_classes,
        norm=with_pytorchvideo_arguments(
            make_norm(spec.norm, spec.num_groups, spec.channels_per_group)
        ),
        **options,
    )
    return network


def _told(value: Any) -> str:
    return str(value).replace(" ", "")


def _rest_of_call(spec: NetworkSpec) -> str:
    """What else its user has to pass, in words."""
    layout = LAYOUTS[spec.layout]
    parts = [f"norm of {spec.norm}"]
    if layout.pool1_padding != tuple(size // 2 for size in layout.pool1_kernel):
        parts.append(f"a stem whose pool is padded by {_told(layout.pool1_padding)}")
    parts.append(
        f"stage1_pool of {_told(layout.pool2_kernel)}, stride {_told(layout.pool2_stride)}, "
        f"padding {_told(layout.pool2_padding)}"
    )
    return f", with {'; '.join(parts)}"


def mmaction2_network(spec: NetworkSpec) -> tuple[nn.Module | None, str]:
    """mmaction2's own network of a spec, and how its config has it.

    None where mmaction2 cannot be imported, or has no such network; the text says why.
    """
    layout = LAYOUTS[spec.layout]
    depth = LIBRARY_DEPTHS.get(spec.depths)
    if depth is None or spec.width != 64:
        return None, "its ResNet3d builds depths of 50, 101 and 152 layers of width 64 only"
    if (layout.pool1_kernel, layout.pool1_padding) != ((1, 3, 3), (0, 1, 1)):
        return None, "its stem pool is 1x3x3, padded by 0, 1, 1"
    norms = {"bn": {"type": "BN3d"}, "gn": {"type": "GN", "num_groups": spec.num_groups}}
    if spec.norm not in norms or spec.channels_per_group is not None:
        return None, f"its configs have no norm like {spec.norm} with such groups"
    try:
        from mmaction.models.backbones.resnet3d import ResNet3d
        from mmaction.models.heads.i3d_head import I3DHead
    except Exception as error:  # releases of it lack files, and refuse other libraries' versions
        reason = str(error).partition("\n")[0][:120]
        return None, f"mmaction2 is not installed or cannot be imported ({reason})"
    inflation = INFLATIONS[ARCHITECTURES[spec.arch].inflation or "none"]
    style = "3x3x3" if inflation.middle != FLAT else "3x1x1"
    inflate = tuple(
        tuple(int(max(kernels) > 1) for kernels in temporal_kernels(inflation, stage, blocks))
        for stage, blocks in enumerate(spec.depths)
    )
    options: dict[str, Any] = {
        "depth": depth,
        "conv1_kernel": (inflation.stem, STEM_SIZE, STEM_SIZE),
        "conv1_stride_t": layout.conv1_stride[0],
        "pool1_stride_t": layout.pool1_stride[0],
        "inflate": inflate,
        "inflate_style": style,
        "norm_cfg": norms[spec.norm],
    }
    backbone = ResNet3d(
        pretrained=None,
        pretrained2d=False,
        conv_cfg={"type": "Conv3d"},
        norm_eval=False,
        zero_init_residual=False,
        **options,
    )
    network = _Recognizer(backbone, I3DHead(num_classes=spec.num_classes, in_channels=2048))
    return network, f"ResNet3d({', '.join(f'{k}={_told(v)}' for k, v in options.items())})"


class _Recognizer(nn.Module):
    """mmaction2's backbone and head under the names of its checkpoints."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.cls_head = head

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.cls_head(self.backbone(clips))
        return logits
