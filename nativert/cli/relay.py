"""The application's log on this command's own stdout and stderr."""

from __future__ import annotations

import errno

import msgspec

from nativert.cli import output
from nativert.runtime.views import LogLine

_DESCRIPTORS = {"stdout": 1, "stderr": 2}


class Relay:
    """Writes log lines to the stream that they came from; the bytes stay as they are."""

    def __init__(self, *, timestamps: bool = False) -> None:
        self._timestamps = timestamps
        self._within_line = {"stdout": False, "stderr": False}

    def write(self, line: LogLine) -> None:
        """Write one line; output.StdoutClosedError when nobody reads that stream any more."""
        prefix = b""
        if self._timestamps and not self._within_line[line.stream]:
            prefix = line.time.encode() + b" "
        self._within_line[line.stream] = line.partial
        end = b"" if line.partial else b"\n"
        try:
            output.write_all(_DESCRIPTORS[line.stream], prefix + line.text + end)
        except OSError as e:
            # EIO: the terminal was hung up.
            if e.errno in (errno.EPIPE, errno.EIO):
                raise output.StdoutClosedError from e
            raise


class LogObject(msgspec.Struct, frozen=True):
    r"""One line of `logs -o json`; bytes that are no UTF-8 are written as \xNN."""

    time: str
    stream: str
    text: str
    partial: bool

    @classmethod
    def of(cls, line: LogLine) -> LogObject:
        """Make the text of the line's bytes."""
        text = line.text.decode(errors="backslashreplace")
        return cls(line.time, line.stream, text, line.partial)
