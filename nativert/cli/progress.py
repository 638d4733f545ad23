"""How far a download is, on stderr, for a person only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

_REFRESH_S = 0.1


def on_terminal() -> bool:
    """Tell whether a person reads stderr."""
    return sys.stderr.isatty()


@contextmanager
def download_bar() -> Iterator[Callable[[int, int | None], None] | None]:
    """Give a `runtime.protocols.Progress`, or None where stderr is no terminal.

    The bar appears with the first bytes and is gone after the block.
    """
    if not on_terminal():
        yield None
        return
    with ExitStack() as shown:
        yield _first(shown)


def _first(shown: ExitStack) -> Callable[[int, int | None], None]:
    drawn: Callable[[int, int | None], None] | None = None

    def progress(received: int, total: int | None) -> None:
        nonlocal drawn
        # Imported with the first bytes: most starts fetch nothing.
        drawn = drawn or _bar(shown)
        drawn(received, total)

    return progress


def _bar(shown: ExitStack) -> Callable[[int, int | None], None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    # No thread of its own: whoever receives the bytes draws.
    bar = shown.enter_context(
        Progress(
            TextColumn("image"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
    )
    task = bar.add_task("image", total=None)
    due = 0.0

    def draw(received: int, total: int | None) -> None:
        nonlocal due
        bar.update(task, completed=received, total=total)
        if time.monotonic() >= due or received == total:
            bar.refresh()
            due = time.monotonic() + _REFRESH_S

    return draw
