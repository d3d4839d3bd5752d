import hashlib
import os
from pathlib import Path

import pytest

from videogn.errors import RunError
from videogn.files import atomic_path, printable, sha256_of, write_text


def test_write_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file.txt"]


def test_failure_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_unwritable_place_is_named_with_the_free_space(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/inside\.txt: cannot be written.*MiB free"):
        write_text(tmp_path / "file" / "inside.txt", "x")


def test_file_keeps_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_of(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_what_does_not_print_is_escaped() -> None:
    assert printable("naïve 映画.mp4") == "naïve 映画.mp4"
    assert printable("a\x1b[2J\n\u202e\udcff") == r"a\x1b[2J\n\u202e\udcff"
    assert printable(None) == "None"
