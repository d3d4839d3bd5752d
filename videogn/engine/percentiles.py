"""Percentiles of what a layer gives in training (paper, Figure 6), by a hook for single steps."""

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videogn.engine.report.percentiles import KIND, PERCENTILES
from videogn.errors import ConfigError, RunError
from videogn.models.weights import few

KEY = "train.percentile_layer"


@dataclass
class Seen:
    """What was seen of a layer.

    Attributes:
        calls: how often it was called.
        values: (4,) float64, the percentiles of its first output; None where they are not kept.
    """

    calls: int = 0
    values: Tensor | None = None


def find_layer(network: nn.Module, name: str, form: str = "") -> nn.Module:
    """The layer of a dotted name.

    Args:
        form: in which the network is computed, where that may be why it is not there.

    Raises:
        ConfigError: there is none; the message has names that are like it.
    """
    layers: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))
    del layers[""]
    if name in layers:
        return layers[name]
    if form:
        raise ConfigError(
            f"{KEY}: in the form it is computed in here ({form}) the network has no layer "
            f"{name!r}; name a convolution, or set compute.norms=eager"
        )
    close = difflib.get_close_matches(name, layers, n=5)
    told = f"like it are {', '.join(close)}" if close else f"it has {few(layers)}"
    raise ConfigError(
        f"{KEY}: the network has no layer {name!r}; {told} (`videogn info` lists them)"
    )


@contextmanager
def watched(network: nn.Module, layer: str | None, *, keep: bool) -> Iterator[Seen]:
    """Look at the first output of a layer within the block; nothing of it is left behind.

    Later calls are further batches of an iteration, or passes that are computed again for the
    gradients.

    Args:
        network: itself, not what wraps it for several ranks.
        layer: its dotted name; None to look at nothing.
        keep: whether to compute the percentiles, or only to see that the layer is called.

    Raises:
        ConfigError: the layer gives no tensor of floats.
    """
    seen = Seen()
    if layer is None:
        yield seen
        return

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise ConfigError(f"{KEY}: {layer} gives no tensor of floats; name a layer within it")
        seen.calls += 1
        if keep and seen.calls == 1:
            # At once: a ReLU behind it may work in place.
            seen.values = percentiles_of(output)

    handle = find_layer(network, layer).register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def percentiles_of(output: Tensor) -> Tensor:
    """The percentiles of all values of a tensor, (4,) float64, computed where it is.

    Exact: values in float32 are sorted, and between two neighbours the line is taken, as numpy
    does by itself.
    """
    ordered = output.detach().float().reshape(-1).sort().values
    last = len(ordered) - 1
    # Whole numbers: p * last / 100 in floats may fall on the wrong side of a place.
    places = [divmod(p * last, 100) for p in PERCENTILES]
    low = ordered[[place for place, _ in places]].double()
    high = ordered[[min(place + 1, last) for place, _ in places]].double()
    share = torch.tensor([rest / 100 for _, rest in places], dtype=low.dtype, device=low.device)
    return low + (high - low) * share


def check_called(seen: Seen, layer: str) -> None:
    """Refuse a layer that no pass has called.

    Raises:
        RunError: it was not, on any rank.
    """
    if seen.calls == 0:
        raise RunError(
            f"{KEY}={layer}: the layer is not called in a training pass, for it is part of "
            "another one or never used; name the convolution before it, or set "
            "compute.norms=eager"
        )


def percentile_entry(seen: Seen, layer: str, iteration: int) -> tuple[str, dict[str, Any]]:
    """The log's entry on the layer in an iteration; values that are not finite are null."""
    assert seen.values is not None
    values = [value if math.isfinite(value) else None for value in seen.values.tolist()]
    return KIND, {"iteration": iteration, "layer": layer, "values": values}
