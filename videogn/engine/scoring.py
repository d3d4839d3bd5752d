"""Scoring a list on all ranks: every video exactly once, whatever is interrupted on the way."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from videogn.data.dataset import VideoViews
from videogn.distributed import World, any_rank, from_first_rank, gather_over_ranks
from videogn.engine.evaluator import VideoScore
from videogn.engine.journal import Journal
from videogn.errors import RunError

ROUND = {"cuda": 16, "cpu": 1}
"""Videos of each rank between two looks at whether a rank was asked to stop. They cost a GPU's
queue, and the wait for the slowest rank."""
PROGRESS_SECONDS = 10.0

ScoreVideos = Callable[[Sequence[int]], Iterator[VideoScore]]
"""Scores videos of these places, in this order."""


@dataclass
class ReadingClock:
    """Times how long one rank waits for data.

    Attributes:
        seconds: in the iterator of videos.
    """

    seconds: float = 0.0

    def timed(self, videos: Iterable[VideoViews]) -> Iterator[VideoViews]:
        """Pass videos on, counting the time until each comes."""
        left = iter(videos)
        while True:
            before = time.monotonic()
            video = next(left, None)
            self.seconds += time.monotonic() - before
            if video is None:
                return
            yield video


@dataclass(frozen=True)
class Pace:
    """What scoring cost.

    Attributes:
        num_videos: scored now, by all ranks.
        seconds: of rank 0, from the first video asked for.
        wait_share: of the ranks' time that they waited for data, the mean of the ranks.
    """

    num_videos: int
    seconds: float
    wait_share: float

    def line(self) -> str:
        """For people."""
        return (
            f"scored {self.num_videos:,} videos in {self.seconds:.0f} s: "
            f"{self.num_videos / max(self.seconds, 1e-9):.2f} videos/s, "
            f"{100 * self.wait_share:.0f} % of the time waiting for data"
        )


@dataclass(frozen=True)
class Listed:
    """A list to be scored.

    Attributes:
        num_videos: of the whole list.
        journal: where scores go, and where earlier ones are.
        stop_asked: whether a signal has asked this process to stop.
        tell: is told how many videos this rank has scored, before each.
        report: prints a line, on rank 0.
    """

    num_videos: int
    journal: Journal
    world: World
    stop_asked: Callable[[], bool]
    tell: Callable[[int], None]
    report: Callable[[str], None]

    def collected(self) -> list[VideoScore]:
        """All scores in list order.

        Raises:
            RunError: a video has none.
        """
        found = self.journal.read()
        missing = [place for place in range(self.num_videos) if place not in found]
        if missing:
            raise RunError(
                f"{self.journal.folder}: has no scores of {len(missing)} videos that another rank "
                "has scored; --out must lie in a file system that all hosts share"
            )
        return [found[place] for place in range(self.num_videos)]


def score_list(listed: Listed, score_videos: ScoreVideos, waits: ReadingClock) -> Pace | None:
    """Score those videos of the list that are not scored yet, and write each down at once.

    Rank r takes each R-th of them, from the r-th on, so that all have equally many but for one.

    Args:
        waits: of the iterator that ``score_videos`` reads from.

    Returns:
        None where a rank was asked to stop before the end.

    Raises:
        RunError: a video was not scored exactly once, or the journal cannot be written.
    """
    world = listed.world
    done = _begin(listed)
    left = [place for place in range(listed.num_videos) if place not in done]
    mine, size = left[world.rank :: world.size], ROUND[world.device.type]
    rounds = -(-len(left) // (world.size * size))
    scores = score_videos(mine) if mine else iter(())
    started, scored = time.monotonic(), list[int]()
    with closing(listed.journal.writer(world.rank)) as writer:
        progress = _Progress(listed, len(done), len(left), started)
        for number in range(rounds):
            listed.tell(len(scored))
            if any_rank(listed.stop_asked(), world.device):
                return None
            # The last round takes what is left, which ends the loader's processes too.
            for score in islice(scores, size if number < rounds - 1 else None):
                writer.add(score)
                scored.append(score.place)
                listed.tell(len(scored))
                progress.show(len(scored))
    seconds = time.monotonic() - started
    everyone = gather_over_ranks((scored, waits.seconds / max(seconds, 1e-9)))
    _check_once([places for places, _ in everyone], left)
    return Pace(len(left), seconds, sum(share for _, share in everyone) / world.size)


def _begin(listed: Listed) -> frozenset[int]:
    """The places that are scored already, as the first rank reads them."""
    done: frozenset[int] = frozenset()
    if listed.world.is_main:
        listed.journal.begin()
        done = listed.journal.places()
        if done:
            listed.report(
                f"goes on     {len(done):,} of {listed.num_videos:,} videos are scored in "
                f"{listed.journal.folder}"
            )
    return from_first_rank(done)


def _check_once(parts: Sequence[Sequence[int]], left: Sequence[int]) -> None:
    times = Counter(place for part in parts for place in part)
    wrong = sorted(place for place in times.keys() | set(left) if times[place] != 1)
    wrong += sorted(times.keys() - set(left))
    if wrong:
        raise RunError(
            f"videos {[place + 1 for place in wrong[:10]]} of the list were not scored exactly "
            "once; no results written"
        )


class _Progress:
    """A line every few seconds, from the first rank's share."""

    def __init__(self, listed: Listed, num_done: int, num_left: int, started: float) -> None:
        self._listed = listed
        self._done, self._left, self._started = num_done, num_left, started
        self._shown = started

    def show(self, scored: int) -> None:
        """Say how far all ranks are, where it is time to."""
        now, size = time.monotonic(), self._listed.world.size
        if not self._listed.world.is_main or now - self._shown < PROGRESS_SECONDS:
            return
        self._shown, pace = now, (now - self._started) / scored
        total = min(scored * size, self._left)
        self._listed.report(
            f"tested {self._done + total:,}/{self._listed.num_videos:,} videos  "
            f"{size / pace:.2f} videos/s  eta {(self._left - total) * pace / size:.0f} s"
        )
