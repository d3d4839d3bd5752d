import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from videogn.engine.metrics import Tally
from videogn.engine.statistics import label_ranks, topk_percent


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_tally_has_the_same_rule_for_ties(num_clips: int, num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=(num_clips, num_classes)).astype(np.float32)
    labels = rng.integers(num_classes, size=num_clips)
    logits, targets = torch.from_numpy(scores), torch.from_numpy(labels)
    tally = Tally.empty(torch.device("cpu")).add(torch.tensor(1.0), logits, targets)
    ranks = label_ranks(scores, labels)
    assert tally.top1 == topk_percent(ranks, num_clips, 1)
    assert tally.top5 == topk_percent(ranks, num_clips, 5)


def test_scores_that_are_no_numbers_are_never_right() -> None:
    scores = np.full((2, 7), np.nan, dtype=np.float32)
    labels = np.array([0, 3])
    assert (label_ranks(scores, labels) >= 5).all()
    tally = Tally.empty(torch.device("cpu")).add(
        torch.tensor(1.0), torch.from_numpy(scores), torch.from_numpy(labels)
    )
    assert (tally.top1, tally.top5) == (0, 0)


def test_tally_adds_batches_of_different_size() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 8, generator=generator)
    labels = torch.randint(8, (11,), generator=generator)
    tally = Tally.empty(torch.device("cpu"))
    for part in (slice(0, 7), slice(7, 11)):
        tally = tally.add(F.cross_entropy(logits[part], labels[part]), logits[part], labels[part])
    assert abs(tally.loss - F.cross_entropy(logits, labels).item()) < 1e-6
    right = (logits.argmax(1) == labels).sum().item()
    assert tally.top1 == 100 * right / 11
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).sum().item()
    assert tally.top5 == 100 * top5 / 11
    failed = tally.add_failed(11)
    assert failed.top1 == tally.top1 / 2
    assert failed.loss == tally.loss
    assert failed.num_clips == 22
