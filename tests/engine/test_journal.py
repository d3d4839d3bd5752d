import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videogn.engine.evaluator import VideoScore
from videogn.engine.journal import Journal
from videogn.errors import RunError

IDENTITY = {"protocol": "paper", "num_clips": 2, "mean": [0.1, 0.2, 0.3]}


def made(place: int, seed: int = 0) -> VideoScore:
    rng = np.random.default_rng([place, seed])
    arrays = tuple(rng.random((2, 3, 5), dtype=np.float32) for _ in range(2))
    return VideoScore(place, arrays, rng.bytes(20), None)


def same(one: VideoScore, two: VideoScore) -> bool:
    arrays = zip(one.arrays or (), two.arrays or (), strict=True)
    plain = one._replace(arrays=None) == two._replace(arrays=None)
    return plain and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in arrays)


def filled(folder: Path, scores: list[VideoScore], rank: int = 0) -> Journal:
    journal = Journal(folder, IDENTITY)
    journal.begin()
    writer = journal.writer(rank)
    for score in scores:
        writer.add(score)
    writer.close()
    return journal


def test_all_that_was_added_is_read_again(tmp_path: Path) -> None:
    scores = [made(3), VideoScore(0, None, b"", "no such file \udcff"), made(2**40)]
    journal = filled(tmp_path / "partial", scores[:2])
    filled(tmp_path / "partial", scores[2:], rank=1)
    found = journal.read()
    assert found.keys() == {3, 0, 2**40} == journal.places()
    assert all(same(found[score.place], score) for score in scores)
    journal.remove()
    assert not (tmp_path / "partial").exists()


def test_what_another_machine_chose_can_be_asked_for(tmp_path: Path) -> None:
    begun = {"protocol": "paper", "precision": "bf16", "recipe": "views"}
    Journal(tmp_path, begun).begin()
    with pytest.raises(RunError, match=r"machine set test\.precision=bf16 to go on, or finish it"):
        Journal(tmp_path, begun | {"precision": "fp32"}).check()
    both = begun | {"precision": "fp32", "recipe": "compiled"}
    with pytest.raises(RunError, match=r"set test\.precision=bf16 test\.recipe=views to go on"):
        Journal(tmp_path, both).check()
    with pytest.raises(RunError) as caught:
        Journal(tmp_path, both | {"protocol": "center"}).check()
    assert "on another kind" not in str(caught.value)
    assert "protocol: paper there, center now" in str(caught.value)


def test_a_cut_at_any_byte_loses_the_last_record_only(tmp_path: Path) -> None:
    scores = [made(0), VideoScore(1, None, b"", "cut"), made(2)]
    journal = filled(tmp_path, scores)
    [path] = tmp_path.glob("*.scores")
    content = path.read_bytes()
    ends = []
    for number in range(1, 4):
        [part] = filled(tmp_path / str(number), scores[:number]).folder.glob("*.s*")
        ends.append(part.stat().st_size)
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        found = journal.read()
        assert len(found) == sum(end <= size for end in ends)
        assert all(same(found[place], scores[place]) for place in found)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_never_read_as_a_score(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    scores = [made(place) for place in range(3)]
    journal = filled(folder, scores)
    [path] = folder.glob("*.scores")
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)
    found = journal.read()
    assert len(found) < 3
    assert all(same(found[place], scores[place]) for place in found)


def test_the_beginning_of_another_test_is_refused_with_what_differs(tmp_path: Path) -> None:
    filled(tmp_path, [made(0)])
    Journal(tmp_path, IDENTITY).check()
    Journal(tmp_path / "absent", IDENTITY).check()
    with pytest.raises(RunError, match="num_clips: 2 there, 10 now"):
        Journal(tmp_path, IDENTITY | {"num_clips": 10}).check()
    (tmp_path / "test.json").write_text('{"protocol": "\\u001b[2J"}')
    with pytest.raises(RunError, match=r"protocol: \\x1b\[2J there, paper now"):
        Journal(tmp_path, IDENTITY).check()
    (tmp_path / "test.json").write_text("{")
    with pytest.raises(RunError, match=r"test\.json: cannot be read"):
        Journal(tmp_path, IDENTITY).check()


def test_scores_that_no_test_is_known_of_are_dropped(tmp_path: Path) -> None:
    """A removal that was cut short may leave them; the next test may be any other."""
    journal = filled(tmp_path, [made(0), made(1)])
    (tmp_path / "test.json").unlink()
    (tmp_path / "notes.txt").write_text("not ours")
    other = Journal(tmp_path, IDENTITY | {"protocol": "center"})
    other.begin()
    assert other.read() == {}
    assert (tmp_path / "notes.txt").exists()
    # A test that began after this one was checked is not mixed with it.
    with pytest.raises(RunError, match="protocol: center there, paper now"):
        journal.begin()


def test_garbage_beside_the_records_is_passed_over(tmp_path: Path) -> None:
    journal = filled(tmp_path, [made(0)])
    for name, content in (("a.scores", b""), ("z.scores", b"VGN1" * 9), ("rank0-", b"x" * 99)):
        (tmp_path / name).write_bytes(content)
    assert journal.read().keys() == {0}


def test_a_full_disk_is_a_message(tmp_path: Path) -> None:
    journal = filled(tmp_path, [])
    writer = journal.writer(0)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    os.close(writer._handle)
    writer._handle = os.open(full, os.O_WRONLY)
    with pytest.raises(RunError, match=r"cannot be written: No space left.*the same command"):
        writer.add(made(0))
    writer.close()
