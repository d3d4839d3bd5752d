"""Options and defaults that several commands share."""

import argparse
import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar, get_args

from videogn.data.annotations import ListFormat, read_any_videos
from videogn.data.list_checks import VideoList
from videogn.data.protocols import PROTOCOLS
from videogn.errors import ConfigError, RunError

Item = TypeVar("Item")

PROGRESS_SECONDS = 2.0

SHORT_FORMS = {
    "protocol": ("test.protocol", "NAME", f"one of {', '.join(PROTOCOLS)} (docs/testing.md)"),
    "clips": ("test.num_clips", "J", "clips of a video; the protocol's own number unless given"),
    "crops": ("test.num_crops", "P", "crops of a clip, 1 or 3; likewise"),
    "average": ("test.average", "NAME", "prob, logit or max: how views become a video's score"),
}
"""Options that stand for a config key: it, what their value is called, and help."""


def num_cores() -> int:
    """Cores this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def add_short_forms(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Some of the options of :data:`SHORT_FORMS`; the config checks their values."""
    for name in names:
        key, metavar, text = SHORT_FORMS[name]
        parser.add_argument(f"--{name}", metavar=metavar, help=f"{key}: {text}")


def with_short_forms(arguments: argparse.Namespace) -> list[str]:
    """The ``key=value`` words of a command, with those that its short forms stand for.

    Raises:
        ConfigError: a short form contradicts the word it stands for.
    """
    words = list(arguments.overrides)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for name, (key, *_) in SHORT_FORMS.items():
        value = getattr(arguments, name, None)
        if value is None:
            continue
        if given.get(key, value) != value:
            raise ConfigError(
                f"--{name} {value} and {key}={given[key]} contradict each other; give one of them"
            )
        words.append(f"{key}={value}")
    return words


def add_list(parser: argparse.ArgumentParser) -> None:
    """The list of videos that a command works on, and how it is read."""
    parser.add_argument("list", metavar="LIST", help="a list file, class-folder tree or csv")
    add_list_options(parser)


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """How a list of videos is read: as the config's ``data.root`` and so on say for a run."""
    parser.add_argument("--root", metavar="DIR", help="where relative paths start")
    parser.add_argument(
        "--format", choices=get_args(ListFormat), default="auto", help="default: %(default)s"
    )
    parser.add_argument(
        "--allow-outside-root", action="store_true", help="for lists that you trust"
    )


def read_list(source: str, arguments: argparse.Namespace) -> VideoList:
    """The list that :func:`add_list_options` describe, whatever its labels mean.

    Raises:
        AnnotationError: as :func:`videogn.data.annotations.read_videos` does.
    """
    return read_any_videos(
        source,
        arguments.root,
        format=arguments.format,
        allow_outside_root=arguments.allow_outside_root,
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """How many processes a command starts, and how long each may take for one video."""
    parser.add_argument(
        "--workers", metavar="N", type=int, default=num_cores(), help="default: %(default)s"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=600.0, help="for one video"
    )


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Refuse options that are given and not above 0.

    Raises:
        RunError: with the first of them.
    """
    for name in names:
        value = getattr(arguments, name, None)
        if value is not None and not value > 0:
            raise RunError(f"--{name.replace('_', '-')} {value}: must be above 0")


def watched(items: Iterable[Item], total: int, done: str, of: str = "videos") -> Iterator[Item]:
    """Pass items on, with a progress line every few seconds.

    Args:
        done: what was done with them: "indexed".
        of: what they are.
    """
    started = shown = time.monotonic()
    for count, item in enumerate(items, start=1):
        now = time.monotonic()
        if now - shown > PROGRESS_SECONDS or count == total:
            shown, pace = now, (now - started) / count
            print(
                f"{done} {count:,}/{total:,} {of}  {1 / max(pace, 1e-9):.1f} {of}/s  "
                f"eta {(total - count) * pace:.0f} s",
                flush=True,
            )
        yield item
