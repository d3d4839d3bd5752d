"""Which video stream of a file is read."""

from fractions import Fraction

import av
import numpy as np
import pytest

from videogn.commands.setup import video_opener
from videogn.config import DataConfig
from videogn.config_files import load_config
from videogn.data.decode import PyAVReader
from videogn.data.index_file import IndexFile
from videogn.data.indexing import index_entry, make_index
from videogn.data.opening import VideoOpener
from videogn.data.packet_scan import index_video
from videogn.data.packets import IndexedReader
from videogn.data.processes import Pool
from videogn.data.seeking import SeekingReader, open_seeking
from videogn.errors import ConfigError, DecodeError, UserError

SIZES = ((64, 96), (96, 128), (48, 80))


@pytest.fixture
def three(make_video):
    """A file of three video streams, of 20, 30 and 25 frames; ffmpeg calls the first best."""
    sources = [
        make_video(f"{height}.mp4", count, size=(height, width), g="8", bf="2")
        for (height, width), count in zip(SIZES, (20, 30, 25), strict=True)
    ]
    target = sources[0].with_name("three.mp4")
    with av.open(str(target), "w") as new:
        packets = []
        for source in sources:
            with av.open(str(source)) as old:
                stream = new.add_stream_from_template(old.streams.video[0])
                for packet in old.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        packets.append(packet)
        for packet in sorted(packets, key=lambda p: p.dts * Fraction(p.time_base)):
            new.mux(packet)
    return str(target)


def readers(path: str, stream: int | None):
    yield PyAVReader(path, stream)
    yield open_seeking(path, stream)
    yield IndexedReader(path, index_video(path, stream))
    yield VideoOpener("pyav", stream=stream)(path)
    yield VideoOpener("pyav", stream=stream, seek=True)(path)


@pytest.mark.parametrize(("stream", "count"), [(0, 20), (1, 30), (2, 25), (None, 20)])
def test_every_reader_reads_the_chosen_stream(stream, count, three, make_video) -> None:
    with av.open(three) as container:
        videos = container.streams.video
        chosen = container.streams.best("video") if stream is None else videos[stream]
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(chosen)]
    assert len(plain) == count
    for reader in readers(three, stream):
        assert reader.num_frames == count
        assert np.array_equal(reader.frames(range(count)), plain)
        assert (reader.height, reader.width) == plain[0].shape[:2]
        np.testing.assert_allclose(reader.times(), np.arange(count) / 25, atol=1e-9)


def test_large_videos_are_decoded_again_from_the_same_stream(three, monkeypatch) -> None:
    kept = PyAVReader(three, 2).frames([24, 3])
    monkeypatch.setattr("videogn.data.decode.KEPT_BYTES", 0)
    assert np.array_equal(PyAVReader(three, 2).frames([24, 3]), kept)


def test_a_stream_that_is_not_there_is_an_error(three) -> None:
    for read in (PyAVReader, open_seeking, index_video):
        with pytest.raises(DecodeError, match="no video stream 3: it has 3") as caught:
            read(three, 3)
        assert caught.value.code == "no_video_stream"


@pytest.mark.dist
def test_an_index_of_another_stream_is_not_used(three, tmp_path) -> None:
    where = tmp_path / "index"
    file = IndexFile(where, create=True)
    [entry] = make_index([three], file, Pool(1, 60), stream=2)
    assert (entry.stream, entry.index.num_frames) == (2, 25)
    assert file.find(three) is None
    assert file.find(three, 2).index.num_frames == 25
    file.add([index_entry(three)])
    assert [file.find(three, stream).index.num_frames for stream in (None, 2)] == [20, 25]
    file.close()
    assert isinstance(VideoOpener("pyav", where, stream=2)(three), IndexedReader)
    assert isinstance(VideoOpener("pyav", where, stream=0)(three), PyAVReader)
    assert isinstance(VideoOpener("pyav", where, stream=0, seek=True)(three), SeekingReader)


def test_the_config_chooses(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data: {train: list.txt}\n")
    assert video_opener(load_config(path).config.data, "train").stream is None
    data = load_config(path, ["data.stream=2"]).config.data
    assert video_opener(data, "train").stream == 2
    assert video_opener(DataConfig(train="x", stream=2, index="never"), "train").stream == 2
    for value in ("-1", "first", "1.5"):
        with pytest.raises(ConfigError, match=r"data\.stream"):
            load_config(path, [f"data.stream={value}"])


def test_decord_reads_the_best_stream_alone(three, make_video) -> None:
    with pytest.raises(UserError, match=r"data\.stream=1: decord"):
        VideoOpener("decord", stream=1, insist=True)(three)
    for path in (three, str(make_video("one.mp4"))):
        assert isinstance(VideoOpener("decord", stream=0)(path), PyAVReader)
