"""Every command that takes a list keeps to its root."""

import json
from pathlib import Path

import pytest

from videogn.cli import main

pytestmark = pytest.mark.dist


@pytest.fixture
def listed(make_video, tmp_path) -> Path:
    """A list whose second video is a link to one in another folder."""
    make_video("far/b.mp4", 40)
    make_video("near/a.mp4", 41)
    (tmp_path / "near" / "b.mp4").symlink_to(tmp_path / "far" / "b.mp4")
    path = tmp_path / "near" / "list.txt"
    path.write_text("a.mp4 0\nb.mp4 1\n")
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["index"],
        ["stats"],
        ["prepare", "--out", "{folder}/new", "--sample", "0", "--preset", "ultrafast"],
        ["show", "--out", "{folder}/a.png", "--crop", "32", "--short-side-min", "32"],
    ],
    ids=lambda words: words[0],
)
def test_a_link_out_of_the_root_is_refused_unless_allowed(listed, words, tmp_path, capsys) -> None:
    name, *rest = [word.format(folder=tmp_path) for word in words]
    command = ["data", name, str(listed), *rest]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"{listed}:2: 'b.mp4' lies at {tmp_path / 'far' / 'b.mp4'}" in message
    assert "--allow-outside-root" in message
    assert main([*command, "--allow-outside-root"]) == 0


def test_check_tells_of_a_link_out_of_the_root_and_does_not_follow_it(listed, tmp_path) -> None:
    far = tmp_path / "far" / "b.mp4"
    far.write_text("no video, which opening it would tell")
    out = tmp_path / "out"
    assert main(["data", "check", str(listed), "--out", str(out), "--workers", "1"]) == 1
    [fault] = json.loads((out / "report.json").read_text())["files"]
    assert (fault["path"], fault["reason"]) == (str(listed.parent / "b.mp4"), "unreadable")
    assert f"lies at {far}, outside {listed.parent}" in fault["detail"]
    command = ["data", "check", str(listed), "--out", str(out), "--workers", "1"]
    assert main([*command, "--allow-outside-root"]) == 1
    [fault] = json.loads((out / "report.json").read_text())["files"]
    assert "Invalid data" in fault["detail"]


def test_a_config_has_its_own_options_for_the_list(tmp_path, capsys) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("data: {train: list.txt}\n")
    for words in (["--allow-outside-root"], ["--format", "ssv2"], ["--root", "x"]):
        assert main(["data", "show", str(config), "--out", "a.png", *words]) == 2
        assert f"a config has data.{words[0][2:].replace('-', '_')}" in capsys.readouterr().err
