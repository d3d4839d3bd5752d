import contextlib
import gc
import os
import pickle
import sqlite3

import pytest
from lethal import never_done

from videogn.data import indexing
from videogn.data.decode import PyAVReader
from videogn.data.decord_reader import DecordReader
from videogn.data.index_file import Entry, IndexFile, index_path
from videogn.data.indexing import UNKNOWN, index_entry, make_index
from videogn.data.opening import VideoOpener
from videogn.data.packets import IndexedReader
from videogn.data.processes import Pool
from videogn.errors import DecodeError, UserError


@pytest.fixture
def indexed(make_video, tmp_path):
    path = make_video(num_frames=12)
    file = IndexFile(tmp_path / "x.videogn-index", create=True)
    file.add([index_entry(str(path))])
    file.close()
    return path, tmp_path / "x.videogn-index"


def test_entries_come_back(indexed):
    path, where = indexed
    entry = IndexFile(where).find(str(path))
    assert entry.index.num_frames == 12
    assert (entry.readable, entry.reason) == (True, None)
    assert IndexFile(where).find(str(path.parent / "other.mp4")) is None


def test_an_entry_ends_with_the_files_next_change(indexed):
    path, where = indexed
    os.utime(path, ns=(1, 1))
    assert IndexFile(where).find(str(path)) is None


@pytest.mark.parametrize(
    "content", [b"", b"text, not a database", b"SQLite format 3\0" + b"\1" * 99]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "index"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: .*make it again"):
        IndexFile(path)


def test_an_index_that_nobody_holds_is_closed(indexed):
    _, where = indexed
    file = IndexFile(where)
    database = file._database
    del file
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database.execute("SELECT 1")


def test_another_version_is_refused(indexed):
    _, where = indexed
    with contextlib.closing(sqlite3.connect(where)) as database, database:
        database.execute("UPDATE about SET version = 99")
    with pytest.raises(UserError, match="index version 99"):
        IndexFile(where)
    with pytest.raises(UserError, match="no such index"):
        IndexFile(where.parent / "none")


def test_opener_uses_the_index_and_crosses_processes(indexed):
    path, where = indexed
    opener = VideoOpener("pyav", where)
    assert isinstance(opener(str(path)), IndexedReader)
    again = pickle.loads(pickle.dumps(opener))
    assert isinstance(again(str(path)), IndexedReader)
    os.utime(path, ns=(1, 1))
    assert isinstance(opener(str(path)), PyAVReader)
    assert isinstance(VideoOpener("pyav")(str(path)), PyAVReader)
    assert isinstance(VideoOpener("decord", where)(str(path)), DecordReader)


def test_a_list_has_its_index_beside_it(tmp_path):
    assert index_path("data/train.csv").as_posix() == "data/train.csv.videogn-index"
    assert index_path(tmp_path).parent == tmp_path.parent


@pytest.mark.dist
def test_many_videos_are_indexed_once_and_bad_ones_named(make_video, tmp_path):
    good = [str(make_video(f"{i}.mp4", 5 + i)) for i in range(5)]
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 99)
    paths = [*good, str(bad), str(tmp_path / "missing.mp4")]
    file = IndexFile(tmp_path / "index", create=True)
    found = {e.path: e for e in make_index(paths, file, Pool(2, 60))}
    assert [found[path].index.num_frames for path in good] == [5, 6, 7, 8, 9]
    assert not found[str(bad)].readable
    assert found[str(tmp_path / "missing.mp4")].size == UNKNOWN
    assert file.find(str(bad)).reason == found[str(bad)].reason
    assert file.find(paths[-1]) is None
    # A second run asks no decoder: the files may be gone as far as it is concerned.
    entries = list(make_index(good, file, Pool(1, 60)))
    assert [entry.path for entry in entries] == good


@pytest.mark.dist
def test_a_video_that_takes_too_long_is_given_up(make_video, tmp_path, monkeypatch):
    path = str(make_video())
    file = IndexFile(tmp_path / "index", create=True)
    monkeypatch.setattr(indexing, "index_entry", never_done)
    [entry] = make_index([path], file, Pool(1, 0.5))
    assert "not indexed within" in entry.reason
    assert file.find(path) is None


def test_an_entry_never_raises_over_content(tmp_path):
    folder = index_entry(str(tmp_path))
    assert (folder.readable, folder.reason) == (False, "a folder")
    assert isinstance(folder, Entry)
    with pytest.raises(DecodeError):
        VideoOpener("pyav")(str(tmp_path))
