"""The operator's terminal in front of a program's own: raw mode, bytes both ways, window size."""

from __future__ import annotations

import errno
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Protocol

from nativert.cli.output import write_all

_CHUNK = 65536
_END_OF_FILE = b"\x04"  # VEOF of a fresh terminal; see termios(3)


class Running(Protocol):
    """A program that exec has started on a terminal."""

    def wait(self) -> int:
        """Return the exit code after the end."""

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its window."""


def window_size(fd: int) -> tuple[int, int]:
    """Return (rows, columns) of the terminal *fd*, 24 by 80 where it is none."""
    try:
        return termios.tcgetwinsize(fd)
    except termios.error:
        return 24, 80


@contextmanager
def raw(fd: int | None) -> Iterator[None]:
    """Hand every key on *fd* on as it is, Ctrl-C too, for the length of the block."""
    if fd is None or not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def attend(running: Running, master: int, *, stdin: int | None) -> int:
    """Copy between *stdin*, *master* and stdout until the program ended; return its exit code."""
    wake, ended = os.pipe2(os.O_CLOEXEC)
    end = _End(running, ended)
    before = signal.signal(signal.SIGWINCH, lambda *_: running.resize(*window_size(1)))
    end.start()
    try:
        _copy(master, stdin, wake)
        return end.code()
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(wake)


class _End(Thread):
    """Waits for the exit code, which has no descriptor to poll; closing *announce* tells."""

    def __init__(self, running: Running, announce: int) -> None:
        # Daemon: when the operator's terminal goes away first, nobody joins.
        super().__init__(name="exec-wait", daemon=True)
        self._running = running
        self._announce = announce
        self._result: int | Exception = 0

    def run(self) -> None:
        try:
            self._result = self._running.wait()
        except Exception as e:  # noqa: BLE001 (raised again where it is read)
            self._result = e
        finally:
            os.close(self._announce)

    def code(self) -> int:
        """Wait for the end; raises what `wait` raised."""
        self.join()
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def _copy(master: int, stdin: int | None, wake: int) -> None:
    os.set_blocking(master, False)
    keys = bytearray()
    over = False
    while True:
        poll = select.poll()
        poll.register(master, select.POLLIN | (select.POLLOUT if keys else 0))
        if not over:
            poll.register(wake, select.POLLIN)
        # Keys wait in the terminal while the program does not read its own.
        if stdin is not None and not keys:
            poll.register(stdin, select.POLLIN)
        # After the end only what is already there is wanted: a child of the program may
        # keep the terminal open for ever.
        ready = dict(poll.poll(0 if over else None))
        if ready.get(master, 0) & ~select.POLLOUT:
            if not _show(master):
                return
        elif over:
            return
        if ready.get(master, 0) & select.POLLOUT:
            _type(master, keys)
        if wake in ready:
            over = True
        if stdin is not None and stdin in ready:
            data = os.read(stdin, _CHUNK)
            keys += data or _END_OF_FILE
            if not data:
                stdin = None


def _show(master: int) -> bool:
    """Copy what the program has written; False once nothing can come any more."""
    try:
        data = os.read(master, _CHUNK)
    except BlockingIOError:
        return True
    except OSError as e:
        # EIO: the last process closed its side; see pty(7) and tty(4).
        if e.errno == errno.EIO:
            return False
        raise
    write_all(1, data)
    return bool(data)


def _type(master: int, keys: bytearray) -> None:
    try:
        del keys[: os.write(master, keys)]
    except BlockingIOError:
        pass
    except OSError as e:
        if e.errno != errno.EIO:
            raise
        keys.clear()
