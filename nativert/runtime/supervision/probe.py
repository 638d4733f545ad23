"""One health check, made from inside the instance: a program, a port, or a GET.

A socket belongs to the network namespace in which it was made, so that only its making happens
there. Nothing here waits longer than its time-out, and what a check says is cut.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Final, NamedTuple

from nativert.errors import NativertError
from nativert.fdu.attendance import Health
from nativert.isolation import process
from nativert.isolation.network.netns import inside
from nativert.runtime import execute
from nativert.runtime.context import Context, descriptor_of
from nativert.store.boot import Facts
from nativert.store.durable import Row

OUTPUT_BYTES: Final = 1024
_PIECE: Final = 4096
_LOCAL: Final = "127.0.0.1"
_STATUS_LINE: Final = 256


class Result(NamedTuple):
    """Whether it was healthy, and what the check has to say of it."""

    healthy: bool
    text: str


def probe(context: Context, row: Row, facts: Facts, health: Health) -> Result:
    """Check the instance once; a check that cannot be made has failed."""
    try:
        if health.exec:
            return _program(context, row, facts, health)
        port = health.tcp or (health.http.port if health.http is not None else 0)
        with _socket(facts) as sock:
            return _port(sock, port, health)
    except (OSError, EOFError, NativertError) as e:
        return Result(False, str(e)[:OUTPUT_BYTES])


def _program(context: Context, row: Row, facts: Facts, health: Health) -> Result:
    deadline = time.monotonic() + health.timeout_s
    descriptor = descriptor_of(row.descriptor, row.name)
    plan = execute.session_program(descriptor, facts, list(health.exec), None)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.set_blocking(writer, True)  # The program's own: it may write as it likes.
        try:
            session = execute.start(
                context, row, plan, stdio=(null, writer, writer), terminal=False
            )
        finally:
            os.close(writer)
        try:
            code, text = _attend(session, reader, deadline)
        finally:
            session.close()  # What has not ended by now is killed.
    finally:
        os.close(reader)
        os.close(null)
    if code is None:
        return Result(False, f"no end after {health.timeout_s:g} s{_said(text)}")
    return Result(code == 0, f"exit code {code}{_said(text)}")


def _attend(session: execute.ExecSession, reader: int, deadline: float) -> tuple[int | None, bytes]:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(session.fileno(), select.POLLIN)
    kept = b""
    while (left_s := deadline - time.monotonic()) > 0:
        ready = [fd for fd, _ in poll.poll(max(1, int(left_s * 1000)))]
        if reader in ready:
            piece = os.read(reader, _PIECE)
            if not piece:
                poll.unregister(reader)
            # All is read, so that it never waits for us; the end of it is kept.
            kept = (kept + piece)[-OUTPUT_BYTES:]
        elif session.fileno() in ready:
            return session.wait(), kept
    return None, kept


def _said(text: bytes) -> str:
    said = text.decode(errors="replace").strip()
    return f": {said}" if said else ""


def _socket(facts: Facts) -> socket.socket:
    def make() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    if facts.init_pid is None or facts.init_start is None:
        raise ProcessLookupError(3, "its init is gone")
    netns = os.open(f"/proc/{facts.init_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Looked at with the namespace in hand: the pid may be another's by now.
        if not process.alive(facts.init_pid, facts.init_start):
            raise ProcessLookupError(3, "its init is gone")
        return inside(netns, make)
    finally:
        os.close(netns)


def _port(sock: socket.socket, port: int, health: Health) -> Result:
    deadline = time.monotonic() + health.timeout_s
    sock.settimeout(health.timeout_s)
    try:
        sock.connect((_LOCAL, port))
        if health.http is None:
            return Result(True, f"port {port} accepts")
        path = health.http.path
        request = f"GET {path} HTTP/1.1\r\nHost: {_LOCAL}:{port}\r\nConnection: close\r\n"
        sock.sendall(f"{request}User-Agent: nativert\r\n\r\n".encode())
        line = b""
        while b"\n" not in line and len(line) < _STATUS_LINE:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            piece = sock.recv(_STATUS_LINE)
            if not piece:
                break
            line += piece
    except TimeoutError:
        return Result(False, f"port {port}: no answer after {health.timeout_s:g} s")
    except OSError as e:
        return Result(False, f"port {port}: {e.strerror}")
    said = line.split(b"\n")[0].decode("latin-1").strip()[:_STATUS_LINE]
    words = said.split()
    known = len(words) >= 2 and words[0].startswith("HTTP/") and words[1].isdigit()
    healthy = known and 200 <= int(words[1]) < 400
    return Result(healthy, f"GET {path} on port {port}: {said or 'no answer'}")
