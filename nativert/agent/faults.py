"""Errors on the wire: an exception becomes a status and an object, and the same exception again.

Both ends use this file, so that a command ends alike with an agent and without.
"""

from __future__ import annotations

import errno
from typing import Any

from nativert.errors import (
    Code,
    DescriptorError,
    NativertError,
    StepError,
    TransitionError,
    UnknownInstanceError,
)

_STATUS = {
    Code.USAGE: 400,
    Code.DESCRIPTOR: 400,
    Code.AMBIGUOUS: 400,
    Code.PERMISSION: 403,
    Code.NOT_FOUND: 404,
    Code.TRANSITION: 409,
    Code.NAME_TAKEN: 409,
    Code.PORT_TAKEN: 409,
    Code.NO_AGENT: 409,
    Code.REQUIREMENTS: 422,
    Code.UNENFORCEABLE: 422,
    Code.COMMAND_NOT_FOUND: 422,
    Code.NOT_EXECUTABLE: 422,
    Code.BUSY: 503,
    Code.TIMEOUT: 504,
    Code.ADDRESS_EXHAUSTED: 507,
    Code.IDS_EXHAUSTED: 507,
    Code.NO_SPACE: 507,
}
_CODES = {code.word: code for code in Code}


def status_of(code: Code) -> int:
    """Return the HTTP status that goes with a code; 500 for what is nobody's mistake."""
    return _STATUS.get(code, 500)


def known(error: BaseException) -> NativertError | None:
    """Return *error* as one of ours; None for a fault of nativert itself."""
    match error:
        case NativertError():
            return error
        case TimeoutError():
            return NativertError(_os_message(error), code=Code.TIMEOUT)
        case OSError(errno=errno.EPERM | errno.EACCES):
            return NativertError(_os_message(error), code=Code.PERMISSION)
        case OSError():
            return NativertError(_os_message(error))
    return None


def encode(error: NativertError) -> dict[str, Any]:
    """Return the object that stands under ``error`` in an answer."""
    told: dict[str, Any] = {
        "code": error.code.word,
        "message": _message(error),
        "hint": error.hint,
    }
    match error:
        case TransitionError():
            told["details"] = {
                "operation": error.operation,
                "state": error.state,
                "allowed": list(error.allowed),
                "name": error.name,
            }
        case UnknownInstanceError():
            told["details"] = {"instance": error.instance}
        case DescriptorError():
            told["details"] = {"field": error.field, "reason": error.reason}
    return told


def decode(told: dict[str, Any]) -> NativertError:
    """Return the exception that `encode` was given, or one with the same text and code."""
    details = told.get("details") or {}
    message, hint = str(told.get("message", "")), str(told.get("hint", ""))
    match details:
        case {"operation": operation, "state": state, "allowed": allowed}:
            return TransitionError(operation, state, allowed, name=str(details.get("name", "")))
        case {"instance": instance}:
            return UnknownInstanceError(instance)
        case {"field": field, "reason": reason}:
            return DescriptorError(field, reason, hint=hint)
    code = _CODES.get(str(told.get("code")), Code.FAILED)
    return NativertError(message, code=code, hint=hint)


def _message(error: NativertError) -> str:
    # The text of a group counts its members; the operator needs what they say.
    if isinstance(error, StepError) and isinstance(error.cause, BaseExceptionGroup):
        causes = "; ".join(_causes(error.cause))
        return f"{error.instance}: {error.step}: {causes}"
    return error.message


def _causes(group: BaseExceptionGroup[BaseException]) -> list[str]:
    told: list[str] = []
    for e in group.exceptions:
        if isinstance(e, BaseExceptionGroup):
            told += _causes(e)
        else:
            own = known(e)
            told.append(repr(e) if own is None else _message(own))
    return told


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason
