"""Show tests beside the paper's Table 8 and Figure 7: one HTML file that needs nothing else.

RUN is a test's folder, or that of a training run with a test in it. Nothing is decoded and no
network is built.
"""

import argparse
from pathlib import Path

from videogn.engine.report.page import page
from videogn.engine.report.reading import read_run
from videogn.files import check_writable, printable, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``videogn report``."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of tests or of runs")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("report.html"), help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the tests and write the page."""
    check_writable(arguments.out)
    runs = [read_run(name, f"R{number}") for number, name in enumerate(arguments.runs, start=1)]
    write_text(arguments.out, page(runs))
    print(f"wrote {printable(arguments.out)}")
    return 0
