"""A system bus with a systemd behind it, as far as the scope of a node needs them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    Parser,
    new_error,
    new_method_return,
    new_signal,
)

MANAGER = DBusAddress(
    "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
)
JOB = "/org/freedesktop/systemd1/job/7"


class FakeBus:
    """Answers on a Unix socket; *units* are loaded, `calls` records (method, body)."""

    def __init__(self, path: Path) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.units: set[str] = set()
        self.inactive: set[str] = set()
        self.result = "done"
        self.early_signal = False
        self.mute: set[str] = set()
        self.on_start: Callable[[str, int], None] = lambda unit, pid: None
        self.on_attach: Callable[[str, int], None] = lambda unit, pid: None
        self._serials = count(1)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def asked(self, method: str) -> list[Any]:
        return [body for name, body in self.calls if name == method]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(ConnectionError):
                self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        stream = client.makefile("rb", buffering=0)
        line = stream.readline()
        if not line:
            return  # Only a look whether anyone is there.
        assert line.startswith(b"\0AUTH EXTERNAL ")
        client.sendall(b"OK 1234deadbeef\r\n")
        while line != b"BEGIN\r\n":
            line = stream.readline()
            if line.startswith(b"NEGOTIATE"):
                client.sendall(b"ERROR\r\n")
        parser = Parser()
        while data := client.recv(4096):
            parser.add_data(data)
            while (message := parser.get_next_message()) is not None:
                for answer in self._answer(message):
                    client.sendall(answer.serialise(serial=next(self._serials)))

    def _answer(self, message: Message) -> list[Message]:
        method = message.header.fields[HeaderFields.member]
        self.calls.append((method, message.body))
        assert message.header.message_type is MessageType.method_call
        if method in self.mute:
            return []
        if method == "Hello":
            return [new_method_return(message, "s", (":1.1",))]
        if method == "StartTransientUnit":
            return self._start(message)
        if method == "AttachProcessesToUnit":
            unit, subcgroup, (pid,) = message.body
            assert subcgroup == "/launcher"
            if unit in self.inactive:
                return [_error(message, "org.freedesktop.systemd1.UnitInactive", "not active")]
            self.on_attach(unit, pid)
        return [new_method_return(message)]

    def _start(self, message: Message) -> list[Message]:
        unit, mode, properties, others = message.body
        assert (mode, others) == ("fail", [])
        if unit in self.units:
            text = f"Unit {unit} was already loaded or has a fragment file."
            return [_error(message, "org.freedesktop.systemd1.UnitExists", text)]
        (pid,) = dict(properties)["PIDs"][1]
        self.on_start(unit, pid)
        reply = new_method_return(message, "o", (JOB,))
        other = new_signal(MANAGER, "JobRemoved", "uoss", (6, JOB[:-1] + "6", "x.service", "done"))
        removed = new_signal(MANAGER, "JobRemoved", "uoss", (7, JOB, unit, self.result))
        return [other, removed, reply] if self.early_signal else [other, reply, removed]


def _error(message: Message, name: str, text: str) -> Message:
    return new_error(message, name, "s", (text,))
