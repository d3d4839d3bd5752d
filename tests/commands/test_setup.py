"""What training and testing share."""

import pytest
import torch

from videogn.commands.setup import reporter
from videogn.distributed import World


def test_lines_are_printed_by_the_first_rank_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(3):
        reporter(World(rank, 3, torch.device("cpu")))(f"from rank {rank}")
    assert capsys.readouterr().out == "from rank 0\n"
