"""Every error that a command can end with, as a word, a text, a hint and an exit code."""

from __future__ import annotations

import errno
import signal

import click
import msgspec

from nativert.cli.interrupts import Interrupted
from nativert.errors import Code, NativertError, StepError, TransitionError

# nativert failed although the application had been started: docker's convention.
AFTER_START = 125


class Failure(msgspec.Struct, frozen=True):
    """One line on stderr; `code` is a word of `errors.Code` or of `views.End.reason`."""

    code: str
    message: str
    hint: str
    exit_code: int


class CommandError(Exception):
    """The command ends with exactly these failures."""

    def __init__(self, *failures: Failure) -> None:
        super().__init__(*failures)
        self.failures = failures


def after_start(error: BaseException) -> CommandError:
    """Return *error* as a failure that happened while the application was running."""
    return CommandError(*(Failure(f.code, f.message, f.hint, AFTER_START) for f in failures(error)))


def failures(error: BaseException) -> tuple[Failure, ...]:
    """Return what to tell of *error*; a fault of nativert itself is raised again."""
    match error:
        case CommandError():
            return error.failures
        case BaseExceptionGroup():
            return tuple(f for e in error.exceptions for f in failures(e))
        case TransitionError():
            return (_of_transition(error),)
        case NativertError():
            return (_of_code(error.code, _message(error), error.hint),)
        case click.UsageError():
            return (_of_usage(error),)
        case Interrupted(signum=signum):
            name = signal.Signals(signum).name
            return (Failure("interrupted", f"interrupted by {name}", "", 128 + signum),)
        case TimeoutError():
            return (_of_code(Code.TIMEOUT, _os_message(error), ""),)
        case OSError(errno=errno.EPERM | errno.EACCES):
            return (_of_code(Code.PERMISSION, _os_message(error), ""),)
        case OSError():
            return (_of_code(Code.FAILED, _os_message(error), ""),)
    raise error


def _of_code(code: Code, message: str, hint: str) -> Failure:
    return Failure(code.word, message, hint, code.exit_code)


def _of_transition(error: TransitionError) -> Failure:
    # `run` is another command, which begins with define.
    def command(operation: str) -> str:
        return "start" if operation == "run" else operation

    told = TransitionError(
        command(error.operation), error.state, [*map(command, error.allowed)], name=error.name
    )
    return _of_code(told.code, told.message, told.hint)


def _message(error: NativertError) -> str:
    # The text of a group counts its members; the operator needs what they say.
    if isinstance(error, StepError) and isinstance(error.cause, BaseExceptionGroup):
        causes = "; ".join(f.message for f in failures(error.cause))
        return f"{error.instance}: {error.step}: {causes}"
    return error.message


def _of_usage(error: click.UsageError) -> Failure:
    text = error.format_message().strip().removesuffix(".")
    message = text[:1].lower() + text[1:]
    path = error.ctx.command_path if error.ctx else "nativert"
    # command_path begins with the program's name, which the printed line has already.
    command = path.partition(" ")[2]
    return _of_code(
        Code.USAGE, f"{command}: {message}" if command else message, f"see {path} --help"
    )


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason
