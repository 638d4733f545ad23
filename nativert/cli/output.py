"""What commands print on stdout: one JSON document, JSON lines, plain lines, or a table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import msgspec

UNKNOWN = "-"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class StdoutClosedError(Exception):
    """The reader of stdout is gone (EPIPE)."""


def write_all(fd: int, data: bytes) -> None:
    """Write every byte of *data*; see write(2) on partial writes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def on_terminal() -> bool:
    """Tell whether a person reads stdout."""
    return sys.stdout.isatty()


def document(value: object) -> None:
    """Print *value* as one JSON document, indented for a person."""
    data = msgspec.json.encode(value)
    if on_terminal():
        data = msgspec.json.format(data, indent=2)
    line(data.decode())


def json_line(value: object) -> None:
    """Print *value* as one object on a line of its own."""
    line(msgspec.json.encode(value).decode())


def data(content: bytes) -> None:
    """Print bytes as they are."""
    try:
        write_all(1, content)
    except BrokenPipeError as e:
        raise StdoutClosedError from e


def line(text: str) -> None:
    """Print one line (or a text that has several) at once."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError as e:
        # What is buffered can't be written any more; without this the interpreter
        # tries again at exit and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        raise StdoutClosedError from e


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str]) -> None:
    """Print *rows* under *header*; the columns named in *numbers* stand to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if on_terminal():
        _rich_table(header, cells, numbers)
    else:
        _plain_table(header, cells, numbers)


def _plain_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str]
) -> None:
    every = [header, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(header))]
    lines = []
    for row in every:
        padded = (
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    line("\n".join(lines))


def _rich_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        shown.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        # Text, not str: brackets in a message are no markup.
        shown.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(shown)


_STYLES = {"RUNNING": "green", "PAUSED": "yellow", "✓": "green", "✗": "red"}


def printable(text: str) -> str:
    r"""Return *text* on one line, control characters written as \x1b: they move a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: int | None) -> str:
    """Format bytes in powers of 1024."""
    if count is None:
        return UNKNOWN
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def count(number: int | None) -> str:
    """Format a plain number."""
    return UNKNOWN if number is None else str(number)


def cores(ratio: float | None) -> str:
    """Format a share of CPU time: 1.00 is one core."""
    return UNKNOWN if ratio is None else f"{ratio:.2f}"


def duration(seconds: float | None) -> str:
    """Format seconds by their two largest units: 3d4h, 2m05s."""
    if seconds is None:
        return UNKNOWN
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h}h"
    if hours:
        return f"{hours}h{m:02}m"
    return f"{minutes}m{s:02}s" if minutes else f"{s}s"
