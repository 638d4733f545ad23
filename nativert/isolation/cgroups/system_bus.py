"""systemd's manager on the system bus: making a transient scope, and adding to one.

Every call has a deadline: the bus, its daemon or systemd itself may hang. See
org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from jeepney import Message

SOCKET: Final = "run/dbus/system_bus_socket"
_SYSTEMD: Final = "org.freedesktop.systemd1"
_MANAGER: Final = "org.freedesktop.systemd1.Manager"
_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"
_RECEIVE_BYTES: Final = 65536

Property = tuple[str, tuple[str, object]]


class BusError(OSError):
    """What systemd or the bus answered instead of doing it; `name` is the D-Bus error's."""

    def __init__(self, call: str, name: str, text: str) -> None:
        super().__init__(errno.EREMOTEIO, f"systemd, {call}: {text or name}")
        self.name = name


class SystemBus:
    """One connection, as root; OSError if the bus does not answer in time."""

    def __init__(self, address: str, *, timeout_s: float) -> None:
        # Only here: a host without systemd never pays for the import.
        from jeepney import DBusAddress, MatchRule, Parser, message_bus
        from jeepney.io.blocking import prep_socket

        self._deadline = time.monotonic() + timeout_s
        self._manager = DBusAddress("/org/freedesktop/systemd1", _SYSTEMD, _MANAGER)
        self._parser = Parser()
        self._serials = count(1)
        self._signals: deque[Message] = deque(maxlen=256)
        self._sock: socket.socket = prep_socket(address, timeout=timeout_s)
        rule = MatchRule(type="signal", sender=_SYSTEMD, interface=_MANAGER, member="JobRemoved")
        try:
            self._call(message_bus.Hello())
            self._call(message_bus.AddMatch(rule))
            # Without a subscriber systemd does not send its signals to the bus.
            self._ask("Subscribe")
        except BaseException:
            self._sock.close()
            raise

    def start_scope(self, unit: str, properties: Sequence[Property]) -> bool:
        """Make a transient scope and wait until it is active; False if the name is taken.

        OSError if systemd refuses it or fails to start it.
        """
        arguments: tuple[object, ...] = (unit, "fail", list(properties), [])
        try:
            (job,) = self._ask("StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
        except BusError as e:
            if e.name == _EXISTS:
                return False
            raise
        result = self._removed(job)
        if result != "done":
            raise BusError("StartTransientUnit", result, f"the job of {unit} ended as {result!r}")
        return True

    def attach(self, unit: str, subcgroup: str, pid: int) -> None:
        """Move a process into a cgroup below an active unit; BusError if it is not active.

        Done by systemd between two events of its own, so that a unit which has just become
        empty either takes the process and stays, or is gone for good.
        """
        self._ask("AttachProcessesToUnit", "ssau", (unit, subcgroup, [pid]))

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, method: str, signature: str | None = None, arguments: tuple[object, ...] = ()
    ) -> tuple[Any, ...]:
        from jeepney import new_method_call

        return self._call(new_method_call(self._manager, method, signature, arguments))

    def _call(self, message: Message) -> tuple[Any, ...]:
        from jeepney import HeaderFields, MessageType

        serial = next(self._serials)
        self._sock.settimeout(self._left_s())
        try:
            self._sock.sendall(message.serialise(serial=serial))
        except TimeoutError:
            raise _silent() from None

        def answers(answer: Message) -> bool:
            return bool(answer.header.fields.get(HeaderFields.reply_serial) == serial)

        answer = self._receive(answers)
        if answer.header.message_type == MessageType.error:
            call = message.header.fields[HeaderFields.member]
            text = str(answer.body[0]) if answer.body else ""
            raise BusError(call, answer.header.fields[HeaderFields.error_name], text)
        return tuple(answer.body)

    def _removed(self, job: str) -> str:
        """Wait for the end of a job and return its result."""
        from jeepney import HeaderFields

        def removed(message: Message) -> bool:
            member = message.header.fields.get(HeaderFields.member)
            return member == "JobRemoved" and bool(message.body[1] == job)

        # It may have ended before the answer that named it.
        found = next((message for message in self._signals if removed(message)), None)
        return str((found or self._receive(removed)).body[3])

    def _receive(self, wanted: Callable[[Message], bool]) -> Message:
        from jeepney import MessageType

        while True:
            message = self._parser.get_next_message()
            if message is None:
                self._sock.settimeout(self._left_s())
                try:
                    data = self._sock.recv(_RECEIVE_BYTES)
                except TimeoutError:
                    raise _silent() from None
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "the system bus hung up")
                self._parser.add_data(data)
            elif wanted(message):
                return message
            elif message.header.message_type == MessageType.signal:
                self._signals.append(message)

    def _left_s(self) -> float:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise _silent()
        return left_s


def _silent() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "systemd does not answer on the system bus")
