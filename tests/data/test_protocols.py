"""Every protocol against a second statement of its project's rule, for every short video.

The rules are written again here in other arithmetic than the package's: whole numbers, scalar
loops, floats cut to 32 bits by ``struct``. pytorchvideo's release is installed, so its own code
decides what ``pytorchvideo`` has to do.
"""

import bisect
import importlib.util
import math
import struct
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from functools import cache
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import center_crop

from videogn.config import TIMED_PROTOCOLS, TestConfig
from videogn.data.dataset import TestDataset
from videogn.data.decode import PyAVReader
from videogn.data.list_checks import VideoRecord
from videogn.data.opening import VideoOpener
from videogn.data.protocols import PROTOCOLS, Timeline
from videogn.data.rgb import Box

TOTALS = range(1, 401)
SHAPES = [(32, 2), (64, 1), (8, 8), (16, 5)]
RATES = [
    *(Fraction(24000, 1001), Fraction(30000, 1001)),
    *(Fraction(25), Fraction(50), Fraction(25, 2), Fraction(30)),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
rates = pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.5g}fps")
timed = pytest.mark.parametrize(
    ("shape", "rate"),
    [
        *(((32, 2), rate) for rate in RATES),
        ((64, 1), Fraction(30000, 1001)),
        ((8, 8), Fraction(25)),
        ((16, 5), Fraction(24000, 1001)),
        ((16, 5), Fraction(25, 2)),
    ],
    ids=lambda value: f"{float(value):.5g}" if isinstance(value, Fraction) else str(value),
)


def part_of_pytorchvideo(file: str) -> ModuleType:
    """One of its files alone: its folders import what newer torchvision and Python refuse."""
    [root] = importlib.util.find_spec("pytorchvideo").submodule_search_locations
    spec = importlib.util.spec_from_file_location(f"part_{Path(file).stem}", Path(root) / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def seconds_at(total: int, rate: Fraction) -> np.ndarray:
    """Times as the reader has them of an MP4: ticks of a 512th of a frame, divided in floats."""
    ticks = np.arange(total) * 512 * rate.denominator
    return ticks * 1 / (512 * rate.numerator)


def clips_of(protocol: str, total: int, shape: tuple[int, int], num_clips=10, rate=None):
    def times() -> np.ndarray:
        assert rate is not None, "a protocol that counts frames asks for times"
        return seconds_at(total, rate)

    found = PROTOCOLS[protocol].clips(Timeline(total, times), *shape, num_clips)
    assert found.shape == (num_clips, shape[0])
    assert found.dtype == np.int64
    assert found.min() >= 0
    assert found.max() < total
    return found


def f32(value: float) -> float:
    """The nearest 32-bit float."""
    return struct.unpack("f", struct.pack("f", value))[0]


def looped(starts: list[int], total: int, shape: tuple[int, int]) -> list[list[int]]:
    """Clips of consecutive steps over the endlessly repeated video."""
    length, stride = shape
    endless = list(range(total)) * (1 + (total + length * stride) // total)
    return [endless[start : start + length * stride : stride] for start in starts]


def test_the_config_names_these_protocols() -> None:
    assert get_args(get_type_hints(TestConfig)["protocol"]) == tuple(PROTOCOLS)
    assert tuple(name for name, each in PROTOCOLS.items() if each.fps) == TIMED_PROTOCOLS
    views = {name: (each.num_clips, each.num_crops) for name, each in PROTOCOLS.items()}
    ours = {"paper": (10, 1), "center": (10, 1)}
    assert views == dict.fromkeys(PROTOCOLS, (10, 3)) | ours


# Frames


@shapes
@pytest.mark.parametrize("num_clips", [1, 7, 10])
@pytest.mark.parametrize("protocol", ["paper", "center"])
def test_our_own_clips_reach_from_end_to_end(protocol, num_clips, shape) -> None:
    span = (shape[0] - 1) * shape[1] + 1
    for total in TOTALS:
        room = max(0, total - span)
        exact = [
            Decimal(j * room) / (num_clips - 1) if num_clips > 1 else Decimal(room) / 2
            for j in range(num_clips)
        ]
        starts = [int(each.quantize(Decimal(1), ROUND_HALF_EVEN)) for each in exact]
        found = clips_of(protocol, total, shape, num_clips)
        assert found.tolist() == looped(starts, total, shape)


@shapes
@pytest.mark.parametrize("num_clips", [1, 3, 10, 20])
def test_nonlocal_clips(num_clips: int, shape: tuple[int, int]) -> None:
    for total in TOTALS:
        gap = f32(total / num_clips)
        starts = [math.floor(f32(gap * j)) for j in range(num_clips)]
        if num_clips != 20:
            assert starts == [j * total // num_clips for j in range(num_clips)]
        found = clips_of("nonlocal", total, shape, num_clips)
        assert found.tolist() == looped(starts, total, shape)


def test_ten_nonlocal_clips_start_at_the_exact_tenths() -> None:
    for total in (*range(400, 10_001, 7), 10_000):
        starts = clips_of("nonlocal", total, (2, 1))[:, 0].tolist()
        assert starts == [j * total // 10 for j in range(10)]


@shapes
@pytest.mark.parametrize("num_clips", [1, 3, 10])
def test_mmaction2_clips(num_clips: int, shape: tuple[int, int]) -> None:
    span = (shape[0] - 1) * shape[1] + 1
    for total in TOTALS:
        room = max(0, total - span)
        if num_clips == 1:
            starts = [room // 2]
        else:
            step = room / float(num_clips - 1)
            starts = [
                int(Decimal(j * step).quantize(Decimal(1), ROUND_HALF_EVEN))
                for j in range(num_clips)
            ]
        found = clips_of("mmaction2", total, shape, num_clips)
        assert found.tolist() == looped(starts, total, shape)


@timed
@pytest.mark.parametrize("num_clips", [1, 10])
def test_slowfast_clips(num_clips: int, shape: tuple[int, int], rate: Fraction) -> None:
    """In whole numbers: positions are counted in units of a 30 q J (L - 1)th of a frame."""
    length, stride = shape
    frame = 30 * rate.denominator  # units of a span's length per frame
    span = length * stride * rate.numerator
    whole = frame * num_clips * (length - 1)
    j, k = np.arange(num_clips)[:, None], np.arange(length)
    doubtful = 0
    for total in TOTALS:
        room = max(total * frame - span, 0)
        position = room * j * (length - 1) + (span - frame) * num_clips * k
        expected = np.minimum(position // whole, total - 1)
        found = clips_of("slowfast", total, shape, num_clips, rate)
        # 32-bit floats cannot tell these from the integer they nearly are.
        unsure = np.minimum(position % whole, -position % whole) <= whole * 5e-5
        assert (np.abs(found - expected) <= unsure).all()
        doubtful += int((found != expected).sum())
    assert doubtful < 0.002 * len(TOTALS) * num_clips * length


@rates
def test_slowfast_clips_of_times_in_milliseconds(rate: Fraction) -> None:
    """Matroska rounds times; the rate that headers have is found all the same."""
    for total in range(2, 401):
        exact = seconds_at(total, rate)
        rounded = np.round(exact, 3)
        clips = [
            PROTOCOLS["slowfast"].clips(Timeline(total, lambda at=at: at), 32, 2, 10)
            for at in (exact, rounded)
        ]
        assert (clips[0] == clips[1]).mean() > (0.999 if total > 10 else 0.9)
        if total > 40:
            np.testing.assert_array_equal(*clips)


@shapes
def test_slowfast_repeats_the_last_frame_of_short_videos(shape: tuple[int, int]) -> None:
    for total in (1, 2, 5, 20, 63):
        expected = [
            min(total - 1, k * (shape[0] * shape[1] - 1) // (shape[0] - 1)) for k in range(shape[0])
        ]
        assert clips_of("slowfast", total, shape, rate=Fraction(30)).tolist() == [expected] * 10


package_sampler = part_of_pytorchvideo("data/clip_sampling.py").ConstantClipsPerVideoSampler
package_stamps = part_of_pytorchvideo("data/utils.py").secs_to_pts
package_transforms = part_of_pytorchvideo("transforms/functional.py")


def package_frames(start, end, pts: list[int], tick: Fraction, length: int) -> np.ndarray:
    """As its ``get_clip`` picks by presentation stamps, with its ``uniform_temporal_subsample``."""
    bounds = [package_stamps(at, tick, 0, round_mode="ceil") for at in (start, end)]
    first, last = (bisect.bisect_left(pts, bound) for bound in bounds)
    assert first < last
    return first + package_spread(last - first, length)


@cache
def package_spread(num_decoded: int, length: int) -> np.ndarray:
    decoded = torch.arange(num_decoded).view(1, -1, 1, 1)
    return package_transforms.uniform_temporal_subsample(decoded, length).flatten().numpy()


@timed
def test_pytorchvideo_clips_are_those_of_the_installed_package(shape, rate) -> None:
    tick = Fraction(1, 512 * rate.numerator)
    samplers = {n: package_sampler(shape[0] * shape[1] / 30, n) for n in (1, 10)}
    stamps = [512 * rate.denominator * k for k in range(TOTALS[-1])]
    for total, num_clips in product(TOTALS, (1, 10)):
        # A single frame has no rate to tell its duration by, but is in every clip whatever it is.
        duration = total * 512 * rate.denominator * tick
        found = clips_of("pytorchvideo", total, shape, num_clips, rate)
        infos = [samplers[num_clips](0, duration, {}) for _ in range(num_clips)]
        theirs = [
            package_frames(start, end, stamps[:total], tick, shape[0]) for start, end, *_ in infos
        ]
        assert (found == np.stack(theirs)).all()
        assert infos[-1].is_last_clip


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in its other files
@pytest.mark.parametrize("name", ["archery_ucf.avi", "basketball_ucf.avi"])
def test_pytorchvideo_clips_are_what_the_package_reads(footage: Path, name: str) -> None:
    """Its own reader, on files of 25 and 29.97 frames per second that tell their duration."""
    from pytorchvideo.data.encoded_video_pyav import EncodedVideoPyAV

    path = footage / "clips" / name
    reader = PyAVReader(str(path))
    clips = PROTOCOLS["pytorchvideo"].clips(Timeline(reader.num_frames, reader.times), 8, 8, 3)
    with path.open("rb") as file:
        video = EncodedVideoPyAV(file, decode_audio=False)
        sampler = package_sampler(64 / 30, 3)
        for clip in clips:
            start, end, *_ = sampler(0, video.duration, {})
            decoded = video.get_clip(start, end)["video"].permute(1, 2, 3, 0)
            spread = package_transforms.uniform_temporal_subsample(decoded, 8, 0)
            np.testing.assert_array_equal(reader.frames(clip), spread.numpy().astype(np.uint8))
        video.close()


@cache
def evenly(count: int, length: int) -> np.ndarray:
    return torch.linspace(0, count - 1, length).clamp(0, count - 1).long().numpy()


@timed
@pytest.mark.parametrize("num_clips", [1, 2, 10])
def test_pytorchvideo_main_clips(num_clips, shape, rate) -> None:
    """The same frames of a stretch; stretches from end to end, told in whole numbers.

    Times are counted in ticks of which c, a 64-bit float, has a whole number as well.
    """
    length = shape[0]
    seconds, parts = (shape[0] * shape[1] / 30).as_integer_ratio()
    unit = parts * rate.numerator * max(1, num_clips - 1)
    span, frame = seconds * unit // parts, rate.denominator * unit // rate.numerator
    for total in TOTALS:
        room = max(0, total * frame - span)
        found = clips_of("pytorchvideo_main", total, shape, num_clips, rate)
        for j, clip in enumerate(found):
            start = room * j // max(1, num_clips - 1)
            first = -(-start // frame)
            count = min(total, -(-(start + span) // frame)) - first
            assert (clip == first + evenly(count, length)).all()
        if num_clips > 1:
            assert found[-1, -1] == total - 1


@pytest.mark.parametrize("protocol", ["pytorchvideo", "pytorchvideo_main"])
def test_a_stretch_without_a_frame_shows_the_last_one_before_it(protocol: str) -> None:
    """Frames every 5 s, clips of 2.13 s; the project drops such a video."""
    seconds = np.arange(6) * 5.0
    [*_, last] = PROTOCOLS[protocol].clips(Timeline(6, lambda: seconds), 32, 2, 10)
    assert set(last) == {5}
    starts = [Fraction(64 / 30)] + [Fraction(30 - Fraction(64 / 30), 9) * j for j in range(1, 10)]
    clips = PROTOCOLS["pytorchvideo_main"].clips(Timeline(6, lambda: seconds), 32, 2, 10)
    for clip, start in zip(clips[1:], starts[1:], strict=True):
        inside = [k for k in range(6) if start <= 5 * k < start + Fraction(64 / 30)]
        assert set(clip) == {inside[0] if inside else int(start // 5)}


def test_the_example_of_300_frames_at_30_a_second() -> None:
    """docs/testing.md shows these."""
    expected = {
        "paper": ([0, 26, 53, 79, 105, 132, 158, 184, 211, 237], [62, 273, 299]),
        "nonlocal": ([0, 30, 60, 90, 120, 150, 180, 210, 240, 270], [62, 2, 32]),
        "slowfast": ([0, 23, 47, 70, 94, 118, 141, 165, 188, 212], [63, 251, 275]),
        "mmaction2": ([0, 26, 53, 79, 105, 132, 158, 184, 211, 237], [62, 273, 299]),
        "pytorchvideo": ([0, 24, 48, 71, 95, 119, 142, 166, 189, 213], [63, 252, 276]),
        "pytorchvideo_main": ([0, 27, 53, 79, 105, 132, 158, 184, 210, 237], [63, 273, 299]),
    }
    for protocol, (starts, ends) in expected.items():
        clips = clips_of(protocol, 300, (32, 2), rate=Fraction(30))
        assert clips[:, 0].tolist() == starts
        assert clips[[0, 8, 9], -1].tolist() == ends
    row = clips_of("slowfast", 300, (8, 8), rate=Fraction(30))[0].tolist()
    assert row == clips_of("pytorchvideo", 300, (8, 8), rate=Fraction(30))[0].tolist()
    assert row == [0, 9, 18, 27, 36, 45, 54, 63]


# Sizes and crops

SIDES = [*range(240, 275), *range(318, 361, 3), 426, 427, 453, 480, 568, 640, 719, 720, 1080, 1920]
SIZES = [(height, width) for height in SIDES[::2] for width in SIDES[::3]]
SIZES += [(width, height) for height, width in SIZES] + [(side, side) for side in SIDES]


def size_of(protocol: str, height: int, width: int, short_side: int) -> tuple[int, int]:
    found = PROTOCOLS[protocol].size(height, width, short_side)
    assert min(found) == short_side
    assert (found[0] > found[1]) <= (height > width)
    return found


def in_order(height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
    return (longer, shorter) if height > width else (shorter, longer)


@pytest.mark.parametrize("short_side", [112, 224, 256, 320])
def test_sizes(short_side: int) -> None:
    for height, width in SIZES:
        low, high = sorted((height, width))
        exact = Fraction(high * short_side, low)
        for protocol in ("paper", "center"):
            expected = in_order(height, width, short_side, math.floor(exact))
            assert size_of(protocol, height, width, short_side) == expected
        ratio = f32(f32(short_side) / f32(low))
        longer = max(math.floor(f32(f32(high) * ratio)), short_side)
        expected = in_order(height, width, short_side, longer)
        assert size_of("nonlocal", height, width, short_side) == expected
        # A quotient of floats may fall just below the integer that it should be.
        down = {math.floor(exact), math.floor(exact - Fraction(1, 10**9))}
        allowed = {in_order(height, width, short_side, each) for each in down}
        assert size_of("slowfast", height, width, short_side) in allowed
        near = {math.floor(exact + Fraction(1, 2)), math.ceil(exact - Fraction(1, 2))}
        allowed = {in_order(height, width, short_side, each) for each in near}
        assert size_of("mmaction2", height, width, short_side) in allowed


@pytest.mark.parametrize("short_side", [112, 224, 256])
def test_pytorchvideo_sizes_are_those_of_the_installed_package(short_side: int) -> None:
    for height, width in [*SIZES[::13], (short_side, 375), (375, short_side)]:
        frame = torch.empty(1, 1, height, width)
        theirs = package_transforms.short_side_scale(frame, short_side).shape[2:]
        for protocol in ("pytorchvideo", "pytorchvideo_main"):
            assert size_of(protocol, height, width, short_side) == tuple(theirs)


def test_a_frame_of_the_right_size_stays_so_for_pyslowfast_only() -> None:
    """(h / 200) * 200 is below h in floats for some h: pytorchvideo scales by a pixel then."""
    short = [
        side
        for side in range(200, 1000)
        if PROTOCOLS["pytorchvideo"].size(200, side, 200) != (200, side)
    ]
    for side in short:
        assert PROTOCOLS["pytorchvideo"].size(200, side, 200) == (200, side - 1)
    assert all(
        PROTOCOLS["slowfast"].size(200, side, 200) == (200, side) for side in range(200, 1000)
    )


def boxes_of(protocol: str, height: int, width: int, num_crops: int) -> list[tuple[int, ...]]:
    boxes = PROTOCOLS[protocol].boxes(height, width, num_crops=num_crops, crop_size=24)
    for top, left, rows, columns in boxes:
        assert top >= 0
        assert left >= 0
        assert top + rows <= height
        assert left + columns <= width
    return list(boxes)


@pytest.mark.parametrize("portrait", [False, True])
def test_crops_of_every_margin(portrait: bool) -> None:
    def squares(*places: int) -> list[tuple[int, ...]]:
        corners = [(place, 0) if portrait else (0, place) for place in places]
        return [(*corner, 32, 32) for corner in corners]

    for room in range(200):
        size = (32 + room, 32) if portrait else (32, 32 + room)
        half = len(range(1, room, 2))  # rounded down
        other_half = room - half
        rounded = int((Decimal(room) / 2).quantize(Decimal(1), ROUND_HALF_EVEN))
        three = {
            "paper": squares(0, half, room),
            "nonlocal": squares(0, half, half + half),
            "slowfast": squares(0, other_half, room),
            "mmaction2": squares(0, half + half, half),
            "pytorchvideo": squares(0, other_half, room),
            "pytorchvideo_main": squares(0, other_half, room),
        }
        for protocol, expected in three.items():
            assert boxes_of(protocol, *size, 3) == expected
        one = {
            "paper": [(0, 0, *size)],
            "center": [((size[0] - 24) // 2, (size[1] - 24) // 2, 24, 24)],
            "nonlocal": squares(half),
            "slowfast": squares(other_half),
            "mmaction2": squares(half),
            "pytorchvideo": squares(rounded),
            "pytorchvideo_main": squares(rounded),
        }
        for protocol, expected in one.items():
            assert boxes_of(protocol, *size, 1) == expected


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (40, 60), (40, 63), (40, 40), (41, 40)])
def test_pytorchvideo_crops_are_those_of_the_installed_packages(size: tuple[int, int]) -> None:
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    frames = torch.stack([rows, columns])[:, None]
    three = [package_transforms.uniform_crop(frames, 40, number) for number in range(3)]
    for num_crops, theirs in ((3, three), (1, [center_crop(frames, [40, 40])])):
        boxes = PROTOCOLS["pytorchvideo"].boxes(*size, num_crops=num_crops, crop_size=24)
        assert len(boxes) == len(theirs)
        for box, crop in zip(boxes, theirs, strict=True):
            assert torch.equal(frames[..., box.rows, box.columns], crop)


# A video


def test_views_of_a_video_are_the_frames_and_crops_of_its_protocol(make_video) -> None:
    path = str(make_video(num_frames=70, size=(64, 98)))  # 25 frames per second
    times = seconds_at(70, Fraction(25))
    for protocol, rule in PROTOCOLS.items():
        for num_crops in (1,) if protocol == "center" else (1, 3):
            dataset = TestDataset(
                [VideoRecord(path, 0, "a")],
                num_frames=4,
                frame_stride=5,
                num_clips=3,
                num_crops=num_crops,
                protocol=protocol,
                short_side=64,
                crop_size=64,
                open_video=VideoOpener("pyav"),
            )
            views = dataset[0].on(torch.device("cpu"))
            clips = rule.clips(Timeline(70, lambda: times), 4, 5, 3)
            boxes = rule.boxes(64, 98, num_crops=num_crops, crop_size=64)
            numbers = np.unique(clips)
            if views.frames.shape[3] == 98:  # all of the frame, its number included
                assert views.boxes == boxes
                frames = views.frames.permute(1, 2, 3, 0).numpy()
                assert make_video.numbers_in(frames) == numbers.tolist()
            np.testing.assert_array_equal(numbers[views.shown.numpy()], clips)
            assert views.stack().shape == (3 * num_crops, 3, 4, *boxes[0][2:])


def test_a_single_crop_is_cut_where_the_protocol_says(make_video) -> None:
    path = str(make_video(num_frames=9, size=(64, 98)))

    def views_of(protocol: str) -> torch.Tensor:
        dataset = TestDataset(
            [VideoRecord(path, 0, "a")],
            num_frames=1,
            frame_stride=1,
            num_clips=1,
            num_crops=1,
            protocol=protocol,
            short_side=32,
            crop_size=32,
            open_video=VideoOpener("pyav"),
        )
        return dataset[0].on(torch.device("cpu"))

    whole = views_of("nonlocal")
    assert whole.boxes == (Box(0, 0, 32, 32),)
    low, high = (views_of(name).stack() for name in ("nonlocal", "slowfast"))
    assert torch.equal(low[..., 1:], high[..., :-1])  # 17 pixels of room: 8 and 9


def test_a_rate_of_the_clips_and_one_of_the_protocol_are_refused() -> None:
    with pytest.raises(ValueError, match="slowfast has a rate of its own"):
        TestDataset(
            [],
            num_frames=4,
            frame_stride=1,
            num_clips=1,
            num_crops=1,
            protocol="slowfast",
            short_side=64,
            crop_size=64,
            open_video=VideoOpener("pyav"),
            fps=30.0,
        )
