"""How a network is computed: by which kernels, in which order of memory, and what is kept.

What it computes, its parameters and their names are the same in every form.
"""

from dataclasses import dataclass

import torch
from torch import nn

from videogn.errors import UserError
from videogn.models.fused import fuse
from videogn.models.views import use_views

STEM = "space_padded"
"""Form of the stem beside 2D views: the fastest that was measured, by far."""


@dataclass(frozen=True)
class Execution:
    """The form that a network is brought into before its first pass.

    Attributes:
        norms: ``eager``: torch's layers; ``fused``: norm, residual sum and ReLU as one kernel.
        convolutions: ``3d``: torch's; ``2d``: views of the same memory as 2D convolutions and
            matrix products, where a kernel allows it; ``mixed``: the latter but for kernels over
            time alone.
        recompute: one of :data:`videogn.models.fused.RECOMPUTE`.
        memory_format: of the clips, and of the network's weights.
    """

    norms: str = "eager"
    convolutions: str = "3d"
    recompute: str = "none"
    memory_format: torch.memory_format = torch.contiguous_format

    def __str__(self) -> str:
        order = "channels last" if self.memory_format == torch.channels_last_3d else "contiguous"
        parts = [f"{self.norms} norms", f"{self.convolutions} convolutions", order]
        if self.recompute != "none":
            parts.append(f"{self.recompute} recomputed")
        return ", ".join(parts)

    def apply(self, network: nn.Module, device: torch.device | str | None = None) -> nn.Module:
        """Bring a network into this form, in place.

        Args:
            device: where it is to compute; where it is already if None.

        Raises:
            UserError: nothing of the network can be computed again.
        """
        blocks = fuse(network, self.recompute) if self.norms == "fused" else 0
        if self.recompute != "none" and blocks == 0:
            raise UserError(
                f"compute.recompute={self.recompute}: the network has no residual blocks of three "
                "convolutions with fused norms and ReLUs; set compute.recompute=none"
            )
        if self.convolutions != "3d":
            kernels, steps = self.norms == "fused", self.convolutions == "2d"
            use_views(network, STEM, steps=steps, kernels=kernels)
        return network.to(device=device, memory_format=self.memory_format)  # type: ignore[call-overload,no-any-return]


EAGER = Execution()
"""As it is built: torch's layers on contiguous tensors."""
