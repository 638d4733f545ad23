"""The closed list of error codes, and the exceptions that carry them.

A refusal by the kernel stays an `OSError` until `runtime` wraps it once in a
`StepError`. Everything that nativert itself decides is a `NativertError`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class Code(enum.Enum):
    """One word per kind of error: (word, fog05 integer, exit code).

    The fog05 integers are the SDK's ErrorCodes (UNDEFINE 0 .. HYPERVISOR 41).
    """

    FAILED = ("failed", 10, 1)
    USAGE = ("usage", 1, 2)
    DESCRIPTOR = ("bad-descriptor", 1, 2)
    AMBIGUOUS = ("ambiguous", 11, 2)
    NOT_FOUND = ("not-found", 11, 3)
    TRANSITION = ("refused-transition", 10, 4)
    NAME_TAKEN = ("name-taken", 1, 4)
    PORT_TAKEN = ("port-taken", 33, 4)
    ADDRESS_EXHAUSTED = ("no-address-left", 22, 1)
    NO_SPACE = ("no-space-left", 10, 1)
    IDS_EXHAUSTED = ("no-id-range-left", 2, 1)
    IMAGE = ("image", 21, 1)
    NETWORK = ("network", 22, 1)
    REQUIREMENTS = ("requirements", 23, 1)
    UNENFORCEABLE = ("unenforceable-limit", 23, 1)
    CONFIGURE = ("configure", 2, 1)
    CLEAN = ("clean", 3, 1)
    RUN = ("run", 4, 1)
    STOP = ("stop", 5, 1)
    PAUSE = ("pause", 6, 1)
    SCALE = ("scale", 7, 1)
    UNDEFINE = ("undefine", 0, 1)
    MIGRATE = ("migrate", 10, 1)
    STORE = ("store", 10, 1)
    LAUNCHER = ("launcher", 41, 1)
    NO_AGENT = ("no-agent", 41, 5)
    BUSY = ("busy", 10, 1)
    TIMEOUT = ("timed-out", 10, 6)
    PERMISSION = ("not-permitted", 10, 7)
    NOT_EXECUTABLE = ("not-executable", 4, 126)
    COMMAND_NOT_FOUND = ("command-not-found", 4, 127)

    def __init__(self, word: str, fog05: int, exit_code: int) -> None:
        self.word = word
        self.fog05 = fog05
        self.exit_code = exit_code


class NativertError(Exception):
    """Something that nativert refuses or could not do.

    `hint` says how to mend it, where that is known.
    """

    code: Code = Code.FAILED

    def __init__(self, message: str, *, code: Code | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class DescriptorError(NativertError):
    """A descriptor, record or argument is not acceptable; `field` is its path."""

    code = Code.DESCRIPTOR

    def __init__(self, field: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{field}: {reason}", hint=hint)
        self.field = field
        self.reason = reason


class TransitionError(NativertError):
    """The state machine has no such edge; nothing was changed. `name` is the instance's."""

    code = Code.TRANSITION

    def __init__(
        self, operation: str, state: str, allowed: Sequence[str], *, name: str = ""
    ) -> None:
        self.operation = operation
        self.state = state
        self.allowed = tuple(allowed)
        self.name = name
        choices = ", ".join(allowed) or "nothing"
        whose = f"{name}: " if name else ""
        super().__init__(
            f"{whose}cannot {operation}: the instance is {state}", hint=f"allowed: {choices}"
        )

    def of(self, name: str) -> TransitionError:
        """Return this refusal with the name of the instance that it is about."""
        return TransitionError(self.operation, self.state, self.allowed, name=name)


class UnknownInstanceError(NativertError):
    """No instance has this UUID, prefix or name."""

    code = Code.NOT_FOUND

    def __init__(self, instance: str) -> None:
        super().__init__(f"{instance}: no such instance", hint="see nativert ps -a")
        self.instance = instance


class StepError(NativertError):
    """One step of an operation failed; what it had acquired is released."""

    def __init__(
        self, instance: str, step: str, cause: BaseException, *, code: Code, hint: str = ""
    ) -> None:
        super().__init__(f"{instance}: {step}: {cause}", code=code, hint=hint)
        self.instance = instance
        self.step = step
        self.cause = cause
