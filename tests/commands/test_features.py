import json
from pathlib import Path

import numpy as np
import pytest
import torch

from videogn.cli import main
from videogn.data.decode import PyAVReader
from videogn.models.weights import load_model, read_info


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory):
    from tiny_run import tiny_setup

    folder = tmp_path_factory.mktemp("features")
    setup = tiny_setup(folder, tiny_data)
    words = [f"out={folder / 'run'}", "train.iterations=2", "model.norm=bn"]
    assert main(["train", str(setup.config), *words]) == 0
    return setup, folder / "run"


def features_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def error_of(capsys, *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_features_are_those_the_classifier_sees(trained, capsys) -> None:
    """Without crops and at one location, the classifier of the mean feature is the mean logit."""
    setup, run = trained
    command = [str(run / "config.yaml"), "--checkpoint", str(run), "test.precision=fp32"]
    assert main(["features", *command, "--views"]) == 0
    assert "features of 32 channels of 7 of 7 videos" in capsys.readouterr().out
    found = features_of(run / "test" / "features.npz")
    assert not (run / "test" / "features.npz.partial").exists()
    assert found["features"].shape == (7, 32)
    assert found["view_features"].shape == (7, 3, 1, 32)
    np.testing.assert_allclose(found["features"], found["view_features"].mean((1, 2)), rtol=1e-5)
    listed = [line.split() for line in setup.val_list.read_text().splitlines()]
    assert found["video"].tolist() == [name for name, _ in listed]
    assert found["label"].tolist() == [int(label) for _, label in listed]
    assert found["ok"].all()
    assert json.loads(str(found["about"]))["num_clips"] == 3
    assert main(["test", *command]) == 0
    with np.load(run / "test" / "scores.npz") as scores:
        head = load_model(run / "checkpoints" / "last.safetensors").blocks[-1].proj
        logits = found["features"] @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        np.testing.assert_allclose(logits, scores["clip_logits"].mean(1), atol=1e-4)


def test_features_equal_a_recomputation_by_hand(trained) -> None:
    """The output of the last stage, caught by a hook, of frames decoded here, at their own size."""
    setup, run = trained
    out = run.parent / "by_hand.npz"
    sizes = ["clip.short_side_min=64", "clip.short_side_max=64"]
    words = ["--views", "--out", str(out), "test.precision=fp32", *sizes]
    command = ["features", str(run / "config.yaml"), "--checkpoint", str(run)]
    assert main([*command, *words]) == 0
    found = features_of(out)
    path = run / "checkpoints" / "last.safetensors"
    network, info = load_model(path).eval(), read_info(path)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (info.mean, info.std))
    video = PyAVReader(str(setup.val_list.parent / str(found["video"][2])))
    start = (video.num_frames - 8) // 2
    frames = torch.from_numpy(video.frames(range(start, start + 8))).permute(3, 0, 1, 2)
    caught: list[torch.Tensor] = []
    network.blocks[-2].register_forward_hook(lambda m, i, out: caught.append(out))
    with torch.inference_mode():
        network(((frames.float() / 255 - mean) / std)[None])
    expected = caught[0][0].double().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(found["view_features"][2, 1, 0], expected, rtol=1e-4, atol=1e-5)


def test_bad_videos_are_named_and_wrong_inputs_are_one_message(trained, capsys, tmp_path) -> None:
    setup, run = trained
    lines = setup.val_list.read_text().splitlines()
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([lines[0], "absent.mp4 1"]))
    words = ["features", run / "config.yaml", "--checkpoint", run]
    words += [f"data.test={listed}", f"data.root={setup.val_list.parent}"]
    out = tmp_path / "found.npz"
    assert main([str(word) for word in [*words, "--out", out]]) == 0
    assert "warning: no features of absent.mp4" in capsys.readouterr().out
    found = features_of(out)
    assert found["ok"].tolist() == [True, False]
    assert np.isnan(found["features"][1]).all()
    assert "such a file" in error_of(capsys, *words, "--out", tmp_path / "found.txt")
    assert "written as .npz" in error_of(capsys, *words, "--out", tmp_path)
    assert "num_classes" in error_of(capsys, *words, "model.num_classes=9", "--out", out)
    other = error_of(capsys, *words, "--out", out, "--clips", "2")
    assert "holds other features" in other
    assert "num_clips" in other
    out.write_bytes(b"text")
    assert "is no file of features" in error_of(capsys, *words, "--out", out)
    listed.write_text("absent.mp4 1\n")
    assert "none of its 1 videos" in error_of(capsys, *words, "--out", tmp_path / "none.npz")
