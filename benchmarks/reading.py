"""Reading clips beside torchcodec, decord, pytorchvideo and plain PyAV, as ratios.

    python benchmarks/reading.py [VIDEO …] [--rounds 9]

Every video is re-encoded (x264's defaults) to short sides 256, 320 and 720 pixels, and to 256 in
the form that ``videogn data prepare`` writes; without a video one is made. The work is a training
clip, a random 32x2 clip as (3, 32, 224, 224) uint8, scale 256-320, crop, flip;
and the 10-clip test of a video at short side 256. ``videogn, device`` leaves colour, scaling
and flip to the device and writes YUV crops, as training on a GPU does. One process on one core: a
round runs every reader once in turn on the same clips, the CPU time of the process counts, and
medians over rounds are compared. ``limit`` decodes the packets a clip needs and touches no pixel.
Readers that are not installed are left out, and named. Files are made in a temporary folder and
removed.
"""

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter

from videogn.data.clips import RandomClips
from videogn.data.dataset import TestDataset
from videogn.data.decode import PyAVReader
from videogn.data.encoding import Settings
from videogn.data.list_checks import VideoRecord
from videogn.data.packet_scan import index_video
from videogn.data.packets import IndexedReader, PacketIndex, decode_frames
from videogn.data.sampling import random_clip, uniform_clips
from videogn.data.synthetic import blotches
from videogn.data.transforms import Augmentation, draw_augmentation

FORMS = {
    "256": (256, {}),
    "320": (320, {}),
    "720p": (720, {}),
    "256 prepared": (256, Settings(256, 16, 23, "fast", "fastdecode").options()),
}
FRAMES, STRIDE, CROP = 32, 2, 224
FPS = 30
SECONDS = FRAMES * STRIDE / FPS
NUM_CLIPS, TEST_SIDE = 10, 256
OURS = ("videogn", "videogn, device", "limit")
ROOM = 5.0
"""Times the bytes of a finished clip that its crops may take: 720p needs four."""
Work = Callable[[str, np.random.Generator], object]
"""Reads one clip of a file, or its ten, which the generator decides."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    words = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        for form, (short_side, options) in FORMS.items():
            sources = words.videos or [made_video(Path(folder) / "made.mp4")]
            paths = [
                encode(path, Path(folder) / f"{number}-{form}.mp4", short_side, options)
                for number, path in enumerate(sources)
            ]
            indexes = {path: index_video(path) for path in paths}
            report(form, "training clip", paths, training_readers(indexes), words.rounds)
            report(form, "10-clip test", paths, test_readers(indexes), -(-words.rounds // 3))


def report(form: str, kind: str, paths: Sequence[str], works: dict[str, Work], rounds: int) -> None:
    seconds = interleave(paths, works, rounds)
    peers = {name: value for name, value in seconds.items() if name not in OURS}
    fastest = min(peers, key=peers.__getitem__)
    print(f"\n{kind}, {form}: ratios to {fastest}, the fastest peer")
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {name:14} {1000 * value:9.1f} ms   {seconds[fastest] / value:5.2f} x")
    for name in OURS[:2]:
        print(f"  {name} is at {seconds['limit'] / seconds[name]:.2f} of the limit", flush=True)


def interleave(paths: Sequence[str], works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each reader; all read the same clips; one round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for path in paths:
            for name, work in works.items():
                started = time.process_time()
                work(path, np.random.default_rng([number, FRAMES]))
                if number:
                    times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def training_readers(indexes: dict[str, PacketIndex]) -> dict[str, Work]:
    works: dict[str, Work] = {}
    if installed("pytorchvideo"):
        works["pytorchvideo"] = pytorchvideo_clip
    if installed("decord"):
        works["decord"] = lambda path, rng: augmented(decord_frames, path, rng)
    if installed("torchcodec"):
        works["torchcodec"] = lambda path, rng: augmented(torchcodec_frames, path, rng)
    works["plain PyAV"] = lambda path, rng: augmented(pyav_frames, path, rng)
    for name, room in zip(OURS, (0.0, ROOM), strict=False):
        works[name] = our_clip(indexes, room)
    works["limit"] = lambda path, rng: decode_only(
        path, indexes[path], random_clip(indexes[path].num_frames, FRAMES, STRIDE, rng)
    )
    return works


def test_readers(indexes: dict[str, PacketIndex]) -> dict[str, Work]:
    works: dict[str, Work] = {}
    if installed("pytorchvideo"):
        works["pytorchvideo"] = lambda path, rng: pytorchvideo_ten_clips(path)
    if installed("decord"):
        works["decord"] = lambda path, rng: ten_clips(decord_frames, path)
    if installed("torchcodec"):
        works["torchcodec"] = lambda path, rng: ten_clips(torchcodec_frames, path)
    works["plain PyAV"] = lambda path, rng: ten_clips(pyav_frames, path)
    works["videogn"] = lambda path, rng: our_ten_clips(path, indexes[path], planar=False)
    works["videogn, device"] = lambda path, rng: our_ten_clips(path, indexes[path], planar=True)
    works["limit"] = lambda path, rng: decode_only(
        path,
        indexes[path],
        uniform_clips(indexes[path].num_frames, FRAMES, STRIDE, NUM_CLIPS).ravel(),
    )
    return works


def our_clip(indexes: dict[str, PacketIndex], room: float) -> Work:
    clips = RandomClips(
        num_frames=FRAMES,
        frame_stride=STRIDE,
        short_side_min=256,
        short_side_max=320,
        crop_size=CROP,
        flip_probability=0.5,
        open_video=lambda path: IndexedReader(path, indexes[path]),
        planar_room=room,
    )
    # As in a data worker, whose memory is used again and again.
    memory = np.empty(clips.num_bytes, np.uint8)
    return lambda path, rng: clips.read(path, rng, memory)


def our_ten_clips(path: str, index: PacketIndex, *, planar: bool) -> object:
    dataset = TestDataset(
        [VideoRecord(path, 0, path)],
        num_frames=FRAMES,
        frame_stride=STRIDE,
        num_clips=NUM_CLIPS,
        num_crops=1,
        protocol="paper",
        short_side=TEST_SIDE,
        crop_size=CROP,
        open_video=lambda path: IndexedReader(path, index),
        planar=planar,
    )
    return dataset.read(0, test_memory(dataset.sample_bytes))


@cache
def test_memory(size: int) -> np.ndarray:
    """What a data worker writes the frames into, again and again."""
    return np.empty(size, np.uint8)


def decode_only(path: str, index: PacketIndex, indices: np.ndarray) -> None:
    for _ in decode_frames(path, index, np.unique(indices).tolist()):
        pass


Frames = Callable[[str, Callable[[int], np.ndarray]], torch.Tensor]
"""Opens a file and gives the frames that a function of their number chooses, (T, 3, H, W) uint8."""


def augmented(read: Frames, path: str, rng: np.random.Generator) -> torch.Tensor:
    """A peer's training clip: decode, scale in 8 bits, crop and flip, as its users write it."""
    frames = read(path, lambda count: random_clip(count, FRAMES, STRIDE, rng))
    draw = draw_augmentation(rng, 256, 320, 0.5)
    return cropped(frames, draw)


def cropped(frames: torch.Tensor, draw: Augmentation) -> torch.Tensor:
    """Frames (T, 3, H, W) scaled, cropped and mirrored to (3, T, 224, 224)."""
    size = scaled_size(frames, draw.short_side)
    scaled = F.interpolate(frames, size=size, mode="bilinear")
    top, left = (int(u * (s - CROP + 1)) for u, s in zip((draw.top, draw.left), size, strict=True))
    clip = scaled[:, :, top : top + CROP, left : left + CROP].transpose(0, 1)
    return (clip.flip(3) if draw.flip else clip).contiguous()


def ten_clips(read: Frames, path: str) -> torch.Tensor:
    """A peer's test clips: the distinct frames in one call, scaled once, then put together."""
    clips = np.empty(0)

    def choose(count: int) -> np.ndarray:
        nonlocal clips
        clips = uniform_clips(count, FRAMES, STRIDE, NUM_CLIPS)
        return np.unique(clips)

    frames = read(path, choose)
    size = scaled_size(frames, TEST_SIDE)
    if size != tuple(frames.shape[2:]):
        frames = F.interpolate(frames, size=size, mode="bilinear")
    places = torch.from_numpy(np.searchsorted(np.unique(clips), clips))
    return frames[places].transpose(1, 2).contiguous()


def scaled_size(frames: torch.Tensor, short_side: int) -> tuple[int, int]:
    height, width = frames.shape[2:]
    shorter = min(height, width)
    return short_side * height // shorter, short_side * width // shorter


def torchcodec_frames(path: str, choose: Callable[[int], np.ndarray]) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1)
    return video.get_frames_at(choose(len(video)).tolist()).data


def decord_frames(path: str, choose: Callable[[int], np.ndarray]) -> torch.Tensor:
    import decord

    video = decord.VideoReader(path, num_threads=1)
    batch = video.get_batch(choose(len(video)).tolist()).asnumpy()
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def pyav_frames(path: str, choose: Callable[[int], np.ndarray]) -> torch.Tensor:
    """Seek to the first frame by its time, decode on, convert the wanted frames alone."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        indices = choose(stream.frames)
        step = Fraction(1) / (stream.average_rate * stream.time_base)
        start = stream.start_time or 0
        wanted = {start + round(index * step) for index in indices.tolist()}
        last, scaler, found = max(wanted), VideoReformatter(), []
        container.seek(min(wanted), stream=stream)
        for frame in container.decode(stream):
            if frame.pts in wanted:
                found.append(scaler.reformat(frame, format="rgb24", threads=1).to_ndarray())
            if frame.pts >= last:
                break
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def pytorchvideo_clip(path: str, rng: np.random.Generator) -> torch.Tensor:
    """pytorchvideo's reader and the arithmetic of its transforms, in floats.

    The transforms themselves cannot be imported beside a current torchvision.
    """
    video = pytorchvideo_video(path)
    start = float(rng.uniform(0, max(float(video.duration) - SECONDS, 0)))
    return cropped(pytorchvideo_frames(video, start), draw_augmentation(rng, 256, 320, 0.5))


def pytorchvideo_ten_clips(path: str) -> torch.Tensor:
    """One call for each of ten evenly spaced clips, as its samplers ask for them."""
    video = pytorchvideo_video(path)
    clips = []
    for start in np.linspace(0, max(float(video.duration) - SECONDS, 0), NUM_CLIPS):
        frames = pytorchvideo_frames(video, float(start))
        size = scaled_size(frames, TEST_SIDE)
        clips.append(F.interpolate(frames, size=size, mode="bilinear").transpose(0, 1))
    return torch.stack(clips)


def pytorchvideo_video(path: str) -> Any:
    from pytorchvideo.data.encoded_video import EncodedVideo

    return EncodedVideo.from_path(path, decode_audio=False)


def pytorchvideo_frames(video: Any, start: float) -> torch.Tensor:
    """(T, 3, H, W) float32."""
    clip = video.get_clip(start, start + SECONDS)["video"]
    return clip[:, torch.linspace(0, clip.shape[1] - 1, FRAMES).long()].transpose(0, 1)


def encode(source: Path, path: Path, short_side: int, options: dict[str, str]) -> str:
    """The first 300 frames of a video at a short side, x264's defaults but for the options."""
    video = PyAVReader(str(source))
    sides = video.height, video.width
    height, width = (side * short_side // min(sides) // 2 * 2 for side in sides)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.options = {"threads": "1", **options}
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        scaler = VideoReformatter()
        for image in video.images(range(min(video.num_frames, 300))):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(scaler.reformat(frame, width, height, "yuv420p")))
        container.mux(stream.encode(None))
    return str(path)


def made_video(path: Path) -> Path:
    """Ten seconds of a view that wanders over a noisy picture, 720p."""
    rng = np.random.default_rng(0)
    picture = np.stack([255 * blotches(rng, (900, 1500)) for _ in range(3)], axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 720, 1280, "yuv420p"
        stream.options = {"threads": "1", "crf": "18", "preset": "veryfast"}
        for time_ in range(300):
            top, left = (
                int(room * (0.5 + 0.5 * np.sin(time_ / pace)))
                for room, pace in ((180, 23), (220, 31))
            )
            view = picture[top : top + 720, left : left + 1280]
            view = (view + rng.normal(0, 4, view.shape)).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@cache
def installed(name: str) -> bool:
    """Whether a peer can be measured; torchcodec needs FFmpeg's libraries too."""
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        print(f"without {name}: {str(error).splitlines()[0]}")
        return False
    return True


if __name__ == "__main__":
    main()
