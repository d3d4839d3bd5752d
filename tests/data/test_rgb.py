import contextlib
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given
from hypothesis import strategies as st

from videogn.data.decode import PyAVReader
from videogn.data.packet_scan import NotIndexableError, index_video
from videogn.data.packets import IndexedReader
from videogn.data.rgb import CHROMA_STEPS, Box, RgbConverter, Stored, upright_size

SOUND = [
    *("abseiling.mp4", "abseiling_vp9.webm", "archery_ucf.avi", "arm_wrestling.mp4"),
    *("basketball_gym.mp4", "basketball_ucf.avi", "cake_rotation_tag.mp4", "cleaning_pool.mp4"),
    *("cleaning_pool_1s.mp4", "drums_portrait_36s.mp4", "flipping_pancake.mkv"),
    *("houseplant_1s.mp4", "hugging_1080p_gap.mp4", "nasa_two_video_streams.mp4"),
    *("rotate90_3frames.mov", "sign_book.mkv", "stream_vp8_hidden.webm", "wave_hmdb.avi"),
    *("weightlifting_19fps.mp4", "yoga.mp4", "yoga_vfr.mp4"),
]
FORMATS = [*CHROMA_STEPS, "gray", "yuv420p10le", "nv12", "rgb24", "yuva420p"]


def noise(height: int, width: int, pixel_format: str) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, pixel_format)
    rng = np.random.default_rng(height * 1000 + width)
    for plane in frame.planes:
        # Ten-bit samples stay below 1024.
        high = 4 if "10le" in pixel_format else 256
        plane.update(rng.integers(high, size=plane.buffer_size, dtype=np.uint8).tobytes())
    return frame


def by_hand(frame: av.VideoFrame, quarters: int) -> np.ndarray:
    """The whole frame, converted at once and turned."""
    size = {"width": frame.width, "height": frame.height}
    image = VideoReformatter().reformat(frame, **size, format="rgb24", threads=1).to_ndarray()
    return np.rot90(image, quarters)


@given(st.data())
def test_box_is_a_cut_out_of_the_whole_frame(data) -> None:
    height, width = data.draw(st.integers(2, 70)), data.draw(st.integers(2, 70))
    quarters = data.draw(st.integers(0, 3))
    rows, columns = upright_size(height, width, quarters)
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    box = Box(
        top,
        left,
        data.draw(st.integers(1, rows - top)),
        data.draw(st.integers(1, columns - left)),
    )
    frame = noise(height, width, data.draw(st.sampled_from(FORMATS)))
    frame.color_range = data.draw(st.sampled_from([0, 1, 2]))
    frame.colorspace = data.draw(st.sampled_from([1, 2, 5]))  # BT.709, none, BT.601
    convert = RgbConverter(Stored(height, width, quarters), box)
    expected = by_hand(frame, quarters)[box.rows, box.columns]
    for _ in range(2):
        np.testing.assert_array_equal(convert(frame), expected)


@pytest.mark.parametrize("light", [0, 3, 9, 16, 18, 250])  # two reserved, logarithmic, PQ, HLG
def test_colours_of_light_change_nothing(light: int) -> None:
    plain, tagged = noise(40, 60, "yuv420p"), noise(40, 60, "yuv420p")
    tagged.color_trc = light
    tagged.color_primaries = 9
    for box in (None, Box(3, 5, 20, 30)):
        convert = RgbConverter(Stored(40, 60, 0), box)
        np.testing.assert_array_equal(convert(tagged), convert(plain))


def test_images_stay_what_they_were_when_others_follow() -> None:
    frames = [noise(40, 60, "yuv420p"), noise(40, 60, "yuv420p")]
    frames[1].planes[0].update(bytes(frames[1].planes[0].buffer_size))
    convert = RgbConverter(Stored(40, 60, 0), Box(3, 5, 20, 30))
    first = convert(frames[0])
    kept = first.copy()
    assert (convert(frames[1]) != kept).any()
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", SOUND)
def test_boxes_of_real_frames(name: str, footage: Path) -> None:
    path = str(footage / "clips" / name)
    readers = [PyAVReader(path)]
    with contextlib.suppress(NotIndexableError):
        readers.append(IndexedReader(path, index_video(path)))
    rng = np.random.default_rng(0)
    for video in readers:
        height, width = int(rng.integers(40, video.height)), int(rng.integers(40, video.width))
        top, left = rng.integers(video.height - height + 1), rng.integers(video.width - width + 1)
        box = Box(int(top), int(left), height, width)
        wanted = sorted({0, video.num_frames // 2, video.num_frames - 1})
        for whole, part in zip(video.images(wanted), video.images(wanted, box), strict=True):
            assert whole.shape == (video.height, video.width, 3)
            np.testing.assert_array_equal(part, whole[box.rows, box.columns])
