"""The command that packs, and the others on what it packed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from videogn.cli import main
from videogn.data.annotations import read_any_videos
from videogn.data.clips import RandomClips
from videogn.data.dataset import clip_of
from videogn.data.decode import PyAVReader
from videogn.data.opening import VideoOpener
from videogn.data.shard_order import shard_order
from videogn.engine import trainer
from videogn.engine.runs import RunFolder


@pytest.fixture
def tree(make_video, tmp_path: Path) -> Path:
    for number in range(6):
        make_video(f"tree/{'ab'[number % 2]}/{number}.mp4", 8 + number, g="4")
    return tmp_path / "tree"


@pytest.fixture
def shards(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    size = 3 * (tree / "b" / "5.mp4").stat().st_size
    words = ["data", "shards", str(tree), "--out", str(tmp_path / "s"), "--shard-size", str(size)]
    assert main(words) == 0
    line = capsys.readouterr().out.split("data.train=")[1].split("\n")[0]
    return line.strip("'")


def test_what_is_printed_is_a_list(tree: Path, shards: str, tmp_path: Path) -> None:
    assert shards.startswith(f"{tmp_path / 's' / 'shard-'}{{000000..")
    found = read_any_videos(shards).records
    original = {int(Path(r.path).stem): r for r in read_any_videos(str(tree)).records}
    assert len(found) == 6
    for record in found:
        number = int(Path(record.path).stem.rpartition("-")[2])
        assert record.label == original[number].label
        frames = [PyAVReader(r.path).frames(range(8 + number)) for r in (record, original[number])]
        assert np.array_equal(*frames)
    assert (tmp_path / "s" / "class_names.txt").read_text() == "a\nb\n"


def test_started_again_it_changes_nothing(tree: Path, shards: str, tmp_path: Path) -> None:
    files = sorted((tmp_path / "s").glob("*.tar"))
    before = [unchanging(file) for file in files]
    size = 3 * (tree / "b" / "5.mp4").stat().st_size
    words = ["data", "shards", str(tree), "--out", str(tmp_path / "s"), "--shard-size", str(size)]
    assert main(words) == 0
    assert [unchanging(file) for file in files] == before


def unchanging(file: Path) -> tuple[int, int, int]:
    """What stays of a file that is only read: not the time of that."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard-size", "big"], "--shard-size big"),
        (["--shard-size", "0"], "--shard-size 0"),
        (["--name", "../x"], "--name"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "5"], "choose another --out"),
        (["--shard-size", "1.5GiB"], "choose another --out"),
    ],
)
def test_wrong_options(
    tree: Path,
    shards: str,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["data", "shards", str(tree), "--out", str(tmp_path / "s"), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.dist
def test_check_and_index_read_shards_and_the_clean_list_is_read_again(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", shards, "--out", str(tmp_path / "c"), "--workers", "1"]) == 0
    report = json.loads((tmp_path / "c" / "report.json").read_text())
    assert (report["num_files"], report["num_ok"]) == (6, 6)
    clean = str(tmp_path / "c" / "clean.txt")
    records = read_any_videos(shards).records
    again = read_any_videos(clean, allow_outside_root=False).records
    assert [(r.path, r.label) for r in again] == [(r.path, r.label) for r in records]
    for source in (shards, clean):
        assert main(["data", "index", source, "--workers", "1"]) == 0
        assert "6 videos: 6 are read by their packets" in capsys.readouterr().out
    opener = VideoOpener("pyav", Path(f"{shards}.videogn-index"))
    clips = RandomClips(
        num_frames=4,
        frame_stride=2,
        short_side_min=32,
        short_side_max=40,
        crop_size=32,
        flip_probability=0.5,
        open_video=opener,
    )
    for record in records:
        found = []
        for clips.open_video in (opener, PyAVReader):
            found.append(clip_of(*clips.read(record.path, np.random.default_rng(1))))
        assert torch.equal(*found)


@pytest.mark.dist
def test_check_tells_of_a_faulty_member(
    make_video, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_video("v/a.mp4", 20).read_bytes()
    (tmp_path / "v" / "b.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "v" / "c.mp4").write_bytes(good)
    (tmp_path / "list.txt").write_text("v/a.mp4 0\nv/b.mp4 0\nv/c.mp4 0\n")
    assert main(["data", "shards", str(tmp_path / "list.txt"), "--out", str(tmp_path / "s")]) == 0
    source = str(tmp_path / "s" / "shard-000000.tar")
    assert main(["data", "check", source, "--out", str(tmp_path / "c"), "--workers", "1"]) == 1
    report = json.loads((tmp_path / "c" / "report.json").read_text())
    assert report["num_ok"] == 1
    reasons = sorted(file["reason"] for file in report["files"])
    assert reasons == ["duplicate_content", "truncated"]


@pytest.mark.dist
def test_stats_show_and_prepare_read_shards(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "stats", shards, "--workers", "1"]) == 0
    assert "videos      6" in capsys.readouterr().out
    assert main(["data", "show", shards, "--num", "2", "--out", str(tmp_path / "x.png")]) == 0
    out = tmp_path / "p"
    words = ["--sample", "1", "--preset", "ultrafast", "--workers", "1"]
    assert main(["data", "prepare", shards, "--out", str(out), *words]) == 0
    prepared = read_any_videos(str(out / "list.txt")).records
    assert [r.label for r in prepared] == [r.label for r in read_any_videos(shards).records]
    # A list of members, by relative names: what is prepared is plain files.
    (tmp_path / "members.txt").write_text(
        "".join(
            f"{Path(r.path).relative_to(tmp_path)} {r.label}\n"
            for r in read_any_videos(shards).records
        )
    )
    out = tmp_path / "q"
    source = str(tmp_path / "members.txt")
    assert main(["data", "prepare", source, "--out", str(out), *words]) == 0
    for record in read_any_videos(str(out / "list.txt")).records:
        assert Path(record.path).is_file()
        assert PyAVReader(record.path).num_frames >= 8


def test_a_broken_run_on_shards_goes_on_bit_for_bit(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--out", str(tmp_path / "s"), "--shard-size", "30KB"]
    assert main(["data", "shards", str(tiny.train_list), *words]) == 0
    assert len(list((tmp_path / "s").glob("*.tar"))) > 2
    source = str(tmp_path / "s" / "shard-*.tar")
    words = ["train", str(tiny.config), f"data.train={source}", "data.shuffle_buffer=3"]
    read: list[str] = []
    real_read, real_step = RandomClips.read, trainer.train_step

    def dying_step(run: object, batch: object, iteration: int, *rest: object) -> object:
        if iteration == 5:
            raise KeyboardInterrupt
        return real_step(run, batch, iteration, *rest)

    def noting_read(clips: RandomClips, path: str, *rest: object) -> object:
        if "/@" in path:  # of the training list; validation reads plain files
            read.append(path)
        return real_read(clips, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RandomClips, "read", noting_read)
        assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", dying_step)
        assert main([*words, f"out={tmp_path / 'broken'}"]) == 130
    assert main([*words, f"out={tmp_path / 'broken'}", "data.num_workers=2"]) == 0
    last = [RunFolder(tmp_path / name).last for name in ("whole", "broken")]
    assert_same_weights(*last)
    # 6 steps of 4 clips are 2 epochs of the 12 videos: each once an epoch, in the shards' order.
    records = read_any_videos(source).records
    order = shard_order(records, 3)
    assert order is not None
    expected = [records[i].path for epoch in (0, 1) for i in order(0, epoch)]
    assert read == expected


def assert_same_weights(first: Path, second: Path) -> None:
    with safe_open(first, "pt") as ours, safe_open(second, "pt") as theirs:
        names = set(ours.keys())
        assert names == set(theirs.keys())
        assert all(torch.equal(ours.get_tensor(n), theirs.get_tensor(n)) for n in names)
