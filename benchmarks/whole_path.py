"""The measurements of end_to_end.py, which says what they are."""

import argparse
import importlib.util
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videogn.cli import main as videogn
from videogn.commands.run_parts import Prepared, build_run, memory_plan, train_batches
from videogn.commands.test import job_of
from videogn.commands.train import prepare
from videogn.config_files import load_config
from videogn.data.index_file import IndexFile, index_path
from videogn.data.indexing import index_entry
from videogn.data.workers import cores
from videogn.distributed import World
from videogn.engine.arithmetic import set_arithmetic
from videogn.engine.rehearsal import rehearse
from videogn.engine.runs import RunLog, read_log
from videogn.engine.trainer import train
from videogn.files import write_text

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
FPS, HEIGHT, WIDTH = 30, 256, 340
WARM_LINES = 2
"""Progress lines at a loop's start that are not counted: buffers fill, the device tunes itself."""


@dataclass(frozen=True)
class Sizes:
    """How much is done; a dry run shows that all of it works and measures nothing.

    Attributes:
        network: config of the network.
        clip: config of the clips.
        seconds: of each measurement.
        num_videos: that are made.
        video_seconds: of each of them.
        tested: videos that the test scores.
        log_interval: steps between progress lines.
    """

    network: dict[str, Any]
    clip: dict[str, Any]
    clips_per_gpu: int
    seconds: float
    num_videos: int
    video_seconds: int
    tested: int
    log_interval: int


def measured(words: argparse.Namespace) -> dict[str, Any]:
    """All that end_to_end.py tells; what is known so far is kept, should the run be cut off."""
    sizes = dry_sizes(words) if words.dry_run else full_sizes(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    title = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    say(f"{title}, {cores()} cores, torch {torch.__version__}")
    found: dict[str, Any] = {"device": title, "cores": cores(), "torch": torch.__version__}
    found |= {"norm": words.norm, "layout": words.layout, "precision": words.precision}
    found |= {"set": words.set, "clips_per_gpu": sizes.clips_per_gpu, **sizes.clip}
    with tempfile.TemporaryDirectory() as folder:
        files = words.files or Path(folder) / "files"
        lists = make_lists(files, words, sizes)
        bench = Bench(Path(folder) / "runs", words, sizes, World(0, 1, device))
        for form in words.forms:
            found[form] = {}
            for name, value in bench.form(form, lists[form]):
                found[form][name] = value
                say(f"{form}, {name}: {json.dumps(value)}")
                keep(found, words.out)
        if "network" not in words.skip:
            found["network"] = bench.network(lists["plain"])
        if "peers" not in words.skip:
            found["peers"] = peers(lists["prepared"], sizes, device)
    keep(found, words.out)
    return found


def keep(found: dict[str, Any], path: Path | None) -> None:
    """Write what is known so far; a file that is there is whole at every moment."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found, indent=1) + "\n")


def full_sizes(words: argparse.Namespace) -> Sizes:
    return Sizes(
        network={"layout": words.layout},
        clip={"num_frames": words.frames, "frame_stride": words.stride},
        clips_per_gpu=words.clips_per_gpu,
        seconds=words.seconds,
        num_videos=words.made,
        video_seconds=10,
        tested=words.tested,
        log_interval=20,
    )


def dry_sizes(words: argparse.Namespace) -> Sizes:
    small = {"short_side_min": 64, "short_side_max": 80, "crop_size": 56}
    return Sizes(
        network={"layout": words.layout, "width": 8, "depths": [1, 1], "channels_per_group": 4},
        clip={"num_frames": 8, "frame_stride": 2, **small},
        clips_per_gpu=2,
        seconds=1.0,
        num_videos=4,
        video_seconds=1,
        tested=min(8, words.tested),
        log_interval=2,
    )


class Bench:
    """The measurements, on one machine with one config but for the list."""

    def __init__(self, folder: Path, words: argparse.Namespace, sizes: Sizes, world: World) -> None:
        self._folder, self._words, self._sizes, self._world = folder, words, sizes, world
        folder.mkdir()

    def form(self, form: str, path: Path) -> Iterator[tuple[str, Any]]:
        """Reading, training and testing of one form of the videos, each when it is done."""
        prepared = self._prepared(form, path)
        batches = train_batches(prepared, self._world, say, 0, prepared.plan.iterations)
        if "reading" not in self._words.skip:
            yield "reading", self._reading(batches)
        yield "both", self._trained(prepared, batches)
        batches.close()  # type: ignore[attr-defined]
        if self._sizes.tested:
            yield "test", self._tested(form, path, prepared)

    def network(self, path: Path) -> dict[str, float]:
        """The training loop without reading."""
        prepared = self._prepared("resident", path)
        return self._trained(prepared, resident_batches(prepared, self._world.device))

    def _prepared(self, name: str, path: Path) -> Prepared:
        sizes, words = self._sizes, self._words
        tree = {
            "data": {"train": str(path), "num_workers": number_or_auto(words.workers)},
            "model": {"norm": words.norm, "num_classes": 400, **sizes.network},
            "clip": sizes.clip,
            "train": {
                "clips_per_gpu": sizes.clips_per_gpu,
                "precision": words.precision,
                "iterations": 10**6,
                "log_interval": sizes.log_interval,
                "precise_bn_batches": 0,
            },
        }
        config = self._folder / f"{name}.yaml"
        config.write_text(json.dumps(tree), encoding="utf-8")  # which is YAML too
        return prepare(load_config(config, [f"out={self._folder / name}", *words.set]), 1)

    def _reading(self, batches: Iterator[Any]) -> float:
        """Clips a second that come out of the loader, once its buffers have been emptied."""
        ahead = 8 * cores()
        for _ in range(min(ahead, 4 if self._words.dry_run else ahead)):
            next(batches)
        started, clips = time.monotonic(), 0
        while time.monotonic() - started < self._sizes.seconds:
            clips += len(next(batches).labels)
        return clips / (time.monotonic() - started)

    def _trained(self, prepared: Prepared, batches: Iterator[Any]) -> dict[str, float]:
        """Pace of the training loop, by the log it writes."""
        device = self._world.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        set_arithmetic(self._words.precision, fixed_shapes=True)
        memory = memory_plan(prepared, self._world)
        run, state = build_run(prepared, self._world, memory, None, say)
        rehearse(run, prepared.config.clip, memory)
        clock = LoopClock(self._sizes)
        prepared.folder.path.mkdir(parents=True, exist_ok=True)
        RunLog(prepared.folder.log).write("start", {"iteration": 0})
        run = replace(run, stop_asked=clock.is_over, stage=clock.stage)
        train(run, state, batches, None)
        return pace_of(read_log(prepared.folder.log), self._sizes) | memory_of(device)

    def _tested(self, form: str, path: Path, prepared: Prepared) -> dict[str, float]:
        """Videos a second of ``videogn test``."""
        config, words = self._folder / f"{form}.yaml", self._words
        listed = many_names(path, self._folder / f"{form}_test", self._sizes.tested)
        overrides = [f"data.test={listed}", "data.train=", *words.set]
        loaded = load_config(config, [*overrides, f"out={self._folder / form}"])
        clock = Clock()
        job = job_of(loaded, prepared.folder.last, self._folder / f"{form}_scores")
        job.run(self._world, clock)  # type: ignore[arg-type]
        return {"videos_per_second": clock.pace()}


class LoopClock:
    """Ends a training loop after the seconds of a measurement, and at least one progress line."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes, self._until = sizes, math.inf
        self._first = WARM_LINES * sizes.log_interval
        self._iteration = 0

    def stage(self, stage: str, iteration: int) -> None:
        """Is told by the loop where it is."""
        self._iteration = iteration
        if stage == "step" and iteration == self._first:
            self._until = time.monotonic() + self._sizes.seconds

    def is_over(self) -> bool:
        """Asked by the loop in each step."""
        enough = self._iteration > self._first + self._sizes.log_interval
        return enough and time.monotonic() > self._until


class Clock:
    """Stands where the test's watchdog does: sees how many videos are scored, and when."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def stage(self, stage: str, number: int) -> None:
        if stage == "scoring":
            self._seen.append((time.monotonic(), number))

    def pace(self) -> float:
        """Videos a second from the first tenth of them on."""
        last_time, last = self._seen[-1]
        time_, number = next(pair for pair in self._seen if pair[1] >= max(1, last // 10))
        return (last - number) / max(last_time - time_, 1e-9)


@dataclass
class Resident:
    """A batch whose clips are where they are used."""

    clips: Tensor
    labels: Tensor
    places: Tensor
    failures: tuple[tuple[str, str], ...] = ()

    def clips_on(self, device: torch.device) -> Tensor:
        assert self.clips.device.type == device.type
        return self.clips


def resident_batches(prepared: Prepared, device: torch.device) -> Iterator[Resident]:
    clip, count = prepared.config.clip, prepared.plan.clips_per_gpu
    shape = (count, clip.num_frames, clip.crop_size, clip.crop_size, 3)
    # Colours last in memory, as those that were read.
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    batch = Resident(pixels.permute(0, 4, 1, 2, 3), torch.arange(count), torch.arange(count))
    return itertools.repeat(batch)


def pace_of(log: Sequence[dict[str, Any]], sizes: Sizes) -> dict[str, float]:
    """Clips a second and the share of waiting, over the progress lines after the warm-up."""
    entries = [entry for entry in log if entry["kind"] == "train"][WARM_LINES:]
    # All lines are of equally many steps.
    clips = sizes.log_interval * sizes.clips_per_gpu
    seconds = [clips / entry["clips_per_second"] for entry in entries]
    waited = sum(entry["data_wait"] * taken for entry, taken in zip(entries, seconds, strict=True))
    return {
        "clips_per_second": clips * len(entries) / sum(seconds),
        "data_wait": waited / sum(seconds),
    }


def memory_of(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    # Reserved: what CUDA graphs keep is not allocated in torch's sense.
    return {"peak_gib": torch.cuda.max_memory_reserved(device) / 2**30}


def make_lists(folder: Path, words: argparse.Namespace, sizes: Sizes) -> dict[str, Path]:
    """Lists of the plain and of the prepared videos, both indexed."""
    started = time.monotonic()
    plain = folder / "plain"
    lists = {"plain": plain / "list.txt", "prepared": folder / "prepared" / "list.txt"}
    if all(index_path(str(path)).exists() for path in lists.values()):
        return lists
    plain.mkdir(parents=True)
    if words.videos:
        sources = sorted(p for p in words.videos.rglob("*") if p.suffix.lower() in SUFFIXES)
        names = [f"{number:04}{path.suffix}" for number, path in enumerate(sources)]
        for source, name in zip(sources, names, strict=True):
            shutil.copyfile(source, plain / name)
    else:
        names = [f"{number:04}.mp4" for number in range(sizes.num_videos)]
        with ThreadPoolExecutor(cores()) as pool:
            paths = [plain / name for name in names]
            list(pool.map(lambda one: made_video(*one, sizes), enumerate(paths)))
    size = sum((plain / name).stat().st_size for name in names)
    say(f"{len(names)} videos, {size * 8 / len(names) / sizes.video_seconds / 1000:.0f} kbit/s")
    lines = (f"{name} {number % 400}\n" for number, name in enumerate(names))
    lists["plain"].write_text("".join(lines), encoding="utf-8")
    processes = ["--workers", str(cores())]
    prepared = ["--out", str(folder / "prepared"), *processes]
    check(videogn(["data", "prepare", str(lists["plain"]), *prepared]))
    for path in lists.values():
        check(videogn(["data", "index", str(path), *processes]))
    say(f"files made, prepared and indexed in {time.monotonic() - started:.0f} s")
    return lists


def made_video(number: int, path: Path, sizes: Sizes) -> None:
    """A camera over two scenes, each with three things that move, and a sensor's noise.

    Pictures have the spectrum of natural ones, so that x264's defaults make of it the 400 to 800
    kbit/s that real videos of this size have.
    """
    rng = np.random.default_rng(number)
    noise = rng.normal(0, 2, (4, HEIGHT + 64, WIDTH + 64)).astype(np.float32)
    scenes = [Scene(rng), Scene(rng)]
    total = sizes.video_seconds * FPS
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for place in range(total):
            luma, blue, red = scenes[2 * place // total].at(place / FPS)
            top, left = rng.integers(64, size=2)
            luma = luma + noise[place % 4, top : top + HEIGHT, left : left + WIDTH]
            planes = np.concatenate([plane.ravel() for plane in (luma, blue, red)])
            picture = planes.clip(16, 235).astype(np.uint8).reshape(-1, WIDTH)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))


class Scene:
    """A picture that the camera wanders over, and three things before it."""

    def __init__(self, rng: np.random.Generator) -> None:
        spreads = (45, 18, 18)
        self._planes = [natural(rng, (2 * HEIGHT, 2 * WIDTH), spread) for spread in spreads]
        self._thing = natural(rng, (128, 128), 50)
        self._phase, self._pace = rng.uniform(0, 2 * np.pi, 6), rng.uniform(0.2, 0.7, 6)

    def at(self, seconds: float) -> list[np.ndarray]:
        """Luma and both colours at a time."""
        wave = np.sin(self._phase + self._pace * seconds)
        zoom, turn = 1 + 0.1 * wave[0], 0.02 * wave[1]
        way = np.array([[zoom, turn, 80 + 60 * wave[2]], [-turn, zoom, 60 + 40 * wave[3]]])
        planes = []
        for number, plane in enumerate(self._planes):
            shrink = 2 if number else 1
            here = way / [1, 1, shrink]
            size = WIDTH // shrink, HEIGHT // shrink
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            planes.append(
                cv2.warpAffine(plane, here, size, flags=flags, borderMode=cv2.BORDER_REFLECT)
            )
        swing = 0.5 + 0.5 * np.sin(self._phase + 2 * self._pace * seconds)
        for number in range(3):
            top, left = int((HEIGHT - 80) * swing[number]), int((WIDTH - 80) * swing[number + 3])
            first = 16 * number
            planes[0][top : top + 80, left : left + 80] = self._thing[first : first + 80, :80]
        return planes


def natural(rng: np.random.Generator, shape: tuple[int, int], spread: float) -> np.ndarray:
    """A picture whose amplitudes fall as those of photographs do, (H, W) float32 round 128."""
    across, down = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    frequency = np.hypot(across, down)
    frequency[0, 0] = np.inf
    picture = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) / frequency**1.1, shape)
    return (128 + spread * picture / picture.std()).astype(np.float32)


def many_names(path: Path, folder: Path, count: int) -> Path:
    """A list of ``count`` videos, which are those of another list under several names each."""
    pairs = [line.rsplit(" ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    sources = [path.parent / name for name, _ in pairs]
    folder.mkdir()
    lines = []
    for number in range(count):
        source = sources[number % len(sources)]
        name = f"{number:06}{source.suffix}"
        try:
            os.link(source, folder / name)
        except OSError:  # another file system
            shutil.copy2(source, folder / name)
        lines.append(f"{name} {pairs[number % len(sources)][1]}\n")
    listed = folder / "list.txt"
    listed.write_text("".join(lines), encoding="utf-8")
    known = [index_entry(str(source)) for source in sources[:count]]
    file = IndexFile(index_path(str(listed)), create=True)
    for number in range(count):
        name = str((folder / lines[number].split(" ")[0]).absolute())
        file.add([replace(known[number % len(known)], path=name)])
    file.close()
    return listed


def peers(path: Path, sizes: Sizes, device: torch.device) -> dict[str, float | str]:
    """Clips a second of GPU decoders; why not, where there is no number."""
    names = [line.split(" ")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    files = [str(path.parent / name) for name in names]
    found: dict[str, float | str] = {}
    ways = {"torchcodec": torchcodec_clips, "nvidia.dali": dali_clips}
    for name, way in ways.items():
        if not installed(name):
            found[name] = "not installed"
        elif device.type != "cuda":
            found[name] = "needs a GPU"
        else:
            try:
                found[name] = way(files, sizes)
            except Exception as error:  # noqa: BLE001, RUF100 - a peer must not end the run
                found[name] = f"failed: {str(error).splitlines()[0]}"
    return found


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def torchcodec_clips(files: Sequence[str], sizes: Sizes) -> float:
    """torchcodec's CUDA decoder in eight threads, frames scaled on the device."""
    from torchcodec.decoders import VideoDecoder

    frames, stride = sizes.clip["num_frames"], sizes.clip["frame_stride"]

    def read(number: int) -> int:
        decoder = VideoDecoder(files[number % len(files)], device="cuda")
        last = max(1, decoder.metadata.num_frames - frames * stride)
        first = number * 37 % last
        clip = decoder.get_frames_in_range(first, first + frames * stride, stride).data
        F.interpolate(clip.float(), (256, 340), mode="bilinear")[..., :224, :224].round().byte()
        return 1

    return paced(read, sizes.seconds, threads=8)


def dali_clips(files: Sequence[str], sizes: Sizes) -> float:
    """DALI's video reader, frames as it gives them."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=8, num_threads=4, device_id=0)
    def pipeline() -> Any:
        return fn.readers.video(
            device="gpu",
            filenames=list(files),
            sequence_length=sizes.clip["num_frames"],
            stride=sizes.clip["frame_stride"],
            random_shuffle=True,
        )

    made = pipeline()
    made.build()
    made.run()

    def read(number: int) -> int:
        made.run()
        return 8

    return paced(read, sizes.seconds, threads=1)


def paced(read: Callable[[int], int], seconds: float, threads: int) -> float:
    """Clips a second of a reader that is called in threads with rising numbers."""
    read(0)
    torch.cuda.synchronize()
    started = time.monotonic()

    def work(first: int) -> int:
        clips = 0
        for number in itertools.count(first, threads):
            if time.monotonic() - started > seconds:
                break
            clips += read(number)
        return clips

    with ThreadPoolExecutor(threads) as pool:
        clips = sum(pool.map(work, range(threads)))
    torch.cuda.synchronize()
    return clips / (time.monotonic() - started)


def number_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


def check(code: int) -> None:
    if code:
        raise SystemExit(f"a command ended with exit code {code}")


def say(line: str) -> None:
    print(line, flush=True)
