import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_scores import made_up_scores, write_test

# A function of that name would be taken for a test.
from videogn.engine import test_folder as folders
from videogn.errors import RunError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_test_stands_for_itself_and_a_run_for_its_test(tmp_path: Path) -> None:
    best = touch(tmp_path / "run/test_best/results.json").parent
    assert folders.test_folder(best) == best
    assert folders.test_folder(tmp_path / "run") == best
    last = touch(tmp_path / "run/test/scores.npz").parent
    assert folders.test_folder(tmp_path / "run") == last
    assert folders.test_folder(str(last / "scores.npz")) == last
    assert folders.test_folder(best) == best


def test_what_is_no_test_is_told_with_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path / "run/config.yaml")
    with pytest.raises(RunError) as caught:
        folders.test_folder(tmp_path / "run")
    for part in ("scores.npz", "results.json", "run/test and", "run/test_best;", "videogn test"):
        assert part in str(caught.value)
    with pytest.raises(RunError, match=r"absent: no such folder; `videogn test`"):
        folders.test_folder(tmp_path / "absent")
    with pytest.raises(RunError, match=r"config.yaml: is a file; name a test's folder"):
        folders.test_folder(tmp_path / "run/config.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"results.json: no such file; `videogn test` writes it"),
        (b"{", "cannot be read: Expecting"),
        (b"\xff\xfe", "cannot be read: .*decode"),
        (b"[" * 100_000, "cannot be read: "),
        (b"[1]", "is no file of results"),
        (b'{"class_names": "abc"}', "class_names is no list of names"),
        (b'{"class_names": ["a", 2]}', "class_names is no list of names"),
        (b'{"average": "median"}', "average is none of prob, logit, max"),
        (b'{"average": [1]}', "average is none of prob, logit, max"),
    ],
)
def test_damaged_results_are_one_message(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        folders.read_results(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_test_is_read_whole(tmp_path: Path) -> None:
    scores = made_up_scores([0, 3, 1], failed=[1])
    results = write_test(tmp_path, scores, class_names=["a", "b\x1b[2J", "c", "d"], average="max")
    tested = folders.read_test(tmp_path / "scores.npz")
    assert (tested.folder, tested.results, tested.average) == (tmp_path, results, "max")
    np.testing.assert_array_equal(tested.scores.view_probs, scores.view_probs)
    assert tested.class_name(1) == r"b\x1b[2J"
    (tmp_path / "results.json").unlink()
    with pytest.raises(RunError, match=r"results.json: no such file"):
        folders.read_test(tmp_path)
    alone = folders.read_test(tmp_path, need_results=False)
    assert (alone.average, alone.class_names, alone.class_name(3)) == ("prob", None, "3")


def test_files_of_two_tests_are_told(tmp_path: Path) -> None:
    write_test(tmp_path, made_up_scores([0, 3, 1]), num_videos=4)
    with pytest.raises(RunError, match=r"has 4 videos and scores.npz is of 3: they are not of one"):
        folders.read_test(tmp_path)
    write_test(tmp_path, made_up_scores([0, 3, 1]), class_names=["a", "b"])
    with pytest.raises(RunError, match=r"has 2 class names and scores.npz is of 4"):
        folders.read_test(tmp_path)


@pytest.mark.parametrize("average", ["prob", "logit", "max"])
def test_scores_of_another_test_of_the_same_list_are_told(tmp_path: Path, average: str) -> None:
    labels = [place % 4 for place in range(40)]
    write_test(tmp_path, made_up_scores(labels), average=average)
    folders.read_test(tmp_path)
    for key, value in (("top1", 99.5), ("top1", "\x1b"), ("num_failed", 3)):
        write_test(tmp_path, made_up_scores(labels), average=average, **{key: value})
        with pytest.raises(RunError, match=rf"are not of one test: .*{key}") as caught:
            folders.read_test(tmp_path, need_results=False)
        assert "\x1b" not in str(caught.value)


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def in_odd_compression(content: bytes) -> bytes:
    """Says of every member that it is compressed in a way that Python does not know."""
    changed = bytearray(content)
    for entry in re.finditer(rb"PK\x01\x02", content):
        changed[entry.start() + 10] = 97
    return bytes(changed)


PARTS = {
    "video": np.array(["a"]),
    "label": np.array([1]),
    "ok": np.array([True]),
    "view_logits": np.zeros((1, 2, 3, 4), dtype=np.float32),
    "view_probs": np.zeros((1, 2, 3, 4), dtype=np.float32),
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no file of scores: "),
        (b"text", "is no file of scores: "),
        (npy(np.zeros(3)), "is no file of scores: "),
        (npy(np.array([{}])), "is no file of scores: "),
        (npz(**PARTS)[:900], "is no file of scores: "),
        (in_odd_compression(npz(**PARTS)), "compression method is not supported"),
        (npz(probs=np.zeros((1, 4))), r"npz: has no label, ok, video, view_logits, view_probs; "),
        (npz(**{**PARTS, "video": np.array([{}])}), "is no file of scores: "),
        (npz(**{**PARTS, "label": np.array([4])}), "label cannot be"),
        (npz(**{**PARTS, "label": np.array([-1])}), "label cannot be"),
        (npz(**{**PARTS, "ok": np.array([True, True])}), "ok cannot be"),
        (npz(**{**PARTS, "view_logits": np.zeros((1, 1, 3, 4))}), "view_logits cannot be"),
        (npz(**{name: array[:0] for name, array in PARTS.items()}), "view_probs cannot be"),
    ],
)
def test_damaged_scores_are_one_message(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "scores.npz").write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        folders.read_test(tmp_path, need_results=False)
    assert str(caught.value).count("scores.npz: ") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    scores = made_up_scores([0, 3, 1], failed=[0])
    scores.view_logits[2, 1, 0, 3] = value
    write_test(tmp_path, scores)
    with pytest.raises(RunError, match=r"scores.npz: has scores that are no numbers; test again"):
        folders.read_test(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


# Hypothesis knows texts that the code has.
NAMES = st.text(min_size=1).filter(lambda name: name not in folders.ROWS)


@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_other_results_are_written_as_json_writes_them(results: dict) -> None:
    assert folders.results_text(results) == json.dumps(results, indent=2) + "\n"


def test_rows_take_a_line_each() -> None:
    results = {
        "top1": 50.0,
        "per_class": [{"class": 0, "name": "a\nb", "top1": None}] * 400,
        "confusion_matrix": [[0] * 400] * 400,
        "names": ["a", "b"],
    }
    text = folders.results_text(results)
    assert json.loads(text) == results
    assert len(text.splitlines()) == 2 + 1 + 402 + 402 + 4
    empty = {"per_class": [], "confusion_matrix": [], "failed": []}
    assert json.loads(folders.results_text(empty)) == empty
    other = {"per_class": {"0": 1.0}, "confusion_matrix": "none"}
    assert json.loads(folders.results_text(other)) == other
