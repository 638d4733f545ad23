"""`top`: what instances use, as a live screen."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from nativert.cli import context, quantities
from nativert.cli.context import Session, pass_session
from nativert.cli.output import cores, count, duration, printable, size
from nativert.errors import Code, NativertError
from nativert.runtime.views import Figures, Instance

if TYPE_CHECKING:
    from rich.table import Table

_HELP = "q quit   c sort by cpu   m by memory   n by name"
_SORTED_BY = {"c": "CPU", "m": "MEMORY", "n": "NAME"}
_HEAD_LINES = 4


@context.command("top")
@click.option(
    "--interval", type=quantities.DURATION, default="1s", show_default=True, help="Measure again."
)
@pass_session
def top(session: Session, interval: float) -> None:
    """Show what instances use, the largest first; q ends it."""
    if interval <= 0:
        raise click.BadParameter("must be more than 0", param_hint="'--interval'")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise NativertError(
            "top needs a terminal", code=Code.USAGE, hint="nativert stats --watch writes lines"
        )
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    order = "c"
    with (
        session.node() as node,
        _keys() as keys,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            rows, figures = node.list(), node.stats()
            due = time.monotonic() + interval
            # A key is answered at once, from the same figures.
            while order != "q":
                live.update(_screen(rows, figures, order, console.height), refresh=True)
                key = _key(keys, due - time.monotonic())
                if key is None:
                    break
                order = key if key == "q" or key in _SORTED_BY else order
            if order == "q":
                return


@contextmanager
def _keys() -> Iterator[int]:
    """Have each key of stdin at once and unseen; Ctrl-C stays what it is."""
    before = termios.tcgetattr(0)
    tty.setcbreak(0, termios.TCSADRAIN)
    try:
        yield 0
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _key(fd: int, timeout_s: float) -> str | None:
    """Return the next key; None after *timeout_s*."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(max(0.0, timeout_s) * 1000):
        return None
    # The terminal is gone where nothing comes any more.
    return os.read(fd, 1).decode("ascii", "replace").lower() or "q"


def _screen(rows: Sequence[Instance], figures: Sequence[Figures], order: str, height: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    running = [row for row in rows if row.state in ("RUNNING", "PAUSED", "SCALING")]
    busy = sum(f.cpu_ratio or 0.0 for f in figures)
    memory = sum(f.memory_bytes or 0 for f in figures)
    title = f"{len(running)} of {len(rows)} run   cpu {cores(busy)}   memory {size(memory)}"
    shown = Table(
        title=title, caption=_HELP, box=None, pad_edge=False, header_style="bold", expand=True
    )
    for name in ("NAME", "STATE", "PID", "CPU", "MEMORY", "LIMIT", "PIDS", "UPTIME"):
        mark = "*" if name == _SORTED_BY[order] else ""
        justify = "left" if name in ("NAME", "STATE") else "right"
        shown.add_column(name + mark, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    of = {row.instance: row for row in rows}
    for f in sorted(figures, key=lambda f: _rank(f, order))[: max(1, height - _HEAD_LINES)]:
        row = of.get(f.instance)
        cells = (
            printable(f.name),
            f.state,
            count(row.pid if row else None),
            cores(f.cpu_ratio),
            size(f.memory_bytes),
            size(f.memory_max),
            count(f.pids),
            duration(row.uptime_s if row else None),
        )
        # Text, not str: brackets in a name are no markup.
        shown.add_row(*map(Text, cells))
    return shown


def _rank(f: Figures, order: str) -> tuple[float, str]:
    if order == "n":
        return 0.0, f.name
    value = f.cpu_ratio if order == "c" else f.memory_bytes
    return -(value or 0), f.name
