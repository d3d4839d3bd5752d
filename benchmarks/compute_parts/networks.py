"""Networks in the forms that are compared, and one training step of each.

Everything that knows how the toolkit puts a network into a form is in :func:`prepared`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compute_parts.scale import Bench
from videogn.data.transforms import normalize
from videogn.models import i3d
from videogn.models.cpu_halves import make_sound
from videogn.models.formats import VIDEO

LAST = torch.channels_last_3d
CONTIGUOUS = torch.contiguous_format
LAYOUTS = {"pv32": "zoo", "org32": "nonlocal"}
"""Short names of the two layouts that are measured."""


@dataclass(frozen=True)
class Form:
    """How a network computes.

    Attributes:
        source: ``ours``, ``pytorchvideo`` or ``pyslowfast``, the latter our network in its loop.
        norm: bn or gn.
        norms: ``eager`` or ``fused``.
        convolutions: ``3d``, ``2d`` or ``mixed``, the latter 3D over time alone.
        stem: form of the stem but under ``3d``.
        recompute: none, act, act+conv_c or block.
        compiled: by torch.compile.
        graph: forward and backward pass as CUDA graphs, as the toolkit trains with few clips.
        tuned: cuDNN tries its algorithms out (``torch.backends.cudnn.benchmark``).
        precision: bf16 or fp32.
    """

    norm: str = "gn"
    norms: str = "eager"
    convolutions: str = "3d"
    memory_format: torch.memory_format = CONTIGUOUS
    stem: str = "native"
    recompute: str = "none"
    source: str = "ours"
    compiled: bool = False
    graph: bool = False
    tuned: bool = False
    precision: str = "bf16"

    def __str__(self) -> str:
        words = [self.norm.upper(), self.norms]
        if self.source != "ours":
            words.insert(0, self.source)
        words.append("channels last" if self.memory_format == LAST else "contiguous")
        if self.convolutions != "3d":
            views = "2D views" if self.convolutions == "2d" else "2D frames, 3D steps"
            words.append(f"{views}, {self.stem} stem")
        if self.recompute != "none":
            words.append(f"recompute {self.recompute}")
        words += [word for word in ("compiled", "graph", "tuned") if getattr(self, word)]
        if self.precision != "bf16":
            words.append(self.precision)
        return " ".join(words)


BASE = Form("bn", memory_format=LAST)
"""What the others are compared with."""
PYTORCHVIDEO = Form("bn", source="pytorchvideo")
PYSLOWFAST = Form("bn", source="pyslowfast")
FUSED_3D = Form("gn", "fused", memory_format=LAST)
FUSED = replace(FUSED_3D, convolutions="mixed", stem="space_padded")
FUSED_BN = replace(FUSED, norm="bn")
AUTO = replace(FUSED, graph=True)
"""The form that the toolkit takes on one GPU."""


def built(bench: Bench, form: Form, layout: str) -> nn.Module:
    """A network in a form, on the device, in training mode. ``layout``: a key of LAYOUTS."""
    if form.source == "pytorchvideo":
        network = peer(bench).to(bench.device, memory_format=form.memory_format)
    else:
        network = prepared(initialised(bench, form.norm, layout), form, bench.device)
    # The tiny networks of a dry run have convolutions that CPUs with bf16 get wrong.
    return make_sound(network) if bench.dry else network


def initialised(bench: Bench, norm: str, layout: str) -> nn.Module:
    """Our network with random weights, on the CPU; drawn once, for that takes seconds."""
    name = f"{norm} {layout}"
    if name not in bench.networks:
        bench.networks[name] = i3d(norm=norm, layout=LAYOUTS[layout], **bench.scale.network)
    return copy.deepcopy(bench.networks[name])


def peer(bench: Bench) -> nn.Module:
    """pytorchvideo's own network; of ResNet-50's depth whatever the run's size."""
    from pytorchvideo.models.resnet import create_resnet

    if not bench.dry:
        from pytorchvideo.models.hub.resnet import i3d_r50

        network: nn.Module = i3d_r50(pretrained=False)
        return network
    width = bench.scale.network["width"]
    small: nn.Module = create_resnet(stem_dim_out=width, head_pool=None, model_num_class=5)
    return small


def prepared(network: nn.Module, form: Form, device: torch.device) -> nn.Module:
    """The network in a form, on the device."""
    if form.norms == "fused":
        from videogn.models.fused import fuse

        fuse(network, form.recompute)
    elif form.recompute != "none":
        raise ValueError("recomputing is part of the fused blocks")
    if form.convolutions != "3d":
        from videogn.models.views import use_views

        steps, kernels = form.convolutions == "2d", form.norms == "fused"
        use_views(network, form.stem, steps=steps, kernels=kernels)
    network = network.to(device, memory_format=form.memory_format)  # type: ignore[call-overload]
    return torch.compile(network) if form.compiled else network  # type: ignore[return-value]


def pixels(bench: Bench, clips: int, frames: int, size: int) -> Tensor:
    """Random clips (B, 3, T, H, W) uint8 with their colours last in memory, as read."""
    shape = (clips, frames, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device).movedim(-1, 1)


def network_input(clips: Tensor, form: Form, out: Tensor | None = None) -> Tensor:
    """Pixels as the network is called with: the toolkit's in the step's precision at once."""
    halved = form.norms == "fused" and form.precision == "bf16"
    dtype = torch.bfloat16 if halved else torch.float32
    return normalize(clips, VIDEO.mean, VIDEO.std, form.memory_format, dtype, out)


def autocast(form: Form, device: torch.device) -> Any:
    if form.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def cudnn(**settings: bool) -> Iterator[None]:
    """Settings of ``torch.backends.cudnn`` within."""
    before = {name: getattr(torch.backends.cudnn, name) for name in settings}
    for name, value in settings.items():
        setattr(torch.backends.cudnn, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


@dataclass
class Training:
    """A network in a form with its optimiser and clips: ``step`` is one update.

    Attributes:
        model: the network as the step calls it.
        captured: where graphs read their clips; None without.
    """

    form: Form
    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    clips: Tensor
    labels: Tensor
    captured: Tensor | None = None

    def step(self) -> None:
        with cudnn(benchmark=self.form.tuned):
            if self.form.source == "pyslowfast":
                self._pyslowfast_step()
            else:
                self._step()

    def _step(self) -> None:
        inputs = network_input(self.clips, self.form, self.captured)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.form, self.clips.device):
            logits = self.model(inputs)
        F.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()

    def _pyslowfast_step(self) -> None:
        """Habits of its loop: a list of inputs, and numbers brought to the host at every step."""
        inputs = [normalize(self.clips, VIDEO.mean, VIDEO.std)]
        with autocast(self.form, self.clips.device):
            logits = self.model(inputs[0])
            loss = F.cross_entropy(logits, self.labels)
        if bool(torch.isnan(loss)):
            raise RuntimeError("the loss is not a number")
        self.optimizer.zero_grad()
        loss.backward()
        grads = [p.grad.norm() for p in self.network.parameters() if p.grad is not None]
        torch.stack(grads).norm()
        self.optimizer.step()
        hits = logits.topk(min(5, logits.shape[1])).indices == self.labels[:, None]
        for number in (loss, hits[:, 0].float().mean(), hits.float().sum(1).mean()):
            number.item()


def sgd(network: nn.Module, *, fused: bool) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(),
        lr=1e-3,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        fused=fused or None,
    )


def training(bench: Bench, form: Form, layout: str, clips: int, frames: int) -> Training:
    """A network ready to train on random clips; it has trained a step."""
    torch.manual_seed(0)
    network = built(bench, form, layout).train()
    videos = pixels(bench, clips, frames, bench.scale.size)
    labels = torch.arange(clips, device=bench.device) % 5
    model, inputs = network, None
    if form.graph:
        from videogn.engine.graphs import replayed

        inputs = network_input(videos, form)
        with cudnn(benchmark=form.tuned):
            model = replayed(network, inputs, form.precision)
    # Of every form alike, as the toolkit's own: it is the update that is the same for all.
    fused = bench.device.type == "cuda"
    made = Training(form, network, model, sgd(network, fused=fused), videos, labels, inputs)
    try:
        made.step()
    except RuntimeError as error:
        # It refuses gradients whose strides are not the weights', were it of axes of size 1.
        if not fused or isinstance(error, torch.OutOfMemoryError):
            raise
        bench.page.say(f"<!-- {form}: {str(error)[:200]!r}; the optimiser is not fused -->")
        made.optimizer = sgd(network, fused=False)
        made.step()
    return made
