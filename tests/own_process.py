"""Tests in a process of their own, which they may leave unfit for any other."""

import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
from torch import multiprocessing

SECONDS = 180


def run_apart(test: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a test module; fail or skip as it does."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_called, args=(theirs, test, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        kind, text = ours.recv() if ours.poll(SECONDS) else ("failed", f"not in {SECONDS} s")
    except EOFError:
        process.join()
        kind, text = "failed", f"ended with exit code {process.exitcode}"
    finally:
        process.kill()
    if kind == "skipped":
        pytest.skip(text)
    assert kind == "passed", text


def _called(results: Connection, test: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        test(*arguments)
    except pytest.skip.Exception as skipped:
        results.send(("skipped", str(skipped)))
    except BaseException:
        results.send(("failed", traceback.format_exc()))
    else:
        results.send(("passed", ""))
