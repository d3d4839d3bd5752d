"""The random weights that training starts from."""

from torch import Tensor, nn

CLASSIFIER_STD = 0.01


def initialise(network: nn.Module) -> None:
    """Draw all weights as the paper does (section 4.1; non-local paper, section 4.1).

    Convolutions: normal, variance 2 / fan-out. Linear layers: normal, std 0.01, bias 0. Norms
    start as they are built, gamma 1 and beta 0; see :func:`start_as_identity` for the last ones.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=CLASSIFIER_STD)
            nn.init.zeros_(module.bias)


def start_as_identity(last_conv: nn.Module, last_norm: nn.Module) -> None:
    """Make a residual branch add nothing at first: gamma 0 in its last norm, whichever it is.

    Without a norm the last kernel is 0 instead, for sixteen unnormalised branches would add up.
    """
    layer = last_norm if hasattr(last_norm, "weight") else last_conv
    weight = layer.weight
    assert isinstance(weight, Tensor)
    nn.init.zeros_(weight)
