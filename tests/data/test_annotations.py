import logging
from pathlib import Path

import pytest

from videogn.data import annotations
from videogn.data.annotations import read_videos
from videogn.data.list_checks import VideoRecord
from videogn.data.listed import list_videos
from videogn.errors import AnnotationError


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def touch(root: Path, *names: str) -> None:
    for name in names:
        write(root / name, b"")


def faults_of(source: str, **options) -> list[str]:
    with pytest.raises(AnnotationError) as caught:
        read_videos(source, **{"num_classes": 3, **options})
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("line", "name", "label"),
    [
        ("a/b.mp4 2", "a/b.mp4", 2),
        ("a/b.mp4,2", "a/b.mp4", 2),
        ("a/b.mp4, 2", "a/b.mp4", 2),
        ("a/b.mp4\t 2  ", "a/b.mp4", 2),
        ("two words, one comma.mp4 1", "two words, one comma.mp4", 1),
        ("two words, one comma.mp4,1", "two words, one comma.mp4", 1),
        ("ends in 7 .mp4 0", "ends in 7 .mp4", 0),
        ("größe\u2028.mp4 0", "größe\u2028.mp4", 0),
    ],
)
def test_label_is_split_off_from_the_right(line, name, label, tmp_path: Path) -> None:
    videos = read_videos(write(tmp_path / "list.txt", line + "\n"), num_classes=3)
    assert videos.records == (VideoRecord(str(tmp_path / name), label, name),)
    assert videos.class_names is None


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    source = write(tmp_path / "list.txt", b"\xef\xbb\xbfa.mp4 0\r\n\r\n  \r\nb.mp4 1\r\n")
    assert [(r.name, r.label) for r in read_videos(source, num_classes=2).records] == [
        ("a.mp4", 0),
        ("b.mp4", 1),
    ]


def test_relative_paths_start_at_the_root_and_absolute_ones_stay(tmp_path: Path) -> None:
    source = write(tmp_path / "lists" / "list.txt", "a.mp4 0\n../b.mp4 1\n/abs/c.mp4 2\n")
    with pytest.raises(AnnotationError, match=r"list\.txt:2: .*outside"):
        read_videos(source, num_classes=3)
    trusted = read_videos(source, num_classes=3, allow_outside_root=True)
    paths = [r.path for r in trusted.records]
    assert paths == [str(tmp_path / "lists/a.mp4"), str(tmp_path / "b.mp4"), "/abs/c.mp4"]
    trusted = read_videos(source, num_classes=3, root="/r/s", allow_outside_root=True)
    assert [r.path for r in trusted.records] == ["/r/s/a.mp4", "/r/b.mp4", "/abs/c.mp4"]


def test_repeated_lines_count_once_and_are_told(tmp_path: Path, caplog) -> None:
    source = write(tmp_path / "list.txt", "a.mp4 0\nb.mp4 1\na.mp4,0\n./a.mp4 0\n")
    with caplog.at_level(logging.WARNING, "videogn"):
        videos = read_videos(source, num_classes=2)
    assert [r.name for r in videos.records] == ["a.mp4", "b.mp4"]
    assert caplog.messages == [f"{source}: 2 repeated lines count once"]


def test_all_faults_of_a_list_are_told_at_once(tmp_path: Path) -> None:
    text = "a.mp4 0\nlonely\nb.mp4 x\nc.mp4 3\nd.mp4 -1\n\na.mp4 1\ne.mp4 1.0\nclip 1_2\n"
    source = write(tmp_path / "list.txt", text)
    told = {line.removeprefix(source + ":").split(":", 1)[0]: line for line in faults_of(source)}
    assert sorted(told, key=int) == ["2", "3", "4", "5", "7", "8", "9"]
    assert "path label" in told["2"]
    assert "'x'" in told["3"]
    assert "outside 0" in told["4"]
    assert "model.num_classes" in told["4"]
    assert "-1" in told["5"]
    assert "label 1 here and 0 in line 1" in told["7"]
    assert "'1.0'" in told["8"]
    assert "'1_2'" in told["9"]


def test_printed_faults_are_limited(tmp_path: Path) -> None:
    source = write(tmp_path / "list.txt", "".join(f"{i}.mp4 9\n" for i in range(50)))
    lines = faults_of(source)
    assert len(lines) == annotations.MAX_FAULTS + 1
    assert lines[-1] == "and 30 more"


@pytest.mark.parametrize("text", ["", "\n \n", b"\xef\xbb\xbf"])
def test_empty_list_is_an_error(text, tmp_path: Path) -> None:
    assert "names no video" in faults_of(write(tmp_path / "list.txt", text))[0]


def test_what_is_no_list_is_an_error(tmp_path: Path) -> None:
    assert "not UTF-8" in faults_of(write(tmp_path / "a.txt", b"a\xff.mp4 0\n"))[0]
    assert "no such list" in faults_of(str(tmp_path / "missing.txt"))[0]
    assert "neither a file nor a folder" in faults_of("/dev/null")[0]


def test_tree_takes_videos_in_sorted_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "run/b.MP4", "run/a.mp4", "jump/deep/er/c.webm", "jump/notes.txt")
    touch(tmp_path, "run/.hidden.mp4", "jump/.cache/d.mp4", ".git/e.mp4", "loose.mp4")
    videos = read_videos(str(tmp_path), num_classes=2)
    assert videos.class_names == ("jump", "run")
    assert [(r.name, r.label, r.path) for r in videos.records] == [
        ("jump/deep/er/c.webm", 0, str(tmp_path / "jump/deep/er/c.webm")),
        ("run/a.mp4", 1, str(tmp_path / "run/a.mp4")),
        ("run/b.MP4", 1, str(tmp_path / "run/b.MP4")),
    ]


def test_given_class_names_decide_the_labels_of_a_tree(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "jump/b.mp4")
    names = ("run", "sit", "jump")
    videos = read_videos(str(tmp_path), num_classes=3, class_names=names)
    assert {r.name: r.label for r in videos.records} == {"run/a.mp4": 0, "jump/b.mp4": 2}
    assert videos.class_names == names
    fault = faults_of(str(tmp_path), class_names=("run", "sit", "lie"))
    assert "'jump'" in fault[0]


@pytest.mark.parametrize("num_classes", [1, 3])
def test_tree_with_another_number_of_classes_names_the_setting(num_classes, tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "jump/b.mp4")
    assert "set model.num_classes=2" in faults_of(str(tmp_path), num_classes=num_classes)[0]


def test_tree_without_videos_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.txt")
    assert "names no video" in faults_of(str(tmp_path), num_classes=1)[0]


def test_footage_tree(footage: Path) -> None:
    videos = read_videos(str(footage / "ut_interaction" / "train"), num_classes=6)
    assert len(videos.records) == 72
    assert videos.class_names is not None
    assert all(r.name.startswith(videos.class_names[r.label]) for r in videos.records)


CSV = (
    "label,youtube_id,time_start,time_end,split\n"
    "playing harp,-aB_1,7,17,val\n"
    '"smoking, outside",xyz,120,130,val\n'
    "playing harp,gone,1,11,val\n"
)


def test_kinetics_csv_finds_files_anywhere_below_the_root(tmp_path: Path) -> None:
    source = write(tmp_path / "val.csv", CSV)
    touch(tmp_path / "videos", "playing_harp/-aB_1_000007_000017.mkv", "xyz_000120_000130.webm")
    videos = read_videos(source, num_classes=2, root=str(tmp_path / "videos"))
    assert videos.class_names == ("playing harp", "smoking, outside")
    assert [(r.name, r.label) for r in videos.records] == [
        ("playing_harp/-aB_1_000007_000017.mkv", 0),
        ("xyz_000120_000130.webm", 1),
        ("gone_000001_000011.mp4", 0),
    ]
    assert videos.records[2].path == str(tmp_path / "videos" / "gone_000001_000011.mp4")


def test_kinetics_csv_with_given_names_and_extra_columns(tmp_path: Path) -> None:
    text = "\n".join(line + ",0" for line in CSV.splitlines()).replace("split,0", "split,is_cc")
    source = write(tmp_path / "val.csv", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    names = ("smoking, outside", "walking", "playing harp")
    videos = read_videos(source, num_classes=3, class_names=names)
    assert [r.label for r in videos.records] == [2, 0, 2]
    assert "walking" not in faults_of(source, class_names=names[1:])[0].split("known")[0]


def test_faults_of_a_kinetics_csv_are_told_at_once(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", CSV + "harp,q,x,11,val\n,id,1,2,val\nharp,,1,2,val\nharp\n")
    lines = faults_of(source)
    assert [line.removeprefix(source).split(":")[1] for line in lines] == ["5", "6", "7", "8"]
    source = write(tmp_path / "b.csv", "label,youtube_id,time_start\nharp,a,1\n")
    assert "no column time_end" in faults_of(source)[0]
    source = write(tmp_path / "c.csv", CSV + "smoking,gone,1,11,val\n")
    assert "label 1 here and 0 in line 4" in faults_of(source)[0]


def test_kinetics_csv_of_several_splits_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "all.csv", CSV + "playing harp,new,1,11,train\n")
    [fault] = faults_of(source)
    assert "several splits" in fault
    assert "'train': 1" in fault


def test_kinetics_csv_with_too_many_classes_names_the_setting(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", CSV)
    assert "set model.num_classes=2" in faults_of(source, num_classes=1)[0]


def test_a_faulty_list_is_listed_with_its_faults(tmp_path: Path) -> None:
    text = "a.mp4 0\nlonely\nb.mp4 x\nc.mp4 -9\na.mp4,0\na.mp4 1\n"
    videos, names = list_videos(write(tmp_path / "list.txt", text))
    assert names is None
    assert [(Path(v.path).name, v.label) for v in videos] == [
        ("a.mp4", 0),
        ("lonely", None),
        ("b.mp4", None),
        ("c.mp4", -9),
        ("a.mp4", 1),
    ]
    assert [v.fault for v in videos if v.fault] == [
        "'lonely' is not of the form `path label`",
        "the label 'x' of 'b.mp4' is not an integer",
    ]
    with pytest.raises(AnnotationError, match="names no video"):
        list_videos(write(tmp_path / "empty.txt", "\n"))
    with pytest.raises(AnnotationError, match="no such list"):
        list_videos(str(tmp_path / "none.txt"))


def test_trees_and_csvs_are_listed_as_they_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "tree", "run/b.mp4", "jump/a.mp4")
    videos, names = list_videos(str(tmp_path / "tree"))
    assert names == ("jump", "run")
    assert [(v.path, v.label) for v in videos] == [
        (r.path, r.label) for r in read_videos(str(tmp_path / "tree"), num_classes=2).records
    ]
    source = write(tmp_path / "a.csv", CSV + "harp,q,x,11,val\n,id,1,2,val\n")
    videos, names = list_videos(source)
    assert names == ("playing harp", "smoking, outside")
    assert [v.label for v in videos] == [0, 1, 0, None, None]
    assert videos[3].path == f"{source}:5"
    assert videos[4].path == str(tmp_path / "id_000001_000002.mp4")
    assert "whole seconds" in (videos[3].fault or "")


def test_tree_of_images_where_it_holds_no_video(tmp_path: Path, caplog) -> None:
    touch(tmp_path, "n02/n02_10.JPEG", "n02/n02_9.JPEG", "n01-x/a.png", "n01/deep/b.webp")
    touch(tmp_path, "n01/c.jpg", "n01/.d.jpg", "n01/notes.txt", "n02/e.gif")
    for layout in ("auto", "tree"):
        videos = read_videos(str(tmp_path), num_classes=3, format=layout)
        assert videos.class_names == ("n01", "n01-x", "n02")
        assert [(r.name, r.label) for r in videos.records] == [
            ("n01/c.jpg", 0),
            ("n01/deep/b.webp", 0),
            ("n01-x/a.png", 1),
            ("n02/n02_10.JPEG", 2),
            ("n02/n02_9.JPEG", 2),
        ]
        assert all(r.path == str(tmp_path / r.name) for r in videos.records)
    assert not caplog.messages


def test_tree_of_both_keeps_to_the_videos_and_tells_what_is_left_out(tmp_path, caplog) -> None:
    touch(tmp_path, "run/a.mp4", "run/a.jpg", "run/b.jpg", "jump/c.mp4", "jump/covers/c.png")
    with caplog.at_level(logging.WARNING, "videogn"):
        videos = read_videos(str(tmp_path), num_classes=2)
    assert [r.name for r in videos.records] == ["jump/c.mp4", "run/a.mp4"]
    [told] = caplog.messages
    assert "3 images beside 2 videos are left out" in told


@pytest.mark.parametrize("suffix", ["mp4", "JPEG"])
def test_trees_are_read_as_paths_sort_them_and_links_are_fenced(suffix, tmp_path: Path) -> None:
    """Against pathlib, which the reader does without: it is slow on millions of files."""
    root = tmp_path / "tree"
    names = ("a/b c", "a/b", "a/b/c", "a/b-c/d", "a/b.c/d", "a/.h/i", "a-a/b", "a.a/z", "ä/\udcff")
    touch(root, *(f"{name}.{suffix}" for name in names))
    (root / "a" / "inside").symlink_to("b.mp4")
    (root / "a" / f"inside.{suffix}").symlink_to(root / f"a/b.{suffix}")
    (root / "a" / f"circle.{suffix}").symlink_to(f"circle.{suffix}")
    (root / "a" / "folder").symlink_to(root / "a-a")
    wanted = [
        str(path)
        for folder in sorted(path for path in root.iterdir() if path.is_dir())
        for path in sorted(folder.rglob(f"*.{suffix}"))
        if "/.h/" not in str(path) and "/folder/" not in str(path)
    ]
    assert [r.path for r in read_videos(str(root), num_classes=4).records] == wanted
    write(tmp_path / f"secret.{suffix}", b"")
    (root / "a" / f"outside.{suffix}").symlink_to(tmp_path / f"secret.{suffix}")
    [fault] = faults_of(str(root), num_classes=4)
    assert f"outside.{suffix}" in fault
    assert "secret" in fault
    videos = read_videos(str(root), num_classes=4, allow_outside_root=True)
    assert len(videos.records) == len(wanted) + 1


def test_class_folder_that_links_outside_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.mp4", "elsewhere/b.mp4", "tree/run/c.mp4")
    (tmp_path / "tree/jump").symlink_to(tmp_path / "elsewhere")
    assert len(faults_of(str(tmp_path / "tree"), num_classes=2)) == 2


def test_a_relative_tree(tmp_path: Path, monkeypatch) -> None:
    touch(tmp_path, "tree/run/a.mp4", "tree/jump/b.mp4")
    for folder, source in ((tmp_path, "tree"), (tmp_path / "tree", "."), (tmp_path, "./tree/")):
        monkeypatch.chdir(folder)
        records = read_videos(source, num_classes=2).records
        assert [record.name for record in records] == ["jump/b.mp4", "run/a.mp4"]
        assert [record.path for record in records] == [
            str(Path(source) / name) for name in ("jump/b.mp4", "run/a.mp4")
        ]


def test_label_order_is_checked_by_the_last_folder(tmp_path: Path) -> None:
    names = ("jump up", "run")
    for name in ("x/Jump_Up/a.mp4", "jump_up//a.mp4", "./jump up/a.mp4", "a.mp4", "x/./jump up/a"):
        told = annotations._folder_of(name)
        assert told == Path(name).parent.name
        videos = annotations.VideoList("s", (VideoRecord("p", 0, name),), None)
        annotations.check_label_order(videos, names, "w")
