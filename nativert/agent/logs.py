"""The agent's own log on stderr: one line an event, with the fields of the instance it is about.

Under systemd each line begins with its level, as sd-daemon(3) has it, and the journal adds the
time; elsewhere the line begins with time and level.
"""

from __future__ import annotations

import logging
import os
import sys

LOGGER = logging.getLogger("nativert")
_FIELDS = ("instance", "fdu", "status", "code", "plugin")
_PRIORITIES = (
    (logging.ERROR, "<3>"),
    (logging.WARNING, "<4>"),
    (logging.INFO, "<6>"),
    (logging.NOTSET, "<7>"),
)


class Formatter(logging.Formatter):
    """`message key=value ...`, on one line whatever is in it."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        text = record.getMessage()
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                text += f" {name}={value}"
        if record.exc_info:
            text += f": {self.formatException(record.exc_info)}"
        # The journal takes a line end for the end of the entry.
        text = text.replace("\n", " | ")
        if self._journal:
            prefix = next(p for level, p in _PRIORITIES if record.levelno >= level)
            return prefix + text
        return f"{self.formatTime(record)} {record.levelname.lower()} {text}"


def under_journal() -> bool:
    """Tell whether stderr is the journal's; see JOURNAL_STREAM in systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    status = os.fstat(2)
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def configure(level: str) -> None:
    """Send the agent's log to stderr from *level* on; may be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(journal=under_journal()))
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(level.upper())
