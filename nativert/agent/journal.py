"""Log records as entries of the systemd journal, each value a field of its own.

So `journalctl NATIVERT_INSTANCE=<uuid>` finds all that the agent says of an instance. The
protocol is systemd.io/JOURNAL_NATIVE_PROTOCOL: one datagram for an entry.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")
IDENTIFIER: Final = "nativert-agent"
FIELDS: Final = ("instance", "fdu", "status", "code", "plugin")
# Less than what a socket takes at once (net.core.wmem_default); more would need a memfd.
_LONGEST: Final = 32 << 10
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)


class JournalHandler(logging.Handler):
    """Sends each record to the journal; to stderr, which is the journal's too, if that fails."""

    def __init__(self, path: Path = SOCKET) -> None:
        super().__init__()
        self._path = str(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; never raises and never waits for long: journald reads by itself."""
        try:
            # Not connected: journald may be restarted, and its socket is then another one.
            self._sock.sendto(entry(record, self.format(record)), self._path)
        except OSError:
            text = f"<{priority(record.levelno)}>{self.format(record)}\n"
            sys.stderr.write(text)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
        super().close()


def entry(record: logging.LogRecord, message: str) -> bytes:
    """Return the datagram for a record whose text is *message*."""
    return b"".join(_field(name, text) for name, text in _fields(record, message))


def priority(level: int) -> int:
    """Return the priority of syslog(3) for a level of logging."""
    return next(number for least, number in _PRIORITIES if level >= least)


def _fields(record: logging.LogRecord, message: str) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", message
    yield "PRIORITY", str(priority(record.levelno))
    yield "SYSLOG_IDENTIFIER", IDENTIFIER
    for name in FIELDS:
        value = getattr(record, name, None)
        if value is not None:
            yield f"NATIVERT_{name.upper()}", str(value)


def _field(name: str, text: str) -> bytes:
    value = text.encode(errors="backslashreplace")[:_LONGEST]
    if b"\n" not in value:
        return b"%s=%s\n" % (name.encode(), value)
    # What has more than one line is told by its length.
    return b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
