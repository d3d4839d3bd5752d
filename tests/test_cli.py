import subprocess
import sys
from pathlib import Path

import pytest

from videogn.cli import COMMANDS, main


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"videogn {name}" in capsys.readouterr().out


def test_unknown_command_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert "'trian'" in error
    assert "train" in error


def test_options_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "absent.yaml", "seed=1", "--dry-run", "out=x"]) == 2
    assert "absent.yaml: cannot read the config file" in capsys.readouterr().err


def test_a_wrong_key_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: {nrom: gn}\n")
    assert main(["train", str(config)]) == 2
    error = capsys.readouterr().err
    assert "model.nrom: no such key; did you mean model.norm?" in error
    assert "Traceback" not in error


def test_module_and_exit_code(tmp_path: Path) -> None:
    # A command that does not need torch, which takes seconds to import.
    done = subprocess.run(
        [sys.executable, "-m", "videogn", "rescore", str(tmp_path / "absent")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("videogn: error: ")
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr


def test_half_set_launcher_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("")
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train", str(config)]) == 2
    assert "WORLD_SIZE, LOCAL_RANK" in capsys.readouterr().err
