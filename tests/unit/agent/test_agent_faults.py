"""Errors come back from the wire as they were sent."""

from __future__ import annotations

import pytest

from nativert.agent import faults
from nativert.errors import (
    Code,
    DescriptorError,
    NativertError,
    StepError,
    TransitionError,
    UnknownInstanceError,
)


@pytest.mark.parametrize(
    "error",
    [
        NativertError("a: b", code=Code.TIMEOUT, hint="h"),
        TransitionError("pause", "PAUSED", ("resume", "stop")),
        UnknownInstanceError("nobody"),
        DescriptorError("native.cpu", "is wrong", hint="like this"),
    ],
)
def test_an_error_comes_back_as_it_was(error: NativertError) -> None:
    again = faults.decode(faults.encode(error))
    assert type(again) is type(error)
    assert (again.message, again.hint, again.code) == (error.message, error.hint, error.code)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_status_and_comes_back(code: Code) -> None:
    assert 400 <= faults.status_of(code) < 600
    assert faults.decode(faults.encode(NativertError("x", code=code))).code is code


def test_the_causes_of_a_step_are_all_told() -> None:
    group = ExceptionGroup("two", [OSError(5, "Input/output error", "/x"), NativertError("b")])
    told = faults.encode(StepError("app", "clean", group, code=Code.CLEAN))
    assert told["message"] == "app: clean: /x: Input/output error; b"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError(110, "late"), Code.TIMEOUT),
        (PermissionError(13, "no", "/f"), Code.PERMISSION),
        (OSError(28, "full"), Code.FAILED),
    ],
)
def test_what_the_kernel_refuses_has_a_code(error: OSError, code: Code) -> None:
    known = faults.known(error)
    assert known is not None
    assert known.code is code


def test_a_fault_of_nativert_is_not_dressed_up() -> None:
    assert faults.known(KeyError("x")) is None
