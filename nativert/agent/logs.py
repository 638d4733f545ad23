"""The agent's own log on stderr: one line an event, with the fields of the instance it is about.

Under systemd it goes to the journal, whose fields the values become; see `journal.py`.
"""

from __future__ import annotations

import logging
import os

from nativert.agent.journal import FIELDS, JournalHandler

LOGGER = logging.getLogger("nativert")


class Formatter(logging.Formatter):
    """`message key=value ...`, on one line whatever is in it."""

    def __init__(self, *, stamped: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._stamped = stamped

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        text = record.getMessage()
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                text += f" {name}={value}"
        if record.exc_info:
            text += f": {self.formatException(record.exc_info)}"
        text = text.replace("\n", " | ")
        if not self._stamped:
            return text
        return f"{self.formatTime(record)} {record.levelname.lower()} {text}"


def under_journal() -> bool:
    """Tell whether stderr is the journal's; see JOURNAL_STREAM in systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    status = os.fstat(2)
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def configure(level: str) -> None:
    """Send the agent's log to the journal or to stderr from *level* on; may be called again."""
    journal = under_journal()
    handler: logging.Handler = JournalHandler() if journal else logging.StreamHandler()
    handler.setFormatter(Formatter(stamped=not journal))
    for former in LOGGER.handlers:
        former.close()
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(level.upper())
