"""What cannot be reached is told, once, and when that changes."""

from __future__ import annotations

import logging
import socket
import threading

import pytest
import scale

from nativert.agent.fog05 import reaching
from nativert.agent.logs import LOGGER

LONG = scale.LONG_S


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.changed:
            self.texts.append(record.getMessage())
            self.changed.notify_all()

    def until(self, text: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: any(text in x for x in self.texts), LONG)


def test_an_endpoint_is_told_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "_FIRST_S", 0.01)
    monkeypatch.setattr(reaching, "_LONGEST_S", 0.05)
    heard, stopped = Heard(), threading.Event()
    monkeypatch.setattr(LOGGER, "level", logging.INFO)
    LOGGER.addHandler(heard)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{one.getsockname()[1]}"
        thread = threading.Thread(target=reaching.tell, args=([endpoint], None, stopped))
        thread.start()
        try:
            heard.until(f"{endpoint}: not connected: ")
            one.listen()
            heard.until(f"{endpoint}: is there")
            thread.join(LONG)
            assert not thread.is_alive()
        finally:
            stopped.set()
            thread.join(LONG)
            LOGGER.removeHandler(heard)
    assert len([x for x in heard.texts if "not connected" in x]) == 1
