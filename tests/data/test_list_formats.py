import hashlib
import json
import sys
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from videogn.commands.setup import list_of
from videogn.config import DataConfig
from videogn.data import annotations
from videogn.data.annotations import (
    check_k400_order,
    read_any_videos,
    read_class_names,
    read_videos,
)
from videogn.data.list_formats import split_label
from videogn.errors import AnnotationError, UserError


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


def labels_of(source: str, **options) -> dict[str, int]:
    videos = read_videos(source, **{"num_classes": 3, **options})
    return {record.name: record.label for record in videos.records}


def faults_of(source: str, **options) -> list[str]:
    with pytest.raises(AnnotationError) as caught:
        read_videos(source, **{"num_classes": 3, **options})
    return str(caught.value).splitlines()


def lines_told(faults: list[str]) -> list[str]:
    return [Path(fault.partition(": ")[0]).name for fault in faults]


# --- list, PySlowFast and quotes ---------------------------------------------------------------


@pytest.mark.parametrize("layout", ["auto", "slowfast", "list"])
@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_slowfast_list(layout: str, separator: str, tmp_path: Path) -> None:
    source = write(tmp_path / "train.csv", f"a/x.mp4{separator}0\nb c/y.mp4{separator}2\n")
    assert labels_of(source, format=layout) == {"a/x.mp4": 0, "b c/y.mp4": 2}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('"a b.mp4" 3', ("a b.mp4", "3")),
        ('"a b.mp4",3', ("a b.mp4", "3")),
        ('"a "" b.mp4", 3', ('a " b.mp4', "3")),
        ('" a.mp4 " 3', (" a.mp4 ", "3")),
        ('"half.mp4 3', ('"half.mp4', "3")),
        ('"a" b.mp4 3', ('"a" b.mp4', "3")),
    ],
)
def test_quoted_paths(line: str, expected: tuple[str, str]) -> None:
    assert split_label(line) == expected


PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)
SEPARATORS = st.sampled_from([" ", ",", ", ", "\t", "  "])


@given(PATHS, SEPARATORS, st.integers(0, 10**6))
def test_any_quoted_path_is_read_back(path: str, separator: str, label: int) -> None:
    quoted = path.replace('"', '""')
    assert split_label(f'"{quoted}"{separator}{label}') == (path, str(label))


@given(PATHS.filter(lambda s: s == s.strip() and s[0] != '"' and s[-1] != ","), SEPARATORS)
def test_any_bare_path_is_read_back(path: str, separator: str) -> None:
    assert split_label(f"{path}{separator}7") == (path, "7")


# --- safety ------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["../out/x.mp4", "{out}/x.mp4", "link/x.mp4", "file.mp4"])
def test_entries_outside_the_root_need_leave(written: str, tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    write(out / "x.mp4", "")
    write(root / "a.mp4", "")
    (root / "link").symlink_to(out)
    (root / "file.mp4").symlink_to(out / "x.mp4")
    name = written.format(out=out)
    source = write(root / "list.txt", f"a.mp4 0\n{name} 1\n")
    for given_root in (None, str(root)):
        [fault] = faults_of(source, root=given_root, allow_outside_root=False)
        assert fault.startswith(f"{source}:2: {name!r}")
        assert str(out / "x.mp4") in fault
        assert "data.allow_outside_root=true" in fault
        assert labels_of(source, root=given_root, allow_outside_root=True)[name] == 1


def test_links_that_stay_inside_the_root_and_a_linked_root_are_fine(tmp_path: Path) -> None:
    write(tmp_path / "real" / "deep" / "x.mp4", "")
    (tmp_path / "real" / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    source = write(tmp_path / "list.txt", "link/x.mp4 0\ndeep/../deep/gone.mp4 1\n")
    root = str(tmp_path / "root")
    assert len(labels_of(source, root=root, allow_outside_root=False)) == 2


def test_a_list_of_absolute_paths_has_its_own_root(tmp_path: Path) -> None:
    text = f"{tmp_path}/v/a/x.mp4 0\n{tmp_path}/v/b/y.mp4 1\n"
    source = write(tmp_path / "lists" / "list.txt", text)
    assert len(labels_of(source, allow_outside_root=False)) == 2
    [first, second] = faults_of(source, root=str(tmp_path / "v/a2"), allow_outside_root=False)
    assert (":1:" in first, ":2:" in second) == (True, True)
    [fault] = faults_of(source, root=str(tmp_path / "v/a"), allow_outside_root=False)
    assert "y.mp4" in fault
    (tmp_path / "v" / "a").mkdir(parents=True)
    (tmp_path / "v" / "a" / "x.mp4").symlink_to("/etc/hostname")
    [fault] = faults_of(source, allow_outside_root=False)
    assert "x.mp4" in fault


@pytest.mark.parametrize("name", ["http://h/x.mp4", "concat:a.mp4|b.mp4", "file:x.mp4", "a\0.mp4"])
@pytest.mark.parametrize("layout", ["list", "mmaction2"])
def test_addresses_and_nul_are_refused_always(name: str, layout: str, tmp_path: Path) -> None:
    source = write(tmp_path / "list.txt", f"a.mp4 0\n{name} 1\n")
    [fault] = faults_of(source, format=layout, allow_outside_root=True)
    assert fault.startswith(f"{source}:2: {name!r}")
    fine = write(tmp_path / "fine.txt", "./12:30 part:2.mp4 1\n")
    assert labels_of(fine) == {"./12:30 part:2.mp4": 1}


def test_links_out_of_a_tree_need_leave(tmp_path: Path) -> None:
    write(tmp_path / "store" / "x.mp4", "")
    (tmp_path / "tree" / "run").mkdir(parents=True)
    (tmp_path / "tree" / "run" / "x.mp4").symlink_to(tmp_path / "store" / "x.mp4")
    source = str(tmp_path / "tree")
    [fault] = faults_of(source, num_classes=1, allow_outside_root=False)
    assert "'run/x.mp4'" in fault
    for options in ({"root": str(tmp_path / "store")}, {"allow_outside_root": True}):
        options = {"allow_outside_root": False, **options}
        assert labels_of(source, num_classes=1, **options) == {"run/x.mp4": 0}


def test_config_keeps_entries_inside_unless_told(tmp_path: Path) -> None:
    source = write(tmp_path / "root" / "list.txt", "../x.mp4 0\n")
    with pytest.raises(AnnotationError, match="allow_outside_root"):
        list_of(DataConfig(train=source), "train", 1)
    videos = list_of(DataConfig(train=source, allow_outside_root=True), "train", 1)
    assert videos.records[0].path == str(tmp_path / "x.mp4")


# --- Kinetics ----------------------------------------------------------------------------------


def test_cvdf_layout_and_two_files_of_a_name(tmp_path: Path) -> None:
    text = "label,youtube_id,time_start,time_end,split\nrun,a,10,20,train\nsit,b,0,10,train\n"
    source = write(tmp_path / "train.csv", text)
    write(tmp_path / "k" / "train" / "a_000010_000020.mp4", "")
    write(tmp_path / "k" / "train" / "sit" / "b_000000_000010.mp4", "")
    options = {"root": str(tmp_path / "k"), "num_classes": 2, "allow_outside_root": False}
    expected = {"train/a_000010_000020.mp4": 0, "train/sit/b_000000_000010.mp4": 1}
    assert labels_of(source, **options) == expected
    write(tmp_path / "k" / "replacement" / "a_000010_000020.mp4", "")
    [fault] = faults_of(source, **options)
    assert fault.startswith(f"{source}:2: ")
    assert "'replacement/a_000010_000020.mp4' and 'train/a_000010_000020.mp4'" in fault


def test_kinetics_ids_cannot_leave_the_root(tmp_path: Path) -> None:
    text = "label,youtube_id,time_start,time_end\nrun,../../a,1,2\n"
    source = write(tmp_path / "a.csv", text)
    assert "outside" in faults_of(source, num_classes=1, allow_outside_root=False)[0]


def test_permuted_kinetics_names_are_refused(tmp_path: Path, monkeypatch) -> None:
    names = [f"class {i:03d}" for i in range(400)]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    monkeypatch.setattr(annotations, "K400_LABELS_SHA256", digest)
    check_k400_order(names)
    check_k400_order(names[:399])
    swapped = [names[1], names[0], *names[2:]]
    check_k400_order([*swapped[:399], "own"])
    path = tmp_path / "names.txt"
    write(path, "\n".join(swapped))
    with pytest.raises(AnnotationError, match=r"names.txt.*permuted: label 0 is 'class 001'"):
        read_class_names(path)


def test_hash_is_that_of_the_kinetics_names(footage: Path) -> None:
    names = read_class_names(footage / "k400_labels.txt")
    with pytest.raises(AnnotationError, match="permuted"):
        check_k400_order(names[::-1])


# --- mmaction2 ---------------------------------------------------------------------------------


def test_mmaction2_lists(tmp_path: Path) -> None:
    source = write(tmp_path / "l.txt", 'a/x.mp4 1\nb/y.mp4 300 2\n"c d/z.mp4" 10 0\n"e f.mp4" 1\n')
    expected = {"a/x.mp4": 1, "b/y.mp4": 2, "c d/z.mp4": 0, "e f.mp4": 1}
    assert labels_of(source, format="mmaction2") == expected
    plain = write(tmp_path / "m.txt", "b/y.mp4 300 2\n")
    assert labels_of(plain) == {"b/y.mp4 300": 2}


def test_faults_of_mmaction2_lists(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    source = write(tmp_path / "l.txt", "frames 300 1\na b.mp4 1\nx.mp4\nx.mp4 1 2 0\nx.mp4 9\n")
    faults = faults_of(source, format="mmaction2")
    assert lines_told(faults) == [f"l.txt:{i}" for i in range(1, 6)]
    assert "folder of frames" in faults[0]
    assert "double quotes" in faults[1]


# --- UCF101 ------------------------------------------------------------------------------------

UCF_CLASSES = "1 Archery\r\n2 Biking\r\n3 Run\r\n"


def test_ucf101_splits(tmp_path: Path) -> None:
    write(tmp_path / "classInd.txt", UCF_CLASSES)
    train = write(tmp_path / "trainlist01.txt", "Archery/v_a.avi 1\r\nRun/v_r.avi 3\r\n")
    test = write(tmp_path / "testlist01.txt", "Run/v_s.avi\r\nBiking/v_b.avi\r\n")
    root = {"root": str(tmp_path / "UCF-101"), "allow_outside_root": False}
    assert labels_of(train, **root) == {"Archery/v_a.avi": 0, "Run/v_r.avi": 2}
    assert labels_of(test, **root) == {"Run/v_s.avi": 2, "Biking/v_b.avi": 1}
    videos = read_videos(test, num_classes=3, **root)
    assert videos.class_names == ("Archery", "Biking", "Run")
    assert videos.records[0].path == str(tmp_path / "UCF-101/Run/v_s.avi")
    known = ("Run", "Biking", "Archery")
    assert labels_of(test, class_names=known) == {"Run/v_s.avi": 0, "Biking/v_b.avi": 1}
    assert "set model.num_classes=3" in faults_of(test, num_classes=2)[0]
    assert len(read_any_videos(test).records) == 2


def test_faults_of_ucf101(tmp_path: Path) -> None:
    source = write(tmp_path / "t.txt", "Run/a.avi 3\nRun/b.avi 2\nJump/c.avi 1\nx\nArchery/d.avi 0")
    assert "classInd.txt: no such file" in faults_of(source, format="ucf101")[0]
    write(tmp_path / "classInd.txt", UCF_CLASSES)
    faults = faults_of(source)
    assert lines_told(faults) == ["t.txt:2", "t.txt:3", "t.txt:4", "t.txt:5"]
    assert "data.format=list" in faults[3]
    write(tmp_path / "classInd.txt", "1 Archery\n3 Run\n3 Archery\n")
    assert lines_told(faults_of(source)) == ["classInd.txt:2", "classInd.txt:3"]


# --- HMDB51 ------------------------------------------------------------------------------------


@pytest.fixture
def hmdb(tmp_path: Path) -> str:
    write(tmp_path / "splits" / "brush_hair_test_split1.txt", "a.avi 1 \nb.avi 2 \nc.avi 0 \n")
    write(tmp_path / "splits" / "wave_test_split1.txt", "d (x).avi 2 \ne.avi 1 \n")
    return str(tmp_path / "splits" / "*_test_split1.txt")


def test_hmdb51_subsets_by_config_key(hmdb: str, tmp_path: Path) -> None:
    data = DataConfig(train=hmdb, val=hmdb, test=hmdb, root=str(tmp_path / "hmdb"))
    train, val, test = (list_of(data, key, 2) for key in ("train", "val", "test"))
    told = [[(r.name, r.label) for r in videos.records] for videos in (train, val, test)]
    assert told[0] == [("brush_hair/a.avi", 0), ("wave/e.avi", 1)]
    assert told[1] == told[2] == [("brush_hair/b.avi", 0), ("wave/d (x).avi", 1)]
    assert train.class_names == ("brush_hair", "wave")
    assert train.records[0].path == str(tmp_path / "hmdb/brush_hair/a.avi")
    assert len(read_any_videos(hmdb).records) == 4


def test_faults_of_hmdb51(hmdb: str, tmp_path: Path) -> None:
    assert "which subset" in faults_of(hmdb, num_classes=2)[0]
    write(tmp_path / "splits" / "wave_test_split1.txt", "d.avi 2\ne.avi 3\n../../f.avi 1\n")
    options = {"num_classes": 2, "subset": "train", "allow_outside_root": False}
    faults = faults_of(hmdb, **options)
    assert lines_told(faults) == [f"wave_test_split1.txt:{i}" for i in (2, 3)]
    write(tmp_path / "splits" / "wave_test_split2.txt", "d.avi 2\n")
    assert "splits ['1', '2']" in faults_of(hmdb.replace("1.txt", "*.txt"), **options)[0]
    write(tmp_path / "other" / "x.txt", "")
    assert "only HMDB51" in faults_of(str(tmp_path / "other" / "*.txt"), **options)[0]
    one = write(tmp_path / "splits" / "run_test_split3.txt", "x.avi 1\n")
    assert labels_of(one, subset="train", num_classes=1) == {"run/x.avi": 0}


# --- Something-Something v2 --------------------------------------------------------------------


def write_ssv2(folder: Path, items: list[object], labels: object) -> str:
    write(folder / "something-something-v2-labels.json", json.dumps(labels))
    text = "[\n" + ",\n".join(json.dumps(item) for item in items) + "\n]\n"
    return write(folder / "something-something-v2-train.json", text)


SSV2_LABELS = {"Throwing something": "1", "Putting something on something": "0"}


def test_ssv2(tmp_path: Path) -> None:
    items = [
        {"id": "78687", "label": "throwing a ball", "template": "Throwing [something]"},
        {"id": "7", "label": "x", "template": "Putting [something] on [something]"},
    ]
    source = write_ssv2(tmp_path / "labels", items, SSV2_LABELS)
    root = {"root": str(tmp_path / "videos"), "allow_outside_root": False}
    videos = read_videos(source, num_classes=2, **root)
    assert [(r.name, r.label) for r in videos.records] == [("78687.webm", 1), ("7.webm", 0)]
    assert videos.records[0].path == str(tmp_path / "videos/78687.webm")
    assert videos.class_names == ("Putting something on something", "Throwing something")
    assert "set model.num_classes=2" in faults_of(source)[0]
    Path(source).write_text(json.dumps(items, indent=4))
    assert read_videos(source, num_classes=2, **root) == videos


def test_faults_of_ssv2(tmp_path: Path) -> None:
    good = {"id": "1", "template": "Throwing [something]"}
    items = [good, {"id": "2"}, {"id": "3", "template": "Eating [something]"}, 5]
    items.append({"id": "../4", "template": "Throwing [something]"})
    source = write_ssv2(tmp_path, items, SSV2_LABELS)
    faults = faults_of(source, num_classes=2, allow_outside_root=False)
    assert [line.split(":")[1] for line in lines_told(faults)] == ["3", "4", "5", "6"]
    for text in ("[{]", '[{"id": "1"} 2]', "[1,]", '[{"id": "1"}', "["):
        Path(source).write_text(text)
        assert "no json list" in faults_of(source, num_classes=2)[-1]
    Path(source).write_text(" [ ]")
    assert "names no video" in faults_of(source, num_classes=2)[0]
    for labels in ({"a": "1"}, {"a": "0", "b": "0"}, [1], {"a": "x"}, 3):
        source = write_ssv2(tmp_path, [good], labels)
        assert "labels.json" in faults_of(source, num_classes=2)[0]
    (tmp_path / "something-something-v2-labels.json").unlink()
    assert "put it there" in faults_of(source, num_classes=2)[0]


# --- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na b.mp4,2\nc.mp4,0\n",
        "Label, Video ,note\n2,a b.mp4,x\n0,c.mp4,\n",
        "filename\ttarget\r\na b.mp4\t2\r\n\r\nc.mp4\t0\r\n",
        'class,file\n2,"a b.mp4"\n0,c.mp4\n',
    ],
)
def test_tables_of_numbers(text: str, tmp_path: Path) -> None:
    assert labels_of(write(tmp_path / "t.csv", text)) == {"a b.mp4": 2, "c.mp4": 0}


def test_tables_of_class_names(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", 'path,label\na.mp4,"sit, down"\nb.mp4,run\n')
    videos = read_videos(source, num_classes=2)
    assert videos.class_names == ("run", "sit, down")
    assert [r.label for r in videos.records] == [1, 0]
    known = ("sit, down", "jump", "run")
    assert labels_of(source, class_names=known) == {"a.mp4": 0, "b.mp4": 2}
    [fault] = faults_of(source, class_names=("sit, down", "jump", "fly"))
    assert fault.startswith(f"{source}:3: ")


def test_faults_of_tables(tmp_path: Path) -> None:
    source = write(
        tmp_path / "t.csv", "path,label\n,1\na.mp4,\nb.mp4\nc.mp4,7\nhttp://d,1\ne,1,2\n"
    )
    assert lines_told(faults_of(source)) == [f"t.csv:{i}" for i in range(2, 8)]
    source = write(tmp_path / "m.csv", "path,label\na.mp4,run\nb.mp4,1\n")
    assert lines_told(faults_of(source)) == ["m.csv:3"]
    source = write(tmp_path / "n.csv", "where,what\na.mp4,1\n")
    assert "column path|video|file|filename" in faults_of(source, format="table")[0]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    source = write(tmp_path / "t.parquet", "PAR1")
    with pytest.raises(UserError, match=r"pip install 'videogn\[parquet\]'"):
        read_videos(source, num_classes=3)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"video": ["a.mp4", "b.mp4"], "label": [2, 0]}), path)
    assert labels_of(str(path)) == {"a.mp4": 2, "b.mp4": 0}
    parquet.write_table(pyarrow.table({"video": ["a.mp4", None], "label": [2, 0]}), path)
    assert lines_told(faults_of(str(path))) == ["t.parquet:2"]
    path.write_bytes(b"PAR1 cut off")
    assert "parquet" in faults_of(str(path))[0]


def test_named_format_must_fit_what_is_there(tmp_path: Path) -> None:
    assert "is a folder" in faults_of(str(tmp_path), format="list")[0]
    source = write(tmp_path / "l.txt", "a.mp4 0\n")
    assert "is a file" in faults_of(source, format="tree")[0]
