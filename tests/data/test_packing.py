"""Packing lists into shards, told by Python's tarfile."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import videogn.data.packing as module
from videogn.data.annotations import read_any_videos
from videogn.data.list_checks import VideoRecord
from videogn.data.packing import (
    Item,
    _cut,
    check_folder,
    holds,
    plan_shards,
    shard_file,
    write_shard,
)
from videogn.errors import RunError


def videos_in(folder: Path, sizes: Sequence[int]) -> list[VideoRecord]:
    """Files of random bytes, for packing does not look into them."""
    rng = np.random.default_rng(0)
    records = []
    for number, size in enumerate(sizes):
        path = folder / f"class {number % 3}" / f"v.{number} é.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(size))
        records.append(VideoRecord(str(path), number % 3, str(path.relative_to(folder))))
    return records


def pack(folder: Path, shards: Sequence[Sequence[Item]], name: str = "s") -> list[Path]:
    for number in check_folder(folder, name, shards):
        write_shard(folder / shard_file(name, number), shards[number])
    return sorted(folder.glob(f"{name}-*.tar"))


def test_every_video_is_packed_once_with_its_label(tmp_path: Path) -> None:
    records = videos_in(tmp_path / "in", [1, 511, 512, 513, 9000, 40_000, 3, 20_000])
    files = pack(tmp_path / "out", plan_shards(records, 45_000, 0))
    assert len(files) > 1
    found = {}
    for file in files:
        assert file.stat().st_size <= 45_000 or len(read_any_videos(str(file)).records) == 1
        with tarfile.open(file) as tar:
            members = {info.name: tar.extractfile(info).read() for info in tar}
        for name, content in members.items():
            if name.endswith(".mp4"):
                found[content] = int(members[name.replace(".mp4", ".cls")])
    assert found == {Path(r.path).read_bytes(): r.label for r in records}
    again = read_any_videos(str(tmp_path / "out" / "s-*.tar"))
    assert len(again.records) == len(records)
    folders = {Path(r.name).parent.name: r.label for r in again.records}
    assert folders == {f"class {label}": label for label in range(3)}


def test_the_same_list_gives_the_same_bytes_and_another_seed_another_order(
    tmp_path: Path,
) -> None:
    records = videos_in(tmp_path / "in", [700] * 30)
    outs = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        files = pack(tmp_path / out, plan_shards(records, 20_000, seed))
        outs.append([file.read_bytes() for file in files])
    assert outs[0] == outs[1] != outs[2]
    # A list in the order of its classes is mixed.
    by_class = sorted(records, key=lambda record: record.label)
    [shard] = plan_shards(by_class, 10**9, 0)
    labels = [item.label for item in shard]
    assert labels != sorted(labels)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = plan_shards(videos_in(tmp_path / "in", [5000] * 12), 20_000, 0)
    whole = [file.read_bytes() for file in pack(tmp_path / "whole", shards)]
    out = tmp_path / "out"
    write_shard(out / "s-000001.tar", shards[1])
    before = (out / "s-000001.tar").stat().st_mtime_ns
    (out / ".s-000000.tar.x1y2.tar").write_bytes(b"half")
    for other in (".t-000000.tar.x1y2.tar", "s-val-000000.tar", "s.tar"):
        (out / other).write_bytes(b"another's")

    def fails(tar: object, info: object, item: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_add_video", fails)
        with pytest.raises(RunError, match="No space left"):
            pack(out, shards)
    assert not list(out.glob(".s-*"))
    assert 1 not in check_folder(out, "s", shards)
    pack(out, shards)
    assert [(out / shard_file("s", i)).read_bytes() for i in range(len(shards))] == whole
    assert (out / "s-000001.tar").stat().st_mtime_ns == before
    assert (out / ".t-000000.tar.x1y2.tar").read_bytes() == b"another's"


@pytest.mark.parametrize("change", ["content", "label", "settings", "cut", "flip"])
def test_shards_of_something_else_are_never_written_over(tmp_path: Path, change: str) -> None:
    records = videos_in(tmp_path / "in", [5000] * 12)
    shards = plan_shards(records, 20_000, 0)
    files = pack(tmp_path / "out", shards)
    if change == "content":
        Path(records[3].path).write_bytes(b"x" * 4999)
    if change == "label":
        records[3] = VideoRecord(records[3].path, 9, records[3].name)
    if change == "cut":
        files[0].write_bytes(files[0].read_bytes()[:-512])
    if change == "flip":
        content = bytearray(files[0].read_bytes())
        content[100] ^= 1
        files[0].write_bytes(content)
    before = [file.read_bytes() for file in files]
    shards = plan_shards(records, 30_000 if change == "settings" else 20_000, 0)
    with pytest.raises(RunError, match="choose another --out"):
        check_folder(tmp_path / "out", "s", shards)
    assert [file.read_bytes() for file in files] == before


def test_what_cannot_be_packed_is_told_at_once(tmp_path: Path) -> None:
    records = videos_in(tmp_path / "in", [50, 60, 0, 70])
    Path(records[0].path).unlink()
    records.append(VideoRecord(str(tmp_path / "in"), 0, "in"))
    odd = tmp_path / "in" / "clip.dat"
    odd.write_bytes(b"x")
    records.append(VideoRecord(str(odd), 0, "clip.dat"))
    with pytest.raises(RunError) as caught:
        plan_shards(records, 1000, 0)
    message = str(caught.value)
    assert message.startswith("4 of 6 videos cannot be packed")
    for fault in ("no such file", "has 0 bytes", "ends in '.dat'"):
        assert fault in message


def test_a_video_that_changes_meanwhile_ends_it(tmp_path: Path) -> None:
    records = videos_in(tmp_path / "in", [5000, 6000])
    [shard] = plan_shards(records, 10**9, 0)
    for content in (b"short", b"x" * 7000):
        Path(records[1].path).write_bytes(content)
        with pytest.raises(RunError, match=r"v\.1"):
            write_shard(tmp_path / "out" / "s-000000.tar", shard)
        assert list((tmp_path / "out").iterdir()) == []


def test_shards_can_be_packed_anew(tmp_path: Path) -> None:
    records = videos_in(tmp_path / "in", [5000] * 9)
    pack(tmp_path / "a", plan_shards(records, 20_000, 0))
    first = read_any_videos(str(tmp_path / "a" / "*.tar")).records
    pack(tmp_path / "b", plan_shards(first, 10**9, 3))
    [again] = [read_any_videos(str(tmp_path / "b" / "s-000000.tar")).records]
    assert len(again) == 9
    with tarfile.open(tmp_path / "b" / "s-000000.tar") as tar:
        contents = {tar.extractfile(info).read() for info in tar if info.name.endswith(".mp4")}
    assert contents == {Path(record.path).read_bytes() for record in records}


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=40), st.integers(1, 300_000))
@example([32257, 65537], 112_128)  # the end mark begins another record
def test_shards_keep_to_their_size_and_order(sizes: list[int], shard_bytes: int) -> None:
    items = [Item(f"/{i}.mp4", f"k/{i}", ".mp4", 0, size, 0) for i, size in enumerate(sizes)]
    shards = list(_cut(items, shard_bytes))
    assert [item for shard in shards for item in shard] == items
    for shard in shards:
        bytes_of = sum(1024 + 512 + -(-item.size // 512) * 512 for item in shard)
        whole = -(-(bytes_of + 1024) // 10240) * 10240
        assert whole <= shard_bytes or len(shard) == 1


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / "in" / ("f" * 200) / ("é" * 100 + ".mkv")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"video")
    shards = plan_shards([VideoRecord(str(path), 2, f"{path.parent.name}/{path.name}")], 9999, 0)
    [file] = pack(tmp_path / "out", shards)
    assert holds(file, shards[0])
    [record] = read_any_videos(str(file)).records
    assert record.label == 2
    assert record.path.endswith(".mkv")
