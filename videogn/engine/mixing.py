"""Mixup and cutmix, for those who fine-tune; the paper's recipes have neither."""

from collections.abc import Callable

import torch
from torch import Tensor

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From clips (B, C, T, H, W) float and labels (B,) to mixed clips and targets (B, K)."""


def make_mixing(mixup_alpha: float, cutmix_alpha: float, num_classes: int) -> Mixing | None:
    """Mix each clip with another of its batch, the same way for the whole batch; None for neither.

    Where both are wanted each step draws one of them. Draws come from torch's global generator,
    which every step seeds.

    Args:
        mixup_alpha, cutmix_alpha: of the Beta distribution of the shares; 0 for none.
    """
    if mixup_alpha == cutmix_alpha == 0:
        return None
    # Takes seconds to import, which only those shall wait for who mix.
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    methods: list[v2.Transform] = []
    if mixup_alpha > 0:
        methods.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_classes))
    if cutmix_alpha > 0:
        methods.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes))

    def mix(clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        method = methods[int(torch.randint(len(methods), ()))]
        # Whole frames are mixed: the transform only looks at the last two axes.
        mixed, targets = method(tv_tensors.Video(clips), labels)
        return mixed.as_subclass(Tensor), targets

    return mix
