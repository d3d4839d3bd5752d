import contextlib
import os
import tarfile
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import bad_files, encoded, picture, png_of, saved, webp_canvas
from PIL import Image

from videogn.data.annotations import read_videos
from videogn.data.changed import ChangedClips
from videogn.data.checking import examine
from videogn.data.clips import CenterClips, RandomClips
from videogn.data.colour_noise import ColourNoise
from videogn.data.dataset import TestDataset, TrainDataset
from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.images import ImageHeader, ImageReader, read_header
from videogn.data.indexing import index_entry
from videogn.data.list_checks import VideoRecord
from videogn.data.loader import TrainBatches, build_train_loader
from videogn.data.opening import READERS, VideoOpener
from videogn.data.probing import probe
from videogn.data.transforms import draw_area_box, draw_augmentation, source_box
from videogn.data.workers import Workers
from videogn.errors import DecodeError

CPU = torch.device("cpu")


@pytest.fixture
def write(tmp_path: Path):
    def to_file(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return to_file


def pixels_of(path: str) -> np.ndarray:
    video: VideoReader = ImageReader(path)
    [image] = video.images([0])
    assert image.shape == (video.height, video.width, 3)
    assert image.dtype == np.uint8
    return image


LOSSLESS = [("a.png", "PNG", {}), ("a.PNG", "PNG", {}), ("a.webp", "WEBP", {"lossless": True})]


@pytest.mark.parametrize(("name", "kind", "options"), LOSSLESS)
def test_lossless_files_give_their_pixels(name, kind, options, write) -> None:
    path = write(name, encoded(picture(), kind, **options))
    assert np.array_equal(pixels_of(path), picture())
    assert read_header(path) == ImageHeader(kind.lower(), 48, 64)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_files_are_decoded_as_opencv_does(options, grey, write) -> None:
    pixels = picture()[..., 0] if grey else picture()
    path = write("a.JPEG", encoded(pixels, "JPEG", **options))
    wanted = cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(pixels_of(path).astype(int) - wanted).max() <= 2


def test_cmyk_jpeg_has_its_colours(write) -> None:
    image = Image.fromarray(picture()).convert("CMYK")
    path = write("a.JPEG", saved(image, "JPEG", quality=100, subsampling=0))
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    assert np.abs(pixels_of(path).astype(int) - picture()).max() <= 6


def test_lossy_webp_is_near_its_source(write) -> None:
    path = write("a.webp", encoded(picture(), "WEBP", quality=95))
    assert np.abs(pixels_of(path).astype(int) - picture()).mean() < 4


def test_png_of_every_depth_and_colour_type(write) -> None:
    grey = picture()[..., :1]
    three = np.repeat(grey, 3, 2)

    def rows(values: np.ndarray) -> bytes:
        return b"".join(b"\0" + row.tobytes() for row in values)

    wide = (grey.astype(int) * 256 + 77).astype(">u2")
    assert np.array_equal(pixels_of(write("a.png", png_of(64, 48, 16, 0, rows(wide)))), three)
    wide = (picture().astype(int) * 256 + 200).astype(">u2")
    assert np.array_equal(pixels_of(write("b.png", png_of(64, 48, 16, 2, rows(wide)))), picture())
    alpha = np.concatenate([picture(), picture(seed=1)[..., :1]], 2)
    assert np.array_equal(pixels_of(write("c.png", png_of(64, 48, 8, 6, rows(alpha)))), picture())
    both = np.concatenate([grey, picture(seed=1)[..., :1]], 2)
    assert np.array_equal(pixels_of(write("d.png", png_of(64, 48, 8, 4, rows(both)))), three)
    bits = np.packbits(grey[..., 0] > 127, axis=1)
    found = pixels_of(write("e.png", png_of(64, 48, 1, 0, rows(bits))))
    assert np.array_equal(found, np.where(three > 127, 255, 0))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 200, 5))])
def test_palette_without_its_transparency(transparency, write) -> None:
    image = Image.fromarray(picture()).quantize(40)
    options = {} if transparency is None else {"transparency": transparency}
    path = write("a.png", saved(image, "PNG", **options))
    palette = np.array(image.getpalette()).reshape(-1, 3)
    assert np.array_equal(pixels_of(path), palette[np.asarray(image)])


def test_a_name_does_not_decide_the_format(write) -> None:
    path = write("n02105855_2933.JPEG", encoded(picture(), "PNG"))
    assert np.array_equal(pixels_of(path), picture())


def test_exif_orientation_is_not_followed(write) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write("a.jpg", encoded(picture(), "JPEG", exif=exif))
    assert pixels_of(path).shape == (48, 64, 3)
    assert np.array_equal(pixels_of(path), pixels_of(write("b.jpg", encoded(picture(), "JPEG"))))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_read(kind, write) -> None:
    others = [Image.fromarray(picture(seed=seed)) for seed in (1, 2)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(picture(), kind, save_all=True, append_images=others, **options)
    assert np.array_equal(pixels_of(write("a.png", content)), picture())


BAD = bad_files()


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_errors_and_nothing_is_printed(name, write, capfd) -> None:
    content, code = BAD[name]
    path = write(name, content)
    with pytest.raises(DecodeError) as caught:
        VideoOpener("pyav")(path)
    assert (caught.value.path, caught.value.code) == (path, code)
    assert "\n" not in caught.value.reason
    assert capfd.readouterr() == ("", "")
    assert examine(path).code == code


def test_damage_that_only_makes_libjpeg_complain_prints_nothing(write, capfd) -> None:
    content = encoded(picture(), "JPEG")
    pixels_of(write("a.jpg", content[: len(content) * 3 // 4] + b"\xff\xd9"))
    assert capfd.readouterr() == ("", "")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.jpg", "folder.png", "missing.webp", "nul\0.jpg"):
        with pytest.raises(DecodeError):
            ImageReader(str(tmp_path / name))


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DecodeError, match="too large"):
        ImageReader(str(path))


def test_largest_size_is_that_of_video(write) -> None:
    with pytest.raises(DecodeError, match="cannot be decoded"):
        read_header(write("a.webp", webp_canvas(8192, 4096)))
    with pytest.raises(DecodeError, match="8192x4097 pixels is too large"):
        read_header(write("a.webp", webp_canvas(8192, 4097)))


SEEDS = [
    *(encoded(picture(), "JPEG"), encoded(picture(), "JPEG", progressive=True)),
    *(encoded(picture(), "PNG"), encoded(picture(), "WEBP")),
    *(encoded(picture(), "WEBP", lossless=True), saved(Image.new("CMYK", (9, 9)), "JPEG")),
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    end=st.floats(0, 1),
)
def test_any_damage_gives_pixels_or_a_decode_error(seed, changes, end, write) -> None:
    content = bytearray(seed)
    for place, value in changes:
        # Headers are where most can go wrong.
        content[int(place**3 * (len(content) - 1))] = value
    path = write("a.jpg", content[: len(content) - int(end**4 * len(content))])
    with contextlib.suppress(DecodeError):
        video = ImageReader(path)
        assert video.frames([0]).shape == (1, video.height, video.width, 3)


def test_a_video_of_one_frame(write) -> None:
    video = ImageReader(write("a.png", encoded(picture(), "PNG")))
    assert (video.num_frames, video.height, video.width) == (1, 48, 64)
    assert video.times().tolist() == [0.0]
    assert np.array_equal(video.frames([0, 0, 0]), np.stack([picture()] * 3))
    for indices in ([1], [-1], [0, 0]):
        with pytest.raises(IndexError):
            video.images(indices)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_leaves_images_to_the_one_of_images(reader, write) -> None:
    path = write("a.webp", encoded(picture(), "WEBP", lossless=True))
    for insist in (False, True):
        opener = VideoOpener(reader, stream=0, insist=insist)
        assert isinstance(opener(path), ImageReader)
        assert opener.share([path]).endswith(": an image 1")


def test_data_commands_look_at_images(write) -> None:
    path = write("a.JPEG", encoded(picture(), "JPEG"))
    assert (probe(path).codec, probe(path).height, probe(path).seconds) == ("jpeg", 48, None)
    entry = index_entry(path)
    assert (entry.readable, entry.index, entry.reason) == (True, None, "an image")
    assert index_entry(write("bad.jpg", b"")).readable is False
    facts = examine(path)
    assert (facts.code, facts.num_frames, facts.timestamps) == (None, 1, "")


def test_members_of_tar_shards(tmp_path: Path) -> None:
    members = {}
    for label in range(2):
        members[f"{label}.png"] = encoded(picture(seed=label), "PNG")
        members[f"{label}.cls"] = str(label).encode()
    members |= {"film.mp4": b"video", "film.jpg": b"its cover", "film.cls": b"1"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    videos = read_videos(str(tmp_path / "a.tar"), num_classes=2)
    assert [Path(record.name).name for record in videos.records] == ["0.png", "1.png", "film.mp4"]
    for record in videos.records[:2]:
        video = VideoOpener("pyav")(record.path)
        assert np.array_equal(video.frames([0])[0], picture(seed=record.label))


def area_clips(num_frames: int = 1) -> RandomClips:
    return RandomClips(
        num_frames=num_frames,
        frame_stride=1,
        short_side_min=32,
        short_side_max=32,
        crop_size=32,
        flip_probability=0.5,
        random_area=True,
        open_video=VideoOpener("pyav"),
    )


def redrawn(frames: np.ndarray, seed: list[int]) -> np.ndarray:
    """What a clip of random area must be, of all frames it shows, (T, 32, 32, 3)."""
    rng = np.random.default_rng(seed)
    rng.integers(1)  # where the clip starts: it shows all frames
    box = draw_area_box(rng, *frames.shape[1:3])
    parts = frames[:, box.rows, box.columns]
    images = [cv2.resize(part, (32, 32), interpolation=cv2.INTER_CUBIC) for part in parts]
    return np.stack(images)[:, :, :: -1 if rng.random() < 0.5 else 1]


def test_clips_of_random_area_are_scaled_bicubically(write, make_video) -> None:
    still = write("a.png", encoded(picture(90, 70), "PNG"))
    video = str(make_video("a.mp4", 3, size=(64, 96)))
    sources = {still: picture(90, 70)[None], video: PyAVReader(video).frames([0, 1, 2])}
    for path, frames in sources.items():
        clips = area_clips(len(frames))
        for seed in range(12):
            found, shown = clips.read(path, np.random.default_rng([seed]))
            clip = found.rgb().permute(1, 2, 3, 0).numpy()
            assert shown.tolist() == list(range(len(frames)))
            assert np.array_equal(clip, redrawn(frames, [seed]))


def test_clips_at_a_random_scale_are_scaled_bicubically_too(write) -> None:
    pixels = picture(90, 70)
    path = write("a.png", encoded(pixels, "PNG"))
    sizes = {"short_side_min": 40, "short_side_max": 60}
    clips = RandomClips(**{**vars(area_clips()), **sizes, "random_area": False})
    for seed in range(5):
        found, _ = clips.read(path, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        rng.integers(1)
        draw = draw_augmentation(rng, 40, 60, 0.5)
        box = source_box(draw, 90, 70, 32)
        part = pixels[box.rows, box.columns]
        wanted = cv2.resize(part, (32, 32), interpolation=cv2.INTER_CUBIC)
        wanted = wanted[:, ::-1] if draw.flip else wanted
        assert np.array_equal(found.rgb()[:, 0].permute(1, 2, 0), wanted)


def test_center_clip_and_center_test_scale_stills_bicubically(write) -> None:
    pixels = picture(300, 420)
    path = write("a.png", encoded(pixels, "PNG"))
    scaled = cv2.resize(pixels, (358, 256), interpolation=cv2.INTER_CUBIC)
    wanted = scaled[16 : 16 + 224, 67 : 67 + 224]
    sizes = {"num_frames": 1, "frame_stride": 1, "short_side": 256, "crop_size": 224}
    opener = VideoOpener("pyav", seek=True)
    frames, _ = CenterClips(**sizes, open_video=opener).read(path, np.random.default_rng(0))
    assert np.array_equal(frames.rgb()[:, 0].permute(1, 2, 0), wanted)
    views = TestDataset(
        [VideoRecord(path, 0, "a")],
        **sizes,
        num_clips=1,
        num_crops=1,
        protocol="center",
        open_video=opener,
        planar=True,
    )[0].on(CPU)
    assert len(views) == 1
    assert np.array_equal(views.stack()[0, :, 0].permute(1, 2, 0), wanted)


def test_bicubic_clips_cannot_stay_as_decoded() -> None:
    with pytest.raises(ValueError, match="bicubic"):
        RandomClips(**{**vars(area_clips()), "planar_room": 1.0})


@pytest.mark.dist
def test_clips_do_not_depend_on_workers(write) -> None:
    paths = [write(f"{i}.JPEG", encoded(picture(40 + i, 60, seed=i), "JPEG")) for i in range(5)]
    records = [VideoRecord(path, i, path) for i, path in enumerate(paths)]
    clips = ChangedClips(area_clips(), ColourNoise(0.4, 0.1))

    def batches(workers: int) -> list[bytes]:
        keys = TrainBatches(
            num_videos=5, clips_per_gpu=3, rank=0, world_size=1, seed=7, first_step=0, last_step=4
        )
        loader = build_train_loader(TrainDataset(records, clips, 7), keys, Workers(workers))
        return [batch.clips_on(CPU).numpy().tobytes() for batch in loader]

    assert batches(2) == batches(0)
