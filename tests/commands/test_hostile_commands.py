"""Every command over a folder of good videos and hostile files: exit codes, names, and a watch."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from driving import forked
from hostile_files import UNNOTICED, Hostile, Lures, make_all
from hostile_watch import Watch, can_watch

from videogn.data.forms import Coding, encode
from videogn.data.index_file import IndexFile
from videogn.data.list_checks import videos_under
from videogn.engine.runs import RunFolder, read_log

pytestmark = [
    pytest.mark.dist,
    pytest.mark.slow,
    pytest.mark.skipif(not can_watch(), reason="only Linux tells who opens files (inotify)"),
]

NUM_GOOD = 40
ALL_SECONDS = 400.0
"""Commands that take longer together hang; on an idle machine they take a minute."""

CONFIG = """
data: {train: TREE, val: TREE, test: TREE, num_workers: 1, allow_outside_root: true}
model: {norm: gn, channels_per_group: 2, num_classes: 2, width: 4, depths: [1, 1]}
clip: {num_frames: 8, frame_stride: 1, short_side_min: 32, short_side_max: 40, crop_size: 32}
train: {clips_per_gpu: 4, base_batch: 4, base_lr: 0.05, iterations: 2, val_interval: 2,
  max_failed_fraction: 1}
test: {num_clips: 1}
"""

PROGRAM = """
import json, os, sys, time
from videogn.cli import entry
os.dup2(1, 2)
for name, words in json.loads(sys.argv[1]).items():
    started = time.monotonic()
    print(f"=== {name}", flush=True)
    sys.argv = ["videogn", *words]
    try:
        entry()
    except SystemExit as end:
        print(f"=== exit {end.code} after {time.monotonic() - started:.1f} s", flush=True)
"""


class Ran(NamedTuple):
    """What a command left.

    Attributes:
        code: its exit code; None where it never ended.
        output: what it printed.
    """

    code: int | None
    output: str


class Ground(NamedTuple):
    """A tree of good and hostile videos, and what became of each command over it.

    Attributes:
        tree: of the classes good and hostile.
        out: what the commands wrote.
        bad: paths in the tree that no command can read whole.
        ran: by name of the command.
        opened: what the watch saw.
    """

    tree: Path
    out: Path
    bad: set[str]
    ran: dict[str, Ran]
    opened: set[str]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("commands")
    tree, out, secret = folder / "tree", folder / "out", folder / "secret" / "secret.mp4"
    secret.parent.mkdir()
    encode(secret, Coding(num_frames=20))
    (tree / "good").mkdir(parents=True)
    for number in range(NUM_GOOD):
        encode(tree / "good" / f"{number}.mp4", Coding(num_frames=10 + number))
    watch = Watch(secret.parent)
    files = make_all(tree / "hostile", Lures(secret, watch.port))
    config = folder / "config.yaml"
    config.write_text(CONFIG.replace("TREE", str(tree)))
    ran, opened = run_all(commands(tree, config, out), watch, folder)
    watch.close()
    return Ground(tree, out, bad_of(tree, files), ran, opened)


def bad_of(tree: Path, files: list[Hostile]) -> set[str]:
    """Files that a tree lists and that hold no whole video."""
    listed = {str(path) for path in videos_under(tree)}
    bad = {file.path for file in files if not file.sound and file.name not in UNNOTICED}
    return bad & listed


def commands(tree: Path, config: Path, out: Path) -> dict[str, list[str]]:
    """Words of each command; the last ones need the run before."""
    lists = ["--allow-outside-root"]
    many = [*lists, "--workers", "2", "--timeout", "60"]
    run = ["out=" + str(out / "run")]
    small = ["--crop", "32", "--short-side-min", "32", "--num", "12"]
    return {
        "fence": ["data", "index", str(tree), "--out", str(out / "no.idx")],
        "check": ["data", "check", str(tree), "--out", str(out / "check"), *many],
        "stats": ["data", "stats", str(tree), "--out", str(out / "stats"), *many],
        "prepare": [
            *("data", "prepare", str(tree), "--out", str(out / "prepared"), *many),
            *("--short-side", "32", "--preset", "ultrafast", "--sample", "2"),
        ],
        "show": ["data", "show", str(tree), "--out", str(out / "a.png"), *lists, *small],
        "dry run": ["train", "--dry-run", str(config), *run],
        "train": ["train", str(config), *run],
        "test": ["test", str(out / "run" / "config.yaml"), "--checkpoint", str(out / "run")],
        "index": ["data", "index", str(tree), "--out", str(out / "tree.idx"), *many],
    }


def run_all(
    words: dict[str, list[str]], watch: Watch, folder: Path
) -> tuple[dict[str, Ran], set[str]]:
    """Run commands one after the other in one process, watched, and killed when it hangs."""
    opened: set[str] = set()
    with forked(PROGRAM, folder, json.dumps(words)) as process:
        watch.seen()
        deadline = time.monotonic() + ALL_SECONDS
        while process.goes_on() and time.monotonic() < deadline:
            opened |= watch.seen()
            time.sleep(0.01)
    opened |= watch.seen()
    ran = {}
    for part in process.stdout.read_text(errors="replace").split("\n=== "):
        head, _, rest = part.removeprefix("=== ").partition("\n")
        if head.startswith("exit ") and ran:
            last = next(reversed(ran))
            ran[last] = ran[last]._replace(code=int(head.split()[1]))
        else:
            ran[head] = Ran(None, rest)
    return ran, opened


CODES = {
    # Links out of the tree are refused before anything is opened.
    "fence": 2,
    "check": 1,
    "stats": 0,
    "prepare": 1,
    "show": 0,
    "dry run": 2,
    "train": 0,
    "test": 0,
    "index": 0,
}


@pytest.mark.parametrize("command", CODES)
def test_commands_end_as_documented(command: str, ground: Ground) -> None:
    ran = ground.ran[command]
    assert ran.code == CODES[command], ran.output
    assert "Traceback" not in ran.output


def test_nothing_else_is_opened(ground: Ground) -> None:
    assert ground.ran.keys() == CODES.keys()
    assert not ground.opened


def test_links_out_of_the_tree_are_named(ground: Ground) -> None:
    assert "zero.mp4" in ground.ran["fence"].output


def test_check_names_every_hostile_file(ground: Ground) -> None:
    report = json.loads((ground.out / "check" / "report.json").read_text())
    reasons = {item["path"]: item["detail"] for item in report["files"]}
    assert ground.bad - reasons.keys() == set()
    assert all(reasons.values())
    assert not [path for path in reasons if "/good/" in path]


def test_prepare_names_every_hostile_file(ground: Ground) -> None:
    report = json.loads((ground.out / "prepared" / "report.json").read_text())
    reasons = {item["path"]: item["reason"] for item in report["failed"]}
    assert ground.bad - reasons.keys() == set()
    assert all(reasons.values())
    assert report["prepared"] >= NUM_GOOD


def test_test_names_every_hostile_file(ground: Ground) -> None:
    results = json.loads((ground.out / "run" / "test" / "results.json").read_text())
    reasons = {str(ground.tree / item["path"]): item["reason"] for item in results["failed"]}
    assert ground.bad - reasons.keys() == set()
    assert all(reasons.values())
    assert results["num_failed"] == len(reasons)


def test_training_names_what_it_replaced(ground: Ground) -> None:
    entries = read_log(RunFolder(ground.out / "run").log)
    replaced = {e["path"]: e["reason"] for e in entries if e["kind"] == "failed_video"}
    assert replaced
    assert all(replaced.values())
    assert not [path for path in replaced if "/good/" in path]


def test_stats_names_what_has_no_headers(ground: Ground) -> None:
    reasons = json.loads((ground.out / "stats" / "stats.json").read_text())["unreadable"]
    assert {path for path in ground.bad if "/playlists/" in path} - reasons.keys() == set()
    assert all(reasons.values())


def test_index_remembers_every_hostile_file(ground: Ground) -> None:
    file = IndexFile(ground.out / "tree.idx")
    # What a link leads to may change at any time.
    files = [path for path in ground.bad if Path(path).is_file() and not Path(path).is_symlink()]
    entries = {path: file.find(path) for path in files}
    file.close()
    assert len(entries) > 50
    assert [p for p, entry in entries.items() if entry is None or not entry.reason] == []
    assert [p for p, entry in entries.items() if entry is None or entry.readable] == []
    assert "cannot be read" in ground.ran["index"].output
