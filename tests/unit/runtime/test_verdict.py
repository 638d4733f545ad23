"""How an end is told: reason, sentence and exit code from what init and the kernel left."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nativert.isolation.cgroups.limits import Limits
from nativert.runtime import verdict
from nativert.runtime.diagnosis import Failure, Finding
from nativert.runtime.diagnosis_kernel import Oom
from nativert.runtime.views import End, Fault, Reason
from nativert.store.boot import ExitFacts, StopFacts

LIMITS = Limits(memory_max=64 << 20, pids_max=32)
LATE = "did not end within 10 s of SIGTERM, and was killed"
AT_LIMIT = "killed by the OOM killer at its memory limit of 64.0 MiB"


class Evidence:
    """What would be found out; asking for what is not given is a fault of the test."""

    def __init__(
        self,
        *,
        oom: Oom | None = None,
        call: str | None = None,
        finding: Finding | None = None,
        fate: str = "",
    ) -> None:
        self._oom, self._call, self._finding, self._fate = oom, call, finding, fate

    def oom(self, ended: ExitFacts) -> Oom | None:
        return self._oom

    def system_call(self, ended: ExitFacts) -> str | None:
        return self._call

    def unstarted(self, ended: ExitFacts) -> Finding | None:
        return self._finding

    def never(self, failure: Failure) -> Finding:
        return self._finding or Finding("other", f"{failure.step}: {failure.text}")

    def init_fate(self) -> str:
        return self._fate


def nobody() -> Evidence:
    raise AssertionError("an ordinary end looks nowhere else")


def facts(**changes: object) -> ExitFacts:
    fields: dict[str, object] = {"run": 1, "boot_id": "b", "pid": 2, "exit_code": 0}
    return msgspec.convert(fields | {"cause": "exited"} | changes, ExitFacts)


def by_signal(number: int, **changes: object) -> ExitFacts:
    return facts(**{"exit_code": None, "signal": number, "cause": "signal"} | changes)


def oom(**changes: object) -> ExitFacts:
    return by_signal(9, **{"cause": "oom", "oom_kills": 1} | changes)


def told(
    ended: ExitFacts,
    *,
    stop: StopFacts | None = None,
    limits: Limits | None = LIMITS,
    inquire: Callable[[], verdict.Inquiry] = nobody,
) -> End:
    return verdict.of_exit(ended, stop=stop, limits=limits, inquire=inquire)


def stopping(**changes: object) -> StopFacts:
    fields: dict[str, object] = {"why": "stop", "signal": 15, "at": 100.0, "grace_s": 10.0}
    return msgspec.convert(fields | changes, StopFacts)


# -- by itself, by a signal ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "reason", "message", "code"),
    [
        (facts(exit_code=0), "exited", "exited with code 0", 0),
        (facts(exit_code=7), "exited", "exited with code 7", 7),
        (by_signal(15), "signal", "ended by SIGTERM", 143),
        (by_signal(40), "signal", "ended by SIG40", 168),
        (
            by_signal(1, asked={"signal": 1, "at": 5.0}),
            "signal",
            "ended by SIGHUP, which `kill` had sent",
            129,
        ),
        (by_signal(9, asked={"signal": 1, "at": 5.0}), "signal", "ended by SIGKILL", 137),
    ],
)
def test_an_end_is_told_in_one_sentence(
    ended: ExitFacts, reason: str, message: str, code: int
) -> None:
    end = told(ended)
    assert (end.reason, end.message, end.code) == (reason, message, code)
    assert not end.oom
    assert end.sender == ("kill" if "kill" in message else None)


def test_refused_forks_are_told_with_the_limit() -> None:
    end = told(facts(exit_code=1, pids_events=3))
    assert (
        end.message == "exited with code 1; its pids limit of 32 had refused it a process 3 times"
    )
    assert (end.reason, end.pids_refused, end.pids_max) == ("exited", 3, 32)
    once = told(facts(exit_code=1, pids_events=1), limits=None)
    assert once.message == "exited with code 1; its pids limit had refused it a process once"
    assert told(facts(pids_events=0)).pids_refused is None


# -- out of memory -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "found", "limits", "by", "message"),
    [
        (
            oom(oom_events=1, peak_bytes=63 << 20),
            None,
            LIMITS,
            "limit",
            f"{AT_LIMIT}, peak 63.0 MiB",
        ),
        (oom(), Oom("limit"), LIMITS, "limit", AT_LIMIT),
        (oom(), Oom("limit"), Limits(), "limit", "killed by the OOM killer at its memory limit"),
        (
            oom(oom_events=0),
            None,
            LIMITS,
            "host",
            "killed by the OOM killer, which the host's memory and not its own limit called",
        ),
        (
            oom(),
            None,
            None,
            "host",
            "killed by the OOM killer, which the host's memory and not its own limit called",
        ),
        (
            oom(oom_events=0),
            Oom("above", "/box"),
            LIMITS,
            "above",
            "killed by the OOM killer at the memory limit of /box above it",
        ),
        # Nothing tells whose memory it was: no claim.
        (oom(), None, LIMITS, None, "killed by the OOM killer"),
    ],
)
def test_whose_memory_it_was(
    ended: ExitFacts, found: Oom | None, limits: Limits | None, by: str | None, message: str
) -> None:
    end = told(ended, limits=limits, inquire=lambda: Evidence(oom=found))
    assert (end.reason, end.oom, end.oom_by, end.message) == ("oom", True, by, message)
    assert (end.signal, end.code, end.oom_kills) == ("SIGKILL", 137, 1)


def test_an_oom_of_a_child_only_is_told_beside_the_exit() -> None:
    end = told(facts(exit_code=1, oom_kills=2), inquire=lambda: Evidence(oom=Oom("limit")))
    assert end.message == ("exited with code 1 after 2 of its processes had been " + AT_LIMIT)
    assert (end.reason, end.oom, end.oom_kills, end.oom_by) == ("exited", True, 2, "limit")


def test_stopping_does_not_hide_that_the_memory_was_not_enough() -> None:
    end = told(oom(oom_events=1), stop=stopping(), inquire=Evidence)
    assert (end.reason, end.message) == ("oom", AT_LIMIT)


# -- stopped -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "ended", "reason", "message", "sender"),
    [
        ({}, facts(), "stopped", "stopped: exited with code 0", None),
        ({}, by_signal(15), "stopped", "stopped: ended by SIGTERM", "stop"),
        (
            {"killed_at": 110.0},
            by_signal(9),
            "stop-timeout",
            "stopped: " + LATE,
            "stop",
        ),
        (
            {"why": "force", "signal": 9},
            by_signal(9),
            "stopped",
            "stopped by force: ended by SIGKILL",
            "force",
        ),
        (
            {"why": "health", "note": "3 of 3 probes failed"},
            by_signal(15),
            "unhealthy",
            "stopped because its health check failed (3 of 3 probes failed): ended by SIGTERM",
            "health",
        ),
        (
            {"why": "dependency", "note": "db"},
            facts(exit_code=3),
            "dependency",
            "stopped because what it depends on failed (db): exited with code 3",
            None,
        ),
        (
            {"why": "shutdown", "killed_at": 110.0},
            by_signal(9),
            "node-shutdown",
            "stopped because the node was shut down: " + LATE,
            "shutdown",
        ),
    ],
)
def test_who_stopped_it_and_how_it_took_that(
    stop: dict[str, object], ended: ExitFacts, reason: str, message: str, sender: str | None
) -> None:
    end = told(ended, stop=stopping(**stop))
    assert (end.reason, end.message, end.sender) == (reason, message, sender)
    assert end.timed_out is ("killed_at" in stop)


def test_what_had_ended_before_the_stop_was_not_stopped() -> None:
    end = told(facts(exit_code=4, ended_at=99.9), stop=stopping())
    assert (end.reason, end.message) == ("exited", "exited with code 4")
    assert told(facts(ended_at=100.1), stop=stopping()).reason == "stopped"


# -- seccomp, exec -------------------------------------------------------------------------


def test_a_kill_by_seccomp_names_the_system_call() -> None:
    end = told(by_signal(31), inquire=lambda: Evidence(call="ptrace"))
    assert (end.reason, end.system_call, end.code) == ("seccomp", "ptrace", 159)
    assert end.message == "killed by seccomp (SIGSYS) for the system call ptrace"


def test_without_a_record_seccomp_is_a_likeness_only() -> None:
    end = told(by_signal(31), inquire=Evidence)
    assert (end.reason, end.system_call) == ("signal", None)
    assert end.message == "ended by SIGSYS, as seccomp does; no record names a call"
    sent = told(by_signal(31, asked={"signal": 31, "at": 1.0}))
    assert sent.message == "ended by SIGSYS, which `kill` had sent"


def test_a_program_that_could_not_come_up_is_told_as_that() -> None:
    finding = Finding("missing-library", "/app/x needs the library libx.so.1", "libx.so.1")
    end = told(facts(exit_code=127), inquire=lambda: Evidence(finding=finding))
    assert (end.reason, end.fault, end.path) == ("exec-failed", "missing-library", "libx.so.1")
    assert end.message == "exited with code 127: /app/x needs the library libx.so.1"
    assert end.code == 127
    plain = told(facts(exit_code=127), inquire=Evidence)
    assert (plain.reason, plain.fault) == ("exited", None)


def test_a_program_that_was_never_executed_is_told_as_that() -> None:
    never = facts(cause="exec-failed", exit_code=None, error={"step": "cgroup", "errno": 2})
    end = told(never, inquire=Evidence)
    assert (end.reason, end.message) == ("exec-failed", "cgroup: No such file or directory")


@pytest.mark.parametrize(
    ("fault", "code"),
    [("not-found", 127), ("wrong-architecture", 126), ("busy", 126), ("other", 125), (None, 125)],
)
def test_the_code_of_what_was_not_executed_is_a_shells(fault: Fault | None, code: int) -> None:
    assert End(reason="exec-failed", message="", fault=fault).code == code


# -- the rest ------------------------------------------------------------------------------


def test_times_and_cpu_are_those_of_the_run() -> None:
    end = told(facts(started_at=10.5, ended_at=12.0, cpu_ns=1_500_000_000))
    assert (end.started_at, end.ended_at, end.cpu_s) == (10.5, 12.0, 1.5)
    assert told(facts()).cpu_s is None


def test_what_nobody_saw_invents_no_exit_code() -> None:
    for end in (verdict.init_lost(5.0), verdict.node_rebooted(), verdict.dependency_failed("db")):
        assert end.exit_code is None
        assert end.signal is None
        assert end.code == 125
    assert verdict.init_lost(5.0).started_at == 5.0
    lost = verdict.init_lost(None, "was killed by the OOM killer")
    assert lost.message.startswith("its init was killed by the OOM killer, and with it")
    assert told(facts(cause="unknown", exit_code=None)).message == "ended, and nothing tells how"


@given(
    st.builds(
        End,
        reason=st.sampled_from(get_args(Reason)),
        message=st.text(),
        exit_code=st.none() | st.integers(0, 255),
        signal=st.none() | st.sampled_from(["SIGKILL", "SIG40"]),
        oom=st.booleans(),
        peak_bytes=st.none() | st.integers(0, 1 << 60),
        fault=st.none() | st.sampled_from(get_args(Fault)),
        timed_out=st.booleans(),
    )
)
def test_an_end_survives_the_store(end: End) -> None:
    assert verdict.decode(verdict.encode(end)) == end
    assert verdict.decode(None) is None
