import numpy as np
import pytest
from matplotlib.image import imread

from videogn.cli import main
from videogn.commands.data_show import CAPTION, CELL, GAP, MARGIN, Row, draw
from videogn.commands.setup import clips_of
from videogn.config import ClipConfig
from videogn.data.dataset import TrainDataset
from videogn.data.decode import PyAVReader
from videogn.data.list_checks import VideoRecord


@pytest.fixture
def video_tree(make_video, tmp_path):
    for name in ("jump/a.mp4", "run/b.mp4", "run/c.mp4"):
        make_video(f"tree/{name}", 12)
    return tmp_path / "tree"


def image_of(path) -> np.ndarray:
    return (imread(path)[..., :3] * 255).round().astype(int)


def cell(image: np.ndarray, row: int, column: int) -> np.ndarray:
    top = MARGIN + row * (CAPTION + CELL) + CAPTION
    left = MARGIN + column * (CELL + GAP)
    return image[top : top + CELL, left : left + CELL]


def test_rows_are_the_clips_of_training(video_tree, tmp_path, capsys):
    out = tmp_path / "clips.png"
    sizes = {"num-frames": 9, "stride": 1, "short-side-min": 64, "short-side-max": 80, "crop": 40}
    words = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    words += ["--seed", "3", "--num", "2", "--out", str(out)]
    assert main(["data", "show", str(video_tree), *words]) == 0
    printed = capsys.readouterr().out
    assert "jump (0)   jump/a.mp4" in printed
    assert "run (1)   run/b.mp4" in printed
    image = image_of(out)
    assert image.shape[:2] == (
        2 * MARGIN + 2 * (CAPTION + CELL),
        2 * MARGIN + 8 * (CELL + GAP) - GAP,
    )
    clip = ClipConfig(
        num_frames=9, frame_stride=1, short_side_min=64, short_side_max=80, crop_size=40
    )
    paths = [str(video_tree / name) for name in ("jump/a.mp4", "run/b.mp4", "run/c.mp4")]
    records = [VideoRecord(path, 0, path) for path in paths]
    dataset = TrainDataset(records, clips_of(clip, PyAVReader), 3)
    for row in range(2):
        expected = dataset[(0, row)].clip
        for column, time in ((0, 0), (7, 8)):
            shown = cell(image, row, column)
            frame = np.kron(expected[:, time].permute(1, 2, 0).numpy(), np.ones((4, 4, 1)))
            assert np.abs(shown - frame).mean() < 3


def test_frames_keep_their_shape(tmp_path):
    frames = np.zeros((3, 50, 50, 3), np.uint8)
    frames[:, 10:40, 10:40] = 255
    draw([Row("$", frames, ()), Row("x" * 500, None, ())], tmp_path / "a.png")
    image = image_of(tmp_path / "a.png")
    bright = cell(image, 0, 2)[..., 0] > 128
    assert bright.any(axis=0).sum() == pytest.approx(CELL * 30 / 50, abs=2)
    assert bright.any(axis=1).sum() == pytest.approx(CELL * 30 / 50, abs=2)
    # The caption is above its row, and none runs out of the picture.
    assert (image[MARGIN : MARGIN + CAPTION] < 128).any()
    assert (image[:, -MARGIN // 2 :] == 255).all()


def test_bad_video_is_replaced_and_named(video_tree, tmp_path, capsys):
    (video_tree / "jump" / "a.mp4").write_bytes(b"nothing")
    out = tmp_path / "clips.png"
    assert main(["data", "show", str(video_tree), "--out", str(out), "--num-frames", "2"]) == 0
    printed = capsys.readouterr().out
    assert "instead of jump/a.mp4" in printed
    assert "warning: " in printed


def test_no_readable_video_is_exit_code_1(video_tree, tmp_path):
    for path in video_tree.rglob("*.mp4"):
        path.write_bytes(b"nothing")
    assert main(["data", "show", str(video_tree), "--out", str(tmp_path / "a.png")]) == 1


def test_config_gives_list_and_clips(video_tree, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {{train: {video_tree}}}\nmodel: {{num_classes: 2}}\n"
        "clip: {num_frames: 4, short_side_min: 64, short_side_max: 64, crop_size: 48}\n"
    )
    out = tmp_path / "a.png"
    assert main(["data", "show", str(config), "clip.crop_size=32", "--out", str(out)]) == 0
    assert "run (1)   run/c.mp4" in capsys.readouterr().out
    assert image_of(out).shape[1] == 2 * MARGIN + 4 * (CELL + GAP) - GAP
    assert main(["data", "show", str(config), "--crop", "65", "--out", str(out)]) == 2
    assert "crop_size (65)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.txt", "--out", "a.png"], "no such list"),
        (["{tree}", "--out", "a.jpg"], "must end in .png"),
        (["{tree}", "--out", "a.png", "--num", "0"], "from 1 to"),
        (["{tree}", "--out", "a.png", "--stride", "0"], "frame_stride"),
        (["{tree}", "--out", "a.png", "--crop", "300"], "must lie inside"),
        (["{tree}", "seed=1", "--out", "a.png"], "is a list"),
    ],
)
def test_wrong_arguments_end_in_a_message(video_tree, capsys, words, message):
    assert main(["data", "show", *(word.format(tree=video_tree) for word in words)]) == 2
    assert message in capsys.readouterr().err
