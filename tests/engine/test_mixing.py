import torch

from videogn.engine.mixing import make_mixing


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    clips = torch.arange(4.0)[:, None, None, None, None].expand(4, 3, 2, 8, 8).contiguous()
    return clips, torch.tensor([0, 1, 2, 3])


def test_neither_is_no_mixing() -> None:
    assert make_mixing(0, 0, 4) is None


def test_mixup_mixes_pixels_and_targets_by_the_same_share() -> None:
    clips, labels = batch()
    torch.manual_seed(0)
    mixed, targets = make_mixing(0.8, 0, 4)(clips, labels)
    share = targets.max(1).values
    for row in range(4):
        own, other = targets[row, row], targets[row, (row - 1) % 4]
        torch.testing.assert_close(own + other, torch.tensor(1.0))
        expected = own * row + other * ((row - 1) % 4)
        torch.testing.assert_close(mixed[row], expected.expand_as(mixed[row]))
    assert ((share > 0.5) & (share < 1)).all()


def test_cutmix_pastes_the_same_box_into_all_frames() -> None:
    clips, labels = batch()
    torch.manual_seed(3)
    mixed, targets = make_mixing(0, 1.0, 4)(clips, labels)
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))
    for row in range(4):
        shown = (mixed[row, 0, 0] == row).float().mean()
        torch.testing.assert_close(targets[row, row], shown)
    assert 0 < targets[0, 0] < 1


def test_draws_come_from_the_seed_of_the_step() -> None:
    clips, labels = batch()
    mix = make_mixing(0.8, 1.0, 4)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(mix(clips, labels))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
