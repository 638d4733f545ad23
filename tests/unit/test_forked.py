import os
import signal
import time

import pytest
from forked import ForkedError, run_forked


class UnpicklableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_the_value_comes_back() -> None:
    child, parent = run_forked(lambda: (os.getpid(), os.getppid()))
    assert child != os.getpid()
    assert parent == os.getpid()


def test_an_exception_comes_back_with_its_type_fields_and_traceback() -> None:
    def body() -> None:
        os.open("/nowhere/at/all", os.O_RDONLY)

    with pytest.raises(FileNotFoundError) as caught:
        run_forked(body)
    assert caught.value.filename == "/nowhere/at/all"
    assert "in body" in caught.value.__notes__[0]


def test_a_failed_assertion_fails_the_test() -> None:
    def body() -> None:
        value = 1
        assert value == 2, "told"

    with pytest.raises(AssertionError, match="told"):
        run_forked(body)


def test_a_skip_in_the_body_is_a_skip() -> None:
    with pytest.raises(pytest.skip.Exception, match="no reason"):
        run_forked(lambda: pytest.skip("no reason"))


def test_an_exception_that_pickle_cannot_carry_keeps_its_text() -> None:
    def body() -> None:
        raise UnpicklableError("one", "two")

    with pytest.raises(ForkedError, match="UnpicklableError: one two") as caught:
        run_forked(body)
    assert "in body" in caught.value.__notes__[0]


def test_a_child_without_a_report_says_how_it_ended() -> None:
    with pytest.raises(ForkedError, match="SIGKILL"):
        run_forked(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ForkedError, match="exit code 3"):
        run_forked(lambda: os._exit(3))


def test_the_report_survives_the_closing_of_every_descriptor() -> None:
    def body() -> str:
        os.closerange(3, 1024)
        return "said"

    assert run_forked(body) == "said"


def test_a_report_too_large_is_an_error_and_not_a_truncation() -> None:
    with pytest.raises(ForkedError, match="bytes"):
        run_forked(lambda: b"x" * (1 << 21))


def test_a_child_that_hangs_is_killed_and_reaped() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        run_forked(signal.pause, timeout_s=0.2)
    assert time.monotonic() - started < 5
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
