"""Programs inside an instance beside its application: sessions (exec) and scripts."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nativert.errors import Code, NativertError, StepError
from nativert.fdu.descriptor import Descriptor
from nativert.launcher.client import Channel, ReportedError
from nativert.runtime import program
from nativert.runtime.context import Context
from nativert.runtime.users import User
from nativert.store import boot
from nativert.store.boot import Facts
from nativert.store.durable import Row

if TYPE_CHECKING:
    from nativert.runtime.diagnosis import Finding

_SCRIPT_OUTPUT_BYTES = 4096


def found(
    context: Context, row: Row, facts: Facts | None, plan: Any, error: ReportedError
) -> Finding:
    """Return why *plan*, a `launcher.plan.Program`, was not executed."""
    # Only a start that has failed pays for what looking into it needs.
    from nativert.runtime.diagnosis import Failure, plain
    from nativert.runtime.diagnosis_run import Inquiry

    failure = Failure(error.step, error.errno or 0, error.filename, error.strerror or "")
    if facts is None:
        return plain(failure)
    return Inquiry(context, row, facts).never(failure, plan)


def refusal(row: Row, finding: Finding) -> NativertError:
    """Return the error that a failed start becomes, with the code of a shell."""
    return NativertError(f"{row.name}: {finding.message}", code=finding.code, hint=finding.hint)


class ExecSession:
    """One program that was started inside; `master` is its terminal, if it has one."""

    def __init__(self, row: Row, channel: Channel, master: int | None) -> None:
        self._row = row
        self._channel = channel
        self.master = master

    def fileno(self) -> int:
        """Return the descriptor that is readable when its end has come."""
        return self._channel.sock.fileno()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for its end; return its exit code, 128+n on signal n. TimeoutError."""
        try:
            message, _ = self._channel.receive(timeout_s)
        except TimeoutError:
            raise
        except (EOFError, OSError) as e:
            raise NativertError(
                f"{self._row.name}: the session was lost with its instance", code=Code.FAILED
            ) from e
        code = int(message["code"])
        return code if code >= 0 else 128 - code

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size; see ioctl_tty(2)."""
        if self.master is not None:
            import fcntl
            import struct
            import termios

            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Give the session up: what still runs of it is killed."""
        try:
            # A thread that waits would keep the connection open past its close.
            self._channel.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # Closed already, or by the other side.
        self._channel.close()
        if self.master is not None:
            os.close(self.master)
            self.master = None


def start(
    context: Context,
    row: Row,
    plan: Any,
    *,
    stdio: Sequence[int],
    terminal: bool,
    verb: str = "exec",
) -> ExecSession:
    """Start a `launcher.plan.Program` inside; NativertError with a shell's code."""
    master = None
    try:
        channel = context.init(row.uuid)
    except OSError as e:
        raise _unreachable(row, verb) from e
    try:
        message = {"verb": verb, "program": plan._asdict(), "terminal": terminal}
        _, fds = channel.call(message, () if terminal else stdio)
        if terminal:
            master = fds[0]
            channel.receive()
    except ReportedError as e:
        channel.close()
        if master is not None:
            os.close(master)
        facts = boot.read_facts(context.paths, row.uuid)
        raise refusal(row, found(context, row, facts, plan, e)) from e
    except BaseException as e:
        channel.close()
        if master is not None:
            os.close(master)
        if isinstance(e, (OSError, EOFError)):
            raise _unreachable(row, verb) from e
        raise
    return ExecSession(row, channel, master)


def _unreachable(row: Row, verb: str) -> StepError:
    gone = ConnectionError(errno.ECONNRESET, "its init is gone or does not answer")
    return StepError(row.name, verb, gone, code=Code.RUN)


def session_program(
    descriptor: Descriptor,
    facts: Facts,
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    *,
    terminal: bool = False,
) -> Any:
    """Return the program of a session: who and where the application is."""
    user = User(*facts.details["user"])  # type: ignore[misc]
    extra = dict(env or {})
    if terminal:
        extra.setdefault("TERM", os.environ.get("TERM", "xterm"))
    limits: Any = facts.details["rlimits"]
    return program.build(descriptor, list(argv), user, limits, extra)


def script(
    context: Context,
    row: Row,
    descriptor: Descriptor,
    facts: Facts,
    argv: Sequence[str],
    *,
    limit_s: float,
) -> None:
    """Run the descriptor's script to its end; its failure is ours, with its output.

    So is one that has not ended after *limit_s*.
    """
    output = os.memfd_create("script", os.MFD_CLOEXEC)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        plan = session_program(descriptor, facts, argv, None)
        session = start(
            context, row, plan, stdio=(null, output, output), terminal=False, verb="script"
        )
        try:
            code = session.wait(limit_s)
        except TimeoutError as e:
            raise NativertError(
                f"{row.name}: configuration.script has not ended after {limit_s:g} s",
                code=Code.CONFIGURE,
                hint="what lasts belongs into the application",
            ) from e
        finally:
            session.close()
        if code:
            size = os.fstat(output).st_size
            tail = os.pread(output, _SCRIPT_OUTPUT_BYTES, max(0, size - _SCRIPT_OUTPUT_BYTES))
            text = tail.decode(errors="replace").strip() or "no output"
            raise NativertError(
                f"{row.name}: configuration.script ended with code {code}: {text}",
                code=Code.CONFIGURE,
            )
    finally:
        os.close(null)
        os.close(output)
