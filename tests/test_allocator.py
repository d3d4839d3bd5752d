import os
import subprocess
import sys

import pytest

from videogn.allocator import OPTIONS, let_segments_grow

GROWING = "expandable_segments:True"


def test_segments_grow_unless_the_user_sets_options() -> None:
    environment = {"HOME": "x"}
    let_segments_grow(environment)
    assert environment == {"HOME": "x", "PYTORCH_CUDA_ALLOC_CONF": GROWING}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_users_options_stay_as_they_are(name: str) -> None:
    environment = {name: "max_split_size_mb:512"}
    let_segments_grow(environment)
    assert environment == {name: "max_split_size_mb:512"}


ALLOCATES = """
from videogn.allocator import let_segments_grow
let_segments_grow()
import torch
kept = torch.ones(2**22, device="cuda")
print([segment["is_expandable"] for segment in torch.cuda.memory_snapshot()])
"""


@pytest.mark.gpu
def test_torch_reads_the_option() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in OPTIONS}
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "[True]", done.stderr
