from collections.abc import Callable

import pytest
import torch
from torch import nn


def _randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw gammas, betas and running statistics, which a fresh network has at 0 and 1.

    Without it a block's last gamma of 0 hides the block from every comparison of outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim != 1:
                continue
            if name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    return _randomise
