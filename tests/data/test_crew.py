"""Data workers that die or hang."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lethal import Lethal

from videogn.data import crew as crew_module
from videogn.data.clips import RandomClips
from videogn.data.crew import MAX_LOSSES, SPAN, Crew, Losses
from videogn.data.dataset import TestDataset, TrainDataset, ValDataset
from videogn.data.list_checks import VideoRecord
from videogn.data.loader import (
    TrainBatches,
    build_test_loader,
    build_train_loader,
    build_val_loader,
    time_reads,
)
from videogn.data.opening import VideoOpener
from videogn.data.watched import WatchedRecords
from videogn.data.workers import Workers
from videogn.errors import RunError

pytestmark = pytest.mark.dist
CPU = torch.device("cpu")
LETHAL = 2
TIMEOUT = 1.5


@pytest.fixture(autouse=True)
def _bounded():
    """No test of this file may hang: the process ends with all its stacks on stderr instead."""
    import faulthandler

    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def records(make_video) -> list[VideoRecord]:
    paths = [make_video(f"{i}.mp4", 12 + i) for i in range(6)]
    return [VideoRecord(str(path), 10 + i, path.name) for i, path in enumerate(paths)]


@pytest.fixture
def damaged(records, tmp_path: Path) -> list[VideoRecord]:
    """The same list, but one of its videos cannot be decoded."""
    path = tmp_path / "damaged.mp4"
    path.write_text("no video")
    return [
        replace(record, path=str(path)) if i == LETHAL else record
        for i, record in enumerate(records)
    ]


def opener(deed: int | str | None):
    sound = VideoOpener("pyav")
    return sound if deed is None else Lethal(sound, f"{LETHAL}.mp4", deed)


def clips(deed) -> RandomClips:
    return RandomClips(
        num_frames=4,
        frame_stride=2,
        short_side_min=40,
        short_side_max=48,
        crop_size=32,
        flip_probability=0.5,
        open_video=opener(deed),
    )


def train_loader(records, deed, workers: Workers, steps: int = 8):
    batches = TrainBatches(
        num_videos=len(records),
        clips_per_gpu=3,
        rank=0,
        world_size=1,
        seed=7,
        first_step=0,
        last_step=steps,
    )
    return build_train_loader(TrainDataset(records, clips(deed), seed=7), batches, workers)


def val_loader(records, deed, workers: Workers):
    dataset = ValDataset(records, clips(deed), seed=7)
    return build_val_loader(dataset, range(len(records)), 2, workers)


def test_loader(records, deed, workers: Workers):
    dataset = TestDataset(
        records,
        num_frames=4,
        frame_stride=2,
        num_clips=2,
        num_crops=1,
        protocol="paper",
        short_side=32,
        crop_size=32,
        open_video=opener(deed),
    )
    return build_test_loader(dataset, range(len(records)), workers)


test_loader.__test__ = False


def clip_lines(batches) -> list[tuple]:
    """What every batch holds, apart from the reasons of failures."""
    return [
        (
            batch.clips_on(CPU).numpy().tobytes(),
            batch.labels.tolist(),
            batch.places.tolist(),
            len(batch.failures),
        )
        for batch in batches
    ]


def view_lines(videos) -> list[tuple]:
    return [
        (
            video.place,
            video.frames and video.on(CPU).stack().numpy().tobytes(),
            video.reason is None,
        )
        for video in videos
    ]


DEEDS = {
    signal.SIGSEGV: "killed the data worker that read it (SIGSEGV)",
    -3: "killed the data worker that read it (exit code 3)",
    "sleep": f"was not read within {TIMEOUT:g} s",
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("deed", DEEDS)
def test_training_goes_on_as_if_the_video_were_damaged(records, damaged, deed, workers) -> None:
    expected = clip_lines(train_loader(damaged, None, Workers(0)))
    failures = []

    def batches():
        for batch in train_loader(records, deed, Workers(workers, 2, TIMEOUT)):
            failures.extend(batch.failures)
            yield batch

    before = set(multiprocessing.active_children())
    found = clip_lines(batches())
    assert found == expected
    assert sum(number for *_, number in expected) >= 3  # in every epoch of four
    assert set(failures) == {(records[LETHAL].path, DEEDS[deed])}
    assert workers_of(before) == []


@pytest.mark.parametrize("deed", [signal.SIGSEGV, "sleep"])
def test_validation_counts_the_video_as_failed(records, damaged, deed) -> None:
    expected = clip_lines(val_loader(damaged, None, Workers(0)))
    loader = val_loader(records, deed, Workers(2, 2, TIMEOUT))
    for _ in range(2):  # workers persist
        batches = []
        failures = []
        for batch in loader:
            batches.extend(clip_lines([batch]))
            failures.extend(batch.failures)
        assert batches == expected
        assert failures == [(records[LETHAL].path, DEEDS[deed])]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_test_counts_the_video_as_failed(records, damaged, workers) -> None:
    expected = view_lines(test_loader(damaged, None, Workers(0)))
    reasons = []

    def videos():
        for video in test_loader(records, signal.SIGKILL, Workers(workers, 2)):
            reasons.append(video.reason)
            yield video

    assert view_lines(videos()) == expected
    reason = "killed the data worker that read it (SIGKILL)"
    assert reasons == [reason if i == LETHAL else None for i in range(6)]


def workers_of(before: set) -> list:
    return sorted(set(multiprocessing.active_children()) - before, key=lambda one: one.name)


def test_a_worker_killed_between_videos_is_replaced(records, caplog) -> None:
    expected = clip_lines(train_loader(records, None, Workers(0), steps=12))
    before = set(multiprocessing.active_children())
    iterator = iter(train_loader(records, None, Workers(2, 1), steps=12))
    found = clip_lines([next(iterator)])
    # Nothing is asked for: soon both have read what they were given.
    time.sleep(1)
    victims = workers_of(before)
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    found += clip_lines(iterator)
    assert found == expected
    assert len(victims) == 2
    assert caplog.text.count("ended while it read no video (SIGKILL)") == 2


def test_a_stopped_worker_is_replaced(records, monkeypatch) -> None:
    """It neither reads nor answers, as one that does not come up."""
    monkeypatch.setattr(crew_module, "IDLE_SECONDS", 6.0)
    expected = clip_lines(train_loader(records, None, Workers(0), steps=6))
    before = set(multiprocessing.active_children())
    iterator = iter(train_loader(records, None, Workers(1, 1, TIMEOUT), steps=6))
    found = clip_lines([next(iterator)])
    time.sleep(0.5)
    [victim] = workers_of(before)
    os.kill(victim.pid, signal.SIGSTOP)
    found += clip_lines(iterator)
    assert found == expected


class Numbers:
    """Tasks without videos."""

    def __init__(self, deeds: dict[int, str]) -> None:
        self._deeds = deeds

    def __call__(self, number: int, task: float) -> float:
        time.sleep(0.01 * (number % 3))
        if self._deeds.get(number) == "die":
            os._exit(4)
        if self._deeds.get(number) == "sleep":
            time.sleep(600)
        if self._deeds.get(number) == "fail":
            raise KeyError(number)
        return 2 * task


def crew_of(function, processes: int, losses: Losses) -> Crew:
    return Crew(function, WatchedRecords([VideoRecord("a", 0, "a")]), processes, 60.0, losses)


def test_answers_come_in_order_and_a_failure_in_its_place() -> None:
    crew = crew_of(Numbers({7: "fail"}), 2, Losses())
    answers = []
    with pytest.raises(RuntimeError, match=r"(?s)a data worker failed:\n.*raise KeyError"):
        for answer in crew.in_order(range(20), 4):
            answers.append(answer)  # noqa: PERF402
    assert answers == [0, 2, 4, 6, 8, 10, 12]
    crew.end()


def test_dropped_iterator_leaves_no_process() -> None:
    before = set(multiprocessing.active_children())
    answers = crew_of(Numbers({1: "sleep"}), 2, Losses()).in_order(range(20), 4)
    assert next(answers) == 0
    assert len(workers_of(before)) == 2
    started = time.monotonic()
    del answers
    assert workers_of(before) == []
    assert time.monotonic() - started < 5


def test_too_many_losses_end_the_reading() -> None:
    losses = Losses()
    crew = crew_of(Numbers({3: "die"}), 1, losses)
    answers = []
    # Task 3 belongs to no video, so it ends every worker that it is given to.
    with pytest.raises(RunError, match=f"{MAX_LOSSES} data workers were lost") as caught:
        for answer in crew.in_order(range(20), 2):
            answers.append(answer)  # noqa: PERF402
    assert answers == [0, 2, 4]
    assert str(caught.value).count("\n  - a data worker ended") == MAX_LOSSES
    assert "exit code 4" in str(caught.value)
    crew.end()


def test_lethal_videos_are_listed_when_there_are_too_many(records) -> None:
    everything = Lethal(VideoOpener("pyav"), ".mp4", -3)
    dataset = TrainDataset(records, clips(None), seed=7)
    dataset._clips.open_video = everything
    batches = TrainBatches(
        num_videos=6, clips_per_gpu=3, rank=0, world_size=1, seed=7, first_step=0, last_step=9
    )
    with pytest.raises(RunError) as caught:
        next(iter(build_train_loader(dataset, batches, Workers(1))))
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == MAX_LOSSES
    assert len({line for line in lines if line.endswith("(exit code 3)")}) == MAX_LOSSES
    assert sum(record.path in str(caught.value) for record in records) == MAX_LOSSES


def test_losses_far_apart_do_not_end_the_reading() -> None:
    losses = Losses()
    for _ in range(3 * MAX_LOSSES):
        losses.add("a.mp4")
        losses.num_batches += SPAN // (MAX_LOSSES - 1) + 1
    losses.num_batches -= SPAN // (MAX_LOSSES - 1) + 1
    with pytest.raises(RunError):
        losses.add("b.mp4")


def test_probe_does_not_wait_for_ever(records, monkeypatch) -> None:
    monkeypatch.setattr("videogn.data.loader.PROBE_START_SECONDS", 3.0)
    dataset = TrainDataset(records, clips("sleep"), seed=7)
    started = time.monotonic()
    assert time_reads(dataset, [(0, LETHAL)]) == []
    assert time.monotonic() - started < 10
    assert time_reads(TrainDataset(records, clips(-3), seed=7), [(0, LETHAL)]) == []


SIGNALLED = """
import os, signal, sys
from videogn.data.crew import Crew, Losses
from videogn.data.list_checks import VideoRecord
from videogn.data.watched import WatchedRecords

def answer(number, task):
    return task

def main():
    losses = Losses()
    crew = Crew(answer, WatchedRecords([VideoRecord("a.mp4", 0, "a")]), 2, 60.0, losses)
    answers = crew.in_order(range(40), 2)
    assert next(answers) == 0
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
        os.killpg(os.getpgrp(), number)
    print([*answers] == [*range(1, 40)], len(losses._recent))

if __name__ == "__main__":
    main()
"""


@pytest.mark.dist
def test_signals_to_a_whole_job_leave_workers_alone(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SIGNALLED)
    process = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.communicate(timeout=50)[0] == "True 0\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
