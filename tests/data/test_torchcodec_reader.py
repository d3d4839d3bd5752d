import os
from pathlib import Path

import numpy as np
import pytest
import torch

from videogn.data.clips import RandomClips
from videogn.data.dataset import TrainDataset
from videogn.data.decode import PyAVReader
from videogn.data.forms import two_streams
from videogn.data.list_checks import VideoRecord
from videogn.data.loader import TrainBatches, build_train_loader
from videogn.data.opening import VideoOpener
from videogn.data.rgb import Box
from videogn.data.torchcodec_reader import TorchcodecReader
from videogn.data.workers import Workers
from videogn.errors import DecodeError, UserError


@pytest.fixture
def needs_torchcodec(need_reader) -> None:
    need_reader("torchcodec")


def test_missing_torchcodec_says_what_to_install(monkeypatch, make_video) -> None:
    def missing(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec.\nmore")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(UserError, match=r"videogn\[torchcodec\].*shared libraries.*libtorchcodec"):
        TorchcodecReader(str(make_video()))


@pytest.mark.usefixtures("needs_torchcodec")
def test_without_a_gpu_the_cuda_reader_says_so(monkeypatch, make_video) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torchcodec_cuda needs a GPU"):
        TorchcodecReader(str(make_video()), device="cuda")


@pytest.mark.usefixtures("needs_torchcodec")
def test_boxes_are_cut_out_of_frames(make_video) -> None:
    video = TorchcodecReader(str(make_video(num_frames=40)))
    assert (video.num_frames, video.height, video.width) == (40, 64, 96)
    wanted = [1, 20, 39]
    whole, box = video.frames(wanted), Box(3, 5, 20, 31)
    parts = np.stack(list(video.images(wanted, box)))
    np.testing.assert_array_equal(parts, whole[:, box.rows, box.columns])


@pytest.mark.usefixtures("needs_torchcodec")
def test_stream_is_the_one_that_other_readers_take(tmp_path: Path) -> None:
    path = str(two_streams(tmp_path))
    ours, theirs = PyAVReader(path), TorchcodecReader(path)
    assert (theirs.height, theirs.width) == (ours.height, ours.width) == (64, 96)


@pytest.mark.usefixtures("needs_torchcodec")
def test_playlists_and_pipes_are_not_shown_to_torchcodec(tmp_path: Path, make_video) -> None:
    secret = make_video("secret.mp4")
    listed = tmp_path / "list.mp4"
    listed.write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for path, reason in [(listed, "Invalid argument"), (pipe, "not a regular file")]:
        with pytest.raises(DecodeError, match=reason):
            TorchcodecReader(str(path))


@pytest.mark.usefixtures("needs_torchcodec")
def test_file_named_like_an_address_is_a_file(make_video, monkeypatch) -> None:
    path = make_video(num_frames=7)
    path.rename(path.with_name("concat:a.mp4"))
    monkeypatch.chdir(path.parent)
    assert TorchcodecReader("concat:a.mp4").num_frames == 7


@pytest.mark.usefixtures("needs_torchcodec")
def test_damage_is_a_decode_error(make_video) -> None:
    path = make_video(num_frames=40, g="10")
    video = TorchcodecReader(str(path))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 2000 : start + 40000] = np.random.default_rng(0).bytes(38000)
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="torchcodec") as caught:
        video.frames(range(40))
    assert caught.value.path == str(path)


@pytest.mark.dist
@pytest.mark.usefixtures("needs_torchcodec")
def test_workers_of_the_loader_read_by_it(make_video) -> None:
    records = [VideoRecord(str(make_video(f"{n}.mp4", 40, g="8")), n, str(n)) for n in range(2)]
    clips: dict[str, list[torch.Tensor]] = {}
    for reader in ("pyav", "torchcodec"):
        draw = RandomClips(
            num_frames=4,
            frame_stride=2,
            short_side_min=64,
            short_side_max=64,
            crop_size=64,
            flip_probability=0.5,
            open_video=VideoOpener(reader),
        )
        batches = TrainBatches(
            num_videos=2,
            clips_per_gpu=2,
            rank=0,
            world_size=1,
            seed=0,
            first_step=0,
            last_step=3,
        )
        loader = build_train_loader(TrainDataset(records, draw, 0), batches, Workers(2))
        clips[reader] = [batch.clips_on(torch.device("cpu")).float() for batch in loader]
    for ours, theirs in zip(clips["pyav"], clips["torchcodec"], strict=True):
        assert (ours - theirs).abs().mean() < 2


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_torchcodec")
def test_a_gpu_gives_the_frames_of_a_full_decode(make_video) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    path = str(make_video(num_frames=40, size=(256, 320), bf="2", g="12"))
    ours, theirs = PyAVReader(path), TorchcodecReader(path, device="cuda")
    wanted = list(range(0, 40, 3))
    assert make_video.numbers_in(theirs.frames(wanted)) == wanted
    difference = ours.frames(wanted).astype(int) - theirs.frames(wanted)
    assert np.abs(difference).mean() < 2
