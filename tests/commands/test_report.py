"""``videogn report`` as it is called, and the page in a browser."""

import html
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from page_tree import parse
from PIL import Image
from report_folders import config_tree, falling, make_cell, make_probs, write_test, write_training

from videogn.cli import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
NO_CHROMIUM = "no chromium or google-chrome here: apt-get install -y chromium"
HOSTILE = "<script>alert(1)</script>\"'&\x1b.mp4"


def small_test(folder: Path, num_classes: int = 4) -> Path:
    labels = np.arange(24) % num_classes
    config = config_tree("gn", 16, 1, 16, num_classes)
    names = [f"{HOSTILE}{place}" for place in range(24)]
    probs = make_probs(labels, num_classes, 60, 1, neighbours=2)
    write_test(folder, probs, labels, config=config, names=names, failed={3: HOSTILE})
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["report", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("videogn: error: ")
    assert "Traceback" not in said.err
    return said.err


def test_report_is_one_file_in_the_current_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    small_test(tmp_path / "tested")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "tested"]) == 0
    assert capsys.readouterr().out == "wrote report.html\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "tested"]
    first = Path("report.html").read_bytes()
    assert first.startswith(b"<!DOCTYPE html>")
    assert main(["report", "tested"]) == 0
    assert Path("report.html").read_bytes() == first


def test_a_training_run_stands_for_the_test_in_it(tmp_path: Path) -> None:
    config = config_tree("gn", 16, 1, 16, 4)
    write_training(tmp_path / "run", config, falling(20, 300, 50))
    small_test(tmp_path / "run" / "test")
    outs = [tmp_path / name for name in ("a.html", "b.html")]
    for run, out in zip((tmp_path / "run", tmp_path / "run" / "test"), outs, strict=True):
        assert main(["report", str(run), "--out", str(out)]) == 0
    first, second = (out.read_text() for out in outs)
    assert "GN, 16 clips per GPU (R1) ends at" in first
    assert second.replace("/run/test<", "/run<") == first


@pytest.mark.slow
def test_a_real_run_is_reported(tiny, tmp_path: Path) -> None:
    """Trained, tested and reported by the commands themselves."""
    run, page = tiny.folder / "run", tmp_path / "page.html"
    assert main(["train", str(tiny.config), f"out={run}", "train.iterations=6"]) == 0
    assert main(["test", str(run / "config.yaml"), "--checkpoint", str(run)]) == 0
    assert main(["report", str(run), "--out", str(page)]) == 0
    section = parse(page.read_text()).by_id("figure7")
    (svg,) = [s for s in section.all("svg") if "(R1)" in s.attributes["aria-label"]]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    errors = [100 - entry["top1"] for entry in log if entry["kind"] == "val"]
    label = "GN, 4 clips per GPU (R1) ends at"
    assert f"{label} {errors[-1]:.1f} %" in svg.attributes["aria-label"]
    (row,) = [r for r in section.all("tr") if r.all("td")]
    # Six steps of four clips over a list of twelve videos.
    assert [td.text for td in row.all("td")][1:4] == ["2", "2.0", f"{errors[-1]:.2f}"]
    results = json.loads((run / "test" / "results.json").read_text())
    shown = parse(page.read_text()).by_id("R1").text
    assert f"{results['top1']:.2f} %" in shown
    assert "7 of 7 videos tested" in shown
    sha = parse(page.read_text()).by_id("provenance").text
    assert results["checkpoint_sha256"] in sha
    assert results["list_sha256"] in sha


def test_what_cannot_be_used_is_one_message(tmp_path: Path, capsys) -> None:
    tested, empty = small_test(tmp_path / "tested"), tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.write_text("")
    out = tmp_path / "out.html"
    assert f"{tmp_path}/absent" in error_of(capsys, tmp_path / "absent", "--out", out)
    assert "holds no test" in error_of(capsys, tested, empty, "--out", out)
    assert "is a folder" in error_of(capsys, tested, "--out", tmp_path)
    assert "cannot be written" in error_of(capsys, tested, "--out", file / "out.html")
    (tested / "results.json").write_text('{"top1": "\x1b[31m"}'.replace("\x1b", "\\u001b"))
    message = error_of(capsys, tested, "--out", out)
    assert "results.json: is no result of a test" in message
    assert "\x1b" not in message
    (tested / "results.json").unlink()
    assert "results.json: no such file" in error_of(capsys, tested, "--out", out)
    small_test(tested)
    (tested / "scores.npz").write_bytes((tested / "scores.npz").read_bytes()[:500])
    assert "scores.npz: is no file of scores" in error_of(capsys, tested, "--out", out)
    assert not out.exists()


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    small_test(tmp_path / "tested")
    code = (
        "import sys; from videogn.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 3 * ('torch' in sys.modules or 'av' in sys.modules))"
    )
    words = ["report", str(tmp_path / "tested"), "--out", str(tmp_path / "report.html")]
    finish([sys.executable, "-c", code, *words], 120)


def finish(command: list[str], seconds: float) -> str:
    """Run a command in a session of its own; what it says. All of it is killed at the time."""
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = started.communicate(timeout=seconds)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
    assert started.returncode == 0, said
    return said


def browse(folder: Path, page: Path, *options: str) -> str:
    """Open a page in a browser without a window; its log or what it prints."""
    assert CHROMIUM is not None
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    logged = ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    return finish([CHROMIUM, *common, *logged, *options, page.absolute().as_uri()], 120)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    runs = [make_cell(tmp_path, name, 1200) for name in ("bn_32x2_b8", "gn_32x2_b8")]
    page = tmp_path / "report.html"
    words = [str(run) for run in (*runs, small_test(tmp_path / HOSTILE))]
    assert main(["report", *words, "--out", str(page)]) == 0
    return page


def num_colours(picture: Image.Image) -> int:
    return len(picture.getcolors(maxcolors=10**7))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
@pytest.mark.parametrize("dark", [False, True])
def test_page_is_drawn_by_a_browser(tmp_path: Path, report: Path, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    options = ["--blink-settings=preferredColorScheme=0", "--force-dark-mode"] if dark else []
    log = browse(tmp_path, report, f"--screenshot={shot}", "--window-size=1280,3000", *options)
    # The console has every script that was not allowed and everything that was not found.
    assert "CONSOLE" not in log
    assert "ERR_" not in log
    picture = Image.open(shot).convert("RGB")
    assert picture.size == (1280, 3000)
    for top in range(0, 3000, 500):
        assert num_colours(picture.crop((60, top, 1220, top + 500))) > 20, f"blank below {top}"
    paper = picture.getpixel((3, 3))
    assert (sum(paper) < 150) if dark else (sum(paper) > 650)
    curves = [(0x79, 0xB8, 0xFF)] if dark else [(0x0A, 0x58, 0xA6)]
    colours = {colour for _, colour in picture.getcolors(maxcolors=10**7)}
    assert colours >= set(curves)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
@pytest.mark.parametrize("width", [1280, 400])
def test_page_is_no_wider_than_the_window(tmp_path: Path, report: Path, width: int) -> None:
    """In a frame, for a window has a least width; only tables may scroll sideways."""
    frame = tmp_path / "frame.html"
    inner = html.escape(report.read_text())
    frame.write_text(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{inner}" onload="'
        "let page = this.contentDocument.documentElement;"
        "document.title = JSON.stringify({wide: page.scrollWidth, high: page.scrollHeight})"
        '"></iframe>'
    )
    said = browse(tmp_path, frame, "--dump-dom", "--window-size=1400,1000")
    found = json.loads(html.unescape(said.partition("<title>")[2].partition("</title>")[0]))
    assert found["wide"] == width
    assert found["high"] > 3000
