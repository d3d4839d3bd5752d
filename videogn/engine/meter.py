"""What happened since the last progress line, and the line itself."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from torch import Tensor

from videogn.config import TrainConfig
from videogn.distributed import World, gather_over_ranks, sum_over_ranks
from videogn.engine.ahead import Batch, Waits
from videogn.engine.checkpoint import TrainingState, Window
from videogn.engine.metrics import Tally
from videogn.engine.plan import TrainPlan
from videogn.engine.runs import RunLog
from videogn.errors import RunError

T = TypeVar("T")

MIN_TOLERATED_FAILURES = 1
"""One unreadable video never stops a run, however short the list."""
MAX_LISTED = 20


class _Failure(NamedTuple):
    """A video that could not be decoded, and the iteration whose batch replaced it."""

    iteration: int
    path: str
    reason: str


class Meter:
    """Adds up steps between progress lines; what it knows is saved with the run.

    Args:
        log: of rank 0; None on the others.
        state: where the run stands.
    """

    def __init__(
        self,
        plan: TrainPlan,
        recipe: TrainConfig,
        world: World,
        report: Callable[[str], None],
        log: RunLog | None,
        state: TrainingState,
    ) -> None:
        self.log = log
        self._plan, self._recipe, self._world, self._report = plan, recipe, world, report
        self._first, self._started = state.iteration, time.monotonic()
        self._begin(state.iteration)
        self._since = state.window.since
        self._take_up(state.window)

    def _begin(self, iteration: int) -> None:
        self._since = iteration
        self._tally = Tally.empty(self._world.device)
        self._failures: list[_Failure] = []
        self._samples: list[tuple[int, list[int]]] = []
        self._clips = 0
        self._waits = Waits(self._world.device)
        self._clock = time.monotonic()

    def _take_up(self, window: Window) -> None:
        """Go on from the sums of an earlier process: each rank from its own, where it had one.

        Sums of sums would differ in their last bits.
        """
        sums, world = window.sums, self._world
        if len(sums) == world.size:
            mine = sums[world.rank]
        elif sums and world.is_main:
            mine = tuple(map(sum, zip(*sums, strict=True)))
        else:
            return
        self._tally = Tally(torch.tensor(mine, dtype=torch.float64, device=world.device))

    def waiting(self, work: Callable[[], T]) -> T:
        """Do something that brings data, counting the time that the device waits for it."""
        return self._waits.during(work, time.monotonic)

    def add(
        self,
        loss: Tensor,
        logits: Tensor,
        labels: Tensor,
        batches: Sequence[Batch],
        iteration: int,
    ) -> None:
        """Count one step of this rank."""
        self._tally = self._tally.add(loss, logits, labels)
        self._clips += len(labels)
        self._failures += [
            _Failure(iteration, *failure) for batch in batches for failure in batch.failures
        ]
        if self._recipe.log_samples:
            places = [int(place) for batch in batches for place in batch.places]
            self._samples.append((iteration, places))

    def flush(self, state: TrainingState) -> TrainingState:
        """Sum over the ranks, check, report; every rank comes here at the same iterations."""
        iteration = state.iteration
        if iteration == self._since:
            return state
        tally = Tally(sum_over_ranks(self._tally.sums))
        state = self.collect(state)
        if self.log is not None:
            values = self._values(tally, iteration)
            self.log.write("train", values)
            memory = memory_in_use(self._world.device)
            self._report(_progress_line(values, self._plan.iterations, memory))
        self._begin(iteration)
        return replace(state, window=Window(iteration))

    def collect(self, state: TrainingState) -> TrainingState:
        """The state with all that this meter knows; what ranks saw is logged.

        Raises:
            RunError: too many videos cannot be decoded.
        """
        mine = (self._failures, self._samples, tuple(self._tally.sums.tolist()))
        everyone = gather_over_ranks(mine)
        self._failures, self._samples = [], []
        failures = sorted({failure for part, _, _ in everyone for failure in part})
        known = dict(state.failed_videos)
        new = []
        for failure in failures:
            if failure.path not in known:
                known[failure.path] = failure.reason
                new.append(failure)
        self._log_events(new, [samples for _, samples, _ in everyone])
        self._check_share(known)
        # Nothing added up yet is the same whether a progress line or a resumed run came before.
        is_new = state.iteration == self._since
        sums = () if is_new else tuple(part for _, _, part in everyone)
        return replace(state, failed_videos=known, window=Window(self._since, sums))

    def _log_events(
        self, failures: list[_Failure], samples: list[list[tuple[int, list[int]]]]
    ) -> None:
        if self.log is None:
            return
        entries: list[tuple[str, dict[str, Any]]] = []
        for iteration, path, reason in failures:
            self._report(f"warning: replaced {path}: {reason}")
            values = {"iteration": iteration, "path": path, "reason": reason}
            entries.append(("failed_video", values))
        for of_step in zip(*samples, strict=True):
            # Ranks take neighbouring slices: so the order does not depend on their number.
            places = [place for _, part in of_step for place in part]
            entries.append(("samples", {"iteration": of_step[0][0], "places": places}))
        if entries:
            self.log.write_all(sorted(entries, key=lambda entry: (entry[1]["iteration"], entry[0])))

    def _check_share(self, failed: dict[str, str]) -> None:
        num_videos, share = self._plan.num_videos, self._recipe.max_failed_fraction
        if len(failed) <= max(MIN_TOLERATED_FAILURES, share * num_videos):
            return
        listed = list(failed.items())[:MAX_LISTED]
        lines = "".join(f"\n  - {path}: {reason}" for path, reason in listed)
        raise RunError(
            f"{len(failed)} of {num_videos} training videos cannot be decoded, more than "
            f"train.max_failed_fraction={share:g} allows; mend the list or raise it:{lines}"
        )

    def _values(self, tally: Tally, iteration: int) -> dict[str, Any]:
        plan, waited, now = self._plan, self._waits.take(), time.monotonic()
        seconds = now - self._clock
        pace = (now - self._started) / max(1, iteration - self._first)
        return {
            "iteration": iteration,
            "epoch": iteration * plan.global_batch / plan.num_videos,
            "loss": tally.loss,
            "top1": tally.top1,
            "lr": plan.schedule.at(iteration - 1),
            "clips_per_second": round(self._clips * self._world.size / seconds, 3),
            "data_wait": round(waited / seconds, 4),
            "eta_seconds": round((plan.iterations - iteration) * pace),
        }


def memory_in_use(device: torch.device) -> int:
    """The most memory that this process has had on its GPU; what it has now on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def _progress_line(values: dict[str, Any], iterations: int, memory_bytes: int) -> str:
    eta = int(values["eta_seconds"])
    return (
        f"iter {values['iteration']:,}/{iterations:,}  epoch {values['epoch']:.2f}  "
        f"loss {values['loss']:.4f}  top-1 {values['top1']:.1f} %  lr {values['lr']:.2e}  "
        f"{values['clips_per_second']:.1f} clips/s  data wait {100 * values['data_wait']:.0f} %  "
        f"{memory_bytes / 2**30:.1f} GiB  "
        f"eta {eta // 3600}:{eta // 60 % 60:02}:{eta % 60:02}"
    )
