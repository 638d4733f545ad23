"""Nodes that move instances to each other: the transport of the tests, with its faults.

Each node listens at a Unix socket below its root, in whatever process serves it; `Wire` is the
other side. What a network may do to a message, a test does here.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nativert.errors import Code, NativertError
from nativert.runtime.migration import messages
from nativert.runtime.migration.destination import Destination
from nativert.runtime.migration.messages import Message
from nativert.runtime.migration.source import Mover, Patience
from nativert.runtime.node import Node
from nativert.runtime.views import Instance
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

QUICK = Patience(answer_s=5, prepare_s=30, silence_s=1, commit_s=1)
# Counts the runs that it knows of, and stays.
APP = "echo run >> /data/runs; echo up; exec sleep 1000"


def socket_of(root: Path) -> str:
    return f"{Paths(root).run}/moves.sock"


def id_of(root: Path) -> str:
    return open_identity(Paths(root), Claims()).id


def _send(sock: socket.socket, data: bytes) -> None:
    sock.sendall(struct.pack("!I", len(data)) + data)


def _receive(sock: socket.socket) -> bytes:
    return _exactly(sock, struct.unpack("!I", _exactly(sock, 4))[0])


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _connected(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout_s)
    # A path may be longer than a socket's address.
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


class Wire:
    """Asks the nodes under *roots*; `fault` may lose, repeat or change what is said."""

    def __init__(self, *roots: Path) -> None:
        self._paths = {id_of(root): socket_of(root) for root in roots}
        self.fault: Callable[[Message, Callable[[Message], Message]], Message] | None = None

    def ask(self, peer: str, message: Message, *, timeout_s: float) -> Message:
        def deliver(message: Message) -> Message:
            return self._ask(peer, message, timeout_s)

        if self.fault is not None:
            return self.fault(message, deliver)
        return deliver(message)

    def _ask(self, peer: str, message: Message, timeout_s: float) -> Message:
        try:
            with _connected(self._paths[peer], timeout_s) as sock:
                _send(sock, messages.encode(message))
                data = _receive(sock)
        except TimeoutError:
            raise NativertError("no answer", code=Code.TIMEOUT) from None
        except (OSError, EOFError, KeyError) as e:
            raise NativertError(f"nobody answers: {e}", code=Code.NOT_FOUND) from None
        if not data:
            raise NativertError("nothing to say yet", code=Code.BUSY)
        return messages.decode(data)


class Served:
    """Answers for one node until it is closed."""

    def __init__(self, node: Node, destination: Destination | None = None) -> None:
        self._answer = (destination or Destination(node)).answer
        path = socket_of(node.paths.root or Path("/"))
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._sock = socket.socket(socket.AF_UNIX)
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
        self._sock.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        os.close(directory)
        self._sock.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.failures: list[BaseException] = []

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._sock.accept()
            except OSError:
                return
            with peer, suppress(EOFError, ConnectionError):
                try:
                    answer = self._answer(messages.decode(_receive(peer)))
                except Exception as e:
                    self.failures.append(e)
                    continue
                _send(peer, b"" if answer is None else messages.encode(answer))


class Pair:
    """Two nodes; `here` has the instance at first."""

    def __init__(self, here: Node, there: Node) -> None:
        self.here, self.there = here, there
        roots = [node.paths.root or Path("/") for node in (here, there)]
        self.wire = Wire(*roots)
        self.ids = {node: id_of(root) for node, root in zip((here, there), roots, strict=True)}
        self.served = {node: Served(node) for node in (here, there)}

    def move(self, uuid: str, *, back: bool = False) -> dict[str, Any]:
        source, target = (self.there, self.here) if back else (self.here, self.there)
        return Mover(source, self.wire, patience=QUICK).migrate(uuid, self.ids[target])

    def copies(self, uuid: str) -> list[Instance]:
        rows = [row for node in (self.here, self.there) for row in node.list()]
        return [row for row in rows if row.instance == uuid]


def read(node: Node, uuid: str, path: str) -> str:
    return node.read(uuid, path, limit=1 << 20).decode()
