"""Tar shards: members read in place, labels, faults and what may not be opened."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from videogn.data.annotations import ListFormat, read_any_videos, read_videos
from videogn.data.decode import PyAVReader, decode_whole
from videogn.data.evidence import matroska_size
from videogn.data.indexing import index_entry
from videogn.data.opening import VideoOpener
from videogn.data.packet_scan import index_video
from videogn.data.packets import IndexedReader
from videogn.data.shards import TABLE_SUFFIX, shard_names
from videogn.errors import AnnotationError, DecodeError, UserError
from videogn.files import UNKNOWN, locate, member_path, sha256_of, state_of

Content = tuple[str, bytes]


def write_tar(path: Path, members: Sequence[Content], *, layout: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, label: object = 0, video: bytes = b"video") -> list[Content]:
    return [(f"{key}.mp4", video), (f"{key}.cls", f"{label}".encode())]


def by_plain_pyav(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def faults_of(source: Path | str, **options: ListFormat) -> list[str]:
    with pytest.raises(AnnotationError) as caught:
        read_any_videos(str(source), **options)
    return str(caught.value).split("\n")


ODD_FOLDERS = [
    "plain",
    "a, b: 'c' = %d;e?x=1",
    "subfile,,start,0,end,9,,:",
    "http:",
    "concat:x|y.tar",
]


@pytest.mark.parametrize("folder", ODD_FOLDERS)
def test_frames_are_those_of_the_extracted_file(make_video, folder: str) -> None:
    videos = [make_video(f"v{i}.mp4", 12 + i, g="5") for i in range(3)]
    members = [m for i, v in enumerate(videos) for m in sample(f"c/{i}", i, v.read_bytes())]
    shard = write_tar(make_video.folder / folder / "s-000.tar", members)
    out = make_video.folder / "extracted"
    with tarfile.open(shard) as tar:
        tar.extractall(out, filter="data")
    records = read_any_videos(str(shard)).records
    assert [record.label for record in records] == [0, 1, 2]
    for i, record in enumerate(records):
        oracle = by_plain_pyav(out / f"c/{i}.mp4")
        reader = PyAVReader(record.path)
        frames = reader.frames(range(reader.num_frames))
        assert make_video.numbers_in(frames) == list(range(12 + i))
        plain = PyAVReader(str(out / f"c/{i}.mp4")).frames(range(12 + i))
        assert np.array_equal(frames, plain)
        assert frames.shape == oracle.shape
        indexed = IndexedReader(record.path, index_video(record.path))
        assert np.array_equal(indexed.frames(range(12 + i)), plain)
        assert index_video(record.path).to_bytes() == index_video(str(videos[i])).to_bytes()


@pytest.mark.parametrize(
    ("name", "codec"),
    [("v.mkv", "libx264"), ("v.webm", "libvpx"), ("v.avi", "mpeg4"), ("v.ts", "libx264")],
)
def test_other_containers(make_video, name: str, codec: str) -> None:
    video = make_video(name, 9, codec=codec)
    shard = write_tar(
        make_video.folder / "s.tar",
        [*sample("a"), (f"b.{video.suffix[1:]}", video.read_bytes()), ("b.cls", b"1")],
    )
    path = read_any_videos(str(shard)).records[1].path
    expected = PyAVReader(str(video)).frames(range(9))
    assert np.array_equal(PyAVReader(path).frames(range(9)), expected)
    assert matroska_size(path) == matroska_size(str(video))


def test_a_video_cut_off_inside_a_shard_is_told(make_video) -> None:
    video = make_video("v.mkv", 30).read_bytes()
    # Another member follows, so that the shard's own size says nothing.
    members = [("a.mkv", video[:-2000]), ("a.cls", b"0"), *sample("b", 0, video)]
    shard = write_tar(make_video.folder / "s.tar", members)
    cut = read_any_videos(str(shard)).records[0].path
    with pytest.raises(DecodeError) as caught:
        list(decode_whole(cut))
    assert caught.value.path == cut


def test_state_and_hash_are_the_members(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [*sample("a", 0, b"x" * 700), *sample("b", 0, b"yy")])
    first, second = read_any_videos(str(shard)).records
    assert state_of(first.path) == (700, shard.stat().st_mtime_ns)
    assert sha256_of(first.path) == hashlib.sha256(b"x" * 700).hexdigest()
    assert sha256_of(second.path) == hashlib.sha256(b"yy").hexdigest()
    with shard.open("r+b") as file:
        file.truncate(locate(second.path).start)
    assert state_of(second.path) == (UNKNOWN, UNKNOWN)


def test_only_paths_of_members_are_taken_for_such(tmp_path: Path) -> None:
    for plain in ("/a/s.tar", "/a/s.tar/x.mp4", "/a/@5+6/x.mp4", "/a/s.tar/@5+/x", "/s.tar/@1+2/"):
        assert locate(plain) == (plain, 0, None)
    path = member_path("/a/s.tar", 512, 9, "b/c.mp4")
    assert locate(path) == ("/a/s.tar", 512, 9)
    # A member's name cannot lead to another file.
    assert locate(member_path("/a/s.tar", 512, 9, "t.tar/@1+2/c.mp4")).file == "/a/s.tar"


def test_a_path_of_a_changed_shard_is_refused(make_video) -> None:
    video = make_video("v.mp4", 5).read_bytes()
    shard = write_tar(make_video.folder / "s.tar", sample("a", 0, video))
    path = read_any_videos(str(shard)).records[0].path
    assert PyAVReader(path).num_frames == 5
    write_tar(shard, [("pad.txt", b"x"), *sample("a", 0, video)])
    with pytest.raises(DecodeError, match="the shard has changed"):
        PyAVReader(path)
    shard.unlink()
    with pytest.raises(DecodeError, match="no such file"):
        PyAVReader(path)


def test_a_shard_cut_off_after_it_was_listed(make_video) -> None:
    shard = write_tar(make_video.folder / "s.tar", sample("a", 0, b"x" * 5000))
    path = read_any_videos(str(shard)).records[0].path
    with shard.open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(DecodeError, match="cut off"):
        PyAVReader(path)


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile {video}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{video}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsubfile,,start,0,end,0,,:{video}\n"
        "#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_in_a_shard_opens_nothing(make_video, playlist: str) -> None:
    video = make_video("v.mp4", 5)
    content = playlist.format(video=video).encode()
    shard = write_tar(make_video.folder / "s.tar", sample("a", 0, content))
    path = read_any_videos(str(shard)).records[0].path
    with pytest.raises(DecodeError):
        PyAVReader(path)
    with pytest.raises(DecodeError):
        index_video(path)


def test_a_members_name_cannot_change_what_is_opened(make_video) -> None:
    video = make_video("v.mp4", 5)
    odd = "subfile,,start,0,end,0,,:x, y: 'z'\n%s/t.tar/@1+2/k"
    shard = write_tar(make_video.folder / "s.tar", sample(odd, 0, video.read_bytes()))
    path = read_any_videos(str(shard)).records[0].path
    assert PyAVReader(path).num_frames == 5
    assert IndexedReader(path, index_video(path)).num_frames == 5


def test_an_index_entry_of_a_member_is_found_again(make_video) -> None:
    from videogn.data.index_file import IndexFile

    video = make_video("v.mp4", 8)
    shard = write_tar(make_video.folder / "s.tar", sample("a", 0, video.read_bytes()))
    path = read_any_videos(str(shard)).records[0].path
    file = IndexFile(make_video.folder / "index", create=True)
    file.add([index_entry(path)])
    entry = file.find(path)
    assert entry is not None
    assert entry.index is not None
    os.utime(shard, ns=(1, 1))
    assert file.find(path) is None
    file.close()


def test_another_reader_leaves_members_to_the_exact_one(make_video) -> None:
    video = make_video("v.mp4", 5).read_bytes()
    shard = write_tar(make_video.folder / "s.tar", sample("key", 3, video))
    [record] = read_any_videos(str(shard)).records
    assert isinstance(VideoOpener("decord")(record.path), PyAVReader)
    assert "in a tar shard 1" in VideoOpener("decord").share([record.path])
    with pytest.raises(UserError, match=r"data\.reader=decord.*tar shards"):
        VideoOpener("decord", insist=True)(record.path)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_every_tar_format(make_video, layout: int) -> None:
    key = "/".join(["n" * 60, "m" * 60, "key"])
    if layout != tarfile.USTAR_FORMAT:
        key += "é" * 90
    video = make_video("v.mp4", 5).read_bytes()
    shard = write_tar(make_video.folder / "s.tar", sample(key, 3, video), layout=layout)
    [record] = read_any_videos(str(shard)).records
    assert record.name == f"s.tar/{key}.mp4"
    assert PyAVReader(record.path).num_frames == 5


def test_labels_of_all_kinds(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "s.tar",
        [
            *[("./a.mp4", b"v"), ("./a.cls", b" 2\n"), ("./a.txt", b"a caption\nof lines")],
            *[("b.json", b'{"label": 1, "class": "x"}'), ("b.WEBM", b"v")],
            *[("c.x.avi", b"v"), ("c.json", b'{"fps": 25}'), ("c.txt", b"0")],
            *[("._a.mp4", b"macOS"), ("__meta__", b"about"), ("c.jpg", b"thumbnail")],
        ],
    )
    videos = read_videos(str(tmp_path / "s.tar"), num_classes=3)
    assert [(r.name, r.label) for r in videos.records] == [
        ("s.tar/a.mp4", 2),
        ("s.tar/b.WEBM", 1),
        ("s.tar/c.x.avi", 0),
    ]
    assert videos.class_names is None


def test_class_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.mp4", b"v"), ("a.txt", b"wave\n")])
    write_tar(
        tmp_path / "1.tar",
        [("a.mp4", b"v"), ("a.json", json.dumps({"class": "bow"}).encode())],
    )
    source = str(tmp_path / "*.tar")
    found = read_videos(source, num_classes=2)
    assert (found.class_names, [r.label for r in found.records]) == (("bow", "wave"), [1, 0])
    known = read_videos(source, num_classes=3, class_names=["wave", "run", "bow"])
    assert [r.label for r in known.records] == [0, 2]
    with pytest.raises(AnnotationError, match="not among the 2 known ones"):
        read_videos(source, num_classes=2, class_names=["wave", "run"])


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in [
            *[("a.mp4", b"v"), ("b.cls", b"1"), ("c.mp4", b"v"), ("c.avi", b"v"), ("c.cls", b"0")],
            *[("d.mp4", b"v"), ("d.cls", b"one"), ("e.mp4", b"v"), ("e.json", b"[1]")],
            *[("f.mp4", b"v"), ("f.txt", b"two\nlines"), ("../g.mp4", b"v"), ("/h.mp4", b"v")],
            *[("i.mp4", b"v"), ("i.json", b'{"label": true}'), ("j.mp4", b"v"), ("j.cls", b"1")],
            *[("j.mp4", b"w")],
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("k.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    write_tar(tmp_path / "t.tar", [])
    start = f"{tmp_path / 's.tar'}: "
    faults = "\n".join(faults_of(tmp_path / "[st].tar"))
    for expected in (
        f"{start}a.mp4: no label",
        f"{start}b: a key without a video: b.cls",
        f"{start}c: two members of one key: 'c.mp4' and 'c.avi'",
        f"{start}d.mp4: no label in d.cls: a whole number",
        f"{start}e.mp4: no label in e.json: an object",
        f"{start}f.mp4: no label in f.txt: one line",
        f"{start}../g.mp4: leads out of the tar file",
        f"{start}/h.mp4: leads out of the tar file",
        f"{start}i.mp4: no label in i.json",
        f"{start}j: two members of one key: 'j.mp4' and 'j.mp4'",
        f"{start}k.mp4: is a link to '/etc/passwd'",
        f"{tmp_path / 't.tar'}: holds no video",
    ):
        assert expected in faults
    assert not list(tmp_path.glob(f"*{TABLE_SUFFIX}"))


def test_mixed_labels_and_labels_out_of_range(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [*sample("a", 1), ("b.mp4", b"v"), ("b.txt", b"wave")])
    assert faults_of(tmp_path / "s.tar") == [
        f"{tmp_path / 's.tar'}: a.mp4: the label 1 is a number, others are 'wave'"
    ]
    write_tar(tmp_path / "s.tar", [*sample("a", 1), *sample("b", -1), *sample("c", 7)])
    with pytest.raises(AnnotationError) as caught:
        read_videos(str(tmp_path / "s.tar"), num_classes=7)
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[1] for line in lines] == ["b.mp4", "c.mp4"]
    assert "outside 0 … 6" in lines[0]


@pytest.mark.parametrize("cut", [100, 512, 700, 1024, 1100, 1536, 2000, 2560, 3072])
def test_a_cut_shard_is_told_wherever_it_is_cut(tmp_path: Path, cut: int) -> None:
    whole = write_tar(tmp_path / "s.tar", [*sample("a"), *sample("b")]).read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[:cut])
    assert any("cut off" in fault for fault in faults_of(tmp_path / "s.tar"))


def test_damage_in_a_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [*sample("a"), *sample("b"), *sample("c")])
    content = bytearray(shard.read_bytes())
    content[2048 + 130] ^= 1
    shard.write_bytes(content)
    assert any("is damaged at byte 2048" in fault for fault in faults_of(shard))


def test_a_size_below_zero_does_not_go_in_circles(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [*sample("a"), *sample("b")])
    content = bytearray(shard.read_bytes())
    # -512 in base 256, so that the member seems to end where its own header starts.
    content[2048 + 124 : 2048 + 136] = b"\xff" * 10 + b"\xfe\x00"
    head = content[2048:2560]
    total = 8 * ord(" ") + sum(head[:148]) + sum(head[156:])
    content[2048 + 148 : 2048 + 156] = b"%06o\0 " % total
    shard.write_bytes(content)
    assert f"{shard}: is damaged at byte 2048" in faults_of(shard)[0]


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("a.mp4")
        info.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(info)
    assert "a.mp4: is sparse" in faults_of(tmp_path / "s.tar")[0]


def test_appended_tars_are_not_lost_silently(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", sample("a"))
    shard.write_bytes(2 * shard.read_bytes())
    assert any("something was appended" in fault for fault in faults_of(shard))


def test_compressed_and_other_files(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "s.tar", sample("a")).read_bytes()
    (tmp_path / "z.tar").write_bytes(gzip.compress(content))
    assert "is compressed (gzip)" in faults_of(tmp_path / "z.tar")[0]
    (tmp_path / "z.tar.gz").write_bytes(gzip.compress(content))
    assert "unpack a compressed one" in faults_of(tmp_path / "z.tar.gz")[0]
    (tmp_path / "n.tar").write_bytes(b"no tar at all" * 99)
    assert "is no tar file" in faults_of(tmp_path / "n.tar")[0]
    (tmp_path / "e.tar").write_bytes(b"")
    assert "is no tar file" in faults_of(tmp_path / "e.tar")[0]


def test_patterns(tmp_path: Path) -> None:
    for name in ("t-08.tar", "t-09.tar", "t-10.tar", "v-1.tar", "v-2.tar", ".t-11.tar"):
        (tmp_path / name).touch()

    def names(pattern: str) -> list[str]:
        return shard_names(str(tmp_path / pattern))

    assert names("t-{08..10}.tar") == ["t-08.tar", "t-09.tar", "t-10.tar"]
    assert names("t-*.tar") == names("t-{08..10}.tar")
    assert names("v-{1..2}.tar") == names("v-?.tar") == names("v-{2,1}.tar")[::-1]
    assert names("{t-0*,v-1}.tar") == ["t-08.tar", "t-09.tar", "v-1.tar"]
    assert names("t-08.tar") == ["t-08.tar"]
    with pytest.raises(AnnotationError) as caught:
        names("t-{08..12}.tar")
    assert str(caught.value).count("no such tar shard") == 2
    for wrong in ("t-{5}.tar", "t-{9..1}.tar", "t-{0..9999999}.tar", "x*.tar", "no/t-{1..2}.tar"):
        with pytest.raises(AnnotationError):
            names(wrong)


def test_the_fence_is_round_the_shard(tmp_path: Path) -> None:
    outside = write_tar(tmp_path / "out" / "s.tar", sample("a"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "s.tar").symlink_to(outside)
    source = str(tmp_path / "in" / "*.tar")
    with pytest.raises(AnnotationError, match="allow_outside_root"):
        read_any_videos(source)
    assert len(read_any_videos(source, allow_outside_root=True).records) == 1
    root = str(tmp_path)
    assert len(read_any_videos(source, root, allow_outside_root=False).records) == 1


def test_a_list_of_members_is_read_like_any_other(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "s 1.tar", [*sample("x y/a", 4), *sample("b", 5)])
    videos = read_any_videos(str(tmp_path / "s" / "*.tar"))
    (tmp_path / "list.txt").write_text("".join(f"{r.path} {r.label}\n" for r in videos.records))
    again = read_any_videos(str(tmp_path / "list.txt"), allow_outside_root=False)
    assert [(r.path, r.label) for r in again.records] == [(r.path, r.label) for r in videos.records]
    # The fence looks at the shard, not at what seem to be folders below it.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "list.txt").write_text(f"{videos.records[0].path} 0\nx.mp4 1\n")
    with pytest.raises(AnnotationError, match="outside"):
        read_any_videos(str(tmp_path / "other" / "list.txt"), allow_outside_root=False)


def test_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import videogn.data.shards as module

    shards = [write_tar(tmp_path / f"{i}.tar", sample(f"k{i}", i)) for i in range(3)]
    source = str(tmp_path / "{0..2}.tar")
    first = read_any_videos(source)
    read: list[str] = []
    original = module.read_shard
    monkeypatch.setattr(module, "read_shard", lambda path: read.append(path) or original(path))
    assert read_any_videos(source).records == first.records
    assert read == []
    write_tar(shards[1], sample("other", 9))
    assert [r.label for r in read_any_videos(source).records] == [0, 9, 2]
    assert read == [str(shards[1])]
    # Whatever stands in the table, it cannot lead a reader to another file.
    [table] = tmp_path.glob(f"*{TABLE_SUFFIX}")
    good = table.read_text()
    for bad in (good[:50], "[]", good.replace("k0.mp4", "../../k0.mp4"), '{"version":1}'):
        table.write_text(bad)
        assert [r.label for r in read_any_videos(source).records] == [0, 9, 2]
        assert table.read_text() == good
