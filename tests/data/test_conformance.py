from pathlib import Path

import numpy as np
import pytest

from videogn.data.conformance import judge, plain_decode
from videogn.data.decode import PyAVReader, VideoReader
from videogn.data.forms import FORMS, numbers_in
from videogn.data.index_file import IndexFile
from videogn.data.indexing import index_entry
from videogn.data.opening import READERS, VideoOpener
from videogn.data.packet_scan import NotIndexableError, index_video
from videogn.data.packets import IndexedReader
from videogn.data.routing import look, why_exact

HIDDEN = {
    "edit list": range(10),
    "edit list, B frames": range(9),
    "ts joined late": range(8),
    "vp8 hidden frames": range(3, 41, 8),
}
"""Form -> numbers of the frames that are in the file and not shown."""
# What the backends get wrong when nobody keeps a file from them; the table of docs/data.md.
FAULTS = {
    "decord": {
        *("intra refresh", "interlaced", "edit list", "edit list, B frames", "mpeg-ts"),
        *("ts joined late", "mpeg-2 ps", "avi", "packed B frames", "wmv", "vp8 hidden frames"),
        *("hevc", "hevc matroska", "hevc interlaced", "av1", "av1 webm", "odd size", "10 bit"),
        *("key frames too close", "two sizes", "two sizes, mp4"),
    },
    "torchcodec": {
        *("intra refresh", "interlaced", "mpeg-ts", "ts joined late", "mpeg-2 ps", "avi"),
        *("packed B frames", "vp8 hidden frames", "hevc interlaced", "10 bit"),
        *("key frames too close", "two sizes", "two sizes, mp4"),
    },
}
# Kept from them although they read the made video right.
CAUTION = {
    "decord": {"open gop", "flv", "avi with pauses", "two streams"},
    "torchcodec": {"open gop", "flv", "avi with pauses", "wmv"},
}
DAMAGED = "basketball_damaged.mp4"
MAX_FRAMES = 500
# The long one is read whole by the tests of seeking.
CLIPS = [
    *("abseiling.mp4", "abseiling_vp9.webm", "archery_ucf.avi", "arm_wrestling.mp4"),
    *("arm_wrestling_truncated.mp4", "audio_only.mp4", "basketball_damaged.mp4"),
    *("basketball_gym.mp4", "basketball_ucf.avi", "cake_rotation_tag.mp4", "cleaning_pool.mp4"),
    *("cleaning_pool_1s.mp4", "drums_portrait_36s.mp4", "flipping_pancake.mkv"),
    *("houseplant_1s.mp4", "hugging_1080p_gap.mp4", "nasa_two_video_streams.mp4"),
    *("rotate90_3frames.mov", "sign_book.mkv", "stream_vp8_hidden.webm"),
    *("wave_hmdb.avi", "weightlifting_19fps.mp4", "yoga.mp4", "yoga_vfr.mp4"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Form -> its video and the frames of a plain decode, made once."""
    known: dict[str, tuple[str, np.ndarray]] = {}

    def make(form: str) -> tuple[str, np.ndarray]:
        if form not in known:
            path = str(FORMS[form](tmp_path_factory.mktemp("form")))
            known[form] = path, plain_decode(path)
        return known[form]

    return make


def indexed(path: str) -> VideoReader:
    try:
        return IndexedReader(path, index_video(path))
    except NotIndexableError:
        return PyAVReader(path)


@pytest.mark.parametrize("form", FORMS)
def test_exact_readers_give_the_frames_that_were_put_in(form: str, made) -> None:
    path, truth = made(form)
    for reader in (PyAVReader, indexed):
        assert judge(reader, path, truth, tolerance=0.0) == (len(truth), len(truth), 0, None)
    if form.startswith("two sizes"):
        return  # the second size is scaled to the first, and its numbers with it
    count = 1 if form == "one frame" else 41
    assert numbers_in(truth) == [n for n in range(count) if n not in HIDDEN.get(form, ())]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reader", FAULTS)
def test_backends_are_right_where_files_go_to_them(reader, form, made, need_reader) -> None:
    need_reader(reader)
    path, truth = made(form)
    goes_back = why_exact(reader, look(path)) is not None
    assert goes_back == (form in FAULTS[reader] | CAUTION[reader])
    opener = VideoOpener(reader)
    assert isinstance(opener(path), PyAVReader if goes_back else READERS[reader])
    # The exact reader is judged above.
    assert goes_back or judge(opener, path, truth).is_right


@pytest.mark.parametrize("form", sorted(FAULTS["decord"] | FAULTS["torchcodec"]))
@pytest.mark.parametrize("reader", FAULTS)
def test_known_faults_are_faults(reader, form, made, need_reader) -> None:
    """When a new version mends one, the rule of routing and the table can be made wider."""
    need_reader(reader)
    path, truth = made(form)
    verdict = judge(VideoOpener(reader, insist=True), path, truth)
    assert verdict.is_right == (form not in FAULTS[reader]), str(verdict)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
def test_real_clips_are_right_in_every_backend(name: str, footage: Path, need_reader) -> None:
    path = str(footage / "clips" / name)
    truth = plain_decode(path)
    for reader in (PyAVReader, indexed):
        assert judge(reader, path, truth, tolerance=0.0).is_right
    if truth is not None and len(truth) > MAX_FRAMES:
        return  # the others take half a minute; benchmarks/conformance.py reads them whole
    for reader in FAULTS:
        need_reader(reader)
        if truth is not None and isinstance(VideoOpener(reader)(path), PyAVReader):
            continue  # the exact reader is judged above
        # That this one is damaged only a full decode tells, which an index is made by: see below.
        assert judge(VideoOpener(reader), path, truth).is_right or name == DAMAGED


@pytest.mark.parametrize("reader", FAULTS)
def test_with_an_index_damage_is_refused_by_every_backend(
    reader: str, footage: Path, tmp_path: Path, need_reader
) -> None:
    need_reader(reader)
    path = str(footage / "clips" / DAMAGED)
    file = IndexFile(tmp_path / "index", create=True)
    file.add([index_entry(path)])
    verdict = judge(VideoOpener(reader, tmp_path / "index"), path, None)
    assert str(verdict) == "refused"
    assert "after 130 frames" in verdict.error
