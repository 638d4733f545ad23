"""Log records become entries of the journal, with the fields of the instance."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import scale

from nativert.agent import logs
from nativert.agent.journal import JournalHandler, entry


def parsed(data: bytes) -> dict[str, bytes]:
    """Read a datagram as journald does; see systemd.io/JOURNAL_NATIVE_PROTOCOL."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        fields[name.decode()] = value
    return fields


def record(message: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("nativert", level, __file__, 1, message, (), None)
    made.__dict__.update(fields)
    return made


def test_the_fields_of_an_instance_are_fields_of_the_entry() -> None:
    made = record("operation ended", instance="u-1", fdu="f-1", status="RUN", code=None)
    assert parsed(entry(made, "operation ended")) == {
        "MESSAGE": b"operation ended",
        "PRIORITY": b"6",
        "SYSLOG_IDENTIFIER": b"nativert-agent",
        "NATIVERT_INSTANCE": b"u-1",
        "NATIVERT_FDU": b"f-1",
        "NATIVERT_STATUS": b"RUN",
    }


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.DEBUG, b"7"), (logging.INFO, b"6"), (logging.WARNING, b"4"), (logging.ERROR, b"3")],
)
def test_levels_are_priorities(level: int, number: bytes) -> None:
    assert parsed(entry(record("x", level), "x"))["PRIORITY"] == number


@pytest.mark.parametrize("text", ["a\nb=c", "PRIORITY=0\n", "\n", "ü\udcff", "", "=" * 5])
def test_no_text_makes_a_field_of_its_own(text: str) -> None:
    fields = parsed(entry(record("x", instance=text), text))
    assert fields["MESSAGE"] == fields["NATIVERT_INSTANCE"]
    assert fields["MESSAGE"] == text.encode(errors="backslashreplace")
    assert fields["PRIORITY"] == b"6"
    assert len(fields) == 4


def test_a_long_text_is_cut_to_what_one_datagram_holds() -> None:
    assert len(entry(record("x"), "é" * 500_000)) < 64 << 10


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.settimeout(scale.LONG_S)
        yield sock


def test_the_handler_sends_one_datagram_for_a_record(
    journal: socket.socket, tmp_path: Path
) -> None:
    handler = JournalHandler(tmp_path / "socket")
    handler.setFormatter(logs.Formatter(stamped=False))
    handler.handle(record("found", instance="u-1"))
    handler.close()
    fields = parsed(journal.recv(1 << 16))
    assert fields["MESSAGE"] == b"found instance=u-1"
    assert fields["NATIVERT_INSTANCE"] == b"u-1"


def test_without_journald_the_record_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = JournalHandler(tmp_path / "absent")
    handler.setFormatter(logs.Formatter(stamped=False))
    handler.handle(record("lost", logging.ERROR))
    handler.close()
    assert capsys.readouterr().err == "<3>lost\n"


def test_the_journal_is_used_where_stderr_is_its(monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    logs.configure("info")
    assert isinstance(logs.LOGGER.handlers[0], JournalHandler)
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    logs.configure("info")
    assert not isinstance(logs.LOGGER.handlers[0], JournalHandler)
    logs.LOGGER.handlers[0].close()
    logs.LOGGER.handlers.clear()
