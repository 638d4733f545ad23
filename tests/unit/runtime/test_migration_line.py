"""What an application is told on its socket before it is moved, and what it may answer."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nativert.runtime.diagnosis_root import Root
from nativert.runtime.migration.line import MAX_LINE, PREPARE, RESUME, Line

ROOT = Root(Path("/"))
US = {os.geteuid()}
SHORT_S = 0.2
LONG_S = 30.0


class Listener:
    """An application that takes one connection and says what it is given to say."""

    def __init__(self, path: Path, said: bytes | None) -> None:
        self.heard = b""
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._said = said
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._sock.accept()
        with peer:
            self.heard += peer.recv(len(PREPARE))
            if self._said is None:
                return
            try:
                peer.sendall(self._said)
                while piece := peer.recv(100):
                    self.heard += piece
            except ConnectionError:
                pass  # More was said than is read.

    def ended(self) -> bytes:
        self._thread.join(LONG_S)
        self._sock.close()
        return self.heard


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "line.sock"


@pytest.fixture
def line() -> Iterator[Line]:
    with Line() as line:
        yield line


def ask(line: Line, path: Path, timeout_s: float = LONG_S) -> None:
    line.connect(ROOT, str(path), US, timeout_s=timeout_s)
    line.prepare()


@pytest.mark.parametrize("said", [b"ready\n", b"ready\r\n", b"ready\nand more\n"])
def test_who_says_ready_is_moved(line: Line, path: Path, said: bytes) -> None:
    listener = Listener(path, said)
    ask(line, path)
    line.__exit__()
    assert listener.ended() == PREPARE


def test_what_came_to_nothing_is_told(line: Line, path: Path) -> None:
    listener = Listener(path, b"ready\n")
    ask(line, path)
    line.resume()
    line.__exit__()
    assert listener.ended() == PREPARE + RESUME


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"busy\n", "says 'busy'"),
        (b"\n", "says ''"),
        (b"\x1b[2J\xff\n", r"says '\x1b[2J\ufffd'"),
        (b"ready" * MAX_LINE, "more than 256 bytes"),
        (None, "closed the connection without an answer"),
    ],
)
def test_any_other_answer_is_a_refusal(
    line: Line, path: Path, said: bytes | None, why: str
) -> None:
    listener = Listener(path, said)
    with pytest.raises(OSError) as refused:
        ask(line, path)
    assert why in (refused.value.strerror or "")
    line.__exit__()
    listener.ended()


def test_who_does_not_answer_is_waited_for_no_longer_than_asked(line: Line, path: Path) -> None:
    listener = Listener(path, b"")
    with pytest.raises(TimeoutError, match=r"no answer to prepare after 0\.2 s"):
        ask(line, path, SHORT_S)
    line.__exit__()
    assert listener.ended() == PREPARE


def test_who_does_not_take_connections_holds_nobody_up(line: Line, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as other:
        full.bind(str(path))
        full.listen(0)
        other.connect(str(path))
        with pytest.raises(BlockingIOError):
            ask(line, path, SHORT_S)


def test_who_begins_to_listen_in_time_is_told(line: Line, path: Path) -> None:
    begun: list[Listener] = []
    later = threading.Timer(0.1, lambda: begun.append(Listener(path, b"ready\n")))
    later.start()
    ask(line, path)
    later.join()
    line.__exit__()
    assert begun[0].ended() == PREPARE


def test_where_nobody_ever_listens_it_is_refused(line: Line, path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask(line, path, SHORT_S)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(ConnectionRefusedError):
        ask(line, path, SHORT_S)


def test_a_file_is_not_taken_for_a_socket(line: Line, path: Path) -> None:
    path.write_text("ready\n")
    with pytest.raises(OSError, match="is not a socket") as refused:
        ask(line, path)
    assert refused.value.errno == errno.ENOTSOCK


def test_a_link_does_not_lead_out_of_the_root(line: Line, path: Path, tmp_path: Path) -> None:
    listener = Listener(path, b"ready\n")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(path)
    with pytest.raises(FileNotFoundError):
        line.connect(Root(inside), "/link", US, timeout_s=SHORT_S)
    ask(line, path)
    line.__exit__()
    listener.ended()


def test_somebody_elses_socket_is_told_nothing(line: Line, path: Path) -> None:
    listener = Listener(path, b"ready\n")
    with pytest.raises(PermissionError, match="is not the application"):
        line.connect(ROOT, str(path), range(1 << 30, (1 << 30) + 65536), timeout_s=LONG_S)
    line.resume()
    line.__exit__()
    assert listener.ended() == b""
