import numpy as np
import pytest

from videogn.cli import main
from videogn.commands.setup import video_opener
from videogn.config import DataConfig
from videogn.data.decode import PyAVReader
from videogn.data.index_file import IndexFile, index_path
from videogn.data.seeking import SeekingReader
from videogn.errors import ConfigError

pytestmark = pytest.mark.dist


@pytest.fixture
def video_list(make_video, tmp_path):
    names = [make_video(f"{i}.mp4", 8).name for i in range(3)]
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{name} {label}\n" for label, name in enumerate(names)))
    return path


def test_command_writes_the_index_beside_the_list(video_list, capsys):
    assert main(["data", "index", str(video_list), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "3 videos: 3 are read by their packets" in out
    assert f"wrote {index_path(video_list)}" in out
    path = str(video_list.parent / "0.mp4")
    found = IndexFile(index_path(video_list)).find(path)
    assert found.index.num_frames == 8
    opener = video_opener(DataConfig(train=str(video_list)), "train")
    plain = video_opener(DataConfig(train=str(video_list), index="never"), "train")
    assert opener.index == index_path(video_list)
    assert plain.index is None
    assert np.array_equal(opener(path).frames([3, 5]), plain(path).frames([3, 5]))


def test_an_index_is_of_the_stream_it_is_asked_for(video_list, capsys):
    words = ["data", "index", str(video_list), "--workers", "1", "--stream"]
    assert main([*words, "0"]) == 0
    path = str(video_list.parent / "0.mp4")
    assert IndexFile(index_path(video_list)).find(path, 0).index.num_frames == 8
    assert IndexFile(index_path(video_list)).find(path) is None
    assert main([*words, "1"]) == 0
    assert "no video stream 1: it has 1" in capsys.readouterr().out


def test_bad_videos_are_listed_and_do_not_stop_it(video_list, capsys):
    (video_list.parent / "1.mp4").write_bytes(b"nothing")
    assert main(["data", "index", str(video_list), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "warning: 1 cannot be read" in out
    assert "1.mp4: decode error" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.txt"], "no such list"),
        (["{list}", "--workers", "0"], "must be above 0"),
        (["{list}", "--out", "{folder}"], "is a folder"),
        (["{list}", "--stream", "-1"], "counted from 0 on"),
    ],
)
def test_wrong_arguments_end_in_a_message(video_list, capsys, words, message):
    words = [word.format(list=video_list, folder=video_list.parent) for word in words]
    assert main(["data", "index", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_named_index_must_exist(video_list):
    with pytest.raises(ConfigError, match="videogn data index"):
        video_opener(DataConfig(train=str(video_list), index="/nowhere/index"), "train")


def test_training_seeks_without_an_index_and_the_test_decodes_whole(video_list):
    path, where = str(video_list.parent / "0.mp4"), str(video_list)
    train = video_opener(DataConfig(train=where), "train")
    val = video_opener(DataConfig(val=where), "val")
    whole = video_opener(DataConfig(train=where, index="never"), "train")
    test = video_opener(DataConfig(test=where), "test")
    assert isinstance(train(path), SeekingReader)
    assert isinstance(val(path), SeekingReader)
    assert isinstance(whole(path), PyAVReader)
    assert isinstance(test(path), PyAVReader)
