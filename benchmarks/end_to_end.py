"""What a user feels: training and testing from encoded files through the whole path.

    python benchmarks/end_to_end.py [--videos FOLDER] [--norm gn] [--clips-per-gpu 8] [--dry-run]

Videos of Kinetics' form (10 s at 30 fps, 340 x 256, x264's defaults) are made, or taken from a
folder, and prepared by ``videogn data prepare``; both forms are indexed. Of each form:

``reading``  the loader of ``videogn train`` alone, with the number of workers it chooses;
``both``     the training loop itself: loader, pixels on the device, network, optimiser;
``test``     ``videogn test``, all clips of every video; the pace is counted from when the first
             videos are scored, so that the start of the workers is not in it.

``network`` is the same training loop on batches that lie on the device already. The share of time
that the device waits for data is the training log's. From these follow the hours of one cell of the
paper's Table 8 (25.6 million clips) and the minutes of one full Kinetics-400 test (19,761 videos)
on this machine. So few files stay in the machine's memory: what a disk adds is not measured.

A peer that decodes on the GPU (torchcodec, DALI) reads the same files where it is installed.
"""

import argparse
from pathlib import Path
from typing import Any

CELL_CLIPS = 25_600_000
TEST_VIDEOS = 19_761
FORMS = ("plain", "prepared")
OTHERS = ("reading", "network", "peers")
"""What training and test from files do without."""


def main() -> None:
    words = arguments()
    # Here, not above: the processes that read import this file.
    from videogn.allocator import let_segments_grow

    let_segments_grow()  # as the commands do, before torch is imported
    from whole_path import measured

    print(f"\n{table(measured(words))}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="real ones, short side 256")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--layout", default="nonlocal")
    parser.add_argument("--norm", default="gn", choices=["gn", "bn"])
    parser.add_argument("--clips-per-gpu", type=int, default=8)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16", "tf32", "fp32"])
    parser.add_argument("--workers", default="auto", help="auto, or their number")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--made", type=int, default=48, help="videos that are made")
    parser.add_argument(
        "--tested", type=int, default=768, help="videos that are scored; 0: no test"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="config values")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--skip", nargs="+", choices=OTHERS, default=[])
    parser.add_argument("--files", type=Path, help="folder that the videos stay in for another run")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, to see that it runs")
    return parser.parse_args()


def table(found: dict[str, Any]) -> str:
    """What was found, as text."""
    alone = "not measured"
    if "network" in found:
        alone = f"{found['network']['clips_per_second']:,.1f} clips/s"
    lines = [
        f"{found['norm']}, {found['layout']}, {found['num_frames']}x{found['frame_stride']}, "
        f"{found['precision']}, {found['clips_per_gpu']} clips per GPU: network alone {alone}",
        "form        reading      both    device waits    GPU memory    one cell      test      "
        "K400 test",
    ]
    for form in (form for form in FORMS if form in found):
        both, test = found[form]["both"], "         -           -"
        if "test" in found[form]:
            pace = found[form]["test"]["videos_per_second"]
            test = f"{pace:10.1f}{TEST_VIDEOS / pace / 60:11.1f} min"
        memory = f"{both['peak_gib']:6.1f} GiB" if "peak_gib" in both else "         -"
        reading = f"{found[form]['reading']:10,.1f}" if "reading" in found[form] else f"{'-':>10}"
        lines.append(
            f"{form:9}{reading}{both['clips_per_second']:10,.1f}"
            f"{100 * both['data_wait']:14.1f} %    {memory}"
            f"{CELL_CLIPS / both['clips_per_second'] / 3600:10.1f} h{test}"
        )
    lines.append("reading, both: clips/s; test: videos/s; one cell: 25.6 million clips")
    for name, value in found.get("peers", {}).items():
        told = value if isinstance(value, str) else f"{value:,.1f} clips/s from the prepared files"
        lines.append(f"peer {name}: {told}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
