"""What is measured, printed line by line and kept as a page of markdown."""

import datetime
import platform
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import torch

from videogn.engine.recipes import cpu_has_bf16


def versions(device: torch.device) -> list[str]:
    """One line per thing that the numbers depend on."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    lines = [
        f"torch {torch.__version__}, triton {triton_version}, Python {platform.python_version()}, "
        f"cuDNN {torch.backends.cudnn.version()}, CUDA {torch.version.cuda}"
    ]
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        lines.append(
            f"{about.name}, {about.total_memory / 1e9:.0f} GB, "
            f"{about.multi_processor_count} multiprocessors, driver {driver()}"
        )
    capability = torch.backends.cpu.get_cpu_capability()
    halves = "with" if cpu_has_bf16() else "without"
    lines.append(
        f"CPU: {cpu_name()} ({capability}, {halves} bf16 instructions), "
        f"{torch.get_num_threads()} threads of torch"
    )
    return lines


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def cpu_name() -> str:
    try:
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def hardware(device: torch.device) -> str:
    """A word for the file's name."""
    if device.type == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return f"{torch.get_num_threads()}-thread-cpu"


@dataclass
class Page:
    """Prints each line as it comes; the file is whole after each, should the run be ended."""

    path: Path | None = None
    lines: list[str] = field(default_factory=list)

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)
        if self.path is not None:
            self.path.write_text("\n".join(self.lines) + "\n")

    def title(self, text: str) -> None:
        self.say()
        self.say(f"## {text}")
        self.say()

    def table(self, *heads: str) -> None:
        self.say("| " + " | ".join(heads) + " |")
        self.say("|" + "---|" * len(heads))

    def row(self, *cells: object) -> None:
        self.say("| " + " | ".join(shown(cell) for cell in cells) + " |")


def shown(cell: object) -> str:
    """Three digits of a number; what is missing is a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return str(cell)


def page_for(folder: Path | None, device: torch.device, dry: bool) -> Page:
    if folder is None:
        return Page()
    folder.mkdir(parents=True, exist_ok=True)
    name = "dry-run" if dry else hardware(device)
    return Page(folder / f"compute_{name}_{datetime.date.today().isoformat()}.md")
