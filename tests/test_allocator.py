import os
import subprocess
import sys
from pathlib import Path

import pytest

from videogn.allocator import OPTIONS, let_pages_be_large, let_segments_grow

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


def test_pages_are_large_unless_the_user_decides() -> None:
    environment: dict[str, str] = {}
    let_pages_be_large(environment)
    assert environment == {"THP_MEM_ALLOC_ENABLE": "1"}
    environment = {"THP_MEM_ALLOC_ENABLE": "0"}
    let_pages_be_large(environment)
    assert environment == {"THP_MEM_ALLOC_ENABLE": "0"}


TENSOR = """
import sys
from pathlib import Path
from videogn.allocator import let_pages_be_large
if sys.argv[1] == "large":
    let_pages_be_large()
import torch
kept = torch.ones(2**24)
flags, found = "", False
for line in Path("/proc/self/smaps").read_text().splitlines():
    first = line.split()[0]
    if "-" in first:
        begin, end = (int(part, 16) for part in first.split("-"))
        found = begin <= kept.data_ptr() + 2**25 < end
    elif found and first == "VmFlags:":
        print("hg" in line.split())
"""


def test_torch_asks_for_large_pages() -> None:
    """``hg``: the kernel was advised to use huge pages there."""
    told = ("/sys/kernel/mm/transparent_hugepage", "/proc/self/smaps")
    if not all(Path(path).exists() for path in told):
        pytest.skip("this system has no transparent huge pages, or does not tell")
    for word, expected in (("large", "True"), ("plain", "False")):
        environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        command = [sys.executable, "-c", TENSOR, word]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stdout.strip() == expected
