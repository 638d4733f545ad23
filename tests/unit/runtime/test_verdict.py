"""How an end is told: reason, sentence and exit code from what init left behind."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.runtime import verdict
from nativert.runtime.views import End
from nativert.store.boot import ExecError, ExitFacts


def facts(**changes: object) -> ExitFacts:
    fields: dict[str, object] = {"run": 1, "boot_id": "b", "pid": 2, "exit_code": 0}
    return msgspec.convert(fields | {"cause": "exited"} | changes, ExitFacts)


CASES = [
    ({"exit_code": 0}, False, "exited", "exited with code 0", 0),
    ({"exit_code": 7}, False, "exited", "exited with code 7", 7),
    (
        {"exit_code": None, "signal": 15, "cause": "signal"},
        False,
        "signal",
        "ended by SIGTERM",
        143,
    ),
    (
        {"exit_code": None, "signal": 9, "cause": "oom", "oom_kills": 1, "peak_bytes": 63 << 20},
        False,
        "oom",
        "killed by the OOM killer at its memory limit of 64.0 MiB, peak 63.0 MiB",
        137,
    ),
    (
        {"exit_code": 1, "oom_kills": 2},
        False,
        "exited",
        "exited with code 1 after the OOM killer had taken 2 of its processes",
        1,
    ),
    ({"exit_code": 0}, True, "stopped", "stopped: exited with code 0", 0),
    (
        {"exit_code": None, "signal": 9, "cause": "signal"},
        True,
        "stopped",
        "stopped: ended by SIGKILL",
        137,
    ),
    # Stopping does not hide that the memory was not enough.
    (
        {"exit_code": None, "signal": 9, "cause": "oom", "oom_kills": 1},
        True,
        "oom",
        "killed by the OOM killer at its memory limit of 64.0 MiB",
        137,
    ),
    (
        {"exit_code": None, "signal": 40, "cause": "signal"},
        False,
        "signal",
        "ended by SIG40",
        168,
    ),
]


@pytest.mark.parametrize(("change", "stopping", "reason", "message", "code"), CASES)
def test_an_end_is_told_in_one_sentence(
    change: dict[str, object], stopping: bool, reason: str, message: str, code: int
) -> None:
    end = verdict.of_exit(facts(**change), stopping=stopping, memory_max=64 << 20)
    assert (end.reason, end.message, end.code) == (reason, message, code)
    assert end.oom is bool(change.get("oom_kills"))


def test_a_limit_that_was_not_set_is_not_named() -> None:
    killed = facts(exit_code=None, signal=9, cause="oom", oom_kills=1)
    end = verdict.of_exit(killed, stopping=False, memory_max=None)
    assert end.message == "killed by the OOM killer at its memory limit"


def test_a_program_that_could_not_be_executed_is_told_as_that() -> None:
    never = facts(
        cause="exec-failed", exit_code=None, error=ExecError(step="exec", errno=2, path="/bin/x")
    )
    end = verdict.of_exit(never, stopping=False, memory_max=None)
    assert end.reason == "exec-failed"
    assert end.message == "exec: No such file or directory: /bin/x"
    assert end.code == 125


def test_times_and_cpu_are_those_of_the_run() -> None:
    end = verdict.of_exit(
        facts(started_at=10.5, ended_at=12.0, cpu_ns=1_500_000_000), stopping=False, memory_max=None
    )
    assert (end.started_at, end.ended_at, end.cpu_s) == (10.5, 12.0, 1.5)
    assert verdict.of_exit(facts(), stopping=False, memory_max=None).cpu_s is None


def test_what_nobody_saw_invents_no_exit_code() -> None:
    for end in (verdict.init_lost(5.0), verdict.node_rebooted()):
        assert end.exit_code is None
        assert end.signal is None
        assert end.code == 125
    assert verdict.init_lost(5.0).started_at == 5.0


@given(
    st.builds(
        End,
        reason=st.sampled_from(["exited", "signal", "oom", "stopped", "init-lost"]),
        message=st.text(),
        exit_code=st.none() | st.integers(0, 255),
        signal=st.none() | st.sampled_from(["SIGKILL", "SIG40"]),
        oom=st.booleans(),
        peak_bytes=st.none() | st.integers(0, 1 << 60),
    )
)
def test_an_end_survives_the_store(end: End) -> None:
    assert verdict.decode(verdict.encode(end)) == end
    assert verdict.decode(None) is None
