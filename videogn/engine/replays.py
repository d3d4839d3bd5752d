"""Passes of a test as CUDA graphs, for networks that the CPU could not feed kernel by kernel.

Ten clips of a video take a GPU less time than Python takes to launch their kernels. Videos have
different sizes: each shape of views that comes again and again gets a graph of its own.

Shapes: V views of T frames of H x W pixels.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from videogn.engine.arithmetic import autocast, dtype_of
from videogn.engine.graphs import fault_after, same_stream
from videogn.engine.pass_size import Measure, PassSize
from videogn.errors import RunError, first_line

REPEATS = 3
"""Passes of a shape before it is captured; these are launched plainly, and warm everything up."""
MAX_SHAPES = 24
"""Most graphs. Kinetics has hundreds of sizes, of which a few make up nearly all videos."""

ROOM = 2.5
"""Of what a pass takes: one plain pass, the graphs, and what gets lost where shapes differ."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Replay:
    """The captured pass of one shape.

    Attributes:
        views: (V, 3, T, H, W) normalised, where the graph reads them; shared by all graphs.
        outputs: where the graph leaves what is measured.
    """

    views: Tensor
    graph: torch.cuda.CUDAGraph
    outputs: tuple[Tensor, ...]

    def run(self) -> tuple[Tensor, ...]:
        """What is measured of the views that were written last."""
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


class Replays:
    """The graphs of a measure by the shape of views, made as shapes come.

    All graphs share their memory: they run one after the other. Results are those of plain passes.

    Args:
        measure: its weights must not change, nor its results depend on anything but the views.
        precision: of autocast.
        memory_format: of the views.
        pass_size: knows the room for passes, of which graphs keep a part.
        report: prints a line where passes cannot be captured.
    """

    def __init__(
        self,
        measure: Measure,
        device: torch.device,
        precision: str,
        memory_format: torch.memory_format,
        pass_size: PassSize,
        report: Callable[[str], None],
    ) -> None:
        self._measure = measure
        self._device = device
        self._precision = precision
        self._format = memory_format
        self._pass_size = pass_size
        self._report = report
        self._dtype = dtype_of(precision)
        self._memory = torch.empty(0, dtype=self._dtype, device=device)
        self._passes: Counter[Shape] = Counter()
        self._graphs: dict[Shape, Replay] = {}
        self._most = MAX_SHAPES

    def of(self, shape: Shape) -> Replay | None:
        """The graph of passes of views of this shape; None where they are launched plainly.

        To be asked once for every pass.

        Raises:
            RunError: a capture failed, and nothing can be computed on the device since.
        """
        if shape in self._graphs:
            return self._graphs[shape]
        self._passes[shape] += 1
        if self._passes[shape] <= REPEATS or len(self._graphs) >= self._most:
            return None
        num_views, _, frames, height, width = shape
        if not self._pass_size.holds(ROOM, num_views, (frames, height, width)):
            return None
        found = self._tried(shape)
        if isinstance(found, Replay):
            self._graphs[shape] = found
            return found
        self.drop()
        self._report(f"graphs      not used: a pass cannot be captured: {found}")
        return None

    def drop(self) -> bool:
        """Hand the memory of all graphs back, and make no more.

        Returns:
            Whether there were any.
        """
        had = bool(self._graphs)
        self._most = 0
        if had and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._memory = self._memory.new_empty(0)
        torch.cuda.empty_cache()
        return had

    def _tried(self, shape: Shape) -> Replay | str:
        """The captured pass, or one line that says why there is none."""
        try:
            with same_stream(self._device):
                return self._captured(shape)
        except Exception as error:  # torch's, or of the measure
            reason = first_line(error)
        # Outside of the handler: the error holds what the capture has made.
        fault = fault_after(self._device)
        if fault is not None:
            raise RunError(
                f"{self._device}: a pass cannot be captured as a CUDA graph ({reason}), and the "
                f"device cannot be used since ({fault}); set compute.graphs=off"
            )
        return reason

    def _captured(self, shape: Shape) -> Replay:
        views, graph = self._place(shape), torch.cuda.CUDAGraph()
        pool = next((made.graph.pool() for made in self._graphs.values()), None)
        # Other threads go on reading videos and copying them to the device. Casts of weights
        # must be part of the graph, not left from a pass before.
        whole = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
        with whole, autocast(self._device, self._precision, cache_enabled=False):
            outputs = self._measure(views)
        return Replay(views, graph, outputs)

    def _place(self, shape: Shape) -> Tensor:
        """Where graphs of this shape read: at the beginning of what all share."""
        if len(self._memory) < prod(shape):
            # Graphs of smaller shapes keep the memory that they were captured with.
            self._memory = self._memory.new_empty(prod(shape))
        part = self._memory[: prod(shape)]
        if self._format == torch.channels_last_3d:
            return part.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        return part.view(shape)
