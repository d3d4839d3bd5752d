from pathlib import Path

import av
import numpy as np
import pytest

from videogn.data import decode
from videogn.data.decode import PyAVReader
from videogn.data.decord_reader import DecordReader
from videogn.data.forms import edit_list, two_sizes
from videogn.data.opening import READERS
from videogn.errors import DecodeError

# Frames of the stream that ffmpeg calls best, height and width as shown upright.
SOUND = {
    "arm_wrestling.mp4": (280, 256, 340),
    "cleaning_pool.mp4": (300, 256, 340),
    "cleaning_pool_1s.mp4": (32, 256, 340),
    "basketball_gym.mp4": (300, 240, 426),
    "flipping_pancake.mkv": (310, 240, 426),
    "abseiling.mp4": (250, 256, 454),
    "basketball_ucf.avi": (141, 240, 320),
    "archery_ucf.avi": (131, 240, 320),
    "wave_hmdb.avi": (74, 240, 320),
    "weightlifting_19fps.mp4": (355, 240, 320),
    "yoga.mp4": (300, 320, 568),
    "hugging_1080p_gap.mp4": (72, 1080, 1920),
    "sign_book.mkv": (109, 480, 640),
    "people_long_139s.mp4": (1394, 432, 768),
    "drums_portrait_36s.mp4": (1090, 360, 204),
    "houseplant_1s.mp4": (36, 240, 320),
    "rotate90_3frames.mov": (3, 568, 320),
    "stream_vp8_hidden.webm": (90, 360, 480),
    "nasa_two_video_streams.mp4": (390, 270, 480),
    "abseiling_vp9.webm": (250, 256, 454),
    "cake_rotation_tag.mp4": (300, 426, 320),
    "yoga_vfr.mp4": (232, 320, 568),
}
BROKEN = {
    "arm_wrestling_truncated.mp4": "Invalid data",
    "basketball_damaged.mp4": "after 130 frames",
    "audio_only.mp4": "no video stream",
}
# Clips on which decord counts and shows the frames of a full decode.
DECORD_IS_RIGHT = ["cleaning_pool.mp4", "cake_rotation_tag.mp4", "rotate90_3frames.mov"]


def plain_decode(path: Path, wanted: set[int]) -> tuple[int, dict[int, np.ndarray]]:
    """Number of frames, and the wanted ones in RGB, by the shortest PyAV program there is."""
    images, count = {}, 0
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            if count in wanted:
                images[count] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            count += 1
    return count, images


@pytest.mark.parametrize("name", SOUND)
def test_frames_are_those_of_a_plain_full_decode(name: str, footage: Path) -> None:
    path = footage / "clips" / name
    total, height, width = SOUND[name]
    rng = np.random.default_rng(total)
    indices = np.concatenate([rng.integers(total, size=5), [total - 1, 0]])
    reader = PyAVReader(str(path))
    count, images = plain_decode(path, set(indices.tolist()))
    assert reader.num_frames == count == total
    frames = reader.frames(indices)
    assert frames.shape == (7, height, width, 3)
    assert frames.dtype == np.uint8
    for index, frame in zip(indices, frames, strict=True):
        np.testing.assert_array_equal(frame, images[index])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_footage_is_an_error_with_a_reason(name: str, footage: Path) -> None:
    path = str(footage / "clips" / name)
    with pytest.raises(DecodeError, match=BROKEN[name]) as caught:
        PyAVReader(path)
    assert caught.value.path == path
    assert path not in caught.value.reason


@pytest.mark.parametrize("name", DECORD_IS_RIGHT)
def test_decord_agrees_where_it_is_right(name: str, footage: Path) -> None:
    path = str(footage / "clips" / name)
    ours, theirs = PyAVReader(path), DecordReader(path)
    assert ours.num_frames == theirs.num_frames
    indices = [ours.num_frames - 1, 0, ours.num_frames // 2, 0]
    difference = ours.frames(indices).astype(int) - theirs.frames(indices)
    # Both scale chroma, each in its way; a frame or a quarter turn off would be tens of levels.
    assert difference.shape == ours.frames(indices).shape
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("reader", READERS)
def test_frames_come_by_number_in_any_order(reader: str, make_video, need_reader) -> None:
    need_reader(reader)
    video = READERS[reader](str(make_video(num_frames=40, g="12", bf="3")))
    assert video.num_frames == 40
    indices = [39, 0, 7, 7, 23, 0]
    assert make_video.numbers_in(video.frames(indices)) == indices
    rising = list(range(1, 40, 2))
    assert make_video.numbers_in(np.stack(list(video.images(rising)))) == rising


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("indices", [[-1], [5], [0, 5], []])
def test_frames_outside_the_video_are_refused(reader, indices, make_video, need_reader) -> None:
    need_reader(reader)
    video = READERS[reader](str(make_video(num_frames=5)))
    with pytest.raises(IndexError):
        video.frames(indices)


def test_images_must_rise(make_video) -> None:
    with pytest.raises(IndexError, match="rising"):
        list(PyAVReader(str(make_video())).images([3, 2]))


@pytest.mark.parametrize("budget", [0, 30_000])
def test_video_too_large_to_keep_is_decoded_again(budget: int, make_video, monkeypatch) -> None:
    path = str(make_video())
    kept = PyAVReader(path).frames(range(20))
    decodes = []
    original = decode.opened
    monkeypatch.setattr(decode, "opened", lambda p: decodes.append(p) or original(p))
    monkeypatch.setattr(decode, "KEPT_BYTES", budget)
    video = PyAVReader(path)
    np.testing.assert_array_equal(video.frames([19, 4, 4]), kept[[19, 4, 4]])
    assert make_video.numbers_in(video.frames([0])) == [0]
    assert len(decodes) == 3


def test_second_decode_of_a_file_that_shrank_is_an_error(make_video, monkeypatch) -> None:
    monkeypatch.setattr(decode, "KEPT_BYTES", 0)
    video = PyAVReader(str(make_video(num_frames=20)))
    make_video(num_frames=10)
    with pytest.raises(DecodeError, match="changed while it was read"):
        video.frames([15])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=8"}),
        ("a.mkv", "libx264", {"x264-params": "open-gop=1:keyint=8"}),
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.mpg", "mpeg2video", {}),
        ("a.ts", "libx264", {}),
        ("a.flv", "libx264", {}),
        ("a.wmv", "wmv2", {}),
        ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none"}),
    ],
)
def test_codecs_and_containers(name: str, codec: str, options: dict, make_video) -> None:
    path = make_video(name, 40, codec=codec, **options)
    video = PyAVReader(str(path))
    assert video.num_frames == 40
    assert make_video.numbers_in(video.frames(range(40))) == list(range(40))


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path: Path, make_video) -> None:
    video = PyAVReader(str(edit_list(tmp_path, hidden=10)))
    assert make_video.numbers_in(video.frames(range(video.num_frames))) == list(range(10, 41))


def test_frames_of_another_size_are_brought_to_the_first_ones(tmp_path: Path, make_video) -> None:
    video = PyAVReader(str(two_sizes(tmp_path, [(96, 128), (64, 96)])))
    assert video.num_frames == 15
    assert make_video.numbers_in(video.frames([9, 0])) == [9, 0]
    assert video.frames([14, 0, 10]).shape == (3, 96, 128, 3)
