from dataclasses import replace
from pathlib import Path

import pytest

from videogn.data.decode import PyAVReader
from videogn.data.decord_reader import DecordReader
from videogn.data.forms import FORMS, Coding, encode, rewrite_times
from videogn.data.index_file import IndexFile
from videogn.data.indexing import index_entry
from videogn.data.opening import VideoOpener
from videogn.data.packets import IndexedReader
from videogn.data.routing import Facts, look, why_exact
from videogn.errors import DecodeError

PLAIN = Facts(
    container="mov",
    codec="h264",
    pixel_format="yuv420p",
    height=64,
    width=96,
    num_streams=1,
    num_hidden=0,
    is_interlaced=False,
    has_times=True,
    starts_clean=True,
    starts_apart=True,
    is_uniform=True,
    is_whole=True,
)


@pytest.mark.parametrize("reader", ["decord", "torchcodec"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"container": "avi"}, "container avi"),
        ({"codec": "vp8"}, "codec vp8"),
        ({"pixel_format": "yuv420p10le"}, "pixel format yuv420p10le"),
        ({"is_interlaced": True}, "interlaced"),
        ({"has_times": False}, "packets without times of their own"),
        ({"starts_clean": False}, "key frames without an IDR picture"),
        ({"starts_apart": False}, "key frames too close"),
        ({"is_uniform": False}, "headers that change"),
        ({"is_whole": False}, "cut off"),
    ],
)
def test_every_fact_has_its_reason(reader: str, change: dict, reason: str | None) -> None:
    assert why_exact(reader, replace(PLAIN, **change)) == reason


@pytest.mark.parametrize(
    "change", [{"num_hidden": 3}, {"num_streams": 2}, {"codec": "hevc"}, {"height": 65}]
)
def test_backends_differ(change: dict) -> None:
    facts = replace(PLAIN, **change)
    assert why_exact("decord", facts) is not None
    assert why_exact("torchcodec", facts) is None


def test_what_was_never_tried_is_proven_nothing() -> None:
    assert why_exact("torchcodec_cuda", PLAIN) is not None


def test_facts_of_a_plain_file(tmp_path: Path) -> None:
    assert look(str(FORMS["plain mp4"](tmp_path))) == PLAIN


@pytest.mark.parametrize("form", ["interlaced", "hevc interlaced"])
def test_interlaced_files_are_seen(form: str, tmp_path: Path) -> None:
    path = str(FORMS[form](tmp_path))
    assert look(path).is_interlaced
    assert isinstance(VideoOpener("decord")(path), PyAVReader)


def test_video_streams_are_counted(tmp_path: Path) -> None:
    assert look(str(FORMS["two streams"](tmp_path))).num_streams == 2


def test_equal_times_are_seen(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mkv", Coding(options={"bf": "0", "g": "5"}))
    # Two frames of 40 ms get one time.
    path = rewrite_times(source, tmp_path / "b.mkv", lambda pts: pts // 80 * 80)
    assert not look(str(path)).has_times


@pytest.mark.parametrize("percent", [30, 60, 90])
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_files_that_were_cut_off_are_not_for_backends(name, percent, tmp_path: Path) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = encode(tmp_path / name, Coding(options={"g": "10"}, container_options=options))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * percent // 100])
    assert why_exact("decord", look(str(path))) == "cut off"
    with pytest.raises(DecodeError):
        VideoOpener("decord")(str(path))


def indexed(path: str, folder: Path, **changes) -> Path:
    entry = index_entry(path)
    file = IndexFile(folder / "index", create=True)
    file.add([replace(entry, **changes)])
    file.close()
    return folder / "index"


def test_an_index_serves_the_files_that_are_sent_back(tmp_path: Path) -> None:
    edited = str(FORMS["edit list"](tmp_path))
    index = indexed(edited, tmp_path)
    assert isinstance(VideoOpener("decord", index)(edited), IndexedReader)
    assert isinstance(VideoOpener("decord")(edited), PyAVReader)
    assert isinstance(VideoOpener("decord", index, insist=True)(edited), DecordReader)


def test_a_backend_that_counts_otherwise_than_the_index_is_not_asked(make_video, tmp_path) -> None:
    long, short = (str(make_video(f"{n}.mp4", n)) for n in (20, 19))
    other = index_entry(short).index
    video = VideoOpener("decord", indexed(long, tmp_path, index=other))(long)
    assert isinstance(video, IndexedReader)


def test_share_tells_who_reads_what(make_video, tmp_path: Path) -> None:
    paths = [str(make_video("a.mp4")), str(make_video("b.mp4"))]
    opener = VideoOpener("decord")
    assert opener.share(paths) == "decord for 2 of 2 sampled videos"
    paths += [str(FORMS["edit list"](tmp_path)), str(tmp_path / "nowhere.mp4")]
    assert opener.share(paths) == (
        "decord for 2 of 4 sampled videos; an exact reader for the others: "
        "edit list 1, unreadable 1"
    )
    assert VideoOpener("decord", insist=True).share(paths) == "decord for 4 of 4 sampled videos"
