import json
from pathlib import Path

import pytest

from videogn.cli import main
from videogn.commands import quickstart


@pytest.mark.slow
def test_small_quickstart_runs_every_step_for_both_norms(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(quickstart, "SPLITS", {"train": 20, "val": 8, "test": 8})
    out = tmp_path / "quick"
    sizes = ["model.depths=[1,1]", "train.iterations=4", "train.warmup_iterations=1"]
    words = ["quickstart", "--out", str(out), *sizes, "data.num_workers=0", "test.num_clips=2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for norm in ("bn", "gn"):
        run = out / f"i3d_r50_{norm}"
        results = json.loads((run / "test" / "results.json").read_text())
        assert results["num_videos"] == 8
        assert results["num_failed"] == 0
        assert f"{norm}  " in printed
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert main(words) == 0  # started again it finds everything done
    assert "is complete" in capsys.readouterr().out
